"""What a study optimises: one metric, several as a front, or one preference over several stated as desirabilities.

Reports always carry a mapping of metric to value; the objective is a view of it. ``metrics_needed`` says which values a
finished task owes. The functions that turn values into desirabilities live in ``search/desirability.py``.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Container, Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

import msgspec
from msgspec import UNSET, UnsetType

from isoloss.domain.formula import check_formula
from isoloss.domain.quantity import Number
from isoloss.errors import InvalidSpec

Goal = Literal["minimize", "maximize"]
Kind = Literal["curve", "static", "cumulative", "final"]
Positive = Annotated[float, msgspec.Meta(gt=0)]
Share = Annotated[float, msgspec.Meta(ge=0, le=1)]


class Objective(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One metric and its direction."""

    metric: str
    goal: Goal = "minimize"


class Part(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="shape"):
    """What takes part in an overall desirability: its weight in the geometric mean."""

    importance: Positive = 1.0

    def check(self, path: str) -> None:
        """Raise ``InvalidSpec`` naming ``path`` for what types alone cannot say."""
        if not math.isfinite(self.importance):
            raise InvalidSpec(f"{path}.importance is {self.importance:g}; accepted is a finite number above 0.")


class Desirability(Part, frozen=True, kw_only=True):
    """What every desirability of one metric has, whatever its shape.

    ``kind`` is how the value depends on the budget: a *curve* gets better with it, *static* never changes, *cumulative*
    grows in proportion, *final* is measured at the top only. ``missing`` is what a metric counts as that a finished task
    did not report: ``unknown`` (the task owes it), ``veto`` (0), ``neutral`` (the mean over the range) or a number.
    With ``veto`` a value of d = 0 ranks behind every value that has none. ``floor`` is the least d there is. ``formula``
    gives a static value from the configuration, before anything runs.
    """

    kind: Kind = "curve"
    missing: Literal["unknown", "veto", "neutral"] | Share = "unknown"
    veto: bool = False
    floor: Annotated[float, msgspec.Meta(ge=0, lt=1)] = 0.0
    formula: str | UnsetType = UNSET

    @property
    def known_before(self) -> bool:
        """Whether the configuration says the value."""
        return self.formula is not UNSET

    @property
    def owed(self) -> bool:
        """Whether every finished task must report the metric."""
        return self.missing == "unknown" and self.kind != "final" and not self.known_before

    def check(self, path: str) -> None:
        """Raise ``InvalidSpec`` naming ``path`` for what types alone cannot say."""
        super().check(path)
        if self.known_before and self.kind != "static":
            raise InvalidSpec(f"{path}.formula is set with kind {self.kind}; accepted is kind static.")


class OneSided(Desirability, frozen=True, kw_only=True):
    """A ramp between the limit, where d = 0, and the target, where d = 1; ``scale`` bends it."""

    limit: Number
    target: Number
    scale: Positive = 1.0


class Larger(OneSided, frozen=True, kw_only=True, tag="larger"):
    """The more the better: limit < target."""

    def check(self, path: str) -> None:
        """Raise ``InvalidSpec`` naming ``path`` when limits and targets are out of order."""
        super().check(path)
        check_order(path, limit=self.limit, target=self.target)


class Smaller(OneSided, frozen=True, kw_only=True, tag="smaller"):
    """The less the better: target < limit."""

    def check(self, path: str) -> None:
        """Raise ``InvalidSpec`` naming ``path`` when limits and targets are out of order."""
        super().check(path)
        check_order(path, target=self.target, limit=self.limit)


class Target(Desirability, frozen=True, kw_only=True, tag="target"):
    """Best at ``target``, worthless below ``low`` and above ``high``; the two slopes bend on their own."""

    low: Number
    target: Number
    high: Number
    scale_low: Positive = 1.0
    scale_high: Positive = 1.0

    def check(self, path: str) -> None:
        """Raise ``InvalidSpec`` naming ``path`` when limits and targets are out of order."""
        super().check(path)
        check_order(path, low=self.low, target=self.target, high=self.high)


class Box(Desirability, frozen=True, kw_only=True, tag="box"):
    """As good as any other from ``low`` to ``high``, both included, and worthless outside."""

    low: Number
    high: Number

    def check(self, path: str) -> None:
        """Raise ``InvalidSpec`` naming ``path`` when the ends are out of order."""
        super().check(path)
        check_order(path, low=self.low, high=self.high)


class Table(Desirability, frozen=True, kw_only=True, tag="table"):
    """Straight lines through ``points``, each [value, d] and in order of the values; the end values go on for ever."""

    points: Annotated[tuple[tuple[Number, Share], ...], msgspec.Meta(min_length=2)]

    def check(self, path: str) -> None:
        """Raise ``InvalidSpec`` naming ``path`` unless the values increase."""
        super().check(path)
        check_order(f"{path}.points", **{f"x{place}": x for place, (x, _) in enumerate(self.points)})


