"""The same panels as Grafana dashboards: classic JSON, made when isoloss is built and checked in.

The foundation SDK is needed only here and only then. It knows no Postgres query, so that is one class of ours; and
it lays panels out in rows, so the grid is ours too: panels flow into the first place that is free, as on the page.
"""

from __future__ import annotations

from typing import Any, Final

from grafana_foundation_sdk.builders.dashboard import Dashboard, DatasourceVariable, QueryVariable
from grafana_foundation_sdk.builders.dashboard import Panel as PanelBuilder
from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.variants import Dataquery
from grafana_foundation_sdk.models import dashboard as model

from isoloss.dash.boards import BOARDS
from isoloss.dash.panels import WIDTH, Board, Kind, Panel

SOURCE: Final = "grafana-postgresql-datasource"
TYPES: Final[dict[Kind, str]] = {
    "stat": "stat", "timeseries": "timeseries", "xy": "xychart", "basin": "xychart", "heatmap": "table",
    "bar": "barchart", "state": "state-timeline", "parallel": "table", "table": "table",
}  # fmt: skip
UNITS: Final = {"short": "short", "none": "none", "sci": "sci", "percent": "percent", "s": "s"}
COLOURS: Final = {"forecast": "#ff9830", "low": "#ff983055", "high": "#ff983055", "outcome": "#7ee08a"}


class Postgres(Dataquery, Builder[Dataquery]):
    """A query of Grafana's Postgres data source, and its own builder."""

    def __init__(self, sql: str, form: str) -> None:
        self.sql = sql
        self.form = form

    def to_json(self) -> dict[str, object]:
        """The query as Grafana stores it."""
        return {
            "refId": "A", "format": self.form, "rawQuery": True, "editorMode": "code", "rawSql": self.sql,
            "datasource": {"type": SOURCE, "uid": "${datasource}"},
        }  # fmt: skip

    def build(self) -> Dataquery:
        """Itself."""
        return self


def dashboards() -> dict[str, str]:
    """File name → the dashboard's JSON."""
    encoder = JSONEncoder(sort_keys=True, indent=2, ensure_ascii=False)
    return {f"{board.id}.json": encoder.encode(_board(board)) + "\n" for board in BOARDS}


def places(panels: tuple[Panel, ...]) -> list[model.GridPos]:
    """Where the panels stand: each in the first free place, row by row."""
    taken: set[tuple[int, int]] = set()
    found = []
    for panel in panels:
        x, y = next(
            (x, y)
            for y in range(1000)
            for x in range(WIDTH - panel.span + 1)
            if not any((x + i, y + j) in taken for i in range(panel.span) for j in range(panel.height))
        )
        taken |= {(x + i, y + j) for i in range(panel.span) for j in range(panel.height)}
        found.append(model.GridPos(x=x, y=y, w=panel.span, h=panel.height))
    return found


def _board(board: Board) -> model.Dashboard:
    built = (
        Dashboard(f"isoloss · {board.title}")
        .uid(f"isoloss-{board.id}")
        .description(board.about)
        .tags(["isoloss"])
        .refresh("5s")
        .time("now-1h", "now")
        .timezone("browser")
        .tooltip(model.DashboardCursorSync.CROSSHAIR)
        .with_variable(DatasourceVariable("datasource").label("Postgres").type(SOURCE))
    )
    for variable in board.variables:
        built.with_variable(
            QueryVariable(variable.name)
            .label(variable.title)
            .query(variable.sql)
            .datasource(_source())
            .refresh(model.VariableRefresh.ON_DASHBOARD_LOAD)
            .sort(model.VariableSort.DISABLED)
        )
    result = built.build()
    result.annotations = model.AnnotationContainer(list_val=[])
    result.panels = [
        _panel(panel, number, place)
        for number, (panel, place) in enumerate(zip(board.panels, places(board.panels), strict=True), start=1)
    ]
    return result


def _source() -> model.DataSourceRef:
    return model.DataSourceRef(type_val=SOURCE, uid="${datasource}")


def _panel(panel: Panel, number: int, place: model.GridPos) -> model.Panel:
    query = Postgres(panel.sql, "time_series" if panel.kind == "timeseries" else "table")
    built = (
        PanelBuilder()
        .type(TYPES[panel.kind])
        .id(number)
        .title(panel.title)
        .grid_pos(place)
        .datasource(_source())
        .with_target(query)
        .unit(UNITS[panel.unit])
        .no_value(panel.empty)
        .options(_options(panel))
        .custom(_custom(panel))
        .transformations(_transformations(panel))
    )
    if panel.about:
        built.description(panel.about)
    for name, properties in _overrides(panel).items():
        built.override_by_name(name, [model.DynamicConfigValue(id_val=i, value=v) for i, v in properties.items()])
    return built.build()


