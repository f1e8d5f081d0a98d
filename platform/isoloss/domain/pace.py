"""What a study's tasks take of the machines, foreseen from those that are done."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Pace:
    """Device hours of a task, as a line over its budget: what starting it takes, and each unit."""

    per_task: float
    per_unit: float

    def hours(self, budget: float) -> float:
        """Device hours of a task of so much budget."""
        return max(0.0, self.per_task + self.per_unit * budget)


@dataclass(frozen=True, slots=True, kw_only=True)
class Use:
    """What a study's tasks have taken so far; of those that are done, the regression of device hours on budget."""

    study_id: int
    hours: float  # device hours of every attempt of every task
    open: Sequence[tuple[float, float]] = ()  # (budget, device hours so far) of each task that has not ended
    done: int = 0
    mean_hours: float | None = None
    mean_budget: float | None = None
    slope: float | None = None  # device hours per unit; None while all the budgets are one
    flops_per_unit: float | None = None

    def reserved(self, pace: Pace) -> float:
        """Device hours that the open tasks are foreseen to take yet."""
        return sum(max(0.0, pace.hours(budget) - hours) for budget, hours in self.open)


def pace(use: Use, others: Sequence[Use] = ()) -> Pace:
    """What the study's next tasks will take: by its own tasks, else by the device hours per FLOP of the ``others``.

    Two budgets tell the start from the units; one is taken as all units. Hours that do not grow with the budget are all start.
    While nothing tells, tasks are foreseen to take nothing.
    """
    if use.mean_hours is None or not use.mean_budget:
        rate = hours_per_flop(others)
        return Pace(0.0, (rate or 0.0) * (use.flops_per_unit or 0.0))
    if use.slope is None:
        return Pace(0.0, use.mean_hours / use.mean_budget)
    if use.slope <= 0:
        return Pace(use.mean_hours, 0.0)
    return Pace(use.mean_hours - use.slope * use.mean_budget, use.slope)


def hours_per_flop(uses: Sequence[Use]) -> float | None:
    """Device hours of a FLOP over the done tasks of several studies; ``None`` while there is none whose FLOPs are known."""
    told = [(use, use.mean_budget * use.flops_per_unit) for use in uses if use.mean_budget and use.flops_per_unit]
    flops = sum(use.done * each for use, each in told)
    return sum(use.done * (use.mean_hours or 0.0) for use, _ in told) / flops if flops else None
