"""A static outcome as arithmetic over a configuration: ``12 * depth * width**2``, known before anything runs.

The text is parsed by Python's own grammar and walked node by node over an allow-list, so nothing is ever executed.
"""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable, Container, Mapping
from typing import Any, Final

from isoloss.domain.space import Scalar
from isoloss.errors import InvalidSpec

LONGEST: Final = 500
ARITHMETIC: Final[dict[type[ast.operator], Callable[[Any, Any], Any]]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Pow: math.pow,  # in floats: no power of whole numbers can fill the memory
}
FUNCTIONS: Final[dict[str, Callable[..., Any]]] = {"min": min, "max": max, "log": math.log, "exp": math.exp}


def check_formula(text: str, known: Container[str], path: str) -> None:
    """Raise ``InvalidSpec`` naming ``path`` unless ``text`` is arithmetic over the names in ``known``."""
    for node in ast.walk(_parsed(text, path)):
        if isinstance(node, ast.Name) and node.id not in known and node.id not in FUNCTIONS:
            raise InvalidSpec(f"{path} names {node.id!r}; accepted are parameters of the space and fixed values.")
    try:
        _walk(_parsed(text, path), _Anything())
    except (TypeError, KeyError):
        raise _refused(text, path) from None
    except (ArithmeticError, ValueError):
        pass  # of values that no configuration need have


def evaluate(text: str, configuration: Mapping[str, Scalar]) -> Scalar | None:
    """What the formula says of a configuration; ``None`` when that lacks a parameter, NaN where it has no value.

    A formula that is one name gives the parameter's value as it is, text included.
    """
    try:
        value = _walk(_parsed(text, "formula"), configuration)
    except KeyError:
        return None
    except (ArithmeticError, ValueError, TypeError):
        return math.nan
    return value if isinstance(value, str | bool | int | float) else math.nan


class _Anything(dict[str, Scalar]):
    """A configuration for checks: every parameter is 1."""

    def __missing__(self, _key: str) -> Scalar:
        return 1.0


def _parsed(text: str, path: str) -> ast.expr:
    if len(text) > LONGEST:
        raise InvalidSpec(f"{path} has {len(text)} characters; accepted are at most {LONGEST}.")
    try:
        return ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise _refused(text, path) from None


def _refused(text: str, path: str) -> InvalidSpec:
    return InvalidSpec(
        f"{path} is {text!r}; accepted is arithmetic over parameters with + - * / ** and {', '.join(FUNCTIONS)}.",
        hint="For example: 12 * depth * width**2",
    )


def _walk(node: ast.expr, values: Mapping[str, Scalar]) -> Any:
    match node:
        case ast.Name():
            return values[node.id]
        case ast.Constant() if isinstance(node.value, int | float) and not isinstance(node.value, bool):
            return float(node.value)
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_walk(operand, values)
        case ast.BinOp(left=left, op=op, right=right) if type(op) in ARITHMETIC:
            return ARITHMETIC[type(op)](_walk(left, values), _walk(right, values))
        case ast.Call(func=ast.Name(id=name), args=args, keywords=[]) if name in FUNCTIONS and args:
            return FUNCTIONS[name](*(_walk(argument, values) for argument in args))
    raise TypeError
