"""The optimum as a field over (N, D): a trend known by beliefs, and what single cells add to it.

    c(x, y) = T(x, y) β + g(x, y),      c = (log2 lr*, log2 batch*),   x, y = log2 N, log2 D about the data's centre

β is the linear trend (the step law's constants) with normal beliefs; g is a Gaussian process that says how far real
optima wander about any straight law (amplitude half an octave, length an octave and a half: from the 36 public cells
of the Step Law table, where they were chosen for coverage). A node is one cell's own optimum with its 2×2 covariance,
so a cell of four runs counts for what it knows. Everything is Gaussian, hence closed: near the cells the field
follows them, far beyond it returns to the trend, and its covariance says which of the two it is doing (universal
kriging; Rasmussen & Williams 2006, §2.7).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from isoloss.laws.solve import Floats, Prior

AMPLITUDE: Final = 0.5
LENGTH: Final = 1.5
OWN: Final = 0.1  # octaves between a cell's optimum and its estimate that no number of runs removes
COLUMNS: Final = ("x", "y", "u", "v", "var_u", "cov_uv", "var_v")


@dataclass(frozen=True, slots=True)
class Field:
    """The posterior: ``trend`` β (6,) = (u, a, b, v, p, q), its covariance (6, 6), and what the nodes add."""

    nodes: Floats
    amplitude: Floats
    trend: Floats
    trend_covariance: Floats
    precision: Floats
    pull: Floats

    @classmethod
    def given(cls, nodes: Floats, beliefs: Prior, *, varied: bool = True) -> Field:
        """The field seen through ``nodes`` (C, 7; see ``COLUMNS``); without ``varied`` batch follows its trend alone.

        ``beliefs`` are about β: mean and precision, each (6,).
        """
        design, amplitude = _design(nodes[:, :2]), np.array([AMPLITUDE, AMPLITUDE if varied else 0.0])
        precision = _precision(nodes, amplitude)
        places = nodes[:, 2:4].reshape(-1)
        information = design.T @ precision @ design + np.diag(beliefs.precision)
        trend_covariance = np.asarray(np.linalg.inv(information), dtype=np.float64)
        trend = trend_covariance @ (design.T @ precision @ places + beliefs.precision * beliefs.mean)
        return cls(nodes, amplitude, trend, trend_covariance, precision, precision @ (places - design @ trend))

    @classmethod
    def restored(cls, nodes: Floats, trend: Floats, trend_covariance: Floats, *, varied: bool = True) -> Field:
        """The same field from its nodes and its posterior trend."""
        amplitude = np.array([AMPLITUDE, AMPLITUDE if varied else 0.0])
        precision = _precision(nodes, amplitude)
        pull = precision @ (nodes[:, 2:4].reshape(-1) - _design(nodes[:, :2]) @ trend)
        return cls(nodes, amplitude, trend, trend_covariance, precision, pull)

    def at(self, where: Floats) -> tuple[Floats, Floats]:
        """Mean (m, 2) and joint covariance (2m, 2m) of the optimum at places ``where`` (m, 2)."""
        design, near = _design(where), _kernel(where, self.nodes[:, :2], self.amplitude)
        mean = design @ self.trend + near @ self.pull
        left = design - near @ self.precision @ _design(self.nodes[:, :2])
        own = _kernel(where, where, self.amplitude) - near @ self.precision @ near.T
        return mean.reshape(-1, 2), own + left @ self.trend_covariance @ left.T


def _design(where: Floats) -> Floats:
    """T (2m, 6): rows alternate between log2 lr and log2 batch."""
    rows = np.column_stack([np.ones(len(where)), where])
    design = np.zeros((2 * len(where), 6))
    design[0::2, :3] = design[1::2, 3:] = rows
    return design


def _kernel(here: Floats, there: Floats, amplitude: Floats) -> Floats:
    """Covariance (2m, 2n) of g: lr and batch wander alike, each for itself."""
    distance = np.sum(((here[:, None] - there[None]) / LENGTH) ** 2, axis=-1)
    return np.asarray(np.kron(np.exp(-0.5 * distance), np.diag(amplitude**2)))


def _precision(nodes: Floats, amplitude: Floats) -> Floats:
    seen = _kernel(nodes[:, :2], nodes[:, :2], amplitude) + OWN**2 * np.eye(2 * len(nodes))
    for i, (var_u, cov_uv, var_v) in enumerate(nodes[:, 4:7]):
        seen[2 * i : 2 * i + 2, 2 * i : 2 * i + 2] += [[var_u, cov_uv], [cov_uv, var_v]]
    return np.asarray(np.linalg.inv(seen), dtype=np.float64)
