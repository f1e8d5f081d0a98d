"""Where configurations come from when no model proposes them: one endless sequence a bracket.

The k-th configuration of bracket b is a function of (seed, b, k) alone, so it does not depend on results, on the other
brackets, on deepening or on a restart. Random points come from Philox, a counter-based generator; Sobol points from
scipy's scrambled sequence, one scramble a bracket, generated in blocks. Where the space has finitely many points, a point
that its bracket already had is drawn again, at random and at most 100 times.
"""

from __future__ import annotations

from itertools import chain
from typing import Any, Final, Protocol

from isoloss.domain.space import Scalar, Space, cardinality, configuration_at

BLOCK: Final = 64  # a power of 2: the blocks of a Sobol sequence are balanced
REDRAWS: Final = 100
SOBOL: Final = ("sobol", "QMCSampler")  # Optuna's name for the same, which would begin again with every proposal
STREAMS: Final = (*SOBOL, "random", "RandomSampler")


class Stream(Protocol):
    """A source of configurations by index."""

    def configuration(self, index: int) -> dict[str, Scalar]:
        """The configuration at ``index``, the same whenever it is asked for."""
        ...


class RandomStream:
    """Independent uniform points: Philox keyed by the seed, its counter set to (bracket, index)."""

    def __init__(self, space: Space, *, seed: int, bracket: int) -> None:
        import numpy as np

        self._space, self._bracket, self._philox = space, bracket, np.random.Philox
        self._key = np.random.SeedSequence(seed).generate_state(2, np.uint64)

    def configuration(self, index: int, attempt: int = 0) -> dict[str, Scalar]:
        """The configuration at ``index``; every index, and every further attempt at it, costs the same."""
        words = self._philox(key=self._key, counter=(0, attempt, index, self._bracket)).random_raw(len(self._space))
        return configuration_at(self._space, [int(word >> 11) * 2.0**-53 for word in words])


class SobolStream:
    """A scrambled Sobol sequence; cheapest in order of index, correct in any."""

    def __init__(self, space: Space, *, seed: int, bracket: int) -> None:
        self._space, self._entropy = space, (seed, bracket)
        self._engine: Any = None
        self._start = 0
        self._block: list[list[float]] = []

    def configuration(self, index: int) -> dict[str, Scalar]:
        """The configuration at ``index``."""
        if not self._space:
            return {}
        if not self._start <= index < self._start + len(self._block):
            self._fill(index - index % BLOCK)
        return configuration_at(self._space, self._block[index - self._start])

    def _fill(self, start: int) -> None:
        reached = self._start + len(self._block)
        if self._engine is None or start < reached:
            self._engine, reached = self._scrambled(), 0
        if start > reached:
            self._engine.fast_forward(start - reached)
        self._start, self._block = start, self._engine.random(BLOCK).tolist()

    def _scrambled(self) -> Any:
        import numpy as np
        from scipy.stats import qmc

        seed, bracket = self._entropy
        rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(bracket,)))
        return qmc.Sobol(len(self._space), scramble=True, rng=rng)


class DistinctStream:
    """A stream over finitely many points: none twice in a bracket, unless all were there or 100 redraws all were.

    An index asked for the first time costs all up to it once, since what counts as drawn is what stands before it.
    """

    def __init__(self, inner: Stream, redraws: RandomStream, *, points: int) -> None:
        self._inner, self._redraws, self._points = inner, redraws, points
        self._drawn: list[dict[str, Scalar]] = []
        self._seen: set[tuple[tuple[str, Scalar], ...]] = set()

    def configuration(self, index: int) -> dict[str, Scalar]:
        """The configuration at ``index``."""
        while len(self._drawn) <= index:
            drawn = self._draw(len(self._drawn))
            self._drawn.append(drawn)
            self._seen.add(tuple(drawn.items()))
        return dict(self._drawn[index])

    def _draw(self, index: int) -> dict[str, Scalar]:
        first = self._inner.configuration(index)
        if len(self._seen) == self._points:
            return first
        again = (self._redraws.configuration(index, attempt) for attempt in range(1, REDRAWS + 1))
        return next((drawn for drawn in chain([first], again) if tuple(drawn.items()) not in self._seen), first)


def prepare() -> None:
    """Import what the first configuration would else wait for, a second long."""
    import scipy.stats  # noqa: F401


def is_model(sampler: str) -> bool:
    """Whether the sampler proposes configurations, beside the stream."""
    return sampler not in STREAMS


def stream(sampler: str, space: Space, *, seed: int, bracket: int) -> Stream:
    """The bracket's stream: Sobol if that is the sampler, random for the others (a model takes points out of the order)."""
    random = RandomStream(space, seed=seed, bracket=bracket)
    inner = SobolStream(space, seed=seed, bracket=bracket) if sampler in SOBOL else random
    points = cardinality(space)
    return inner if points is None else DistinctStream(inner, random, points=points)
