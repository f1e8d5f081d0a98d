"""What a study will run and what that costs, before it runs: the plan in the words of ``study preview --json``.

Counts are those of the synchronous search, which ``settled`` reaches and may exceed by wrong early promotions. Budgets
are the rounded ones a worker is given, in the budget's unit.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from isoloss.domain.spec import StudySpec
from isoloss.search.geometry import ENDLESS, Plan, plan_of

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
    before = _totals(plans[-2], steps[-2])
    scratch = [_totals(plan, _counts(plan, limit, [])) for plan in plans]
    return said | {
        "brackets": _brackets(plans[-1], steps[-1], steps[-2]),
        "added_tasks": said["tasks"] - before["tasks"],
        "added_budget": said["total_budget"] - before["total_budget"],
        "added_resumed_budget": said["resumed_budget"] - before["resumed_budget"],
        "restart_budget": sum(totals["total_budget"] for totals in scratch),
        "restart_resumed_budget": sum(totals["resumed_budget"] for totals in scratch),
    }


def _counts(plan: Plan, limit: int, before: Counts) -> Counts:
    """How many configurations reach each rung; a limit on trials is spent in the order of the brackets."""
    rest = limit - sum(counts[0] for counts in before)
    result: Counts = []
    for bracket in range(plan.brackets):
        quotas = plan.quotas(bracket)
        had = before[bracket] if bracket < len(before) else []
        started = min(quotas[0], rest + (had[0] if had else 0))
        rest -= started - (had[0] if had else 0)
        reached = [min(quota, started // plan.ladder.eta**rung) for rung, quota in enumerate(quotas)]
        result.append([max(count, had[rung] if rung < len(had) else 0) for rung, count in enumerate(reached)])
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
            totals["billed_budget"] += count * (budget - ladder.budget_from(level, previous))
    return totals


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
                had = before[bracket] if bracket < len(before) else []
                row["new"] = count - (had[rung] if rung < len(had) else 0)
            rungs.append(row)
        brackets.append({"bracket": bracket, "rungs": rungs})
    return brackets
