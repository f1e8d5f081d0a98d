"""The law for repeated data: tokens seen again, and parameters beyond what the data can fill, are worth less and less.

    L = E + A / N'^α + B / D'^β
    D' = U_D (1 + R_D* (1 − exp(−R_D / R_D*))),  R_D = D / U_D − 1,  U_D the unique tokens (D at most)
    N' = U_N (1 + R_N* (1 − exp(−R_N / R_N*))),  R_N = N / U_N − 1,  U_N = min(N, the optimal N for U_D)

Muennighoff et al. 2023, arXiv 2305.16264, eq. 3 to 5. The published R_D* = 15.4 and R_N* = 5.3 are a local optimum of
their own objective, whose profile in R_D* is flat above 30; the grid of starts finds the better one and the bootstrap
says that it is not identified.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Final

import numpy as np

from isoloss.laws.chinchilla import CHINCHILLA
from isoloss.laws.solve import Floats, RobustLoss

REPEATS: Final = ("R_D*", "R_N*")
GRID: Final = (1.0, 4.0, 15.0, 50.0)
MOST: Final = (0.1, 1e4)  # range of R_D* and R_N*; an unbounded worth of repeats is as good as 1e4
C4: Final = (0.6254804, 6.255414, 7.3049974, 0.3526596, 0.3526596)  # ln E, ln A, ln B, α, β


@dataclass(frozen=True, slots=True)
class DataConstrained:
    """The form with its ``base`` (ln E, ln A, ln B, α, β) held, or with ``base=None`` fitted as well."""

    name: str
    equation: str
    source: str
    base: tuple[float, ...] | None
    columns: tuple[str, ...] = ("n_params", "n_tokens", "unique_tokens")
    origin: tuple[float, ...] = (0.0, 0.0, 0.0)

    @property
    def names(self) -> tuple[str, ...]:
        """R_D*, R_N* after the base's constants, if those are fitted."""
        return REPEATS if self.base else (*CHINCHILLA.names, *REPEATS)

    @property
    def logarithms(self) -> frozenset[str]:
        """The coefficients and both R*."""
        return frozenset(REPEATS if self.base else (*CHINCHILLA.logarithms, *REPEATS))

    def centre(self, x: Floats) -> Floats:
        """Mean ln N and ln D (unique tokens are tokens too); the origin when the base is held."""
        n, d = (0.0, 0.0) if self.base else x[:2].mean(axis=1)
        return np.array([n, d, d])

    def design(self, x: Floats) -> Floats:
        """Logarithms of N, D and unique tokens, of which no more than D can be seen."""
        return np.array([x[0], x[1], np.minimum(x[1], x[2])])

    def log_loss(self, theta: Floats, design: Floats) -> tuple[Floats, Floats]:
        """Give ln L (S, n) and its Jacobian (S, n, p)."""
        whole = theta if self.base is None else np.hstack([np.tile(self.base, (len(theta), 1)), theta])
        E, A, B, alpha, beta, data, params = (column[:, None] for column in whole.T)
        n, d, unique = design
        tokens, _, d_data = _worth(d - unique, data)
        share = (
            np.log(alpha) + A - np.log(beta) - B
        )  # ln of (α A) / (β B): with it the optimal N for U_D is in closed form
        filled = share / alpha + beta / alpha * unique
        excess = np.maximum(n - filled, 0.0)
        size, d_excess, d_params = _worth(excess, params)
        ln_n, ln_d = np.minimum(n, filled) + size, unique + tokens
        first, second, third = np.broadcast_arrays(E, A - alpha * ln_n, B - beta * ln_d)
        total = np.logaddexp(np.logaddexp(first, second), third)
        one, two, three = (np.exp(part - total) for part in (first, second, third))
        moves = np.where(excess > 0, 1 - d_excess, 0.0) * -alpha * two  # by the optimal N
        parts = (
            one,
            two + moves / alpha,
            three - moves / alpha,
            -ln_n * two + moves * (1 - share - beta * unique) / alpha**2,
            -ln_d * three + moves * (unique - 1 / beta) / alpha,
            -beta * three * d_data,
            -alpha * two * d_params,
        )
        return total, np.stack(np.broadcast_arrays(*parts[-theta.shape[1] :]), axis=-1)

    def shift(self, theta: Floats, by: Floats) -> Floats:
        """The base's coefficients absorb the offsets of its exponents."""
        if self.base:
            return theta
        return np.concatenate([CHINCHILLA.shift(theta[..., :5], by[:2]), theta[..., 5:]], axis=-1)

    def constants(self, theta: Floats) -> Floats:
        """θ itself."""
        return theta

    def bounds(self, loss: Floats) -> tuple[Floats, Floats]:
        """Chinchilla's, with exponents that keep the optimal N finite; both R* from .1 to 1e4."""
        low, high = np.log(np.tile(MOST, (2, 1))).T
        if self.base:
            return low, high
        base_low, base_high = CHINCHILLA.bounds(loss)
        base_low[3:], base_high[3:] = 0.02, 2.0
        return np.concatenate([base_low, low]), np.concatenate([base_high, high])

    def starts(self, x: Floats, loss: Floats, robust: RobustLoss) -> Floats:
        """A grid of R* (times Chinchilla's best starts, which do not know of repeats)."""
        repeats = np.log(np.array(list(product(GRID, GRID))))
        if self.base:
            return np.asarray(repeats)
        base = CHINCHILLA.starts(x[:2], loss, robust)[:3]
        return np.asarray(np.hstack([np.repeat(base, len(repeats), axis=0), np.tile(repeats, (len(base), 1))]))


def _worth(ln_ratio: Floats, ln_most: Floats) -> tuple[Floats, Floats, Floats]:
    """ln(1 + R* (1 − e^{−R/R*})) for R = e^ratio − 1 and R* = e^most, and its derivatives by ratio and by most."""
    repeats, most = np.expm1(np.minimum(ln_ratio, 100.0)), np.exp(ln_most)
    left = np.exp(-repeats / most)
    worth = 1 + most * (1 - left)
    return np.log(worth), (repeats + 1) * left / worth, (most * (1 - left) - repeats * left) / worth


SOURCE: Final = "Muennighoff et al. 2023, arXiv 2305.16264, eq. 3 to 5"
DATA_CONSTRAINED: Final = DataConstrained(
    name="data-constrained",
    equation="L = 1.869 + 521 / N'^0.3527 + 1488 / D'^0.3527 (as for C4); N', D' discounted by R_N*, R_D*",
    source=SOURCE,
    base=C4,
)
DATA_CONSTRAINED_FREE: Final = DataConstrained(
    name="data-constrained-free",
    equation="L = E + A / N'^alpha + B / D'^beta; N', D' discounted by R_N*, R_D*",
    source=SOURCE,
    base=None,
)
