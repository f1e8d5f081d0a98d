"""Where configurations come from when no model proposes them: one endless sequence a bracket.

The k-th configuration of bracket b is a function of (seed, b, k) alone, so it does not depend on results, on the other
brackets, on deepening or on a restart. Random points come from Philox, a counter-based generator; Sobol points from
scipy's scrambled sequence, one scramble a bracket, generated in blocks.
"""

from __future__ import annotations

from typing import Any, Final, Protocol

from isoloss.domain.space import Scalar, Space, configuration_at

BLOCK: Final = 64  # a power of 2: the blocks of a Sobol sequence are balanced


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

    def configuration(self, index: int) -> dict[str, Scalar]:
        """The configuration at ``index``; every index costs the same."""
        words = self._philox(key=self._key, counter=(0, 0, index, self._bracket)).random_raw(len(self._space))
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


def stream(sampler: str, space: Space, *, seed: int, bracket: int) -> Stream:
    """The bracket's stream: Sobol for sampler sobol, random for the others (a model takes points out of the order)."""
    kind = SobolStream if sampler == "sobol" else RandomStream
    return kind(space, seed=seed, bracket=bracket)
