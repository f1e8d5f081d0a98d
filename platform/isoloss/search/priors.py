"""Configurations drawn from what a law, or a person, believes: the prior where there is one, evenly elsewhere.

A random third of the configurations comes from the stream, as with every model, so a wrong prior costs and cannot fail.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from isoloss.domain.prior import Prior, nearest
from isoloss.domain.space import Configuration, Scalar, Space, active


class PriorProposer:
    """Independent draws; results and what is pending make no difference."""

    def __init__(self, space: Space, prior: Mapping[str, Prior]) -> None:
        self._space, self._prior = space, prior

    def propose(
        self,
        *,
        history: Sequence[tuple[Configuration, float]],  # noqa: ARG002 - a prior is from before
        pending: Sequence[Configuration],  # noqa: ARG002
        n: int,
        seed: int,
    ) -> tuple[dict[str, Scalar], ...]:
        """``n`` draws, clipped to the range of each parameter."""
        import numpy as np

        rng = np.random.default_rng(seed)
        return tuple(
            self._configuration(rng.random(len(self._space)).tolist(), rng.standard_normal(len(self._space)).tolist())
            for _ in range(n)
        )

    def _configuration(self, evenly: Sequence[float], normal: Sequence[float]) -> dict[str, Scalar]:
        drawn = {
            name: nearest(parameter, self._prior[name].at(z)) if name in self._prior else parameter.at(u)
            for (name, parameter), u, z in zip(self._space.items(), evenly, normal, strict=True)
        }
        return active(self._space, drawn)
