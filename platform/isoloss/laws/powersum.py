"""The loss laws that are sums of power laws, fitted as one family.

    ln L(N, D) = κ ln Σ_k exp(c_k − p_k ln N − q_k ln D)

Chinchilla's, Kaplan's, the interaction form and the over-training form differ only in which terms they have and which
exponents a term carries, so they share the exact log-sum-exp Jacobian, the variable-projection grid of starts and the
solver. Fitting is done with ln N and ln D centred: the 5-D Hessian of Chinchilla's form has a condition number of some
3e11 otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Final

import numpy as np
from numpy.typing import NDArray

from isoloss.laws.lossform import N_AND_D
from isoloss.laws.solve import Floats, RobustLoss

POLISHED: Final = 8  # starts of the grid that are polished
RANKED: Final = 32  # points of the grid, best by relative squares, whose robust objective is computed
FLOOR: Final = -9.0  # a term this far (in ln) under the smallest loss has vanished
SHARE: Final = {
    "irreducible": (np.log(0.6), 0.6),
    "term": (np.log(0.2), 1.2),
}  # ln(term / loss at the centre): mean, sd


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
    on, per exponent (and κ). ``columns`` are what stands for N and D.
    """

    name: str
    equation: str
    source: str
    terms: tuple[Term, ...]
    grid: dict[str, tuple[float, ...]]
    prior: dict[str, tuple[float, float]]
    outer: str | None = None
    columns: tuple[str, ...] = N_AND_D
    origin: tuple[float, ...] = (0.0, 0.0)

    @property
    def coefficients(self) -> tuple[str, ...]:
        """Names of the coefficients, one a term."""
        return tuple(term.coefficient for term in self.terms)

    @property
    def logarithms(self) -> frozenset[str]:
        """The coefficients."""
        return frozenset(self.coefficients)

    @property
    def names(self) -> tuple[str, ...]:
        """Every constant, in the order of θ: coefficients (as logarithms), exponents, κ."""
        exponents = dict.fromkeys(name for term in self.terms for name in (term.n, term.d) if name)
        return (*self.coefficients, *exponents, *((self.outer,) if self.outer else ()))

    def centre(self, x: Floats) -> Floats:
        """Mean ln N and mean ln D."""
        return np.asarray(x.mean(axis=1))

    def design(self, x: Floats) -> Floats:
        """Z of shape (terms, n, p): the exponent of term k at point i is Z[k, i] · θ."""
        names = self.names
        Z = np.zeros((len(self.terms), x.shape[1], len(names)))
        for k, term in enumerate(self.terms):
            Z[k, :, names.index(term.coefficient)] = 1.0
            for exponent, values in ((term.n, x[0]), (term.d, x[1])):
                if exponent:
                    Z[k, :, names.index(exponent)] = -values
        return Z

    def log_loss(self, theta: Floats, design: Floats) -> tuple[Floats, Floats]:
        """Give ln L of shape (S, n) and its Jacobian (S, n, p) at θ (S, p)."""
        lse, gradient = log_sum_exp(theta, design)
        if self.outer is None:
            return lse, gradient
        kappa = theta[:, -1:]
        gradient *= kappa[:, :, None]
        gradient[:, :, -1] = lse
        return kappa * lse, gradient

    def shift(self, theta: Floats, by: Floats) -> Floats:
        """Coefficients absorb the offsets of the exponents."""
        names, moved = self.names, theta.copy()
        for k, term in enumerate(self.terms):
            for exponent, offset in zip((term.n, term.d), by, strict=True):
                if exponent:
                    moved[..., k] += theta[..., names.index(exponent)] * offset
        return moved

    def constants(self, theta: Floats) -> Floats:
        """θ itself."""
        return theta

    def bounds(self, loss: Floats) -> tuple[Floats, Floats]:
        """Coefficients may vanish or dwarf the losses, exponents lie in (0, 4), γ and κ within what papers saw."""
        k, least = len(self.terms), float(np.log(loss.min()))
        low = np.full(len(self.names), 1e-3)
        high = np.full(len(self.names), 4.0)
        low[:k], high[:k] = (-60.0, 60.0) if self.outer else (least + FLOOR, least + 12.0)
        for index, name in enumerate(self.names):
            if name == "gamma":
                low[index], high[index] = -1.0, 1.0
            if name == self.outer:
                low[index], high[index] = 0.02, 2.0
        return low, high

    def starts(self, x: Floats, loss: Floats, robust: RobustLoss) -> Floats:
        """The best points of the projected grid, (POLISHED, p): coefficients are linear for given exponents."""
        outer = self.grid[self.outer] if self.outer else (1.0,)
        theta, squares = zip(*(self._projected(x, loss, kappa) for kappa in outer), strict=True)
        candidates = np.vstack(theta)[np.argsort(np.concatenate(squares), kind="stable")[:RANKED]]
        candidates = np.clip(candidates, *self.bounds(loss))
        objective = robust.total(self.log_loss(candidates, self.design(x))[0] - np.log(loss), np.ones(len(loss)))
        return np.asarray(candidates[np.argsort(objective, kind="stable")[:POLISHED]])

    def _projected(self, x: Floats, loss: Floats, kappa: float) -> tuple[Floats, Floats]:
        """Every grid point with its best coefficients at this κ, (S, p), and its relative squares (S,).

        A term takes few distinct shapes over the grid, so the Gram matrices of all grid points are gathered from the
        products of those.
        """
        inner = self.names[len(self.terms) : len(self.names) - bool(self.outer)]
        exponents = np.array(list(product(*(self.grid[name] for name in inner))))
        target, terms = loss ** (1 / kappa), range(len(self.terms))
        shapes, which = zip(*(self._shapes(term, inner, x) for term in self.terms), strict=True)
        scaled = [shape / target for shape in shapes]
        gram = np.empty((len(exponents), len(terms), len(terms)))
        right = np.empty((len(exponents), len(terms)))
        for k in terms:
            right[:, k] = scaled[k].sum(axis=1)[which[k]]
            for other in range(k, len(terms)):
                gram[:, k, other] = gram[:, other, k] = (scaled[k] @ scaled[other].T)[which[k], which[other]]
        linear = np.linalg.solve(gram + 1e-12 * np.eye(len(terms)), right[:, :, None])[:, :, 0]
        linear = np.maximum(linear, 1e-3 * target.min())
        squares = np.einsum("sk,skl,sl->s", linear, gram, linear) - 2 * np.sum(linear * right, axis=1)
        last = [np.full((len(exponents), 1), kappa)] if self.outer else []
        return np.hstack([np.log(linear), exponents, *last]), np.sqrt(np.maximum(squares + len(loss), 0.0)) * kappa

    def _shapes(self, term: Term, inner: tuple[str, ...], x: Floats) -> tuple[Floats, NDArray[np.int64]]:
        """The distinct shapes of a term over the points, (m, n), and which of them each grid point has."""
        carried = [(name, row) for name, row in ((term.n, x[0]), (term.d, x[1])) if name]
        distinct = np.array(list(product(*(self.grid[name] for name, _ in carried))))
        places = np.indices([len(self.grid[name]) for name in inner]).reshape(len(inner), -1)
        which = np.zeros(places.shape[1], dtype=np.int64)
        for name, _ in carried:
            which = which * len(self.grid[name]) + places[inner.index(name)]
        return np.exp(-distinct @ np.reshape([row for _, row in carried], (len(carried), x.shape[1]))), which

    def beliefs(self, level: float) -> tuple[Floats, Floats]:
        """Mean and sd (p,) of weak beliefs about θ about the centre, where ln L is about ``level``."""
        mean, sd = np.zeros(len(self.names)), np.ones(len(self.names))
        for k, name in enumerate(self.coefficients):
            offset, sd[k] = SHARE["irreducible" if name == "E" else "term"]
            mean[k] = level + offset
        for index, name in enumerate(self.names[len(self.terms) :], start=len(self.terms)):
            mean[index], sd[index] = self.prior[name]
        if self.outer is not None:
            mean[: len(self.terms)], sd[: len(self.terms)] = (level - 0.7) / mean[-1], 1.2 / mean[-1]
        return mean, sd


def log_sum_exp(theta: Floats, Z: Floats) -> tuple[Floats, Floats]:
    """Give ln Σ_k exp(Z[k] · θ) of shape (S, n) for Z (terms, n, p), and its Jacobian (S, n, p)."""
    with np.errstate(over="ignore", invalid="ignore"):
        eta = theta @ Z.swapaxes(1, 2)
        top = eta.max(axis=0)
        share = np.exp(eta - top)
        total = share.sum(axis=0)
        share /= total
    gradient = np.zeros((len(theta), theta.shape[1], Z.shape[1]))  # a row a constant: contiguous for the solver
    for k, p in np.argwhere(Z.any(axis=1)):
        gradient[:, p] += share[k] * Z[k, :, p]
    return top + np.log(total), gradient.swapaxes(1, 2)
