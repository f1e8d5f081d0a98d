"""Chinchilla's law, approach 3, and its compute-optimal frontier (Hoffmann et al. 2022, eq. 2 and 4)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from isoloss.laws.powersum import PowerSum, Term

EXPONENTS: Final = tuple(float(x) for x in np.linspace(0.03, 1.2, 32))
CHINCHILLA: Final = PowerSum(
    name="chinchilla",
    equation="L(N, D) = E + A / N^alpha + B / D^beta",
    source="Hoffmann et al. 2022, arXiv 2203.15556, eq. 2",
    terms=(Term("E"), Term("A", n="alpha"), Term("B", d="beta")),
    grid={"alpha": EXPONENTS, "beta": EXPONENTS},
    prior={"alpha": (0.35, 0.15), "beta": (0.35, 0.15)},
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ChinchillaLaw:
    """L(N, D) = E + A / N^alpha + B / D^beta, L in nats per token, N parameters, D tokens."""

    E: float
    A: float
    B: float
    alpha: float
    beta: float

    def loss(self, N: float, D: float) -> float:
        """The loss of N parameters trained on D tokens."""
        return float(self.E + self.A / N**self.alpha + self.B / D**self.beta)

    def optimal(self, C: float) -> tuple[float, float]:
        """The N and D of least loss at C = 6 N D (eq. 4: N = G (C/6)^a, a = β / (α + β))."""
        total = self.alpha + self.beta
        G = (self.alpha * self.A / (self.beta * self.B)) ** (1 / total)
        return G * (C / 6) ** (self.beta / total), (C / 6) ** (self.alpha / total) / G
