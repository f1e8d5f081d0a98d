"""Panels as data: what a dashboard shows, said once and rendered twice, as the built-in page and as Grafana's.

A panel is a title, a kind and SQL over the read-only ``dash_*`` views with Grafana's macros and variables. What its
columns must be depends on the kind alone (``COLUMNS``), so a renderer needs to know kinds and never a panel.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Literal, LiteralString

Kind = Literal["stat", "timeseries", "xy", "basin", "heatmap", "bar", "state", "parallel", "table"]
WIDTH: Final = 24  # columns of the grid, as in Grafana

# What a kind's columns are, in order; a ``?`` may be missing, ``*`` stands for one or more.
COLUMNS: Final[dict[Kind, tuple[str, ...]]] = {
    "stat": ("number", "text?"),  # one row: the number, and a note below it
    "timeseries": ("time", "metric?", "number*"),  # ascending; with a column `metric`, one row a series and time
    "xy": ("text", "number", "number", "number?", "number?", "text?"),  # series, x, y, low, high, line: joined points
    "basin": ("text", "number", "number", "number"),  # series, learning rate, batch, loss
    "heatmap": ("text", "text", "number"),  # column, row, value
    "bar": ("text", "number*"),  # a bar, its stacked parts
    "state": ("time", "text", "text"),  # from then on the series is in the state; NULL: in none
    "parallel": ("number", "number", "number", "json", "boolean?"),  # trial, level, value, axes, whether more is better
    "table": ("any*",),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """One panel; ``id`` is unique in its board, ``unit`` is Grafana's name of the unit of the values.

    ``units`` are those of single columns, ``empty`` says what a panel without rows waits for, ``band`` names the two
    columns between which a time series is filled, ``dots`` those drawn as points, ``steps`` those that stay until they
    change; ``bars`` draws columns from zero. A ``log_x`` of auto is for the page to see: Grafana's axis is linear then.
    """

    id: str
    title: str
    kind: Kind
    sql: LiteralString
    span: int
    height: int
    unit: str = "short"
    units: Mapping[str, str] = field(default_factory=dict)
    about: str = ""
    empty: str = "nothing yet"
    log_x: bool | Literal["auto"] = False
    log_y: bool = False
    x_title: str = ""
    y_title: str = ""
    band: tuple[str, str] | None = None
    dots: tuple[str, ...] = ()
    steps: tuple[str, ...] = ()
    bars: bool = False

    def meta(self) -> dict[str, object]:
        """What the page needs to draw the panel; the SQL stays here."""
        names = ("id", "title", "kind", "span", "height", "unit", "about", "empty", "log_x", "log_y", "x_title")
        said: dict[str, object] = {name: getattr(self, name) for name in (*names, "y_title", "band", "bars")}
        return said | {"units": dict(self.units), "dots": list(self.dots), "steps": list(self.steps)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Variable:
    """What a board is asked about; ``sql`` lists the choices, the newest first."""

    name: str
    title: str
    sql: LiteralString


@dataclass(frozen=True, slots=True, kw_only=True)
class Board:
    """A dashboard; ``span`` is SQL for (begin, end, still moving) of the time there is something to see in."""

    id: str
    title: str
    about: str
    variables: tuple[Variable, ...]
    span: LiteralString
    panels: tuple[Panel, ...]

    def __post_init__(self) -> None:
        ids = [panel.id for panel in self.panels]
        if len(set(ids)) != len(ids):
            raise ValueError(f"board {self.id} has two panels of one id")


CAMPAIGN: Final = Variable(
    name="campaign", title="Campaign", sql="SELECT campaign FROM dash_campaign ORDER BY created_at DESC LIMIT 200"
)
STUDY: Final = Variable(
    name="study",
    title="Study",
    sql="SELECT study FROM dash_name ORDER BY state = 'active' DESC, last_at DESC, study LIMIT 500",
)
