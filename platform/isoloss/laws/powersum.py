"""The loss laws that are sums of power laws, fitted as one family.

    ln L(N, D) = κ ln Σ_k exp(c_k − p_k ln N − q_k ln D)

Chinchilla's, Kaplan's and the interaction form differ only in which terms they have and which exponents a term
carries, so they share the exact log-sum-exp Jacobian, the variable-projection grid of starts and the solver. Fitting
is done with ln N and ln D centred: the 5-D Hessian of Chinchilla's form has a condition number of some 3e11
otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Final

import numpy as np
from numpy.typing import NDArray

from isoloss.laws.solve import Floats, Prior, RobustLoss, Solution, best, solve

POLISHED: Final = 8  # starts of the grid that are polished
FLOOR: Final = -9.0  # a term this far (in ln) under the smallest loss has vanished


@dataclass(frozen=True, slots=True)
class Term:
    """exp(c − p ln N − q ln D): the names of its coefficient and of its exponents over N and D."""

    coefficient: str
    n: str | None = None
    d: str | None = None


@dataclass(frozen=True, slots=True)
class PowerSum:
    """A loss law of this family. ``outer`` names κ when it is fitted; otherwise κ = 1.

    ``grid`` gives the values to start from, and ``prior`` (mean, sd) the weak belief a campaign with few cells leans
    on, per exponent (and κ).
    """

    name: str
    equation: str
    source: str
    terms: tuple[Term, ...]
    grid: dict[str, tuple[float, ...]]
    prior: dict[str, tuple[float, float]]
    outer: str | None = None

    @property
    def coefficients(self) -> tuple[str, ...]:
        """Names of the coefficients, one a term."""
        return tuple(term.coefficient for term in self.terms)

    @property
    def names(self) -> tuple[str, ...]:
        """Every constant, in the order of θ: coefficients (as logarithms), exponents, κ."""
        exponents = dict.fromkeys(name for term in self.terms for name in (term.n, term.d) if name)
        return (*self.coefficients, *exponents, *((self.outer,) if self.outer else ()))

    def design(self, ln_n: Floats, ln_d: Floats) -> Floats:
        """Z of shape (terms, n, p): the exponent of term k at point i is Z[k, i] · θ."""
        names = self.names
        Z = np.zeros((len(self.terms), len(ln_n), len(names)))
        for k, term in enumerate(self.terms):
            Z[k, :, names.index(term.coefficient)] = 1.0
            for exponent, x in ((term.n, ln_n), (term.d, ln_d)):
                if exponent:
                    Z[k, :, names.index(exponent)] = -x
        return Z

    def log_loss(self, theta: Floats, Z: Floats) -> tuple[Floats, Floats]:
        """Give ln L of shape (S, n) and its Jacobian (S, n, p) at θ (S, p)."""
        with np.errstate(over="ignore", invalid="ignore"):
            eta = np.einsum("knp,sp->ksn", Z, theta, optimize=True)
            top = eta.max(axis=0)
            share = np.exp(eta - top)
            total = share.sum(axis=0)
            lse = top + np.log(total)
            gradient = np.einsum("ksn,knp->snp", share / total, Z, optimize=True)
        if self.outer is None:
            return lse, gradient
        kappa = theta[:, -1:]
        gradient *= kappa[:, :, None]
        gradient[:, :, -1] = lse
        return kappa * lse, gradient

    def predict(self, theta: Floats, n_params: Floats, n_tokens: Floats) -> Floats:
        """L of shape (S, n) at natural (not centred) θ (S, p)."""
        Z = self.design(np.log(n_params), np.log(n_tokens))
        return np.exp(self.log_loss(np.atleast_2d(theta), Z)[0])

    def shift(self, theta: Floats, ln_n: float, ln_d: float) -> Floats:
        """θ (…, p) fitted about the centre (ln_n, ln_d) as natural θ: coefficients absorb the exponents' offsets."""
        names, moved = self.names, theta.copy()
        for k, term in enumerate(self.terms):
            for exponent, centre in ((term.n, ln_n), (term.d, ln_d)):
                if exponent:
                    moved[..., k] += theta[..., names.index(exponent)] * centre
        return moved


