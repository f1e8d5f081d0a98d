"""The search space: named parameters, each of which maps a point of [0, 1) to a value.

A configuration is a mapping of parameter name to value. Everything that draws configurations (streams, models) works
in the unit cube and comes here for the values, so that a log scale or a step is understood in exactly one place.
Words (low, high, log, step, choices) are Optuna's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from isoloss.errors import InvalidSpec

Scalar = str | int | float | bool
Configuration = Mapping[str, Scalar]


class Parameter(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="type"):
    """One dimension of a space: every kind can ``check`` itself, is ``at`` a point, ``contains`` values and can ``describe`` them."""


class Range(Parameter, frozen=True, kw_only=True):
    """What float and int ranges share."""

    low: float
    high: float
    log: bool = False
    step: float | None = None

    def check(self, path: str) -> None:
        """Raise ``InvalidSpec`` naming ``path`` when the parameter cannot be searched."""
        if not (math.isfinite(self.low) and math.isfinite(self.high)):
            raise InvalidSpec(f"{path} has low {self.low:g} and high {self.high:g}; accepted are finite numbers.")
        if self.low >= self.high:
            raise InvalidSpec(f"{path} has low {self.low:g} and high {self.high:g}; accepted is low < high.")
        if self.log and self.low <= 0:
            raise InvalidSpec(f"{path}.low is {self.low:g} with log: true; accepted is a number above 0.")
        if self.log and self.step is not None:
            raise InvalidSpec(f"{path}.step is {self.step:g} with log: true; accepted is log or step, not both.")
        if self.step is not None and not 0 < self.step <= self.high - self.low:
            raise InvalidSpec(f"{path}.step is {self.step:g}; accepted is a number in (0, high - low].")

    def scaled(self, u: float) -> float:
        """The point at ``u`` between low and high on the parameter's own scale."""
        if self.log:
            return math.exp(math.log(self.low) + u * (math.log(self.high) - math.log(self.low)))
        if self.step is not None:
            count = math.floor((self.high - self.low) / self.step + 1e-9) + 1
            return self.low + min(count - 1, math.floor(u * count)) * self.step
        return self.low + u * (self.high - self.low)

    def contains(self, value: object) -> bool:
        """Whether ``value`` is one this parameter can take."""
        return isinstance(value, int | float) and not isinstance(value, bool) and self.low <= value <= self.high

    def describe(self) -> str:
        """What is accepted, in words for an error message."""
        return f"a number from {self.low:g} to {self.high:g}"


class Float(Range, frozen=True, kw_only=True, tag="float"):
    """A real number in [low, high]."""

    def at(self, u: float) -> float:
        """The value at ``u`` in [0, 1)."""
        return min(self.high, max(self.low, self.scaled(u)))


class Int(Range, frozen=True, kw_only=True, tag="int"):
    """A whole number in [low, high], both ends included."""

    def check(self, path: str) -> None:
        """Raise ``InvalidSpec`` naming ``path`` when the parameter cannot be searched."""
        super().check(path)
        for name in ("low", "high", "step"):
            value = getattr(self, name)
            if value is not None and value != int(value):
                raise InvalidSpec(f"{path}.{name} is {value:g}; accepted is a whole number.")

    def at(self, u: float) -> int:
        """The value at ``u`` in [0, 1)."""
        if self.log:
            low, high = math.log(self.low - 0.5), math.log(self.high + 0.5)
            return int(min(self.high, max(self.low, round(math.exp(low + u * (high - low))))))
        if self.step is not None:
            return round(self.scaled(u))
        return int(self.low + min(self.high - self.low, math.floor(u * (self.high - self.low + 1))))

    def contains(self, value: object) -> bool:
        """Whether ``value`` is one this parameter can take."""
        return super().contains(value) and float(value) == int(value)  # type: ignore[arg-type, call-overload]


class Choice(Parameter, frozen=True, kw_only=True):
    """What categorical and ordinal parameters share."""

    choices: tuple[Scalar, ...]

    def check(self, path: str) -> None:
        """Raise ``InvalidSpec`` naming ``path`` when the parameter cannot be searched."""
        if not self.choices:
            raise InvalidSpec(f"{path}.choices is empty; accepted is at least one value.")
        if len(set(map(repr, self.choices))) != len(self.choices):
            raise InvalidSpec(f"{path}.choices is {list(self.choices)}; accepted are different values.")

    def at(self, u: float) -> Scalar:
        """The value at ``u`` in [0, 1)."""
        return self.choices[min(len(self.choices) - 1, int(u * len(self.choices)))]

    def contains(self, value: object) -> bool:
        """Whether ``value`` is one this parameter can take."""
        return value in self.choices

    def describe(self) -> str:
        """What is accepted, in words for an error message."""
        return "one of " + ", ".join(map(str, self.choices))


class Categorical(Choice, frozen=True, kw_only=True, tag="categorical"):
    """One of several values without an order."""


class Ordinal(Choice, frozen=True, kw_only=True, tag="ordinal"):
    """One of several values in the order given."""

    def check(self, path: str) -> None:
        """Raise ``InvalidSpec`` naming ``path`` when the parameter cannot be searched."""
        super().check(path)
        numbers = [c for c in self.choices if isinstance(c, int | float)]
        if len(numbers) == len(self.choices) and numbers != sorted(numbers):
            raise InvalidSpec(f"{path}.choices is {list(self.choices)}; accepted are numbers in increasing order.")


AnyParameter = Float | Int | Categorical | Ordinal
Space = Mapping[str, AnyParameter]


def check_space(space: Space) -> None:
    """Raise ``InvalidSpec`` naming the first parameter that cannot be searched."""
    for name, parameter in space.items():
        if not name.isidentifier():
            raise InvalidSpec(f"space.{name} is not a name; accepted are letters, digits and _, no digit first.")
        parameter.check(f"space.{name}")


def configuration_at(space: Space, point: Sequence[float]) -> dict[str, Scalar]:
    """The configuration at a point of the unit cube; one coordinate a parameter, in the space's order."""
    return {name: parameter.at(u) for (name, parameter), u in zip(space.items(), point, strict=True)}


def check_configuration(space: Space, configuration: Mapping[str, Any], *, path: str = "params") -> None:
    """Raise ``InvalidSpec`` unless the configuration names every parameter, each with a value it can take."""
    if missing := sorted(set(space) - set(configuration)):
        raise InvalidSpec(f"{path} lacks {missing[0]}; accepted is {space[missing[0]].describe()}.")
    for name, value in configuration.items():
        if name not in space:
            raise InvalidSpec(f"{path}.{name} is not in the space; accepted are {', '.join(space)}.")
        if not space[name].contains(value):
            raise InvalidSpec(f"{path}.{name} is {value!r}; accepted is {space[name].describe()}.")


def check_widened(old: Space, new: Space) -> None:
    """Raise ``InvalidSpec`` unless every configuration of ``old`` is one of ``new``."""
    raise NotImplementedError
