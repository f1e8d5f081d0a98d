"""Numbers as people write them: ``7B`` parameters, ``1.2T`` tokens, ``90s``; one parser for specs, flags and ``--set``."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Final

from isoloss.errors import InvalidSpec


class Count(float):
    """A number that may be written ``7B``."""


class Seconds(float):
    """A duration that may be written ``2h``."""


if TYPE_CHECKING:
    Number = float  # what Python code may give
else:
    Number = Count

MULTIPLES: Final = {"": 1.0, "K": 1e3, "M": 1e6, "B": 1e9, "T": 1e12}
BYTES: Final = {
    "": 1.0, "B": 1.0, "KB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12,
    "KiB": 2.0**10, "MiB": 2.0**20, "GiB": 2.0**30, "TiB": 2.0**40,
}  # fmt: skip
SECONDS: Final = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
NUMBER: Final = re.compile(r"([+-]?(?:\d[\d_]*\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)\s*([A-Za-z]*)")


def parse_count(value: str | float, field: str) -> float:
    """A count such as ``7B`` or ``1.2T`` (K = 1000); ``InvalidSpec`` names the field otherwise."""
    return _parse(value, field, MULTIPLES, "a number, optionally with K, M, B or T (K = 1000)")


def parse_duration(value: str | float, field: str) -> float:
    """A duration in seconds from ``90s``, ``2h`` or ``3d``; a bare number is seconds."""
    accepted = "a duration such as 90s, 5m, 2h or 3d"
    seconds = _parse(value, field, SECONDS | {"": 1.0}, accepted)
    if seconds < 0:
        raise InvalidSpec(f"{field} is {value!r}; accepted is {accepted}, from 0.")
    return seconds


def parse_bytes(value: str | float, field: str) -> int:
    """A size such as ``200GB`` or ``1.5TiB`` in bytes; ``InvalidSpec`` unless it is one, from a byte to what a row counts to."""
    accepted = "a size from 1 byte, such as 200GB or 1.5TiB"
    number = _parse(value, field, BYTES, accepted)
    if not 1 <= number < 2**63:
        raise InvalidSpec(f"{field} is {value!r}; accepted is {accepted}.")
    return int(number)


def format_count(value: float) -> str:
    """The shortest spelling with a suffix: 2_600_000 → ``2.6M``."""
    for suffix in ("T", "B", "M", "K"):
        scale = MULTIPLES[suffix]
        if abs(value) >= scale:
            return f"{value / scale:.3g}{suffix}"
    return f"{value:.4g}"


def format_bytes(value: float) -> str:
    """``1_260_000_000`` as ``1.26 GB``."""
    suffix = next((one for one in ("TB", "GB", "MB", "KB") if value >= BYTES[one]), "bytes")
    return f"{value / BYTES.get(suffix, 1.0):.4g} {suffix}"


def format_duration(seconds: float) -> str:
    """``7300`` as ``2.03h``: three digits and the largest of d, h, m and s that leaves at least one."""
    suffix, scale = next(
        ((name, size) for name, size in (("d", 86400.0), ("h", 3600.0), ("m", 60.0)) if seconds >= size), ("s", 1.0)
    )
    return f"{seconds / scale:.3g}{suffix}"


def _parse(value: str | float, field: str, suffixes: dict[str, float], accepted: str) -> float:
    if isinstance(value, bool):
        raise InvalidSpec(f"{field} is {value!r}; accepted is {accepted}.")
    if isinstance(value, int | float):
        number, scale = float(value), 1.0
    else:
        match = NUMBER.fullmatch(value.strip())
        suffix = next((s for s in suffixes if s.lower() == match[2].lower()), None) if match else None
        if match is None or suffix is None:
            raise InvalidSpec(f"{field} is {value!r}; accepted is {accepted}.")
        number, scale = float(match[1].replace("_", "")), suffixes[suffix]
    if not math.isfinite(number):
        raise InvalidSpec(f"{field} is {value!r}; accepted is {accepted}, finite.")
    return number * scale