@dataclass(frozen=True, slots=True)
class Problem:
    """A form, its points (N, D, L; each (n,)) and how to weigh them, ready for the solver."""

    form: PowerSum
    n_params: Floats
    n_tokens: Floats
    loss: Floats
    robust: RobustLoss

    @property
    def centre(self) -> tuple[float, float]:
        """Mean ln N and mean ln D of the points."""
        return float(np.log(self.n_params).mean()), float(np.log(self.n_tokens).mean())

    def design(self) -> Floats:
        """Z about the centre."""
        ln_n, ln_d = self.centre
        return self.form.design(np.log(self.n_params) - ln_n, np.log(self.n_tokens) - ln_d)

    def residuals(self, theta: Floats, Z: Floats) -> tuple[Floats, Floats]:
        """Residuals ln L predicted − ln L observed, (S, n), and the Jacobian."""
        value, jacobian = self.form.log_loss(theta, Z)
        return value - np.log(self.loss), jacobian

    def bounds(self) -> tuple[Floats, Floats]:
        """Coefficients may vanish or dwarf the losses, exponents lie in (0, 4), γ and κ within what papers saw."""
        form, least = self.form, float(np.log(self.loss.min()))
        k = len(form.terms)
        low = np.full(len(form.names), 1e-3)
        high = np.full(len(form.names), 4.0)
        low[:k], high[:k] = (-60.0, 60.0) if form.outer else (least + FLOOR, least + 12.0)
        for index, name in enumerate(form.names):
            if name == "gamma":
                low[index], high[index] = -1.0, 1.0
            if name == form.outer:
                low[index], high[index] = 0.02, 2.0
        return low, high

    def starts(self, count: int = POLISHED) -> Floats:
        """The best ``count`` points of the projected grid, (count, p): coefficients are linear for given exponents."""
        form, k = self.form, len(self.form.terms)
        exponents = np.array(list(product(*(form.grid[name] for name in form.names[k:]))))
        theta = np.hstack([np.zeros((len(exponents), k)), exponents])
        Z = self.design()
        kappa = theta[:, -1:] if form.outer else np.ones((len(theta), 1))
        basis = np.exp(np.einsum("knp,sp->snk", Z, theta, optimize=True))
        target = self.loss ** (1 / kappa)
        scaled = basis / target[:, :, None]
        normal = scaled.swapaxes(1, 2) @ scaled + 1e-12 * np.eye(k)
        linear = np.linalg.solve(normal, scaled.sum(axis=1)[:, :, None])[:, :, 0]
        theta[:, :k] = np.log(np.maximum(linear, 1e-3 * target.min(axis=1, keepdims=True)))
        theta = np.clip(theta, *self.bounds())
        objective = self.robust.total(self.residuals(theta, Z)[0], np.ones(len(self.loss)))
        return np.asarray(theta[np.argsort(objective, kind="stable")[:count]])

    def solve(
        self, starts: Floats, *, weights: Floats | None = None, prior: Prior | None = None, tolerance: float = 1e-9
    ) -> tuple[Floats, Solution]:
        """Every end (S, p) and the best of them, about the centre."""
        Z = self.design()
        ends = solve(
            lambda theta: self.residuals(theta, Z),
            starts,
            loss=self.robust,
            weights=weights,
            prior=prior,
            bounds=self.bounds(),
            tolerance=tolerance,
        )
        return ends.theta, best(ends)


def at_edge(theta: Floats, bounds: tuple[Floats, Floats]) -> NDArray[np.bool_]:
    """Which parameters of θ (…, p) lie at an edge of what was allowed."""
    low, high = bounds
    return np.asarray((theta <= low + 1e-6) | (theta >= high - 1e-6))
