"""Which checkpoints a search may still resume from: the rule behind ``fidelity.keep``.

A trial is *spare* when nothing takes it up again. It diverged; or its rung is settled (until then the settled best is not
known) and it stays below the next one:

``planned``  the next rung is settled too, and the trial is not due: the plan as it is has no more use for it
``needed``   not even one deepening or one widening could send it up, because enough trials are ahead of it to fill the
             largest quota that the next rung then has

Ahead means better on every rung that the trial was measured on. Whoever is ahead stays ahead whatever arrives later, and
is a member wherever the trial is one; so it goes up first, for every variant, arrival order and number of workers. Rank
on the last rung alone would not do: a member set is made of the members below, and who leads there may be none of them
once more configurations compete. Where a rung takes everything measured below into account, rank is enough.

A change beyond that, a retry or ``Rescored`` may still promote a spare trial, which then begins from step 0: the ledger
knows (``Dropped``) and prices it so. Never spare are the best, trials added by hand, failures that `retry` would resume,
and losers of a study that widens by itself.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from collections.abc import Set as AbstractSet
from dataclasses import replace
from enum import IntEnum
from itertools import chain, islice
from typing import Literal

from isoloss.errors import InvalidSpec
from isoloss.search.deepening import Bracket
from isoloss.search.geometry import Plan
from isoloss.search.rung import Key
from isoloss.search.search import ADDED, Search
from isoloss.search.standing import settled_best


class Regret(IntEnum):
    """What it costs that a trial's checkpoint goes to make room, the least first; whatever ``fidelity.keep`` says."""

    STOPPED = 1  # nothing resumes in a stopped study: a model that is not the best
    UNNEEDED = 2  # not even one deepening or one widening would resume from it
    UNPLANNED = 3  # a deepening or a widening may begin it again
    WAITING = 4  # the plan as it is may begin it again


def expendable(search: Search) -> Iterator[tuple[Regret, int]]:
    """The trials whose checkpoints may go to make room, least regretted first: then those of the lowest level, the worst first.

    Never the best and the settled best, what runs or waits for a worker, what `retry` would resume, and what was added by hand.
    """
    safe = {trial for trial, _ in bests(search)} | search.dropped
    unneeded, unplanned = set(spare(search, "needed")), set(spare(search, "planned"))
    found = []
    for trial, level in dict(search.tasks.keys()).items():  # a trial's tasks are created level by level
        result, by_hand = search.result(trial, level), search.trial(trial).bracket == ADDED
        if search.stopped is not None and trial in unplanned:
            regret = Regret.STOPPED
        elif trial in unneeded:
            regret = Regret.UNNEEDED
        elif trial in unplanned:
            regret = Regret.UNPLANNED
        elif search.stopped is None and not by_hand and result is not None and result.status != "failed":
            regret = Regret.WAITING
        else:
            continue
        if trial not in safe:
            score = None if result is None else result.score
            found.append((regret, level, score is not None, -(score or 0.0), trial))
    return ((regret, trial) for regret, *_, trial in sorted(found))


def spare(search: Search, keep: Literal["all", "needed", "planned"] | None = None) -> tuple[int, ...]:
    """The trials whose checkpoints nothing will resume from, without those dropped before; all but the best once stopped.

    The best trial, and the best of the settled rungs, are never spare. To ``keep`` is as the spec says unless it is given.
    """
    keep = keep or search.spec.fidelity.kept
    if keep == "all":
        return ()
    safe = {trial for trial, _ in bests(search)} | search.dropped
    found: Iterable[int] = (n for n in range(search.trials) if search.trial(n).bracket != ADDED)
    if search.stopped is None:
        found = (trial for bracket in search.brackets for trial in _spare_of(search, bracket, safe, keep))
    if (again := search.confirmation) is not None:  # nothing goes on from a further run
        found = chain(found, (trial for trial in again.trials.values() if not search.runs(trial, again.level)))
    return tuple(sorted(trial for trial in found if trial not in safe))


def bests(search: Search) -> frozenset[tuple[int, int]]:
    """The (trial, level) of the best result and of the settled best: models a user may want whatever goes up."""
    found = (search.best(), settled_best(search))
    return frozenset((one.trial, one.level) for one in found if one is not None)


def _spare_of(search: Search, bracket: Bracket, safe: AbstractSet[int], keep: str) -> Iterator[int]:
    room = _room(search.plan, bracket)
    for level, rung in bracket.rungs.items():
        settled, due = bracket.members(level) is not None, None if rung.due is None else frozenset(rung.due)
        for place, key in enumerate(rung.ranked):
            trial = bracket.trials[key[2]]
            result = search.result(trial, level)
            if (
                trial in safe
                or key[2] in rung.sent
                or search.runs(trial, level)
                or result is None
                or result.status == "failed"
            ):
                continue
            if key[0] or (settled and not _may_rise(search, bracket, level, place, room[level], due, keep)):
                yield trial


def _may_rise(
    search: Search, bracket: Bracket, level: int, place: int, room: int, due: frozenset[Key] | None, keep: str
) -> bool:
    """Whether the trial at this place of the rung may still be resumed above it; ``due`` is unknown until settled."""
    fidelity = search.spec.fidelity
    if fidelity.mode == "fresh":
        return False
    if search.spec.method.width == "auto":
        return True
    if keep == "planned":
        return level < bracket.top and (due is None or bracket.rungs[level].ranked[place] in due)
    return place < room or _ahead(bracket, level, place, room) < room


def _ahead(bracket: Bracket, level: int, place: int, most: int) -> int:
    """How many of those that rank before this place are ahead of the trial there wherever it matters, counted to ``most``."""
    if level == bracket.number or bracket.kept != "none":
        return place
    ranked, lower = bracket.rungs[level].ranked, [bracket.rungs[j].results for j in range(bracket.number, level)]
    index = ranked[place][2]
    better = (other for _, _, other in ranked[:place] if all(results[other] < results[index] for results in lower))
    return sum(1 for _ in islice(better, most))


def _room(plan: Plan, bracket: Bracket) -> dict[int, int]:
    """The most that may go up from each level of the bracket after at most one deepening or widening."""
    room = dict.fromkeys(bracket.rungs, 0)
    for one in (plan, *_changed(plan)):
        for level, quota in enumerate(one.quotas(bracket.number)[1:], bracket.number):
            room[level] = max(room[level], quota)
    return room


def _changed(plan: Plan) -> Iterator[Plan]:
    """The plan deepened by one level, and widened by one; a plan without quotas cannot be widened."""
    if plan.fixed is None:
        with contextlib.suppress(InvalidSpec):  # as deep as a study may be
            yield replace(plan, ladder=plan.ladder.extended(1))
        if not plan.endless:
            yield replace(plan, width=plan.width + 1)
