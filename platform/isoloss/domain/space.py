"""The search space: named parameters, each of which maps a point of [0, 1) to a value.

A configuration is a mapping of parameter name to value. Everything that draws configurations (streams, models) works
in the unit cube and comes here for the values, so that a log scale or a step is understood in exactly one place.
Words (low, high, log, step, choices) are Optuna's.

A parameter with ``when`` is active only where its conditions on other parameters hold; a configuration lacks the others.
Conditions refer by name and not by place, because a spec read back from JSONB has its keys in another order.
"""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import msgspec
from msgspec import UNSET, UnsetType

from isoloss.errors import InvalidSpec

Scalar = str | int | float | bool
Configuration = Mapping[str, Scalar]

COMPARISONS: Final = {
    "eq": operator.eq, "ne": operator.ne, "ge": operator.ge, "gt": operator.gt, "le": operator.le, "lt": operator.lt,
}  # fmt: skip
COUNTED: Final = 10_000  # more values of conditions than these are not gone through to count a space


class Condition(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename={"among": "in"}):
    """What another parameter's value must be, all of it: ``{ge: 4, ne: 6}``; an ordinal's values compare by their order."""

    eq: Scalar | UnsetType = UNSET
    ne: Scalar | UnsetType = UNSET
    ge: Scalar | UnsetType = UNSET
    gt: Scalar | UnsetType = UNSET
    le: Scalar | UnsetType = UNSET
    lt: Scalar | UnsetType = UNSET
    among: tuple[Scalar, ...] | UnsetType = UNSET

    def operands(self) -> list[tuple[str, Scalar]]:
        """Every value named, with the operator it is named for."""
        single = [(name, value) for name in COMPARISONS if not isinstance(value := getattr(self, name), UnsetType)]
        return single + [("in", value) for value in (() if isinstance(self.among, UnsetType) else self.among)]

    def holds(self, value: Scalar, parent: AnyParameter) -> bool:
        """Whether ``value`` of the parameter ``parent`` meets the condition."""
        rank = parent.rank(value)
        if not isinstance(self.among, UnsetType) and rank not in map(parent.rank, self.among):
            return False
        return all(COMPARISONS[name](rank, parent.rank(said)) for name, said in self.operands() if name in COMPARISONS)

    def describe(self, parent: str) -> str:
        """The condition on ``parent`` in words for an error message."""
        said = [f"{name} {value}" for name, value in self.operands() if name != "in"]
        if not isinstance(self.among, UnsetType):
            said.append(f"in {list(self.among)}")
        return f"{parent} is {' and '.join(said)}"

    def check(self, path: str, parent: AnyParameter) -> None:
        """Raise ``InvalidSpec`` naming ``path`` for a condition the values of ``parent`` cannot decide or never meet."""
        accepted = ("eq", "ne", "in") if isinstance(parent, Categorical) else (*COMPARISONS, "in")
        for name, value in self.operands():
            if name not in accepted:
                raise InvalidSpec(f"{path}.{name} asks a categorical for an order; accepted are {', '.join(accepted)}.")
            if not parent.takes(value):
                raise InvalidSpec(f"{path}.{name} is {value!r}, which it never is; accepted is {parent.describe()}.")
        if not self.operands():
            raise InvalidSpec(f"{path} says nothing; accepted are {', '.join(accepted)}.")
        if not any(self.holds(value, parent) for value in parent.telling(said for _, said in self.operands())):
            raise InvalidSpec(f"{path} never holds; accepted is a condition that some value meets.")


