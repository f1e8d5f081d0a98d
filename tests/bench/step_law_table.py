"""The Step Law table as a benchmark: its 36 public cells, and what a prediction of (lr, batch) costs in one of them.

The table (Li et al. 2025; ``steplaw_lr_bs/lr_bs_loss.csv.gz`` under ISOLOSS_DATA_HOME) is not part of this repository.
Two scores, both regret over the cell's best loss in percent, predictions clipped to the cell's box:

- P: piecewise-linear interpolation of ln loss in (log2 lr, log2 batch), over the raw minimum of the cell. It needs no
  modelling, and carries some .05 % of winner's curse.
- S: a smooth surrogate of the cell, over its own minimum: a cubic fitted to the runs within 6 % of the best with
  Gaussian weights on their excess, plus a Gaussian process (squared-exponential, 1.5 octaves, .05 % amplitude) on its
  residuals with the noise of a run, .08 %.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import LinearNDInterpolator, NearestNDInterpolator

from isoloss.files.tables import read_rows
from isoloss.laws.cells import cell_index
from isoloss.laws.observation import Observations
from isoloss.laws.solve import Floats

SEQUENCE: Final = 2048
NEAR: Final = 0.06
CUBIC: Final = [(i, j) for i in range(4) for j in range(4) if i + j <= 3]


def read_step_law(home: Path) -> Observations:
    """The table in our columns; a sequence has 2,048 tokens."""
    rows = read_rows(home / "steplaw_lr_bs" / "lr_bs_loss.csv.gz")
    return Observations.from_rows(
        {
            "n_params": row["n_params_nonemb"],
            "n_tokens": row["tokens"],
            "lr": row["lr"],
            "batch_tokens": SEQUENCE * float(row["batch_seqs"]),
            "loss": row["loss"],
            "n_params_count": "non_embedding",
        }
        for row in rows
    )


@dataclass(frozen=True, eq=False)
class TableCell:
    """The runs of one (N, D) as places (n, 2) in octaves and their ln loss (n,)."""

    runs: Observations

    @property
    def n_params(self) -> float:
        return float(self.runs.n_params[0])

    @property
    def n_tokens(self) -> float:
        return float(self.runs.n_tokens[0])

    @cached_property
    def places(self) -> Floats:
        return np.column_stack([np.log2(self.runs.lr), np.log2(self.runs.batch_tokens)])

    @cached_property
    def ln_loss(self) -> Floats:
        return np.log(self.runs.loss)

    def clip(self, at: Floats) -> Floats:
        return np.clip(np.asarray(at, dtype=np.float64), self.places.min(axis=0), self.places.max(axis=0))

    @cached_property
    def _linear(self) -> tuple[Floats, LinearNDInterpolator, NearestNDInterpolator]:
        scale = self.places.std(axis=0)
        known = self.places / scale
        return scale, LinearNDInterpolator(known, self.ln_loss), NearestNDInterpolator(known, self.ln_loss)

    def interpolate(self, at: Floats) -> float:
        """Score P's ln loss at a place (2,)."""
        scale, linear, nearest = self._linear
        value = float(np.ravel(linear(self.clip(at) / scale))[0])
        return value if np.isfinite(value) else float(np.ravel(nearest(self.clip(at) / scale))[0])

    def regret(self, at: Floats) -> float:
        """Score P, percent."""
        return float(100 * np.expm1(self.interpolate(at) - self.ln_loss.min()))

    @cached_property
    def _smooth(self) -> tuple[Floats, Floats, Floats, Floats, float]:
        excess = self.ln_loss - self.ln_loss.min()
        near = excess <= np.log1p(NEAR)
        origin = self.places[np.argmin(self.ln_loss)]
        x, y = self.places[near] - origin, self.ln_loss[near]
        weight = np.exp(-0.25 * (excess[near] / 0.02) ** 2)
        design = _cubic(x)
        ridge = 1e-4 * np.diag([float(i + j) ** 2 for i, j in CUBIC])
        coefficients = np.linalg.solve((design.T * weight**2) @ design + ridge, (design.T * weight**2) @ y)
        noise = 0.0008 / np.maximum(weight, 1e-3)
        alpha = np.linalg.solve(_kernel(x, x) + np.diag(noise**2), y - design @ coefficients)
        grid = np.stack(
            np.meshgrid(*(np.arange(a, b + 0.01, 0.1) for a, b in zip(x.min(0), x.max(0), strict=True))), -1
        )
        values = self._surface(grid.reshape(-1, 2), coefficients, x, alpha)
        return origin, coefficients, x, alpha, float(values.min())

    @staticmethod
    def _surface(at: Floats, coefficients: Floats, x: Floats, alpha: Floats) -> Floats:
        return np.asarray(_cubic(at) @ coefficients + _kernel(at, x) @ alpha)

    def smooth_regret(self, at: Floats) -> float:
        """Score S, percent."""
        origin, coefficients, x, alpha, least = self._smooth
        inside = np.clip(self.clip(at) - origin, x.min(axis=0), x.max(axis=0))
        return float(100 * np.expm1(max(self._surface(inside[None], coefficients, x, alpha)[0] - least, 0.0)))

    def smooth_optimum(self) -> Floats:
        """The place (2,) of the surrogate's minimum."""
        origin, coefficients, x, alpha, _ = self._smooth
        axes = [np.arange(a, b + 0.01, 0.05) for a, b in zip(x.min(axis=0), x.max(axis=0), strict=True)]
        grid = np.stack(np.meshgrid(*axes), axis=-1).reshape(-1, 2)
        return np.asarray(origin + grid[np.argmin(self._surface(grid, coefficients, x, alpha))])


def _cubic(x: Floats) -> Floats:
    return np.column_stack([x[:, 0] ** i * x[:, 1] ** j for i, j in CUBIC])


def _kernel(a: Floats, b: Floats) -> Floats:
    return np.asarray(0.0005**2 * np.exp(-0.5 * np.sum(((a[:, None] - b[None]) / 1.5) ** 2, axis=-1)))


def table_cells(seen: Observations) -> Iterator[TableCell]:
    """Every cell of the table, ascending in N then D."""
    index = cell_index(seen)
    for cell in range(index.max() + 1):
        yield TableCell(seen.select(index == cell))


def splits(seen: Observations) -> dict[str, tuple[NDArray[np.bool_], NDArray[np.bool_]]]:
    """The five extrapolations V1–V5 as masks (train, test) of rows."""
    N, D, C = seen.n_params, seen.n_tokens, seen.flops
    return {
        "V1 N <= 429M -> 537M": (N <= 4.3e8, N > 5e8),
        "V2 N <= 268M -> 429M, 537M": (N <= 2.7e8, N > 4e8),
        "V3 C <= 1.1e19 -> C >= 1e20": (C <= 1.1e19, C >= 1e20),
        "V4 D <= 8B -> D >= 40B": (D <= 8e9, D >= 4e10),
        "V5 C <= 3.3e19 -> C >= 1e20": (C <= 3.3e19, C >= 1e20),
    }


def mean(values: Sequence[float]) -> float:
    return float(np.mean(values))
