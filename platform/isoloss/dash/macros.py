"""Grafana's macros for the built-in page: the same SQL runs here, with a time window and variables of ours."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from isoloss.errors import InvalidSpec

MACRO: Final = re.compile(r"\$__(?P<name>[A-Za-z_]+)(?:\((?P<given>[^()]*)\))?|\$\{(?P<variable>\w+):sqlstring\}")
STEPS: Final = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 21600, 43200, 86400, 604800, 2592000)
POINTS: Final = 90  # about as many intervals in a window


@dataclass(frozen=True, slots=True)
class Window:
    """The time shown, in seconds since 1970."""

    begin: float
    end: float

    @property
    def interval(self) -> int:
        """A round number of seconds, so that a panel has about ``POINTS`` points."""
        wanted = (self.end - self.begin) / POINTS
        return next((step for step in STEPS if step >= wanted), STEPS[-1])


def quote(text: str) -> str:
    """A SQL string literal."""
    return "'" + text.replace("'", "''").replace("\x00", "") + "'"


def expand(sql: str, variables: Mapping[str, str], window: Window) -> str:
    """``sql`` with every macro and variable in place; ``InvalidSpec`` for one that is not known."""
    begin, end = (f"to_timestamp({moment:.3f})" for moment in (window.begin, window.end))
    step = f"interval '{window.interval} seconds'"

    def one(match: re.Match[str]) -> str:
        column, variable = (match["given"] or "").split(",")[0].strip(), match["variable"]
        if variable is not None and variable in variables:
            return quote(variables[variable])
        known = {
            "timeFilter": f"{column} BETWEEN {begin} AND {end}",
            "timeFrom": begin,
            "timeTo": end,
            "timeGroup": f"date_bin({step}, {column}, TIMESTAMPTZ '2000-01-01')",
            "timeGroupAlias": f"date_bin({step}, {column}, TIMESTAMPTZ '2000-01-01') AS \"time\"",
            "interval_ms": str(1000 * window.interval),
            "interval": f"{window.interval}s",
        }
        return known.get(match["name"] or "", match[0])

    expanded = MACRO.sub(one, sql)
    if left := re.search(r"\$[A-Za-z_{]\w*", re.sub(r"'(?:[^']|'')*'", "''", expanded)):
        raise InvalidSpec(f"a panel's SQL has {left[0]!r}; accepted are Grafana's time macros and known variables.")
    return expanded