class Category(Desirability, frozen=True, kw_only=True, tag="category"):
    """The d of each value by name: a choice that ``formula`` names, or the code a metric reports (``"1"``).

    A value that is not listed is worth nothing: it must never be free.
    """

    values: Annotated[dict[str, Share], msgspec.Meta(min_length=2)]


class Harrington(Desirability, frozen=True, kw_only=True, tag="harrington"):
    """exp(-exp(-(b0 + b1 y))) through two points [y, d] (Harrington 1965): smooth, never quite 0 or 1."""

    at: tuple[tuple[Number, float], tuple[Number, float]]

    def check(self, path: str) -> None:
        """Raise ``InvalidSpec`` naming ``path`` unless one curve passes through the two points."""
        super().check(path)
        (y1, d1), (y2, d2) = self.at
        if not (
            math.isfinite(y1) and math.isfinite(y2) and y1 != y2 and d1 != d2 and 0 < min(d1, d2) <= max(d1, d2) < 1
        ):
            raise InvalidSpec(
                f"{path}.at is {[list(point) for point in self.at]}; accepted are two points [y, d] of different finite y "
                "and different d between 0 and 1."
            )


class HarringtonTwoSided(Desirability, frozen=True, kw_only=True, tag="harrington-two-sided"):
    """exp(-|(2 y - (high + low)) / (high - low)|^power): 1 in the middle, 1/e at the ends (Harrington 1965)."""

    low: Number
    high: Number
    power: Positive = 1.0

    def check(self, path: str) -> None:
        """Raise ``InvalidSpec`` naming ``path`` when the ends are out of order."""
        super().check(path)
        check_order(path, low=self.low, high=self.high)


class Group(Part, frozen=True, kw_only=True, tag="group"):
    """Several that count as one: the overall desirability of ``of``."""

    of: Annotated[dict[str, AnyDesirability], msgspec.Meta(min_length=1)]


Shape = Larger | Smaller | Target | Box | Table | Category | Harrington | HarringtonTwoSided
AnyDesirability = Shape | Group


@dataclass(frozen=True, slots=True, kw_only=True)
class Leaf:
    """The desirability of one metric and its weight among all, which sum to 1."""

    shape: Shape
    weight: float


def leaves(desirability: Mapping[str, AnyDesirability], weight: float = 1.0) -> dict[str, Leaf]:
    """Every metric's desirability; groups are dissolved, for a geometric mean of geometric means is one."""
    total = sum(part.importance for part in desirability.values())
    found: dict[str, Leaf] = {}
    for metric, part in desirability.items():
        share = weight * part.importance / total
        found |= leaves(part.of, share) if isinstance(part, Group) else {metric: Leaf(shape=part, weight=share)}
    return found


def check_desirability(
    desirability: Mapping[str, AnyDesirability], known: Container[str], path: str = "desirability"
) -> None:
    """Raise ``InvalidSpec`` for a part that cannot be, or a metric that is named twice; ``known`` are formulas' names."""
    for where, metric in _check_parts(desirability, known, path, {}):
        raise InvalidSpec(f"{where} names the metric {metric!r} again; accepted is each metric once.")


def _check_parts(
    desirability: Mapping[str, AnyDesirability], known: Container[str], path: str, seen: dict[str, str]
) -> list[tuple[str, str]]:
    again = []
    for metric, part in desirability.items():
        where = f"{path}.{metric}"
        part.check(where)
        if isinstance(part, Group):
            again += _check_parts(part.of, known, f"{where}.of", seen)
            continue
        if isinstance(part.formula, str):
            check_formula(part.formula, known, f"{where}.formula")
        if metric in seen:
            again.append((where, metric))
        seen[metric] = where
    return again


def check_order(path: str, **values: float) -> None:
    """Raise ``InvalidSpec`` unless the named values are finite and strictly increasing in the order given."""
    numbers = list(values.values())
    if not all(map(math.isfinite, numbers)) or any(a >= b for a, b in itertools.pairwise(numbers)):
        said = ", ".join(f"{name} {value:g}" for name, value in values.items())
        raise InvalidSpec(f"{path} has {said}; accepted is {' < '.join(values)}, all finite.")


def metrics_needed(
    objective: Objective | None, desirability: Mapping[str, AnyDesirability], objectives: Mapping[str, Goal]
) -> tuple[str, ...]:
    """The metrics a finished task must report."""
    if objective is not None:
        return (objective.metric,)
    return (*objectives, *(metric for metric, leaf in leaves(desirability).items() if leaf.shape.owed))
