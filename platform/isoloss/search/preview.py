"""What a study will run and what that costs, before it runs: the plan in the words of ``study preview --json``.

Counts are those of the synchronous search, which ``settled`` reaches and may exceed by wrong early promotions. Budgets
are the rounded ones a worker is given, in the budget's unit. What deepening adds is exact for ``efficient`` and a lower
bound otherwise, because a promotion of the smaller plan need not be one of the larger;
``expected_added_budget`` and ``most_added_budget`` say what to expect then.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from isoloss.domain.spec import StudySpec
from isoloss.search.events import Deepened, Widened
from isoloss.search.geometry import ENDLESS, Ladder, Plan, plan_of
from isoloss.search.search import Search

Counts = list[list[int]]  # configurations by bracket and rung


def preview(spec: StudySpec, deepen: Sequence[float] = ()) -> dict[str, Any]:
    """The plan of a study, or with ``deepen`` the plan at the last of these maxima and what that last step adds.

    ``restart_budget`` is the cost of the same end by starting again at every maximum. Totals are ``None`` for a study
    without an end. Raises ``InvalidSpec`` or ``WrongState`` as deepening itself would.
    """
    plans = [plan_of(spec)]
    for maximum in deepen:
        plans.append(plans[-1].deepened(maximum))
    limit = ENDLESS if spec.limits.trials is None else spec.limits.trials
    steps: list[Counts] = []
    for plan in plans:
        steps.append(_counts(plan, limit, steps[-1] if steps else []))
    said = _totals(plans[-1], steps[-1])
    if not deepen:
        return said | {"brackets": _brackets(plans[-1], steps[-1])}
    if said["tasks"] is None:
        return said | {"brackets": _brackets(plans[-1], steps[-1], steps[-2])}
    before = _totals(plans[-2], steps[-2])
    scratch = [_totals(plan, _counts(plan, limit, [])) for plan in plans]
    ladder, exact = plans[-1].ladder, spec.method.variant == "efficient"
    expected, most = (
        _cost(ladder, new(steps[-2], steps[-1])) for new in ((_new, _new) if exact else (_expected_new, _most_new))
    )
    return said | {
        "brackets": _brackets(plans[-1], steps[-1], steps[-2]),
        "added_tasks": said["tasks"] - before["tasks"],
        "added_budget": said["total_budget"] - before["total_budget"],
        "added_resumed_budget": said["resumed_budget"] - before["resumed_budget"],
        "expected_added_budget": expected[0],
        "expected_added_resumed_budget": expected[1],
        "most_added_budget": most[0],
        "most_added_resumed_budget": most[1],
        "restart_budget": sum(totals["total_budget"] for totals in scratch),
        "restart_resumed_budget": sum(totals["resumed_budget"] for totals in scratch),
    }


def outlook(search: Search, change: Deepened | Widened) -> dict[str, Any]:
    """What deepening or widening this search now would add to what was created: tasks and budget from checkpoints.

    A lower bound, exact for ``efficient``; ``restart_budget`` is the same end from nothing, and ``retrained_budget`` the
    most that comes on top because checkpoints were dropped. Raises as the change would.
    """
    now = search.plan
    plan = now.deepened(change.max_budget) if isinstance(change, Deepened) else now.widened(change.width)
    there = {(rung.bracket, rung.level): rung.created for rung in search.rungs()}
    without = _without_checkpoint(search)
    ladder, rungs, retrained = plan.ladder, [], 0
    for bracket in range(plan.brackets):
        for level, quota in enumerate(plan.quotas(bracket), bracket):
            new = max(0, quota - there.get((bracket, level), 0))
            retrained += min(new, without[bracket, level - 1]) * ladder.budget_from(level, level - 1 if level else None)
            cost = ladder.cost(level, level - 1 if level > bracket else None)
            rungs.append(
                {"bracket": bracket, "level": level, "budget": ladder.budget(level), "configurations": quota,
                 "new": new, "added_budget": new * cost, "restart_budget": quota * cost}
            )  # fmt: skip
    return {
        "max_budget": ladder.budget(ladder.top), "width": plan.width, "rungs": rungs,
        "added_tasks": sum(rung["new"] for rung in rungs),
        "added_budget": sum(rung["added_budget"] for rung in rungs), "retrained_budget": retrained,
        "restart_budget": sum(rung["restart_budget"] for rung in rungs),
    }  # fmt: skip


def _without_checkpoint(search: Search) -> Counter[tuple[int, int]]:
    """How many trials wait at each (bracket, level) whose checkpoints were dropped."""
    highest = {trial: level for trial, level in sorted(search.tasks) if trial in search.dropped}
    return Counter((search.trial(trial).bracket, level) for trial, level in highest.items())


def planned_rungs(plan: Plan, before: Plan | None = None) -> list[dict[str, Any]]:
    """Every rung with its quota, the one ``before``, and what one task costs; no quota where there is no bound."""
    rungs, ladder = [], plan.ladder
    for bracket in range(plan.brackets):
        had = before.quotas(bracket) if before is not None and bracket < before.brackets else ()
        for rung, quota in enumerate(plan.quotas(bracket)):
            level = bracket + rung
            rungs.append(
                {
                    "bracket": bracket, "level": level, "budget": ladder.budget(level),
                    "quota": quota if quota < ENDLESS else None,
                    "before": had[rung] if rung < len(had) else (0 if before is not None else None),
                    "cost": ladder.cost(level, level - 1 if rung else None),
                }
            )  # fmt: skip
    return rungs


def _counts(plan: Plan, limit: int, before: Counts) -> Counts:
    """How many configurations reach each rung; a limit on trials is spent in the order of the brackets."""
    rest = limit - sum(counts[0] for counts in before)
    result: Counts = []
    for bracket in range(plan.brackets):
        quotas, had = plan.quotas(bracket), _had(before, bracket, 0)
        started = min(quotas[0], rest + had)
        rest -= started - had
        reached = [min(quota, started // plan.ladder.eta**rung) for rung, quota in enumerate(quotas)]
        result.append([max(count, _had(before, bracket, rung)) for rung, count in enumerate(reached)])
    return result


def _totals(plan: Plan, steps: Counts) -> dict[str, Any]:
    """Tasks and their budgets: every task from step 0, from its checkpoint, and in the declared fidelity."""
    if steps[0][0] >= ENDLESS:
        return dict.fromkeys(("tasks", "total_budget", "resumed_budget", "billed_budget"))
    ladder, totals = plan.ladder, {"tasks": 0, "total_budget": 0, "resumed_budget": 0, "billed_budget": 0}
    for bracket, counts in enumerate(steps):
        for level, count in enumerate(counts, bracket):
            previous = level - 1 if level > bracket else None
            budget = ladder.budget(level)
            totals["tasks"] += count
            totals["total_budget"] += count * budget
            totals["resumed_budget"] += count * (budget - (0 if previous is None else ladder.budget(previous)))
            totals["billed_budget"] += count * ladder.cost(level, previous)
    return totals


def _had(before: Counts, bracket: int, rung: int) -> int:
    return before[bracket][rung] if bracket < len(before) and rung < len(before[bracket]) else 0


def _new(before: Counts, after: Counts) -> list[list[float]]:
    """New tasks when everything that ran counts for the larger plan."""
    return [[float(n - _had(before, b, r)) for r, n in enumerate(counts)] for b, counts in enumerate(after)]


def _most_new(before: Counts, after: Counts) -> list[list[float]]:
    """New tasks when nobody promoted before is promoted again; the first rung only ever grows."""
    return [
        [float(n - (0 if r else _had(before, b, 0))) for r, n in enumerate(counts)] for b, counts in enumerate(after)
    ]


def _expected_new(before: Counts, after: Counts) -> list[list[float]]:
    """New tasks when all levels rank alike and later configurations are no better than earlier ones.

    Of the best q' of N' configurations, H are among the first N, hypergeometric; the best q of those N ran already, so
    min(H, q) are reused.
    """
    import numpy as np
    from scipy.stats import hypergeom

    result = []
    for b, counts in enumerate(after):
        row = []
        for r, n in enumerate(counts):
            had, first = _had(before, b, r), _had(before, b, 0)
            reused = float(np.sum(hypergeom.sf(range(had), counts[0], first, n)))
            row.append(n - reused)
        result.append(row)
    return result


def _cost(ladder: Ladder, new: list[list[float]]) -> tuple[float, float]:
    """The budget of so many new tasks on every rung: from step 0, and from their checkpoints."""
    fresh = resumed = 0.0
    for bracket, row in enumerate(new):
        for level, count in enumerate(row, bracket):
            below = ladder.budget(level - 1) if level > bracket else 0
            fresh += count * ladder.budget(level)
            resumed += count * (ladder.budget(level) - below)
    return fresh, resumed


def _brackets(plan: Plan, steps: Counts, before: Counts | None = None) -> list[dict[str, Any]]:
    """The rungs of every bracket; with ``before``, what is new on each."""
    brackets = []
    for bracket, counts in enumerate(steps):
        rungs: list[dict[str, Any]] = []
        for rung, count in enumerate(counts):
            level = bracket + rung
            configurations = None if count >= ENDLESS else count
            row = {"rung": rung, "level": level, "budget": plan.ladder.budget(level), "configurations": configurations}
            if before is not None:
                row["new"] = count - _had(before, bracket, rung)
            rungs.append(row)
        brackets.append({"bracket": bracket, "rungs": rungs})
    return brackets
