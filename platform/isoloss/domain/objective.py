"""What a study optimises: one metric, or one preference over several stated as desirabilities.

Reports always carry a mapping of metric to value; the objective is a view of it. ``metrics_needed`` says which values a
finished task owes. The functions that turn values into desirabilities live in ``search/desirability.py``.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from typing import Annotated, Literal

import msgspec

from isoloss.errors import InvalidSpec

Goal = Literal["minimize", "maximize"]


class Objective(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One metric and its direction."""

    metric: str
    goal: Goal = "minimize"


class Desirability(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="shape"):
    """What larger, smaller and target share: d is 0 at the limit and 1 at the target."""

    importance: Annotated[float, msgspec.Meta(gt=0)] = 1.0


class OneSided(Desirability, frozen=True, kw_only=True):
    """A ramp between the limit, where d = 0, and the target, where d = 1; ``scale`` bends it."""

    limit: float
    target: float
    scale: Annotated[float, msgspec.Meta(gt=0)] = 1.0


class Larger(OneSided, frozen=True, kw_only=True, tag="larger"):
    """The more the better: limit < target."""

    def check(self, path: str) -> None:
        """Raise ``InvalidSpec`` naming ``path`` when limits and targets are out of order."""
        check_order(path, limit=self.limit, target=self.target)


class Smaller(OneSided, frozen=True, kw_only=True, tag="smaller"):
    """The less the better: target < limit."""

    def check(self, path: str) -> None:
        """Raise ``InvalidSpec`` naming ``path`` when limits and targets are out of order."""
        check_order(path, target=self.target, limit=self.limit)


class Target(Desirability, frozen=True, kw_only=True, tag="target"):
    """Best at ``target``, worthless below ``low`` and above ``high``; the two slopes bend on their own."""

    low: float
    target: float
    high: float
    scale_low: Annotated[float, msgspec.Meta(gt=0)] = 1.0
    scale_high: Annotated[float, msgspec.Meta(gt=0)] = 1.0

    def check(self, path: str) -> None:
        """Raise ``InvalidSpec`` naming ``path`` when limits and targets are out of order."""
        check_order(path, low=self.low, target=self.target, high=self.high)


AnyDesirability = Larger | Smaller | Target


def check_order(path: str, **values: float) -> None:
    """Raise ``InvalidSpec`` unless the named values are finite and strictly increasing in the order given."""
    numbers = list(values.values())
    if not all(map(math.isfinite, numbers)) or any(a >= b for a, b in itertools.pairwise(numbers)):
        said = ", ".join(f"{name} {value:g}" for name, value in values.items())
        raise InvalidSpec(f"{path} has {said}; accepted is {' < '.join(values)}, all finite.")


def metrics_needed(objective: Objective | None, desirability: Mapping[str, AnyDesirability]) -> tuple[str, ...]:
    """The metrics a finished task must report."""
    return (objective.metric,) if objective else tuple(desirability)
