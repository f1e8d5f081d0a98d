"""The shape of the loss around its optimum in learning rate and batch size, shared by all cells.

    f(du, dv) = q1 G(du + r dv; k1) + q2 G(dv; k2),      G(z; k) = (e^{kz} − kz − 1) / k²

with du, dv in octaves (log2) from the optimum and f in ln loss. G is convex, G ≈ z²/2 near 0, and steeper on one side
when k ≠ 0: too high a learning rate costs more than too low a one. r turns the basin, because a larger batch wants a
larger rate.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from isoloss.laws.solve import Floats

SHAPE: Final = ("ln_q1", "r", "k1", "ln_q2", "k2")
STEEPEST: Final = 25.0  # kz is clipped here: e^25 above the minimum is as good as infinity
# Beliefs about the shape, (mean, sd): the plateau of the Step Law table (within .25 %: lr ×2.7, batch ×3.2), and wide.
BELIEFS: Final = ((np.log(0.0098), 1.0), (-0.3, 0.4), (0.3, 0.3), (np.log(0.0071), 1.0), (0.0, 0.25))


@dataclass(frozen=True, slots=True)
class Basin:
    """One basin, or S of them: every field of shape () or (S, 1)."""

    q1: Floats
    r: Floats
    k1: Floats
    q2: Floats
    k2: Floats

    @classmethod
    def of(cls, shape: Floats) -> Basin:
        """From parameters in the order of ``SHAPE``, (5,) or (S, 5)."""
        ln_q1, r, k1, ln_q2, k2 = (shape[..., i, None] if shape.ndim > 1 else shape[i] for i in range(len(SHAPE)))
        return cls(np.exp(ln_q1), r, k1, np.exp(ln_q2), k2)

    def excess(self, du: Floats, dv: Floats) -> Floats:
        """The excess f at (du, dv)."""
        return np.asarray(self.q1 * bowl(du + self.r * dv, self.k1) + self.q2 * bowl(dv, self.k2))

    def gradient(self, du: Floats, dv: Floats) -> tuple[Floats, Floats, Floats]:
        """The excess f, its Jacobian over ``SHAPE`` (…, 5) and over (du, dv) (…, 2)."""
        z = du + self.r * dv
        first, second = self.q1 * bowl(z, self.k1), self.q2 * bowl(dv, self.k2)
        by_z, by_v = self.q1 * bowl_slope(z, self.k1), self.q2 * bowl_slope(dv, self.k2)
        skew = (self.q1 * bowl_skew(z, self.k1), self.q2 * bowl_skew(dv, self.k2))
        shape = np.stack([first, by_z * dv, skew[0], second, skew[1]], axis=-1)
        return first + second, shape, np.stack([by_z, by_z * self.r + by_v], axis=-1)

    def reach(self, excess: float) -> tuple[tuple[float, float], tuple[float, float]]:
        """How far (octaves, below and above) du at dv = 0, and dv at du = 0, may go until f exceeds ``excess``."""
        steps = np.linspace(0.0, 8.0, 4001)
        ends = []
        for du, dv in ((1.0, 0.0), (0.0, 1.0)):
            ends.append(
                tuple(
                    _first_above(self.excess(sign * du * steps, sign * dv * steps), steps, excess) for sign in (-1, 1)
                )
            )
        (low_u, high_u), (low_v, high_v) = ends
        return (-low_u, high_u), (-low_v, high_v)


TYPICAL: Final = Basin.of(np.array([mean for mean, _ in BELIEFS]))


def _first_above(values: Floats, steps: Floats, limit: float) -> float:
    above = np.flatnonzero(values > limit)
    return float(steps[max(above[0] - 1, 0)]) if len(above) else float(steps[-1])


def bowl(z: Floats, k: Floats) -> Floats:
    """G(z; k)."""
    w = np.clip(k * z, -STEEPEST, STEEPEST)
    small = np.abs(w) < 1e-2
    safe = np.where(small, 1.0, w)
    return np.asarray(z**2 * np.where(small, 0.5 + w / 6 + w**2 / 24 + w**3 / 120, (np.expm1(safe) - safe) / safe**2))


def bowl_slope(z: Floats, k: Floats) -> Floats:
    """∂G/∂z = (e^{kz} − 1) / k."""
    w = np.clip(k * z, -STEEPEST, STEEPEST)
    safe = np.where(np.abs(w) < 1e-6, 1.0, w)
    return np.asarray(z * np.where(np.abs(w) < 1e-6, 1.0 + w / 2, np.expm1(safe) / safe))


def bowl_skew(z: Floats, k: Floats) -> Floats:
    """∂G/∂k."""
    w = np.clip(k * z, -STEEPEST, STEEPEST)
    small = np.abs(w) < 5e-2
    safe = np.where(small, 1.0, w)
    exact = (safe * (np.exp(safe) + 1) - 2 * np.expm1(safe)) / safe**3
    return np.asarray(z**3 * np.where(small, 1 / 6 + w / 12 + w**2 / 40 + w**3 / 180, exact))
