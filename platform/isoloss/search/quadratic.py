"""The front on quadratic models: response surfaces of every outcome, and a front found on them for nothing.

A space-filling design of as many points as a quadratic has terms, one ridge regression an outcome, a front of the models by
small moves, and the most different points of that front are measured next (after Li et al. 2024, MAP). An outcome whose
quadratic explains less than ``GOOD`` of what it did not see gets a Gaussian process instead.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.stats import qmc

from isoloss.domain.space import Configuration, Scalar, Space
from isoloss.search.composite import moved
from isoloss.search.encoding import Encoding
from isoloss.search.front import fronts, places
from isoloss.search.gp import GaussianProcess

Array = NDArray[np.float64]
GOOD: Final = 0.8  # R² of the left-out points
RIDGE: Final = 1e-3
CANDIDATES: Final = 512
ROUNDS: Final = (0.2, 0.1, 0.05)
LEADERS: Final = 32


class QuadraticPareto:
    """Proposals along the front; histories hold vectors of which less is better."""

    def __init__(self, space: Space) -> None:
        self._encoding = Encoding(space)

    def propose(
        self,
        *,
        history: Sequence[tuple[Configuration, tuple[float, ...]]],
        pending: Sequence[Configuration],
        n: int,
        seed: int,
    ) -> tuple[dict[str, Scalar], ...]:
        """``n`` configurations worth measuring."""
        rng = np.random.default_rng(seed)
        taken = self._encoding.points([*(configuration for configuration, _ in history), *pending])
        terms = quadratic_terms(self._encoding.columns(self._encoding.points([c for c, _ in history[:1]]))).shape[1]
        if len(history) < terms + 2:
            return tuple(self._spread(taken, n, rng))
        outcomes = np.array([vector for _, vector in history], float)
        columns = self._encoding.columns(taken[: len(history)])
        models = [model_of(columns, y, self._encoding.blocks) for y in outcomes.T]
        return tuple(self._along_front(models, taken, outcomes, n, rng))

    def _spread(self, taken: Array, n: int, rng: np.random.Generator) -> list[dict[str, Scalar]]:
        """Points far from what was taken, and from each other."""
        candidates = self._encoding.snapped(rng.random((CANDIDATES, len(self._encoding.space))))
        return [self._encoding.configuration(point) for point in _farthest(candidates, candidates, taken, n)]

    def _along_front(
        self,
        models: Sequence[Callable[[Array], Array]],
        taken: Array,
        outcomes: Array,
        n: int,
        rng: np.random.Generator,
    ) -> list[dict[str, Scalar]]:
        """Points of the models' front whose outcomes differ most from those measured."""
        sobol = qmc.Sobol(len(self._encoding.space), scramble=True, rng=rng).random(CANDIDATES)
        best = taken[fronts([tuple(y) for y in outcomes.tolist()])[0]]
        points = np.vstack([sobol, moved(best, ROUNDS[-1], rng)])
        for step in ROUNDS:
            points = self._encoding.snapped(points)
            rank = np.argsort(places(self._foretold(models, points).tolist()), kind="stable")[:LEADERS]
            points = np.vstack([points[rank], moved(points[rank], step, rng)[:CANDIDATES]])
        points = np.unique(self._encoding.snapped(points), axis=0)
        points = points[~(np.max(np.abs(points[:, None] - taken[None]), axis=-1) < 1e-9).any(axis=1)]
        if len(points) < n:
            return self._spread(taken, n, rng)
        foretold = self._foretold(models, points)
        ranked = np.argsort(places(foretold.tolist()), kind="stable")
        first = ranked[: max(n, len(fronts(foretold.tolist())[0]))]
        scale = np.maximum(np.ptp(outcomes, axis=0), 1e-12)
        chosen = _farthest(points[first], foretold[first] / scale, outcomes / scale, n)
        return [self._encoding.configuration(point) for point in chosen]

    def _foretold(self, models: Sequence[Callable[[Array], Array]], points: Array) -> Array:
        columns = self._encoding.columns(points)
        return np.stack([model(columns) for model in models], axis=1)


def quadratic_terms(x: Array) -> Array:
    """1, every column and every product of two, around the middle: (n, (d + 1)(d + 2) / 2)."""
    z = 2 * x - 1
    rows, columns = np.triu_indices(z.shape[1])
    return np.column_stack([np.ones(len(z)), z, z[:, rows] * z[:, columns]])


def model_of(x: Array, y: Array, blocks: Sequence[Sequence[int]]) -> Callable[[Array], Array]:
    """The ridge quadratic through (x, y) where it foretells what is left out of it, else a Gaussian process."""
    terms, mean = quadratic_terms(x), float(y.mean())
    gram = terms.T @ terms + RIDGE * np.eye(terms.shape[1])
    weights = np.linalg.solve(gram, terms.T @ (y - mean))
    leverage = np.einsum("ij,ji->i", terms, np.linalg.solve(gram, terms.T))
    left_out = (y - mean - terms @ weights) / np.maximum(1 - leverage, 1e-9)
    if 1 - float(left_out @ left_out) / max(float(np.sum((y - mean) ** 2)), 1e-300) >= GOOD:
        return lambda points: np.asarray(mean + quadratic_terms(points) @ weights)
    process = GaussianProcess(x, y, blocks)
    return lambda points: process.predict(points)[0]


def _farthest(points: Array, places_: Array, taken: Array, n: int) -> Array:
    """``n`` of the points, one after the other the one whose place is farthest from what was taken."""
    distance = np.full(len(points), np.inf)
    for place in taken:
        distance = np.minimum(distance, np.linalg.norm(places_ - place, axis=1))
    chosen = []
    for _ in range(n):
        chosen.append(int(np.argmax(distance)))
        distance = np.minimum(distance, np.linalg.norm(places_ - places_[chosen[-1]], axis=1))
    return points[chosen]
