"""How a program spells a spec: ``isoloss.Float(1e-4, 1e-1, log=True)`` for what YAML writes as a mapping."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from msgspec import UNSET, UnsetType

from isoloss.domain import objective, space
from isoloss.domain.objective import (
    Box,
    Category,
    Group,
    Harrington,
    HarringtonTwoSided,
    Larger,
    Smaller,
    Table,
    Target,
)
from isoloss.domain.quantity import Count
from isoloss.domain.space import Scalar
from isoloss.domain.spec import Method, decode

__all__ = [
    "ASHA", "IDHB", "Box", "Categorical", "Category", "Fixed", "Float", "Group", "Harrington", "HarringtonTwoSided",
    "Hyperband", "Int", "Larger", "Ordinal", "Smaller", "Table", "Target", "maximize", "minimize",
]  # fmt: skip
When = Mapping[str, Mapping[str, Any]]  # {"layers": {"ge": 4}}: the parameter is there only where this holds


def Float(
    low: float, high: float, *, log: bool = False, step: float | None = None, when: When | None = None
) -> space.Float:
    """A real number in [low, high]."""
    return space.Float(low=low, high=high, log=log, step=step, when=_conditions(when))


def Int(low: int, high: int, *, log: bool = False, step: int | None = None, when: When | None = None) -> space.Int:
    """A whole number in [low, high], both ends included."""
    return space.Int(low=low, high=high, log=log, step=step, when=_conditions(when))


def Categorical(choices: Iterable[Scalar], *, when: When | None = None) -> space.Categorical:
    """One of several values without an order."""
    return space.Categorical(choices=tuple(choices), when=_conditions(when))


def Ordinal(choices: Iterable[Scalar], *, when: When | None = None) -> space.Ordinal:
    """One of several values in the order given."""
    return space.Ordinal(choices=tuple(choices), when=_conditions(when))


def minimize(metric: str) -> objective.Objective:
    """The less of this metric the better."""
    return objective.Objective(metric=metric, goal="minimize")


def maximize(metric: str) -> objective.Objective:
    """The more of this metric the better."""
    return objective.Objective(metric=metric, goal="maximize")


def IDHB(*, min_budget: float, max_budget: float, eta: int = 3, **more: Any) -> Method:
    """Iterative-deepening Hyperband from ``min_budget`` to ``max_budget`` by ``eta``."""
    return Method(name="idhb", min_budget=Count(min_budget), max_budget=Count(max_budget), eta=eta, **more)


def Hyperband(*, min_budget: float, max_budget: float, eta: int = 3, **more: Any) -> Method:
    """Synchronous Hyperband, all brackets; it can be deepened and widened as well."""
    return Method(name="hyperband", min_budget=Count(min_budget), max_budget=Count(max_budget), eta=eta, **more)


def ASHA(*, min_budget: float, max_budget: float, eta: int = 3, **more: Any) -> Method:
    """Asynchronous successive halving (Li et al. 2020): no quotas, so it ends at ``limits.trials`` or never."""
    return Method(name="asha", min_budget=Count(min_budget), max_budget=Count(max_budget), eta=eta, **more)


def Fixed(*, budget: float, **more: Any) -> Method:
    """Every trial at one budget."""
    return Method(name="fixed", budget=Count(budget), **more)


def _conditions(when: When | None) -> dict[str, space.Condition] | UnsetType:
    return UNSET if when is None else {name: decode(said, space.Condition) for name, said in when.items()}