class Parameter(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="type"):
    """One dimension of a space.

    Every kind can ``check`` itself, is ``at`` a point and knows a value's ``place``, ``contains`` values and can
    ``describe`` them, gives them a ``rank`` to compare by, and names the values ``telling`` two conditions apart.
    """

    when: dict[str, Condition] | UnsetType = UNSET

    @property
    def conditions(self) -> dict[str, Condition]:
        """By name of the other parameter; none for one that is always active."""
        return {} if isinstance(self.when, UnsetType) else self.when


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

    @property
    def grid(self) -> float | None:
        """The distance of neighbouring values; ``None`` when there is always one between."""
        return self.step

    @property
    def size(self) -> int | None:
        """How many values there are; ``None`` for endlessly many."""
        return None if self.grid is None else math.floor((self.high - self.low) / self.grid + 1e-9) + 1

    def scaled(self, u: float) -> float:
        """The point at ``u`` between low and high on the parameter's own scale."""
        if self.log:
            return math.exp(math.log(self.low) + u * (math.log(self.high) - math.log(self.low)))
        if self.step is not None:
            count = self.size or 1
            return self.low + min(count - 1, math.floor(u * count)) * self.step
        return self.low + u * (self.high - self.low)

    def place(self, value: Scalar) -> float:
        """The point of the unit interval this value is at: the middle of its share where values are counted."""
        number = float(value)
        if self.log:
            low, high = self._log_ends()
            return (math.log(number) - low) / (high - low)
        if self.grid is not None:
            return (round((number - self.low) / self.grid) + 0.5) / (self.size or 1)
        return (number - self.low) / (self.high - self.low)

    def _log_ends(self) -> tuple[float, float]:
        return math.log(self.low), math.log(self.high)

    def rank(self, value: Scalar) -> float:
        """What conditions compare."""
        return float(value)

    def takes(self, value: object) -> bool:
        """Whether a stream can give ``value``: it is contained, and on the grid."""
        if not self.contains(value):
            return False
        steps = 0.0 if self.grid is None else (float(value) - self.low) / self.grid  # type: ignore[arg-type]
        return abs(steps - round(steps)) < 1e-6

    def telling(self, operands: Iterable[Scalar]) -> list[Scalar]:
        """Values between which any two conditions with these operands differ, if they differ at all."""
        marks = sorted({float(self.low), float(self.high), *map(float, operands)})
        if self.grid is None:
            between: Iterable[float] = ((a + b) / 2 for a, b in itertools.pairwise(marks))
        else:
            between = (mark + step for mark in marks for step in (-self.grid, self.grid))
        return [value for value in (*marks, *between) if self.contains(value)]

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

    @property
    def grid(self) -> float:
        """The distance of neighbouring values."""
        return 1.0 if self.step is None else self.step

    def _log_ends(self) -> tuple[float, float]:
        return math.log(self.low - 0.5), math.log(self.high + 0.5)

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
            low, high = self._log_ends()
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

    @property
    def size(self) -> int:
        """How many values there are."""
        return len(self.choices)

    def contains(self, value: object) -> bool:
        """Whether ``value`` is one this parameter can take; ``true`` is not 1."""
        return any(value == choice and isinstance(value, bool) == isinstance(choice, bool) for choice in self.choices)

    def takes(self, value: object) -> bool:
        """Whether a stream can give ``value``."""
        return self.contains(value)

    def place(self, value: Scalar) -> float:
        """The middle of the choice's share of the unit interval."""
        return (self.rank(value) + 0.5) / len(self.choices)

    def rank(self, value: Scalar) -> float:
        """What conditions compare: the choice's place in the list."""
        return self.choices.index(value)

    def telling(self, _operands: Iterable[Scalar]) -> list[Scalar]:
        """All values: between them any two conditions differ, if they differ at all."""
        return list(self.choices)

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
    for name, parameter in space.items():
        for parent, condition in parameter.conditions.items():
            if parent not in space:
                raise InvalidSpec(f"space.{name}.when.{parent} is not in the space; accepted are {', '.join(space)}.")
            condition.check(f"space.{name}.when.{parent}", space[parent])
    for name in space:
        _check_circle(space, (name,))


def _check_circle(space: Space, path: tuple[str, ...]) -> None:
    for parent in space[path[-1]].conditions:
        if parent == path[0]:
            circle = " → ".join((*path, parent))
            raise InvalidSpec(f"space.{path[0]}.when is a circle, {circle}; accepted are conditions without one.")
        if parent not in path:
            _check_circle(space, (*path, parent))


def is_active(space: Space, name: str, configuration: Configuration) -> bool:
    """Whether the parameter's conditions hold; an inactive parameter meets no condition of others."""
    return all(
        parent in configuration
        and is_active(space, parent, configuration)
        and condition.holds(configuration[parent], space[parent])
        for parent, condition in space[name].conditions.items()
    )


def active(space: Space, configuration: Configuration) -> dict[str, Scalar]:
    """The configuration without its inactive parameters, in the space's order."""
    return {
        name: configuration[name] for name in space if name in configuration and is_active(space, name, configuration)
    }


def configuration_at(space: Space, point: Sequence[float]) -> dict[str, Scalar]:
    """The configuration at a point of the unit cube; one coordinate a parameter, in the space's order."""
    return active(space, {name: parameter.at(u) for (name, parameter), u in zip(space.items(), point, strict=True)})


def check_configuration(space: Space, configuration: Mapping[str, Any], *, path: str = "params") -> None:
    """Raise ``InvalidSpec`` unless it names every active parameter and no other, each with a value it can take."""
    _check_none_missing(space, configuration, (name for name in space if not space[name].conditions), path)
    for name, value in configuration.items():
        if name not in space:
            raise InvalidSpec(f"{path}.{name} is not in the space; accepted are {', '.join(space)}.")
        if not space[name].contains(value):
            raise InvalidSpec(f"{path}.{name} is {value!r}; accepted is {space[name].describe()}.")
    wanted = [name for name in space if is_active(space, name, configuration)]
    _check_none_missing(space, configuration, wanted, path)
    if spare := sorted(set(configuration) - set(wanted)):
        when = " and ".join(c.describe(parent) for parent, c in space[spare[0]].conditions.items())
        raise InvalidSpec(f"{path}.{spare[0]} is {configuration[spare[0]]!r}; accepted is that only when {when}.")


def _check_none_missing(space: Space, configuration: Configuration, wanted: Iterable[str], path: str) -> None:
    if missing := sorted(set(wanted) - set(configuration)):
        raise InvalidSpec(f"{path} lacks {missing[0]}; accepted is {space[missing[0]].describe()}.")


def cardinality(space: Space) -> int | None:
    """How many different configurations there are; ``None`` for endlessly many, or for conditions on too many values."""
    if any(parameter.size is None for parameter in space.values()):
        return None
    parents = [name for name in space if any(name in parameter.conditions for parameter in space.values())]
    if math.prod(space[name].size or 1 for name in parents) > COUNTED:
        return None
    assigned = (
        dict(zip(parents, values, strict=True))
        for values in itertools.product(*(_values(space[name]) for name in parents))
    )
    return sum(
        math.prod(
            space[name].size or 1 for name in space if name not in parents and is_active(space, name, dict(shared))
        )
        for shared in {tuple(active(space, values).items()) for values in assigned}
    )


def _values(parameter: AnyParameter) -> list[Scalar]:
    """Every value of a parameter that counts them."""
    if isinstance(parameter, Choice):
        return list(parameter.choices)
    return [parameter.low + index * (parameter.grid or 0.0) for index in range(parameter.size or 0)]
