"""Kaplan's law, where the parameter and the token term share one outer exponent and nothing is irreducible."""

from __future__ import annotations

from typing import Final

from isoloss.laws.powersum import PowerSum, Term

INNER: Final = (0.1, 0.25, 0.4, 0.55, 0.7, 0.85, 1.0, 1.25, 1.5, 2.0)
KAPLAN: Final = PowerSum(
    name="kaplan",
    equation="L(N, D) = (A / N^alpha + B / D^beta)^kappa",
    source="Kaplan et al. 2020, arXiv 2001.08361, eq. 1.5 (κ is their α_D, α is α_N / α_D)",
    terms=(Term("A", n="alpha"), Term("B", d="beta")),
    grid={"alpha": INNER, "beta": INNER, "kappa": (0.05, 0.1, 0.2, 0.4, 0.8)},
    prior={"alpha": (0.8, 0.4), "beta": (0.8, 0.4), "kappa": (0.2, 0.2)},
    outer="kappa",
)
