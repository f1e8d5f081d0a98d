"""A campaign that buys single runs after its columns: real controller, real workers, a loss known in closed form."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from typing import Any

import pytest

from isoloss.testing.cluster import Cluster, wait_until

TRAINER = """
    import math
    def known(trial):
        N, D = trial.params["n"], trial.budget_to
        x, y = math.log2(N / 1e5), math.log2(D / 131072)
        du = math.log2(trial.params["lr"]) + 9 + 0.6 * x - 0.3 * y
        dv = math.log2(trial.params["batch_tokens"]) - 13 - 0.5 * y
        loss = (1 + (N / 1e5) ** -0.3 + (D / 131072) ** -0.3) * math.exp(0.006 * du ** 2 + 0.005 * dv ** 2)
        trial.report(D, val_loss=loss)
"""
TARGET = {"n_params": 800_000, "n_tokens": 524_288}
SPEC: dict[str, Any] = {
    "name": "buys",
    "target": {**TARGET, "set": {"n": TARGET["n_params"]}},
    "sizes": [
        {"name": "small", "n_params": 100_000, "set": {"n": 100_000}},
        {"name": "larger", "n_params": 200_000, "set": {"n": 200_000}},
    ],
    "tokens": {"min": 65_536, "max": 131_072, "eta": 2},
    "fidelity": {"mode": "fresh"},
    "space": {
        "lr": {"type": "float", "low": 1e-4, "high": 1e-1, "log": True},
        "batch_tokens": {"type": "ordinal", "choices": [2048, 4096, 8192, 16384, 32768]},
    },
    "sampler": "law",
    "plan": {"flops": 3e12, "thrifty": False},
    "confirm": True,
    "run": {"function": "known_loss:known"},
}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with Cluster() as cluster:
        (cluster.home / "known_loss.py").write_text(textwrap.dedent(TRAINER))
        cluster.worker(allow=("known_loss:known",), cwd=cluster.home, slots=2)
        yield cluster


@pytest.mark.long
def test_after_its_columns_a_campaign_buys_runs_up_to_its_plan_and_then_confirms(cluster: Cluster) -> None:
    with cluster.client() as client:
        campaign = client.launch_campaign(SPEC)
        wait_until(lambda: campaign.info()["state"] == "done", 90)
        bought, spent = [], 0.0
        for size in SPEC["sizes"]:
            trials = client.study(f"buys-{size['name']}").trials()
            mine = [trial for trial in trials if trial.bracket == -1]
            bought += mine
            spent += sum(6 * size["n_params"] * level.budget for trial in mine for level in trial.levels)
        assert len(bought) >= 5 and len(bought) % 5 == 0, "runs are bought in rings"
        assert 0 < spent <= SPEC["plan"]["flops"]
        found = campaign.info()["forecast"]
        assert found["lr"] == pytest.approx(2.0 ** (-9 - 1.8 + 0.6), rel=0.8)
        words = [
            sys.executable,
            "-m",
            "isoloss.cli",
            "campaign",
            "plan",
            "buys",
            "--budget",
            "1e13",
            "--spend-all",
            "--json",
        ]
        env = {**os.environ, "ISOLOSS_ADDRESS": cluster.address}
        told = subprocess.run(words, check=True, capture_output=True, text=True, env=env)
        answer = json.loads(told.stdout)
        assert answer["purchases"] and answer["regret_after"] < answer["regret_now"]
        cells = {(p["n_params"], p["n_tokens"]) for p in answer["purchases"]}
        assert cells <= {(n, d) for n in (100_000, 200_000) for d in (65_536, 131_072)}


@pytest.mark.long
def test_a_target_that_is_too_dear_is_confirmed_at_the_largest_affordable_cell(cluster: Cluster) -> None:
    limit = 7e12  # the search takes some 3e12, and three runs of the target 7.5e12
    poor = {name: value for name, value in SPEC.items() if name not in ("plan", "sampler")}
    with cluster.client() as client:
        campaign = client.launch_campaign({**poor, "name": "poor", "limits": {"flops": limit}})
        wait_until(lambda: campaign.info()["state"] == "done", 90)
        info = campaign.info()
        confirmed, target = info["confirmed"], info["forecast"]
        assert (confirmed["n_params"], confirmed["n_tokens"]) == (200_000, 131_072)
        assert (target["n_params"], target["n_tokens"]) == (TARGET["n_params"], TARGET["n_tokens"])
        assert len(info["outcomes"]) == 3 and info["searched_flops"] < limit
        assert info["verdict"] in ("go", "buy", "widen") and info["verdict_reason"]
        seen = campaign.observations()
        assert len(seen) == info["observations"], "the confirmation is an outcome, not an observation"
