"""Why a trial is not running: one reason code and one sentence for each, from the search alone."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from isoloss.search.answers import Trial
from isoloss.search.judging import worthless
from isoloss.search.rung import Rung
from isoloss.search.search import ADDED, Search


class Code(StrEnum):
    """What a trial that is not running waits for, or why it waits for nothing."""

    DUE = "due"  # goes up with the next free worker
    AWAITS_RUNG = "awaits_rung"  # its rung is not complete
    OUTRANKED = "outranked"  # its rung is complete and others went up
    AT_TOP = "at_top"  # measured at the largest budget
    ADDED = "added"  # outside brackets: measured where it was asked for
    CONFIRM = "confirm"  # a finalist's run with another seed
    DIVERGED = "diverged"
    FAILED = "failed"
    CANCELLED = "cancelled"
    VETOED = "vetoed"  # a formula of the preference already says that D is 0
    STOPPED = "stopped"  # the study ended before it was decided


@dataclass(frozen=True, slots=True, kw_only=True)
class Reason:
    """Why a trial, last measured at ``level``, is not running."""

    trial: int
    level: int
    code: Code
    sentence: str


def reasons(search: Search) -> tuple[Reason, ...]:
    """The reason of every trial that has no task to run, in order of creation."""
    highest = dict(search.tasks.keys())  # a trial's tasks are created level by level
    found = []
    for number, level in highest.items():
        if not search.runs(number, level):
            code, sentence = _reason(search, search.trial(number), level)
            if number in search.dropped and search.stopped is None:
                sentence += " Its checkpoint was dropped: it would begin again."
            found.append(Reason(trial=number, level=level, code=code, sentence=sentence))
    return tuple(found)


def _reason(search: Search, trial: Trial, level: int) -> tuple[Code, str]:
    result, budget = search.result(trial.number, level), search.ladder.budget(level)
    if result is None or result.status == "cancelled":
        if worthless(search.spec, trial):
            return Code.VETOED, "Its parameters alone make D = 0, by a formula of the preference: it was never run."
        return Code.CANCELLED, f"Its task at {budget} was cancelled."
    if result.status == "failed":
        return Code.FAILED, f"Its task at {budget} failed and ranks last: `retry --failed` runs it again."
    if result.score is None:
        return Code.DIVERGED, f"It diverged on the way to {budget} and ranks last."
    if trial.repeat:
        return Code.CONFIRM, f"It ran a finalist again, with seed {trial.repeat} after the study's, at {budget}."
    if trial.bracket == ADDED:
        return Code.ADDED, f"It was added outside the brackets and is measured at {budget}."
    if level == search.ladder.top:
        return Code.AT_TOP, f"It is measured at the largest budget, {budget}: deepening may take it further."
    rung, following = (search.brackets[trial.bracket].rungs[level + step] for step in (0, 1))
    return _standing(search, rung, following, trial.index)


def _standing(search: Search, rung: Rung, following: Rung, index: int) -> tuple[Code, str]:
    place = f"It ranks {rung.ranked.bisect_left(rung.results[index]) + 1} of {len(rung.results)} in its rung"
    if following.members is not None and index in following.members:
        return Code.DUE, f"{place} and goes up with the next free worker."
    if following.members is not None:
        return Code.OUTRANKED, f"{place} and {len(following.members)} go up: deepening or widening may revive it."
    if search.stopped is not None:
        return Code.STOPPED, f"{place}, which was not complete when the study stopped."
    return Code.AWAITS_RUNG, f"{place}, which is not complete; {following.quota} of at most {rung.quota} will go up."
