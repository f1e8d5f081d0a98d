"""The Pareto front: what nothing else beats in everything, and the place of each result behind it.

A place is the number of fronts before a result, plus a little for how crowded it is there (Deb et al. 2002), so that a rung
can rank it: whatever dominates everything is alone in the first front and ranks first, however much was measured before.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Final

from isoloss.domain.objective import Goal

CROWDED: Final = 1e-6  # between neighbours of one front; a front has fewer than a million

Vector = tuple[float, ...]


def vector(objectives: Mapping[str, Goal], values: Mapping[str, float]) -> Vector:
    """The values of the objectives in their order, turned so that less is better; NaN for one that is missing."""
    return tuple(
        -values.get(metric, math.nan) if goal == "maximize" else values.get(metric, math.nan)
        for metric, goal in objectives.items()
    )


def fronts(vectors: Sequence[Vector]) -> list[list[int]]:
    """The numbers of the vectors by front, best first, in their order within one; less is better, all are finite."""
    import numpy as np

    if not vectors:
        return []
    y = np.array(vectors, float)
    at_most = np.all(y[:, None] <= y[None], axis=-1)
    dominates = at_most & np.any(y[:, None] < y[None], axis=-1)
    left, found = np.ones(len(y), bool), []
    while left.any():
        first = left & ~dominates[left].any(axis=0)
        found.append(np.flatnonzero(first).tolist())
        left &= ~first
    return found


def places(vectors: Sequence[Vector]) -> list[float]:
    """The place of each vector: less is better, and of one front the least crowded comes first."""
    found = [0.0] * len(vectors)
    for rank, front in enumerate(fronts(vectors)):
        crowding = _crowding([vectors[number] for number in front])
        for order, place in enumerate(sorted(range(len(front)), key=lambda place: (-crowding[place], place))):
            found[front[place]] = rank + CROWDED * order
    return found


def hypervolume(vectors: Sequence[Vector], reference: Vector) -> float:
    """The volume that is beaten by at least one vector and beats the reference; less is better, any number of objectives.

    Sliced along the last objective (While et al. 2006), which is fast enough for the fronts of a study.
    """
    inside = sorted({v for v in vectors if all(a < b for a, b in zip(v, reference, strict=True))}, key=lambda v: v[-1])
    if len(reference) == 1:
        return reference[0] - inside[0][0] if inside else 0.0
    found = 0.0
    for place, lowest in enumerate(inside):
        until = inside[place + 1][-1] if place + 1 < len(inside) else reference[-1]
        if until > lowest[-1]:
            found += (until - lowest[-1]) * hypervolume([v[:-1] for v in inside[: place + 1]], reference[:-1])
    return found


def _crowding(front: Sequence[Vector]) -> list[float]:
    """The distance of each vector's neighbours along the front, infinite at its ends."""
    total = [0.0] * len(front)
    for column in zip(*front, strict=True):
        order = sorted(range(len(front)), key=lambda place: (column[place], place))
        width = column[order[-1]] - column[order[0]] or 1.0
        total[order[0]] = total[order[-1]] = math.inf
        for before, place, after in zip(order, order[1:], order[2:], strict=False):
            total[place] += (column[after] - column[before]) / width
    return total
