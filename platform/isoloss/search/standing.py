"""How a search stands, read from its results: whom to trust, how alike its levels rank, what failed."""

from __future__ import annotations

import math
from typing import Final

from isoloss.errors import WrongState
from isoloss.search.answers import Agreement, Incumbent
from isoloss.search.events import Retried
from isoloss.search.search import Search

FEWEST: Final = 5  # trials at both of two levels, before their ranks are compared


def settled_best(search: Search) -> Incumbent | None:
    """The best member of the highest settled rung; where more budget can make a metric worse, the one to trust."""
    marks = [
        (-level, result.score, trial)
        for bracket in search.brackets
        for level in bracket.rungs
        for trial in bracket.members(level) or ()
        if (result := search.result(trial, level)) is not None and result.score is not None
    ]
    if not marks:
        return None
    minus_level, score, trial = min(marks)
    configuration = search.trial(trial).configuration
    return Incumbent(trial=trial, level=-minus_level, score=score, configuration=configuration)


def agreement(search: Search) -> Agreement | None:
    """How alike the two highest levels that can be compared rank the trials measured at both; ``None`` below five.

    Near 1 the lower budget ranks as well as the higher one, and deepening will not change the answer much.
    """
    scores: dict[int, dict[int, float]] = {}
    for (trial, level), result in search.tasks.items():
        if result is not None and result.score is not None:
            scores.setdefault(level, {})[trial] = result.score
    for level in sorted(scores, reverse=True):
        below = scores.get(level - 1, {})
        both = [trial for trial in scores[level] if trial in below]
        if len(both) >= FEWEST:
            from scipy.stats import spearmanr

            rho = float(spearmanr([below[t] for t in both], [scores[level][t] for t in both]).statistic)
            return None if math.isnan(rho) else Agreement(level=level, trials=len(both), spearman=rho)
    return None


def failures(search: Search) -> tuple[tuple[int, int], ...]:
    """The tasks that failed and do not run again, as (trial, level)."""
    return tuple(
        task
        for task, result in search.tasks.items()
        if result is not None and result.status == "failed" and not search.runs(*task)
    )


def retries(search: Search, trials: frozenset[int]) -> tuple[Retried, ...]:
    """What runs the failed tasks of these trials again, of all when there are none; ``WrongState`` for one that has none."""
    failed = failures(search)
    if unknown := sorted(trials - {trial for trial, _ in failed}):
        raise WrongState(f"retry.trials has {unknown[0]}, which did not fail; accepted are trials that failed.")
    return tuple(Retried(trial=trial, level=level) for trial, level in failed if not trials or trial in trials)
