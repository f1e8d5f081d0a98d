"""One robust nonlinear solver for every law, over many starts or many bootstrap draws at once.

The objective is Σ wᵢ ρ(rᵢ) + ½ Σ pⱼ (θⱼ − μⱼ)², with ρ squared, Huber or absolute. Each step solves

    (H_newton + λ (H_irls + diag)) step = −gradient

where H_newton counts only rows whose ρ is curved and H_irls is the majorising Hessian of reweighted least squares. λ
near 1 is the slow and safe IRLS step, λ near 0 is Newton's; a step is kept only when the objective falls, so a Huber
fit with δ = 1e-3, where IRLS alone needs some 70 steps, ends in about 15. A sum (not a mean) and relative tolerances
stop it: the averaged objective and an absolute tolerance are what stopped the fit of Hoffmann et al. (2022) too early
(Besiroglu et al. 2024).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Final

import numpy as np
from numpy.typing import NDArray

from isoloss.domain.quantity import parse_count
from isoloss.errors import InvalidSpec

Floats = NDArray[np.float64]
Residuals = Callable[[Floats], tuple[Floats, Floats]]
CELLS: Final = 200_000  # numbers of one Jacobian block, so that it stays in the cache
LAD_DELTA: Final = 1e-7  # a Huber loss this narrow is the absolute loss to seven digits
NARROWING: Final = (1e-3, 1e-4, 1e-5, 1e-6)  # the way there: each width starts where the one before ended
PATIENCE: Final = 8  # refused steps (or a fourth as many kept ones) without a gain, and a start is done


@dataclass(frozen=True, slots=True)
class RobustLoss:
    """ρ of a residual: ``squared`` (r²/2), ``huber`` (linear beyond ``delta``) or ``lad`` (its size)."""

    kind: str = "huber"
    delta: float = 1e-3

    @property
    def width(self) -> float:
        """Where ρ turns from curved to straight."""
        return {"squared": np.inf, "lad": LAD_DELTA}.get(self.kind, self.delta)

    def total(self, residuals: Floats, weights: Floats) -> Floats:
        """Σ w ρ(r) over the last axis."""
        size = np.abs(residuals)
        inside = np.minimum(size, self.width)
        rho = 0.5 * inside**2 if self.kind == "squared" else inside * (size - 0.5 * inside)
        return np.asarray(np.sum(weights * rho, axis=-1) / (LAD_DELTA if self.kind == "lad" else 1.0))

    def __str__(self) -> str:
        return f"huber:{self.delta:g}" if self.kind == "huber" else self.kind


def parse_loss(text: str) -> RobustLoss:
    """``huber:1e-3``, ``lad`` or ``squared``; ``InvalidSpec`` otherwise."""
    kind, _, width = text.partition(":")
    if kind == "huber":
        delta = parse_count(width or 1e-3, "loss")
        if delta > 0:
            return RobustLoss("huber", delta)
    elif kind in ("lad", "squared") and not width:
        return RobustLoss(kind)
    raise InvalidSpec(f"loss is {text!r}; accepted is huber:DELTA with DELTA above 0, lad or squared.")


@dataclass(frozen=True, slots=True)
class Prior:
    """Independent normal beliefs: ``mean`` of shape (p,) or (S, p), ``precision`` (1/sd², 0 = none) of shape (p,)."""

    mean: Floats
    precision: Floats


@dataclass(frozen=True, slots=True)
class Solves:
    """The end of every start: ``theta`` (S, p), ``objective`` (S,) and whether it ``converged`` (S,)."""

    theta: Floats
    objective: Floats
    converged: NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Solution:
    """The best of several starts; ``agreeing`` is the share of starts that end within 0.1 % of it."""

    theta: Floats
    objective: float
    converged: bool
    starts: int
    agreeing: float

    @property
    def verdict(self) -> str:
        """One sentence for a person."""
        end = "converged" if self.converged else "stopped at the limit of iterations"
        return f"The best of {self.starts} starts {end}; {self.agreeing:.0%} of them agree on it."


def best(solves: Solves) -> Solution:
    """The start with the least objective, with how many others found the same."""
    order = int(np.argmin(solves.objective))
    least = float(solves.objective[order])
    agreeing = float(np.mean(solves.objective <= least + 1e-3 * abs(least) + 1e-12))
    return Solution(solves.theta[order], least, bool(solves.converged[order]), len(solves.objective), agreeing)


def solve(
    residuals: Residuals,
    starts: Floats,
    *,
    loss: RobustLoss,
    weights: Floats | None = None,
    prior: Prior | None = None,
    bounds: tuple[Floats, Floats] | None = None,
    iterations: int = 300,
    tolerance: float = 1e-9,
) -> Solves:
    """Minimise the objective of this module from every start.

    ``residuals`` maps θ (S, p) to r (S, n) and its Jacobian (S, n, p). ``weights`` is (n,) or (S, n), rows of a
    bootstrap included; ``bounds`` are (p,) arrays. A start is done when its objective no longer falls by the relative
    ``tolerance``. Deterministic.
    """
    if loss.kind == "lad":
        again = partial(
            solve, residuals, weights=weights, prior=prior, bounds=bounds, iterations=iterations, tolerance=tolerance
        )
        for delta in NARROWING:
            starts = again(starts, loss=RobustLoss("huber", delta)).theta
    count, size = starts.shape
    rows = residuals(starts[:1])[0].shape[1]
    weight = np.broadcast_to(np.ones(rows) if weights is None else weights, (count, rows))
    belief = prior or Prior(np.zeros(size), np.zeros(size))
    mean = np.broadcast_to(belief.mean, (count, size))
    low, high = bounds or (np.full(size, -np.inf), np.full(size, np.inf))
    chunk = max(1, CELLS // (rows * size))
    parts = [
        _Descent(residuals, loss, weight[at], mean[at], belief.precision, low, high).run(
            starts[at], iterations, tolerance
        )
        for at in (slice(begin, begin + chunk) for begin in range(0, count, chunk))
    ]
    return Solves(
        np.concatenate([part.theta for part in parts]),
        np.concatenate([part.objective for part in parts]),
        np.concatenate([part.converged for part in parts]),
    )


@dataclass(slots=True)
class _Descent:
    residuals: Residuals
    loss: RobustLoss
    weights: Floats
    mean: Floats
    precision: Floats
    low: Floats
    high: Floats

    def run(self, starts: Floats, iterations: int, tolerance: float) -> Solves:
        theta = np.clip(starts, self.low, self.high)
        damping = np.full(len(theta), 0.1)
        calm = np.zeros(len(theta), dtype=np.int64)
        live = np.arange(len(theta))
        r, J = self.residuals(theta)
        value = self._objective(r, theta, live)
        for _ in range(iterations):
            step = self._step(r, J, theta[live], damping[live], live)
            trial = np.clip(theta[live] + step, self.low, self.high)
            r_new, J_new = self.residuals(trial)
            after = self._objective(r_new, trial, live)
            kept = after < value[live]
            gain = np.where(kept, value[live] - after, 0.0) / np.maximum(np.abs(value[live]), 1e-300)
            theta[live[kept]], value[live[kept]] = trial[kept], after[kept]
            r, J = np.where(kept[:, None], r_new, r), np.where(kept[:, None, None], J_new, J)
            damping[live] = np.clip(damping[live] * np.where(kept, 0.25, 6.0), 1e-9, 1e12)
            calm[live] = np.where(gain > tolerance, 0, calm[live] + np.where(kept, 4, 1))
            going = calm[live] < PATIENCE
            live, r, J = live[going], r[going], J[going]
            if not len(live):
                break
        return Solves(theta, value, ~np.isin(np.arange(len(theta)), live))

    def _objective(self, r: Floats, theta: Floats, live: NDArray[np.int64]) -> Floats:
        pull = 0.5 * np.sum(self.precision * (theta - self.mean[live]) ** 2, axis=1)
        with np.errstate(invalid="ignore", over="ignore"):
            total = self.loss.total(r, self.weights[live]) + pull
        return np.where(np.isfinite(total), total, np.inf)

    def _step(self, r: Floats, J: Floats, theta: Floats, damping: Floats, live: NDArray[np.int64]) -> Floats:
        scale = 1 / LAD_DELTA if self.loss.kind == "lad" else 1.0
        size, width = np.abs(r), self.loss.width
        weights = self.weights[live] * scale
        irls = weights * np.minimum(1.0, width / np.maximum(size, 1e-300))
        curved = weights * (size <= width)
        transposed = J.swapaxes(1, 2)
        eye = np.eye(J.shape[2])
        pull = self.precision * (theta - self.mean[live])
        gradient = (transposed @ (irls * r)[:, :, None])[:, :, 0] + pull
        both = curved + damping[:, None] * irls  # H_newton + λ H_irls in one product
        hessian = transposed @ (J * both[:, :, None]) + eye * ((1 + damping[:, None]) * self.precision)[:, None, :]
        diagonal = np.maximum(np.einsum("spp->sp", hessian), 1e-12)
        hessian += eye * ((0.02 * damping / (1 + damping) + 1e-13)[:, None] * diagonal)[:, None, :]
        stuck = ((theta <= self.low) & (gradient > 0)) | ((theta >= self.high) & (gradient < 0))
        free = ~stuck
        hessian = np.where(free[:, :, None] & free[:, None, :], hessian, eye * diagonal[:, None, :])
        # scaled to a unit diagonal, so that the solve sees a well-conditioned matrix
        root = np.sqrt(np.einsum("spp->sp", hessian))
        scaled = hessian / (root[:, :, None] * root[:, None, :])
        right = np.where(free, -gradient, 0.0) / root
        return np.asarray(np.linalg.solve(scaled + 1e-14 * eye, right[:, :, None])[:, :, 0] / root)


def project(exponents: Floats, loss: Floats, robust: RobustLoss) -> tuple[Floats, Floats]:
    """Best coefficients, in logarithms (S, k), of the sums Σ_k c_k exp(exponents[k]) and their objectives (S,).

    ``exponents`` is (k, S, n). Coefficients minimise the relative squares and are kept above 0; this is the linear
    half of variable projection, for grids of starts.
    """
    top = exponents.max(axis=2, keepdims=True)
    basis = np.exp(exponents - top)
    scaled = basis / loss
    gram = np.einsum("ksn,lsn->skl", scaled, scaled)
    right = scaled.sum(axis=2).T
    linear = np.linalg.solve(gram + 1e-12 * np.eye(len(basis)), right[:, :, None])[:, :, 0]
    linear = np.maximum(linear, 1e-3 * loss.min())
    with np.errstate(divide="ignore"):
        residuals = np.log(np.einsum("sk,ksn->sn", linear, scaled))
    return np.log(linear) - top[:, :, 0].T, robust.total(residuals, np.ones(len(loss)))
