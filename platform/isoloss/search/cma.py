"""CMA-ES as a proposer: its distribution is worked out anew from the results, in their order, generation by generation.

Optuna's own ``CmaEsSampler`` keeps its state in attributes of trials it made itself, so in a study built from a ledger it
would for ever start again. Results that are not its own (the random third, added trials) are told as well, unless they
lie where the distribution of their time hardly reaches. All but categorical parameters take part; those are drawn evenly.
Nothing pending is known to it: it draws from a distribution and does not repeat itself.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final

from isoloss.domain.space import Categorical, Configuration, Scalar, Space, active

if TYPE_CHECKING:
    from cmaes import CMA

SIGMA: Final = 0.25  # of the unit interval: the first distribution reaches all of it
LEAST: Final = 1e-8  # a distribution of no width at all cannot be told anything


class CmaProposer:
    """Covariance matrix adaptation (Hansen 2016) in the unit cube."""

    def __init__(self, space: Space) -> None:
        self._space = space
        self._names = [name for name, parameter in space.items() if not isinstance(parameter, Categorical)]

    def propose(
        self,
        *,
        history: Sequence[tuple[Configuration, float]],
        pending: Sequence[Configuration],  # noqa: ARG002 - see above
        n: int,
        seed: int,
    ) -> tuple[dict[str, Scalar], ...]:
        """``n`` draws from the distribution the history leads to."""
        import numpy as np

        rng = np.random.default_rng(seed)
        optimizer = self._told(history, seed) if self._names else None
        return tuple(
            self._configuration(
                [] if optimizer is None else optimizer.ask().tolist(), rng.random(len(self._space)).tolist()
            )
            for _ in range(n)
        )

    def _told(self, history: Iterable[tuple[Configuration, float]], seed: int) -> CMA:
        import numpy as np
        from cmaes import CMA

        dimensions = len(self._names)
        optimizer = CMA(
            mean=np.full(dimensions, 0.5), sigma=SIGMA, bounds=np.tile([0.0, 1.0], (dimensions, 1)), seed=seed
        )
        generation: list[tuple[Any, float]] = []
        for configuration, score in history:
            point = np.array([self._place(name, configuration) for name in self._names])
            if not within_reach(optimizer, point):
                continue
            generation.append((point, score))
            if len(generation) == optimizer.population_size:
                optimizer.tell(generation)
                optimizer._sigma = max(optimizer._sigma, LEAST)
                generation = []
        return optimizer

    def _place(self, name: str, configuration: Configuration) -> float:
        """The parameter's point of the unit interval; the middle where it is not active."""
        if name not in configuration:
            return 0.5
        return min(1.0, max(0.0, self._space[name].place(configuration[name])))

    def _configuration(self, point: Sequence[float], others: Sequence[float]) -> dict[str, Scalar]:
        places = dict(zip(self._space, others, strict=True)) | dict(zip(self._names, point, strict=True))
        return active(self._space, {name: parameter.at(places[name]) for name, parameter in self._space.items()})


def within_reach(optimizer: CMA, point: Any) -> bool:
    """Whether the distribution could have drawn the point: Hansen's (2011) bound for solutions that come from outside."""
    import numpy as np

    axes, lengths = optimizer._eigen_decomposition()
    distance = np.linalg.norm(axes.T @ (point - optimizer.mean) / lengths) / optimizer._sigma
    return bool(distance <= math.sqrt(optimizer.dim) + 2 * optimizer.dim / (optimizer.dim + 2))
