"""Deciding a ledger again: the proof that a study's decisions follow from its events, and what others would decide."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import zip_longest

from isoloss.domain.spec import StudySpec
from isoloss.errors import IsolossError
from isoloss.search.answers import Incumbent, Result
from isoloss.search.events import ENQUEUED, Asked, CreateTask, Decision, Event, Proposed, TaskDone
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
    """How many events were decided again, the search they made, and where that first differed from the record."""

    events: int
    search: Search
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
            return ReplayReport(events=number, search=search, difference=difference)
    return ReplayReport(events=number, search=search)


@dataclass(frozen=True, slots=True, kw_only=True)
class Counterfactual:
    """What another method would have run: ``known`` tasks for ``budget``, and ``unknown`` ones nobody ever measured."""

    known: int
    unknown: int
    budget: int
    best: Incumbent | None


def replay_other(search: Search, spec: StudySpec) -> Counterfactual:
    """What the method of ``spec`` would have done with the configurations and results of ``search``.

    It starts the same configurations in the same order. A task whose configuration was never measured at its budget
    stays without a result, and what would have followed from it is not known: the more ``unknown``, the less this says.
    """
    trials = [search.trial(number) for number in range(search.trials)]
    results: dict[tuple[str, int], Result] = {}
    for trial in trials:
        for level in range(search.ladder.top + 1):
            if (result := search.result(trial.number, level)) is not None:
                results[repr(sorted(trial.configuration.items())), search.ladder.budget(level)] = result
    other = Search(spec)
    other.apply(Proposed(configurations=tuple(trial.configuration for trial in trials), source=ENQUEUED))
    known = unknown = budget = 0
    while other.startable() and other.trials <= len(trials):
        task = next(made for made in other.apply(Asked()) if isinstance(made, CreateTask))
        configuration = other.trial(task.trial).configuration
        found = results.get((repr(sorted(configuration.items())), task.budget_to))
        if found is None:
            unknown += 1
        else:
            known, budget = known + 1, budget + task.budget_to - task.budget_from
            other.apply(TaskDone(trial=task.trial, level=task.level, status=found.status, score=found.score))
    return Counterfactual(known=known, unknown=unknown, budget=budget, best=other.best())
