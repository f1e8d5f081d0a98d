"""Farseer's law: the irreducible part falls with N, and what a token is worth depends on N.

    ln L = ln(exp f(N) + exp(g(N) − exp(h(N)) ln D))

Each of f, g and h is a constant plus a power of N in the paper. Here it is held as level + slope · (N^c − 1) / c about
a reference size, which is the same family, stays determined when c goes to 0, and is a straight line in ln N there.
The simplified form has f and h straight: on public data their curves buy nothing out of sample, and g's is needed.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Final

import numpy as np

from isoloss.laws.lossform import N_AND_D
from isoloss.laws.solve import Floats, RobustLoss, best, project, solve

REFERENCE: Final = float(np.log(1e9))  # the size about which a finished θ is held
LEAST_CURVE: Final = 1e-4  # below this (N^c − 1) / c is as good as its series
GRID: Final = {
    "k": (0.0, 0.03, 0.08, 0.2),
    "r": (-0.2, 0.0, 0.1, 0.25, 0.5),
    "beta": (0.1, 0.2, 0.3, 0.45, 0.7, 1.0),
    "t": (-0.1, -0.03, 0.0, 0.03, 0.1),
}
CURVES: Final = (-0.2, 0.0, 0.2)
STARTS: Final = 6


@dataclass(frozen=True, slots=True)
class Farseer:
    """The law with those of f, g and h curved that ``curved`` says.

    θ holds level, slope and (if curved) curve of f, g and h in this order.
    """

    name: str
    equation: str
    source: str
    names: tuple[str, ...]
    logarithms: frozenset[str]
    curved: tuple[bool, bool, bool]
    columns: tuple[str, ...] = N_AND_D
    origin: tuple[float, ...] = (REFERENCE, 0.0)

    @property
    def free(self) -> list[int]:
        """The places of θ among the nine of levels, slopes and curves."""
        return [3 * part + i for part in range(3) for i in range(3) if i < 2 or self.curved[part]]

    def centre(self, x: Floats) -> Floats:
        """Mean ln N; a law whose D exponent moves with N has no other origin of ln D than 0."""
        return np.array([x[0].mean(), 0.0])

    def design(self, x: Floats) -> Floats:
        """The logarithms themselves."""
        return x

    def log_loss(self, theta: Floats, design: Floats) -> tuple[Floats, Floats]:
        """Give ln L (S, n) and its Jacobian (S, n, p)."""
        u, v = design
        parts = self._parts(theta)
        (first, d_first), (scale, d_scale), (power, d_power) = (_line(parts[:, i], u) for i in range(3))
        with np.errstate(over="ignore", invalid="ignore"):
            worth = np.exp(power) * v
            second = scale - worth
            total = np.logaddexp(first, second)
            one, two = np.exp(first - total)[..., None], np.exp(second - total)[..., None]
            jacobian = np.concatenate([one * d_first, two * d_scale, -two * worth[..., None] * d_power], axis=-1)
        return total, jacobian[..., self.free]

    def shift(self, theta: Floats, by: Floats) -> Floats:
        """Levels and slopes about another N."""
        level, slope, curve = np.moveaxis(self._parts(theta), -1, 0)
        moved = [level + slope * _bend(curve, -by[0])[0], slope * np.exp(-curve * by[0]), curve]
        return np.stack(moved, axis=-1).reshape(*theta.shape[:-1], 9)[..., self.free]

    def constants(self, theta: Floats) -> Floats:
        """Of a curved part what is added, the factor and the power of N; of a straight one level and slope at N = 1."""
        level, slope, curve = np.moveaxis(self._parts(theta), -1, 0)
        c = np.where(np.abs(curve) < LEAST_CURVE, LEAST_CURVE, curve)
        down = np.array([-1.0, -1.0, 1.0])  # written as E / N^k, but beta N^t
        bent = [level - slope / c, slope * np.exp(-c * REFERENCE) / c, curve]
        straight = [level - slope * REFERENCE, down * slope, curve]
        named = np.where(np.array(self.curved)[:, None], np.stack(bent, axis=-1), np.stack(straight, axis=-1))
        return named.reshape(*theta.shape[:-1], 9)[..., self.free]

    def bounds(self, loss: Floats) -> tuple[Floats, Floats]:
        """The first part within e^12 of the losses; slopes and curves within what any data showed."""
        least = float(np.log(loss.min()))
        low = np.array([least - 9.0, -1.0, -0.5, -60.0, -4.0, -0.5, np.log(0.01), -0.5, -0.5])
        high = np.array([least + 12.0, 1.0, 0.5, 60.0, 4.0, 0.5, np.log(3.0), 0.5, 0.5])
        return low[self.free], high[self.free]

    def starts(self, x: Floats, loss: Floats, robust: RobustLoss) -> Floats:
        """The best points of a grid of straight lines, whose two levels are linear, with g bent or not.

        The full form starts at the simplified one's optimum, with f and h bent or not.
        """
        if all(self.curved):
            return self._bent(SIMPLIFIED.optimum(x, loss, robust), loss)
        u, v = x
        k, r, beta, t = np.array(list(product(*GRID.values()))).T
        r = r - beta * t * v.mean()  # the grid's r is the slope at the mean ln D
        first = -k[:, None] * u
        second = -r[:, None] * u - (beta[:, None] * np.exp(t[:, None] * u)) * v
        levels, objective = project(np.stack([first, second]), loss, robust)
        ranked = np.argsort(objective, kind="stable")[:STARTS]
        parts = np.zeros((len(CURVES), len(ranked), 3, 3))
        parts[..., 0] = np.stack([levels[:, 0], levels[:, 1], np.log(beta)], axis=-1)[ranked]
        parts[..., 1] = np.stack([-k, -r, t], axis=-1)[ranked]
        parts[..., 2] = np.array(CURVES)[:, None, None]
        return np.clip(parts.reshape(-1, 9)[:, self.free], *self.bounds(loss))

    def optimum(self, x: Floats, loss: Floats, robust: RobustLoss) -> Floats:
        """The best θ (p,) about the centre of x."""

        def residuals(theta: Floats) -> tuple[Floats, Floats]:
            value, jacobian = self.log_loss(theta, x)
            return value - np.log(loss), jacobian

        return best(solve(residuals, self.starts(x, loss, robust), loss=robust, bounds=self.bounds(loss))).theta

    def _bent(self, simplified: Floats, loss: Floats) -> Floats:
        starts = np.tile(SIMPLIFIED.spread(simplified), (len(CURVES) ** 2, 1))
        starts[:, [2, 8]] = list(product(CURVES, repeat=2))
        return np.clip(starts, *self.bounds(loss))

    def spread(self, theta: Floats) -> Floats:
        """θ (…, p) among the nine (…, 9) of levels, slopes and curves."""
        parts = np.zeros((*theta.shape[:-1], 9))
        parts[..., self.free] = theta
        return parts

    def _parts(self, theta: Floats) -> Floats:
        """θ (…, p) as (…, 3 functions, level slope curve)."""
        return self.spread(theta).reshape(*theta.shape[:-1], 3, 3)


def _bend(curve: Floats, u: Floats | float) -> tuple[Floats, Floats]:
    """(e^{cu} − 1) / c and its derivative by c; their series where c is too small to divide by."""
    small = np.abs(curve) < LEAST_CURVE
    c = np.where(small, 1.0, curve)
    bend = np.expm1(c * u) / c
    by_curve = (u * np.exp(c * u) - bend) / c
    cu = curve * u
    return (
        np.where(small, u * (1 + cu / 2 + cu**2 / 6), bend),
        np.where(small, u**2 * (0.5 + cu / 3 + cu**2 / 8), by_curve),
    )


def _line(part: Floats, u: Floats) -> tuple[Floats, Floats]:
    """Level + slope (e^{cu} − 1) / c of shape (S, n), and its derivatives (S, n, 3) by level, slope and curve."""
    level, slope, curve = (column[:, None] for column in part.T)
    bend, by_curve = _bend(curve, u)
    return level + slope * bend, np.stack([np.ones_like(bend), bend, slope * by_curve], axis=-1)


FARSEER: Final = Farseer(
    name="farseer",
    equation="L(N, D) = exp(s N^q + S) + exp(B N^b + Q) / D^exp(A N^a + E)",
    source="Li et al. 2025 (Predictable Scale II), arXiv 2506.10972",
    names=("S", "s", "q", "Q", "B", "b", "E", "A", "a"),
    logarithms=frozenset(),
    curved=(True, True, True),
)
SIMPLIFIED: Final = Farseer(
    name="farseer-simplified",
    equation="L(N, D) = E / N^k + exp(B N^b + Q) / D^(beta N^t)",
    source="Li et al. 2025 (Predictable Scale II), arXiv 2506.10972, with two of its functions of N straight in ln N",
    names=("E", "k", "Q", "B", "b", "beta", "t"),
    logarithms=frozenset({"E", "beta"}),
    curved=(False, True, False),
)
