"""The small language of ``--where``: comparisons and arithmetic over columns, joined by ``and``, ``or``, ``not``.

A user's filter is data, not code: it is parsed by Python's own grammar and then walked node by node over an allow-list,
so nothing is ever executed.
"""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable, Mapping
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from isoloss.domain.quantity import parse_count
from isoloss.errors import InvalidSpec

Column = NDArray[Any]
COUNT: Final = re.compile(r"(?<![\w.])(\d+(?:\.\d+)?)([KMBT])\b")
LONGEST: Final = 1000
ARITHMETIC: Final[dict[type[ast.operator], Callable[[Any, Any], Any]]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Pow: operator.pow,
}
COMPARISON: Final[dict[type[ast.cmpop], Callable[[Any, Any], Any]]] = {
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
}


def evaluate(text: str, columns: Mapping[str, Column], rows: int) -> NDArray[np.bool_]:
    """The rows for which ``text`` holds, as a mask of length ``rows``.

    Columns are arrays of length ``rows``; counts may carry K, M, B or T (``n_tokens >= 2B``). Raises ``InvalidSpec``
    for anything outside the language, an unknown column, or an expression that is not a condition.
    """
    if len(text) > LONGEST:
        raise InvalidSpec(f"where has {len(text)} characters; accepted are at most {LONGEST}.")
    plain = COUNT.sub(lambda match: repr(parse_count(match[0], "where")), text)
    try:
        tree = ast.parse(plain.strip(), mode="eval")
        with np.errstate(all="ignore"):
            value = np.asarray(_walk(tree.body, columns))
    except (SyntaxError, TypeError, RecursionError, MemoryError) as error:
        raise _refused(text) from error
    if value.dtype != np.bool_:
        raise _refused(text)
    return np.broadcast_to(value, (rows,)).copy()


def _refused(text: str) -> InvalidSpec:
    return InvalidSpec(
        f"where is {text!r}; accepted are comparisons and arithmetic over columns, joined by and, or, not.",
        hint="For example: n_tokens >= 2B and loss < 3.2",
    )


def _walk(node: ast.expr, columns: Mapping[str, Column]) -> Any:
    match node:
        case ast.Name() | ast.Constant():
            return _leaf(node, columns)
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_walk(operand, columns)
        case ast.BinOp(left=left, op=op, right=right) if type(op) in ARITHMETIC:
            return ARITHMETIC[type(op)](_walk(left, columns), _walk(right, columns))
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            return ~_condition(operand, columns)
        case ast.BoolOp(op=op, values=values):
            join = np.logical_and if isinstance(op, ast.And) else np.logical_or
            return join.reduce(np.broadcast_arrays(*(_condition(value, columns) for value in values)))
        case ast.Compare(left=left, ops=ops, comparators=comparators):
            return _compare([_walk(item, columns) for item in (left, *comparators)], ops)
    raise TypeError


def _leaf(node: ast.Name | ast.Constant, columns: Mapping[str, Column]) -> Any:
    if isinstance(node, ast.Name):
        if node.id not in columns:
            raise InvalidSpec(f"where names the column {node.id!r}; known are {', '.join(sorted(columns))}.")
        return columns[node.id]
    if isinstance(node.value, str):
        return np.str_(node.value)
    if isinstance(node.value, bool) or not isinstance(node.value, int | float):
        raise TypeError
    return np.float64(node.value)


def _condition(node: ast.expr, columns: Mapping[str, Column]) -> NDArray[np.bool_]:
    value = np.asarray(_walk(node, columns))
    if value.dtype != np.bool_:
        raise TypeError
    return value


def _compare(items: list[Any], ops: list[ast.cmpop]) -> NDArray[np.bool_]:
    pairs = zip(items[:-1], ops, items[1:], strict=True)
    holds = []
    for left, op, right in pairs:
        if type(op) not in COMPARISON or (np.asarray(left).dtype.kind == "U") != (np.asarray(right).dtype.kind == "U"):
            raise TypeError
        holds.append(np.asarray(COMPARISON[type(op)](left, right)))
    return np.asarray(np.logical_and.reduce(np.broadcast_arrays(*holds)))
