"""Configurations as points a Gaussian process can measure distances between.

A *point* has a coordinate in [0, 1] for every parameter; the *columns* are the coordinates of what has an order, and a
one-hot block for each categorical, scaled so that two choices are 1 apart. An inactive parameter is in the middle.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from isoloss.domain.space import Categorical, Configuration, Scalar, Space, configuration_at

Array = NDArray[np.float64]
MIDDLE = 0.5
MOST_VALUES = 512  # values of a parameter that are told apart


class Encoding:
    """The columns of a space; ``blocks`` says which belong to one dimension."""

    def __init__(self, space: Space) -> None:
        self.space = space
        self.conditional = any(parameter.conditions for parameter in space.values())
        self.blocks: list[list[int]] = []
        width = 0
        for parameter in space.values():
            columns = parameter.size if isinstance(parameter, Categorical) else 1
            self.blocks.append(list(range(width, width + columns)))
            width += columns
        self.width = width

    def points(self, configurations: Iterable[Configuration]) -> Array:
        """The point of each configuration: (n, parameters)."""
        found = [
            [
                min(1.0, max(0.0, parameter.place(one[name]))) if name in one else MIDDLE
                for name, parameter in self.space.items()
            ]
            for one in configurations
        ]
        return np.array(found, float).reshape(len(found), len(self.space))

    def snapped(self, points: Array) -> Array:
        """The points with every coordinate at a value there is, and what is inactive in the middle."""
        if self.conditional:
            return self.points(self.configuration(point) for point in points)
        found = points.copy()
        for column, parameter in enumerate(self.space.values()):
            size = parameter.size
            if size is None or size > MOST_VALUES or getattr(parameter, "log", False):
                continue
            found[:, column] = (np.minimum(size - 1, np.floor(points[:, column] * size)) + 0.5) / size
        return found

    def columns(self, points: Array) -> Array:
        """The columns of points: (n, width)."""
        found = np.zeros((len(points), self.width))
        for place, parameter in enumerate(self.space.values()):
            block = self.blocks[place]
            if isinstance(parameter, Categorical):
                chosen = np.minimum(len(block) - 1, (points[:, place] * len(block)).astype(int))
                found[np.arange(len(points)), np.array(block)[chosen]] = np.sqrt(0.5)
            else:
                found[:, block[0]] = points[:, place]
        return found

    def configuration(self, point: Sequence[float] | Array) -> dict[str, Scalar]:
        """The configuration at a point, its active parameters only."""
        below_one = [min(float(u), 1.0) for u in point]
        return configuration_at(self.space, below_one)
