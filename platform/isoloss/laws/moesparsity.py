"""Loss against active parameters and sparsity, at one token budget.

    L = E + A P^−a N_act^(−b + c ln P),  P = N / N_act

The form ScaleBench (Li et al. 2026, arXiv 2604.22753) uses for mixture-of-experts models; N are all parameters, N_act
those a token meets. It says what sparsity costs in loss only: reasoning tasks prefer fewer total parameters than loss
does (Nakamura et al. 2025, arXiv 2508.18672).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Final

import numpy as np

from isoloss.laws.powersum import FLOOR, log_sum_exp
from isoloss.laws.solve import Floats, RobustLoss, project

GRID: Final = ((-0.1, 0.0, 0.05, 0.1, 0.2), (0.02, 0.05, 0.1, 0.2, 0.3, 0.5), (-0.05, 0.0, 0.05))  # a, b, c
STARTS: Final = 12


@dataclass(frozen=True, slots=True)
class MoeSparsity:
    """The form; θ is (ln E, ln A, a, b, c)."""

    name: str = "moe-sparsity"
    equation: str = "L = E + A P^-a N_act^(-b + c ln P), P = N / N_act"
    source: str = "Li et al. 2026 (ScaleBench), arXiv 2604.22753"
    columns: tuple[str, ...] = ("n_params", "n_active")
    names: tuple[str, ...] = ("E", "A", "a", "b", "c")
    logarithms: frozenset[str] = frozenset({"E", "A"})
    origin: tuple[float, ...] = (0.0, 0.0)

    def centre(self, x: Floats) -> Floats:
        """Mean ln N and ln N_act."""
        return np.asarray(x.mean(axis=1))

    def design(self, x: Floats) -> Floats:
        """Z (2, n, p) of the two terms."""
        p, n = x[0] - x[1], x[1]
        Z = np.zeros((2, len(n), 5))
        Z[0, :, 0] = 1.0
        Z[1, :, 1:] = np.column_stack([np.ones_like(n), -p, -n, p * n])
        return Z

    def log_loss(self, theta: Floats, design: Floats) -> tuple[Floats, Floats]:
        """Give ln L (S, n) and its Jacobian (S, n, p)."""
        return log_sum_exp(theta, design)

    def shift(self, theta: Floats, by: Floats) -> Floats:
        """The product of P and N_act spreads an offset over A, a and b."""
        p, n = by[0] - by[1], by[1]
        E, A, a, b, c = np.moveaxis(theta, -1, 0)
        return np.stack([E, A + a * p + b * n + c * p * n, a + c * n, b + c * p, c], axis=-1)

    def constants(self, theta: Floats) -> Floats:
        """θ itself."""
        return theta

    def bounds(self, loss: Floats) -> tuple[Floats, Floats]:
        """Terms may vanish; slopes stay within 2."""
        least = float(np.log(loss.min()))
        return (
            np.array([least + FLOOR, least + FLOOR, -2.0, 1e-3, -1.0]),
            np.array([least + 12.0, least + 12.0, 2.0, 2.0, 1.0]),
        )

    def starts(self, x: Floats, loss: Floats, robust: RobustLoss) -> Floats:
        """The best points of a grid of a, b, c, whose E and A are linear."""
        slopes = np.array(list(product(*GRID)))
        exponents = slopes @ self.design(x)[1, :, 2:].T
        levels, objective = project(np.stack([np.zeros_like(exponents), exponents]), loss, robust)
        best = np.argsort(objective, kind="stable")[:STARTS]
        return np.asarray(np.clip(np.hstack([levels[best], slopes[best]]), *self.bounds(loss)))


MOE_SPARSITY: Final = MoeSparsity()