def _options(panel: Panel) -> dict[str, Any]:
    legend = {"displayMode": "list", "placement": "bottom", "showLegend": True, "calcs": []}
    match panel.kind:
        case "stat":
            reduce = {"calcs": ["lastNotNull"], "fields": "", "values": False}
            return {"reduceOptions": reduce, "textMode": "value", "colorMode": "none", "graphMode": "none"}
        case "timeseries":
            return {"legend": legend, "tooltip": {"mode": "multi", "sort": "none"}}
        case "xy" | "basin":
            x, y = ("lr", "batch_tokens") if panel.kind == "basin" else ("x", "y")
            series = {"x": {"matcher": _by_name(x)}, "y": {"matcher": _by_name(y)}}
            return {"mapping": "auto", "series": [series], "legend": legend, "tooltip": {"mode": "single"}}
        case "bar":
            return {"orientation": "horizontal", "stacking": "normal", "legend": legend, "showValue": "never"}
        case "state":
            return {"showValue": "never", "mergeValues": False, "rowHeight": 0.8, "legend": legend}
        case "heatmap" | "parallel" | "table":
            return {"showHeader": True, "cellHeight": "sm"}


def _by_name(name: str) -> dict[str, str]:
    return {"id": "byName", "options": name}


def _custom(panel: Panel) -> dict[str, Any]:
    scale = {"scaleDistribution": {"type": "log", "log": 10}} if panel.log_y else {}
    match panel.kind:
        case "timeseries" if panel.bars:
            return {
                "drawStyle": "bars",
                "fillOpacity": 70,
                "lineWidth": 0,
                "stacking": {"mode": "normal", "group": "A"},
            }
        case "timeseries":
            return {"drawStyle": "line", "lineWidth": 2, "spanNulls": True, "showPoints": "auto", **scale}
        case "xy" | "basin":
            return {"show": "points", "pointSize": {"fixed": 6}, "axisLabel": panel.y_title, **scale}
        case "heatmap":
            return {"cellOptions": {"type": "color-background", "mode": "gradient"}, "align": "center"}
        case "state" | "bar":
            return {"fillOpacity": 80, "lineWidth": 0}
        case "stat" | "parallel" | "table":
            return {}


def _transformations(panel: Panel) -> list[model.DataTransformerConfig]:
    """One frame a series for charts whose rows name theirs; a matrix for a heat map."""
    match panel.kind:
        case "xy" | "basin" | "state":
            options: dict[str, Any] = {"fields": ["series"], "keepFields": False}
            return [model.DataTransformerConfig(id_val="partitionByValues", options=options)]
        case "heatmap":
            matrix = {"columnField": "column", "rowField": "row", "valueField": "value", "emptyValue": "null"}
            return [model.DataTransformerConfig(id_val="groupingToMatrix", options=matrix)]
        case _:
            return []


def _overrides(panel: Panel) -> dict[str, dict[str, Any]]:
    """By column: its unit, its colour, how it is drawn."""
    found: dict[str, dict[str, Any]] = {}
    log = {"type": "log", "log": 10}
    x = {"xy": "x", "basin": "lr"}.get(panel.kind)
    if x is not None:
        found[x] = {"custom.axisLabel": panel.x_title, "unit": UNITS[panel.units.get(x, "none")]}
        if panel.log_x is True:
            found[x]["custom.scaleDistribution"] = log
    for name, unit in panel.units.items():
        found.setdefault(name, {})["unit"] = UNITS[unit]
    if panel.kind == "timeseries":
        for name in {*(panel.band or ()), *panel.dots, *(("forecast",) if panel.band else ())}:
            if name in COLOURS:
                found.setdefault(name, {})["color"] = {"mode": "fixed", "fixedColor": COLOURS[name]}
        if panel.band:
            found[panel.band[1]] |= {"custom.fillBelowTo": panel.band[0], "custom.lineWidth": 1}
        for name in panel.dots:
            found.setdefault(name, {})["custom.drawStyle"] = "points"
        for name in panel.steps:
            found.setdefault(name, {})["custom.lineInterpolation"] = "stepAfter"
    return dict(sorted(found.items()))
