"""A Gaussian process small enough to read: Matérn 5/2 with a length per dimension, fitted by its posterior mode.

    k(x, x') = s² (1 + √5 r + 5/3 r²) e^(-√5 r),   r² = Σ_b |x_b - x'_b|² / l_b²

A dimension b is one column, or several that share a length (the one-hot columns of a categorical parameter). Lengths have
the log-normal prior of Hvarfner et al. (2024), which expects smoother functions in more dimensions, so that ten points are
enough to begin with. Rasmussen & Williams (2006), eq. 5.9 is the gradient of the likelihood.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_solve, cholesky, solve_triangular
from scipy.optimize import minimize

Array = NDArray[np.float64]
SIGNAL: Final = (0.0, 2.0)  # mean and deviation of the log of s²
NOISE: Final = (-8.0, 3.0)  # … and of the noise's variance, where outcomes have variance 1
LENGTH_SPREAD: Final = math.sqrt(3)
BOUNDS: Final = {"length": (-3.0, 5.0), "signal": (-4.0, 6.0), "noise": (-14.0, 1.0)}
FITTED: Final = 150  # points the parameters are fitted to; all are conditioned on
JITTER: Final = 1e-8
ROOT5: Final = math.sqrt(5.0)


class GaussianProcess:
    """One outcome as a function of points: ``x`` of shape (n, columns), ``y`` of shape (n,), both finite.

    ``blocks`` are the columns of each dimension. With no points at all it is the prior of an outcome in [0, 1].
    """

    def __init__(self, x: Array, y: Array, blocks: Sequence[Sequence[int]], theta: Array | None = None) -> None:
        self.blocks = blocks
        self._mean, self._scale = (float(y.mean()), float(y.std())) if len(y) > 1 else (float(y.sum() or 0.5), 0.5)
        self._scale = max(self._scale, 1e-9)
        self.x, self.z = x, (y - self._mean) / self._scale
        self.theta = self._fitted() if theta is None else theta
        self._condition()

    def predict(self, x: Array) -> tuple[Array, Array]:
        """Mean and standard deviation of the outcome without its noise at points (m, columns); two arrays (m,)."""
        signal = math.exp(self.theta[-2])
        if not len(self.z):
            return np.full(len(x), self._mean), np.full(len(x), self._scale * math.sqrt(signal))
        cross = _kernel(_distances(x, self.x, self.blocks), self.theta)[0]
        mean = cross @ self._alpha
        shrunk = solve_triangular(self._root, cross.T, lower=True, check_finite=False)
        variance = np.maximum(signal - np.einsum("ij,ij->j", shrunk, shrunk), 1e-12)
        return self._mean + self._scale * mean, self._scale * np.sqrt(variance)

    def believing(self, x: Array, off: Array) -> GaussianProcess:
        """The process that saw values at points (m, columns) too: its own means, and ``off`` (m,) of its deviations.

        What is on its way is no longer uncertain.
        """
        other = object.__new__(GaussianProcess)
        other.blocks, other.theta, other._mean, other._scale = self.blocks, self.theta, self._mean, self._scale
        mean, deviation = self.predict(x)
        seen = (mean + off * deviation - self._mean) / self._scale
        other.x, other.z = np.vstack([self.x, x]), np.concatenate([self.z, seen])
        other._condition()
        return other

    def _condition(self) -> None:
        kernel = _kernel(_distances(self.x, self.x, self.blocks), self.theta)[0]
        kernel[np.diag_indices_from(kernel)] += math.exp(self.theta[-1]) + JITTER
        self._root = cholesky(kernel, lower=True, check_finite=False)
        self._alpha = cho_solve((self._root, True), self.z, check_finite=False)

    def _fitted(self) -> Array:
        """The posterior mode of (log lengths, log s², log noise)."""
        dimensions = len(self.blocks)
        centre = np.array([math.sqrt(2) + 0.5 * math.log(max(1, dimensions))] * dimensions + [SIGNAL[0], NOISE[0]])
        spread = np.array([LENGTH_SPREAD] * dimensions + [SIGNAL[1], NOISE[1]])
        if len(self.z) < 2:
            return centre
        kept = slice(max(0, len(self.z) - FITTED), None)
        z, squares = self.z[kept], _distances(self.x[kept], self.x[kept], self.blocks)
        bounds = [BOUNDS["length"]] * dimensions + [BOUNDS["signal"], BOUNDS["noise"]]
        start = np.array([0.0] * dimensions + [0.0, NOISE[0]])
        found = minimize(
            _minus_log_posterior, start, args=(squares, z, centre, spread), jac=True, method="L-BFGS-B", bounds=bounds,
            options={"maxiter": 60, "ftol": 1e-6},
        )  # fmt: skip
        return np.asarray(found.x, float)


def _distances(a: Array, b: Array, blocks: Sequence[Sequence[int]]) -> Array:
    """Squared distances by dimension: (blocks, len(a), len(b))."""
    found = np.empty((len(blocks), len(a), len(b)))
    for place, columns in enumerate(blocks):
        found[place] = sum(((a[:, c, None] - b[None, :, c]) ** 2 for c in columns), np.zeros((len(a), len(b))))
    return found


def _kernel(squares: Array, theta: Array) -> tuple[Array, Array]:
    """The kernel, and the factor s² 5/3 (1 + √5 r) e^(-√5 r) of its derivatives by the log lengths."""
    r = np.sqrt(np.tensordot(np.exp(-2 * theta[:-2]), squares, axes=1))
    decay = math.exp(theta[-2]) * np.exp(-ROOT5 * r)
    linear = 1 + ROOT5 * r
    return decay * (linear + (5 / 3) * r * r), decay * linear * (5 / 3)


def _minus_log_posterior(theta: Array, squares: Array, z: Array, centre: Array, spread: Array) -> tuple[float, Array]:
    kernel, slope = _kernel(squares, theta)
    noise = math.exp(theta[-1])
    noisy = kernel.copy()
    noisy[np.diag_indices_from(noisy)] += noise + JITTER
    away = (theta - centre) / spread
    try:
        root = cholesky(noisy, lower=True, check_finite=False)
    except np.linalg.LinAlgError:
        return 1e10, np.zeros_like(theta)
    inverse = cho_solve((root, True), np.eye(len(z)), check_finite=False)
    alpha = inverse @ z
    value = 0.5 * float(z @ alpha) + float(np.log(np.diag(root)).sum()) + 0.5 * float(away @ away)
    weight = 0.5 * (inverse - np.outer(alpha, alpha))
    gradient: Any = away / spread
    gradient[:-2] += np.exp(-2 * theta[:-2]) * np.tensordot(squares, weight * slope, axes=2)
    gradient[-2] += float(np.sum(weight * kernel))
    gradient[-1] += noise * float(np.trace(weight))
    return value, gradient
