"""Grafana's dashboards: what a Grafana would refuse or draw wrongly, checked without one."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("grafana_foundation_sdk")

from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import Dashboard

import isoloss.dash.grafana as made
from isoloss.cli import run
from isoloss.dash.boards import BOARDS
from isoloss.dash.panels import WIDTH

MADE = {name: json.loads(text) for name, text in made.dashboards().items()}
DASHBOARDS = pytest.mark.parametrize("dashboard", MADE.values(), ids=MADE.keys())
FOLDER = Path(made.__file__).parent / "grafana"
STATIC = Path(made.__file__).parent / "static"


@DASHBOARDS
def test_ids_are_unique_and_panels_stand_beside_each_other(dashboard: dict[str, Any]) -> None:
    panels = dashboard["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    squares = [
        (at["x"] + i, at["y"] + j)
        for at in (panel["gridPos"] for panel in panels)
        for i, j in itertools.product(range(at["w"]), range(at["h"]))
    ]
    assert len(set(squares)) == len(squares)
    assert max(x for x, _ in squares) < WIDTH


@DASHBOARDS
def test_every_query_asks_the_chosen_data_source_and_every_variable_is_declared(dashboard: dict[str, Any]) -> None:
    wanted = {"type": "grafana-postgresql-datasource", "uid": "${datasource}"}
    declared = {variable["name"] for variable in dashboard["templating"]["list"]}
    for panel in dashboard["panels"]:
        assert panel["datasource"] == wanted
        assert [target["datasource"] for target in panel["targets"]] == [wanted]
        used = set(re.findall(r"\$\{(\w+)", json.dumps(panel)))
        assert used <= declared, panel["title"]
    for variable in dashboard["templating"]["list"]:
        if variable["type"] == "query":
            assert variable["datasource"] == wanted


def test_dashboards_have_ids_of_their_own() -> None:
    assert len({dashboard["uid"] for dashboard in MADE.values()}) == len(MADE) == len(BOARDS)


@DASHBOARDS
def test_a_dashboard_survives_the_sdks_own_models(dashboard: dict[str, Any]) -> None:
    again = json.loads(JSONEncoder().encode(Dashboard.from_json(dashboard)))
    assert again["uid"] == dashboard["uid"]
    assert [p["title"] for p in again["panels"]] == [p["title"] for p in dashboard["panels"]]
    assert [p["gridPos"] for p in again["panels"]] == [p["gridPos"] for p in dashboard["panels"]]


def test_what_is_checked_in_is_what_the_panels_say() -> None:
    assert {p.name: p.read_text() for p in FOLDER.glob("*.json")} == made.dashboards()


def test_dash_grafana_writes_dashboards_and_provisioning(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["dash", "grafana", str(tmp_path / "g"), "--json"]) == 0
    written = {str(Path(p).relative_to(tmp_path / "g")) for p in json.loads(capsys.readouterr().out)["written"]}
    assert written == {*MADE, "provisioning/datasources/isoloss.yaml", "provisioning/dashboards/isoloss.yaml"}


def test_dash_open_without_a_controller_says_how_to_get_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ISOLOSS_HOME", str(tmp_path))
    assert run(["dash", "open"]) == 5
    assert "isoloss up" in capsys.readouterr().err


def test_vendored_files_are_those_the_notice_names() -> None:
    notice = (STATIC / "NOTICE").read_text()
    listed = dict(re.findall(r"^(vendor/\S+)\n.*\n +sha256 ([0-9a-f]{64})$", notice, re.MULTILINE))
    found = {f"vendor/{p.name}": hashlib.sha256(p.read_bytes()).hexdigest() for p in (STATIC / "vendor").iterdir()}
    assert listed == found
