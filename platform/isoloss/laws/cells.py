"""Cells: the runs of one (N, D), and where the best learning rate and batch size of a cell lie.

**When a cell enters the step law.** It must have at least five different finished configurations (lr, batch), and its
optimum must be *interior*, on every axis that was varied:

- learning rate: at least three values were tried, the best run's is neither the smallest nor the largest of them, and
  the quadratic in log2 lr (below) opens upwards with its vertex strictly within the tried range;
- batch size: the same; a grid of one value is a constant, not an axis, and the cell then serves the lr law alone. A
  grid of two values has no inside, so such a cell never qualifies: its lr optimum belongs to a batch size that may be
  wrong.

The optimum is the vertex of a least-squares quadratic of ln loss in (log2 lr, log2 batch): 1, u, u² always, v and v²
when the batch was varied, u·v when there are at least eight configurations. Runs count by a Gaussian weight on their
excess over the cell's best, so that the far wings, which are no parabola, say little.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from isoloss.laws.observation import Observations
from isoloss.laws.solve import Floats

CONFIGURATIONS: Final = 5
NARROWEST: Final = 0.02  # excess (in ln loss) at which a run's weight has fallen to e^-½, at the least


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One (N, D): its least loss, where its optimum lies (NaN when the quadratic has none), and whether interior."""

    n_params: float
    n_tokens: float
    rows: tuple[int, ...]
    configurations: int
    loss: float
    lr: float
    batch_tokens: float
    batch_varied: bool
    interior: bool

    @property
    def qualifies(self) -> bool:
        """Whether the step law may use this cell."""
        return self.configurations >= CONFIGURATIONS and self.interior


def cell_index(observations: Observations) -> NDArray[np.int64]:
    """The cell (0, 1, …, by ascending N then D) of every row, shape (n,)."""
    pairs = np.column_stack([observations.n_params, observations.n_tokens])
    return np.unique(pairs, axis=0, return_inverse=True)[1].reshape(-1).astype(np.int64)


def cells(observations: Observations) -> tuple[Cell, ...]:
    """Every cell with at least one finished run, ascending in N then D."""
    index = cell_index(observations)
    groups = [np.flatnonzero((index == cell) & observations.ok) for cell in range(index.max(initial=-1) + 1)]
    return tuple(_cell(observations, rows) for rows in groups if len(rows))


def bounds(observations: Observations) -> dict[str, str]:
    """A warning for ``lr`` and ``batch_tokens`` where most cells' best value is the least, or the greatest, tried.

    There the runs give a bound of the optimum, not the optimum. Cells with fewer than three values say nothing.
    """
    index, found = cell_index(observations), {}
    for name in ("lr", "batch_tokens"):
        values, sides = observations.column(name), []
        for cell in range(index.max(initial=-1) + 1):
            rows = np.flatnonzero((index == cell) & observations.ok & ~np.isnan(values))
            if len(np.unique(values[rows])) < 3:
                continue
            best = values[rows[np.argmin(observations.loss[rows])]]
            sides.append(int(best == values[rows].max()) - int(best == values[rows].min()))
        for side, word, way in ((1, "greatest", "above"), (-1, "least", "below")):
            if (count := sides.count(side)) > len(sides) / 2:
                found[name] = (
                    f"the best {name} is the {word} tried in {count} of {len(sides)} cells: that bounds the optimum and "
                    f"does not show it; search {way} it"
                )
    return found


def _cell(observations: Observations, rows: NDArray[np.int64]) -> Cell:
    u, v = np.log2(observations.lr[rows]), np.log2(observations.batch_tokens[rows])
    y = np.log(observations.loss[rows])
    known = ~np.isnan(u)
    v = np.where(np.isnan(v), 0.0, v)
    varied = bool(np.ptp(v) > 1e-9) if len(v) else False
    configurations = len(np.unique(np.round(np.column_stack([u, v])[known], 9), axis=0))
    vertex = _vertex(u[known], v[known], y[known], varied=varied)
    unknown_batch = bool(np.isnan(observations.batch_tokens[rows]).all())
    return Cell(
        n_params=float(observations.n_params[rows[0]]),
        n_tokens=float(observations.n_tokens[rows[0]]),
        rows=tuple(int(row) for row in rows),
        configurations=configurations,
        loss=float(np.exp(y.min())),
        lr=float(2.0 ** vertex[0]) if vertex else float("nan"),
        batch_tokens=float(2.0 ** vertex[1]) if vertex and not unknown_batch else float("nan"),
        batch_varied=varied,
        interior=vertex is not None,
    )


def _vertex(u: Floats, v: Floats, y: Floats, *, varied: bool) -> tuple[float, float] | None:
    """The optimum (log2 lr, log2 batch) when it is interior, else None; inputs of shape (configurations,)."""
    axes = [u, v] if varied else [u]
    best = int(np.argmin(y)) if len(y) else 0
    for axis in axes:
        if len(np.unique(axis)) < 3 or not axis.min() < axis[best] < axis.max():
            return None
    crossed = varied and len(y) >= 8
    x = [axis - axis[best] for axis in axes]
    columns = [np.ones_like(y), *x, *(0.5 * axis**2 for axis in x), *([x[0] * x[1]] if crossed else [])]
    if len(y) < len(columns):
        return None
    excess = y - y[best]
    near = np.sort(excess)[min(len(y) - 1, len(columns) + 2)]
    weight = np.exp(-0.25 * (excess / max(NARROWEST, near)) ** 2)
    design = np.column_stack(columns)
    coefficients, _, rank, _ = np.linalg.lstsq(design * weight[:, None], y * weight, rcond=None)
    if rank < len(columns):
        return None
    k = len(x)
    hessian = np.diag(coefficients[1 + k : 1 + 2 * k])
    if crossed:
        hessian[0, 1] = hessian[1, 0] = coefficients[-1]
    if np.linalg.eigvalsh(hessian)[0] <= 0:
        return None
    at = -np.linalg.solve(hessian, coefficients[1 : 1 + k]) + [axis[best] for axis in axes]
    if any(not axis.min() < position < axis.max() for axis, position in zip(axes, at, strict=True)):
        return None
    return float(at[0]), float(at[1]) if varied else float(v[best])
