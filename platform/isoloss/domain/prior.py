"""What is believed of a parameter before anything ran: a log-normal distribution, written by hand or by a law."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated

import msgspec
from msgspec import Meta

from isoloss.domain.space import AnyParameter, Choice, Scalar, Space
from isoloss.errors import InvalidSpec


class Prior(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Two thirds of the belief lie from ``center / spread`` to ``center * spread``."""

    center: Annotated[float, Meta(gt=0)]
    spread: Annotated[float, Meta(gt=1)] = 2.0

    @property
    def sigma(self) -> float:
        """The standard deviation of the logarithm."""
        return math.log(self.spread)

    def at(self, z: float) -> float:
        """The value ``z`` standard deviations from the centre."""
        return self.center * math.exp(max(-700.0, min(700.0, z * self.sigma)))


def check_prior(space: Space, prior: Mapping[str, Prior]) -> None:
    """Raise ``InvalidSpec`` unless every prior is about a parameter of numbers and centred on one it can take."""
    for name, belief in prior.items():
        path = f"method.prior.{name}"
        if name not in space:
            raise InvalidSpec(f"{path} is not in the space; accepted are {', '.join(space)}.")
        parameter = space[name]
        if isinstance(parameter, Choice) and not all(_is_positive(choice) for choice in parameter.choices):
            raise InvalidSpec(f"{path} is about {parameter.describe()}; accepted is a parameter of positive numbers.")
        low, high = _ends(parameter)
        if not low <= belief.center <= high:
            raise InvalidSpec(f"{path}.center is {belief.center:g}; accepted is a number from {low:g} to {high:g}.")


def nearest(parameter: AnyParameter, value: float) -> Scalar:
    """The parameter's value nearest to ``value``; of choices, the nearest by ratio."""
    if isinstance(parameter, Choice):
        return min(parameter.choices, key=lambda choice: abs(math.log(float(choice)) - math.log(value)))
    return parameter.at(parameter.place(min(parameter.high, max(parameter.low, value))))


def _ends(parameter: AnyParameter) -> tuple[float, float]:
    if isinstance(parameter, Choice):
        numbers = [float(choice) for choice in parameter.choices]
        return min(numbers), max(numbers)
    return parameter.low, parameter.high


def _is_positive(value: Scalar) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value > 0
