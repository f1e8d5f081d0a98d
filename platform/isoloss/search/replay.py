"""Deciding a ledger again: the proof that a study's decisions follow from its events."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import zip_longest

from isoloss.domain.spec import StudySpec
from isoloss.errors import IsolossError
from isoloss.search.events import Decision, Event
from isoloss.search.search import Search


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """The first event decided otherwise. ``got`` is ``None`` with ``error``: the event was refused."""

    number: int
    event: Event | None
    expected: tuple[Decision, ...] | None
    got: tuple[Decision, ...] | None
    error: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayReport:
    """How many events were decided again, and where that first differed from the record."""

    events: int
    difference: Difference | None = None

    @property
    def ok(self) -> bool:
        """Whether every decision came out as recorded."""
        return self.difference is None


def replay(spec: StudySpec, events: Iterable[Event], recorded: Iterable[Sequence[Decision]]) -> ReplayReport:
    """Fold the events into a new search and compare with the decisions recorded for each, in order.

    Stops at the first difference and names its event, counted from 1 as in the ledger.
    """
    search, number = Search(spec), 0
    for number, (event, decisions) in enumerate(zip_longest(events, recorded), 1):
        expected = None if decisions is None else tuple(decisions)
        got, error = None, "There is a record without an event."
        if event is not None:
            try:
                got, error = search.apply(event), ""
            except IsolossError as refused:
                error = str(refused)
        if got is None or got != expected:
            difference = Difference(number=number, event=event, expected=expected, got=got, error=error)
            return ReplayReport(events=number, difference=difference)
    return ReplayReport(events=number)
