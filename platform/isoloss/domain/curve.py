"""Curves on their way: the points of one metric as one column, with the steps left out where they are even."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from isoloss.errors import InvalidSpec

LARGEST = 2**63  # what Postgres and the wire count to


@dataclass(frozen=True, slots=True)
class Series:
    """Values of a metric at strictly increasing steps: ``first``, ``first + stride``, …, or those in ``steps``."""

    metric: str
    first: int
    stride: int
    steps: Sequence[int]  # empty where the stride says them
    values: Sequence[float]

    def checked(self) -> Series:
        """This, or ``InvalidSpec`` for what is no part of a curve."""
        if not self.values or (self.steps and len(self.steps) != len(self.values)):
            raise InvalidSpec(
                f"series of {self.metric!r} has {len(self.values)} values at {len(self.steps)} steps; accepted is a value "
                "a step, and at least one."
            )
        if self.steps:
            rising = self.steps[0] == self.first and all(a < b for a, b in pairwise(self.steps))
            last = self.steps[-1]
        else:
            rising, last = self.stride > 0 or len(self.values) == 1, self.first + self.stride * (len(self.values) - 1)
        if not rising or not 0 <= self.first <= last < LARGEST:
            raise InvalidSpec(
                f"series of {self.metric!r} has steps that do not increase from {self.first}; accepted are steps from 0 to "
                "2^63 that do."
            )
        return self


def series_of(points: Sequence[tuple[int, Mapping[str, float]]]) -> list[Series]:
    """Points (step, values by metric) as a series a metric; what was said last of a step stands."""
    columns: dict[str, dict[int, float]] = {}
    for step, values in points:
        for metric, value in values.items():
            columns.setdefault(metric, {})[step] = value
    return [_series(metric, sorted(found.items())) for metric, found in sorted(columns.items())]


def _series(metric: str, found: Sequence[tuple[int, float]]) -> Series:
    steps, values = [step for step, _ in found], [value for _, value in found]
    stride = steps[1] - steps[0] if len(steps) > 1 else 0
    even = all(b - a == stride for a, b in pairwise(steps))
    return Series(metric, steps[0], stride if even else 0, () if even else steps, values)
