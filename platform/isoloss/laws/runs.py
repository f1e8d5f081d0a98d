"""The runs as the joint surface sees them: octaves, cells, and how much each run may say."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from isoloss.errors import FitFailed
from isoloss.laws.cells import cell_index
from isoloss.laws.inference import rerun_noise
from isoloss.laws.observation import Observations
from isoloss.laws.solve import Floats

NOISE: Final = (0.005, 4.0)  # prior of a run's noise in ln loss: its sd, and how many observations it is worth
QUIETEST: Final = 5e-4  # a run's noise is believed to be no less, whatever few reruns say
NARROW, WIDE, PER_CELL = 0.04, 0.30, 6  # the cap: at least 4 % above a cell's best, wider until six runs a cell are in
VARIED: Final = 1e-6  # octaves: a batch size that spans less was not varied


@dataclass(frozen=True, slots=True)
class Runs:
    """The runs as the surface sees them, each (n,): octaves, coordinates about the centre, ln loss, cell, weights.

    ``noise`` is what is believed of a run's noise: its sd, and how many observations that is worth.
    """

    u: Floats
    v: Floats
    x: Floats
    y: Floats
    ln_loss: Floats
    cell: NDArray[np.int64]
    weight: Floats
    censored: NDArray[np.bool_]
    origin: tuple[float, float]
    cap: float
    noise: tuple[float, float]

    @property
    def n_cells(self) -> int:
        """How many cells there are."""
        return int(self.cell.max()) + 1

    @property
    def batch_varied(self) -> bool:
        """Whether more than one batch size was tried."""
        return bool(np.ptp(self.v) >= VARIED)


def gather(observations: Observations) -> Runs:
    """Runs with known lr and batch in cells that have a finished run; ``FitFailed`` when there are fewer than four."""
    known = (
        ~np.isnan(observations.lr) & ~np.isnan(observations.batch_tokens) & (observations.ok | observations.diverged)
    )
    finished = observations.ok & known
    index = cell_index(observations)
    known &= np.isin(index, index[finished])
    if finished.sum() < 4:
        raise FitFailed(
            f"lr-batch has {int(finished.sum())} finished runs with lr and batch_tokens; it needs at least 4."
        )
    seen = observations.select(known)
    cell = np.unique(index[known], return_inverse=True)[1].astype(np.int64)
    ln_loss = np.where(seen.ok, np.log(np.where(seen.ok, seen.loss, 1.0)), np.inf)
    least = np.full(cell.max() + 1, np.inf)
    np.minimum.at(least, cell, ln_loss)
    excess = ln_loss - least[cell]
    sixth = [np.sort(excess[cell == c])[:PER_CELL][-1] for c in range(len(least))]
    finite = [value for value in sixth if np.isfinite(value)]
    cap = float(np.clip(np.median(finite) if finite else NARROW, NARROW, WIDE))
    x, y = np.log2(seen.n_params), np.log2(seen.n_tokens)
    corners = np.unique(np.column_stack([x, y]), axis=0)
    origin = (float(corners[:, 0].mean()), float(corners[:, 1].mean()))
    censored = excess > cap
    weight = np.where(censored, 1.0, np.exp(-0.5 * (np.minimum(excess, cap) / (0.5 * cap)) ** 2))
    u, v = np.log2(seen.lr), np.log2(seen.batch_tokens)
    reruns, freedom = rerun_noise(seen)
    noise = (max(reruns, QUIETEST), float(freedom)) if freedom else NOISE
    level = np.where(censored, least[cell], ln_loss)
    return Runs(u, v, x - origin[0], y - origin[1], level, cell, weight, censored, origin, cap, noise)


def by_cell(runs: Runs) -> list[NDArray[np.int64]]:
    """The rows of every cell."""
    return [np.flatnonzero(runs.cell == cell) for cell in range(runs.n_cells)]
