"""Versions of a space: a study goes on in a wider one, and everything that ran stays a point of it."""

from __future__ import annotations

from isoloss.domain.space import AnyParameter, Choice, Condition, Ordinal, Range, Space, check_space
from isoloss.errors import InvalidSpec


def widened(old: Space, new: Space) -> None:
    """Raise ``InvalidSpec`` unless every configuration of the old space is one of the new: nothing may narrow or move."""
    if both := sorted(set(old) ^ set(new)):
        raise InvalidSpec(f"space.{both[0]} is {'new' if both[0] in new else 'gone'}; accepted are {', '.join(old)}.")
    check_space(new)
    for name, parameter in new.items():
        before, path = old[name], f"space.{name}"
        if type(parameter) is not type(before):
            raise InvalidSpec(f"{path}.type is {_kind(parameter)}; accepted is {_kind(before)}, as it was.")
        if isinstance(before, Range) and isinstance(parameter, Range):
            _check_wider(path, before, parameter)
        if isinstance(before, Choice) and isinstance(parameter, Choice):
            _check_more(path, before, parameter)
        _check_as_active(name, old, new)


def _kind(parameter: AnyParameter) -> str:
    return type(parameter).__name__.lower()


def _check_wider(path: str, old: Range, new: Range) -> None:
    for field in ("log", "step"):
        if getattr(new, field) != getattr(old, field):
            said = f"{getattr(new, field)}; accepted is {getattr(old, field)}, as it was".replace("None", "none")
            raise InvalidSpec(f"{path}.{field} is {said}.")
    if new.low > old.low:
        raise InvalidSpec(f"{path}.low is {new.low:g}; accepted is at most {old.low:g}, as it was.")
    if new.high < old.high:
        raise InvalidSpec(f"{path}.high is {new.high:g}; accepted is at least {old.high:g}, as it was.")
    if new.step is not None and not new.takes(old.low):
        raise InvalidSpec(f"{path}.low is {new.low:g}; accepted is {old.low:g} less whole steps of {new.step:g}.")


def _check_more(path: str, old: Choice, new: Choice) -> None:
    if gone := [choice for choice in old.choices if not new.contains(choice)]:
        raise InvalidSpec(f"{path}.choices lacks {gone[0]!r}; accepted are the old ones and more.")
    if isinstance(new, Ordinal) and [c for c in new.choices if old.contains(c)] != list(old.choices):
        raise InvalidSpec(
            f"{path}.choices is {list(new.choices)}; accepted is the order {list(old.choices)}, as it was."
        )


def _check_as_active(name: str, old: Space, new: Space) -> None:
    """The conditions of a parameter agree, before and after, on every value its old parents can take."""
    always = Condition()
    for parent in {**old[name].conditions, **new[name].conditions}:
        before, after = (space[name].conditions.get(parent, always) for space in (old, new))
        for value in old[parent].telling(said for _, said in before.operands() + after.operands()):
            if before.holds(value, old[parent]) != after.holds(value, new[parent]):
                raise InvalidSpec(
                    f"space.{name}.when.{parent} decides {value!r} otherwise; accepted is a condition that still says "
                    f"{'yes' if before.holds(value, old[parent]) else 'no'} there."
                )
