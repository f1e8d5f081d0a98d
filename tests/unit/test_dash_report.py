"""The report: what its first lines say, and that nothing in it is markup but ours."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from isoloss.cli.report import headline, render, report_data, write_report
from isoloss.errors import InvalidSpec
from isoloss.testing.showcase import CAMPAIGN, loss_of

SIZES = {"60m": 6e7, "120m": 1.2e8, "250m": 2.5e8}
FORECAST = {
    "n_params": 1e9, "n_tokens": 4e10, "loss": 2.5, "loss_interval": [2.4, 2.6], "lr": 1.6e-3, "lr_interval": [1e-3, 2e-3],
    "batch_tokens": 7e5, "batch_tokens_interval": [4e5, 1e6], "level": 0.9, "warnings": ["a <b>warning</b>"],
}  # fmt: skip
INFO: dict[str, Any] = {
    "name": "our-1b", "project": "default", "state": "done", "spec": CAMPAIGN, "max_tokens": 9 * 2**30, "observations": 45,
    "searched_flops": 2e20, "own_observations": 0, "reason": "", "target_flops": 2.4e20, "deepened": 1, "deepened_tokens": 1.87e11, "restart_tokens": 2.22e11,
    "forecast": FORECAST, "confirmed": FORECAST, "verdict": "go", "verdict_reason": "inside",
    "studies": [
        {"name": f"our-1b-{size}", "size": size, "n_params": n, "state": "idle", "trials": 15, "tasks_done": 15,
         "tasks_open": 0, "best": 3.0, "max_budget": 9 * 2**30}
        for size, n in SIZES.items()
    ],
    "outcomes": [
        {"index": 0, "loss": 2.48, "status": "ok", "lr": 1.6e-3, "batch_tokens": 524288},
        {"index": 1, "loss": 2.52, "status": "ok", "lr": 3.2e-3, "batch_tokens": 524288},
    ],
}  # fmt: skip


def observations() -> list[dict[str, Any]]:
    rng = np.random.default_rng(1)
    rows = []
    for size, n_params in SIZES.items():
        for n_tokens in (2**30, 3 * 2**30, 9 * 2**30):
            for k in range(5):
                params = {"lr": 10 ** rng.uniform(-3.2, -2), "batch_tokens": 2.0 ** rng.integers(16, 20)}
                loss = loss_of(params, n_params, n_tokens)
                rows.append(
                    {"run": f"{size}/{k}", "n_params": n_params, "n_tokens": n_tokens, **params, "loss": loss, "status": "ok"}
                )  # fmt: skip
    return rows


def test_the_first_lines_say_what_was_searched_forecast_and_came_out() -> None:
    said = dict(headline(INFO))
    assert said["searched"].startswith("3 sizes, N 60M to 250M; 45 configurations, 45 finished runs")
    assert said["deepened"] == "3 studies: +187B tokens; starting again would have cost 222B"
    assert "lr 0.0016 [0.001 … 0.002], batch 700K [400K … 1M], loss 2.5 [2.4 … 2.6]" in said["forecast"]
    assert said["outcome"] == "loss 2.48; inside the interval: yes"
    assert said["neighbours"] == "+1.61 % at lr 0.0032"
    assert said["cost"] == "1.85 % of the same sweep at the target's size; 83.3 % of one target run"


def test_runs_the_user_owned_are_counted_apart_and_drawn_beside_the_searched() -> None:
    own = {
        "run": "old",
        "n_params": 4e8,
        "n_tokens": 2e10,
        "lr": 1e-3,
        "batch_tokens": 2.0**18,
        "loss": 2.6,
        "status": "ok",
    }
    spec = CAMPAIGN | {"observations": ["old_runs.csv"]}
    info = INFO | {"observations": 46, "own_observations": 1, "spec": spec}
    data = report_data(info, [*observations(), own])
    said = dict(data["lines"])
    assert "45 finished runs" in said["searched"] and said["owned"] == "1 runs of your own, from old_runs.csv"
    assert ["N 400M", 2e10, 2.6, None, None, "N 400M"] in data["loss"] and len(data["observations"]) == 46
    assert all(row[0] for row in data["basin"]), "the basin is of the campaign's own sizes"


def test_a_campaign_without_a_forecast_still_has_a_report(tmp_path: Path) -> None:
    young = INFO | {"forecast": None, "verdict": "", "outcomes": [], "deepened": 0, "observations": 0}
    write_report(tmp_path / "deep" / "report.html", young, [])
    assert [word for word, _ in headline(young)] == ["searched", "cost"]
    assert (tmp_path / "deep" / "report.html").stat().st_size > 1_000_000


def test_the_laws_are_fitted_from_the_observations() -> None:
    data = report_data(INFO, observations())
    assert {row[0] for row in data["estimates"]} >= {"lr-batch", "chinchilla"}
    assert len(data["picture"]["contours"]) == len(data["picture"]["levels"])
    assert set(data["checklists"]) >= {"lr-batch", "chinchilla"}
    assert [row[0] for row in data["basin"][-3:]] == ["forecast", "outcome", "outcome"]


def test_names_and_warnings_cannot_become_markup() -> None:
    info = copy.deepcopy(INFO) | {"name": "</script><img src=x onerror=alert(1)>"}
    html = render(report_data(info, []))
    assert "<img" not in html.split("<script>")[0]
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', html, re.DOTALL)
    assert found is not None
    assert json.loads(found[1])["name"] == info["name"]


def test_a_report_needs_nothing_from_elsewhere() -> None:
    html = render(report_data(INFO, []))
    assert not re.search(r"<(?:script|link)[^>]+(?:src|href)=", html)
    assert "default-src 'none'" in html


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InvalidSpec, match="--out is"):
        write_report(tmp_path / "file" / "report.html", INFO, [])
