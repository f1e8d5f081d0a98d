"""A campaign through the command line, with runs that its user owned before: they are fitted, and cost nothing."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import isoloss
from isoloss import errors
from isoloss.client.locate import Local
from isoloss.files.spec import load_spec
from isoloss.files.tables import read_observations, write_rows
from isoloss.testing.controller import controller, temporary_home
from isoloss.v1 import campaign_pb2

SPEC = """
name: owned
target: {n_params: 1B, n_tokens: 20B}
sizes: [{name: 60m, n_params: 60M}, {name: 120m, n_params: 120M}]
tokens: {per_param: {min: 10, max: 40}, eta: 2}
space: {lr: {type: float, low: 1e-4, high: 1e-2, log: true}, batch_tokens: {type: ordinal, choices: [131072, 262144]}}
recipe: {optimizer: adamw}
observations: [old_runs.csv]
limits: {flops: 1e21}
run: {command: [train]}
"""


@pytest.fixture(scope="module")
def local() -> Iterator[Local]:
    with temporary_home(), controller() as found:
        yield found


@pytest.fixture
def spec(tmp_path: Path) -> Path:
    """A spec beside the file of runs it names."""
    rows = [
        {"n_params": N, "n_tokens": 20 * N, "lr": 2.0**u, "batch_tokens": 2.0**v, "n_params_count": "non_embedding",
         "optimizer": "adamw", "loss": 1.7 + 400 / N**0.34 + 0.01 * ((u + 9) ** 2 + (v - 17) ** 2)}
        for N in (3e7, 6e7, 1.2e8) for u in (-11, -10, -9, -8, -7) for v in (16, 17, 18)
    ]  # fmt: skip
    write_rows(tmp_path / "old_runs.csv", rows)
    (tmp_path / "spec.yaml").write_text(SPEC)
    return tmp_path / "spec.yaml"


def run(local: Local, *words: str) -> str:
    command = [sys.executable, "-m", "isoloss.cli", "campaign", *words]
    env = {**os.environ, "ISOLOSS_ADDRESS": local.address}
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_runs_the_user_owns_are_fitted_before_anything_ran(local: Local, spec: Path) -> None:
    assert json.loads(run(local, "preview", str(spec), "--json"))["own_observations"] == 45
    launched = json.loads(run(local, "launch", str(spec), "--json"))
    assert (launched["observations"], launched["own_observations"], launched["searched_flops"]) == (45, 45, 0)
    assert launched["spec"]["observations"] == ["old_runs.csv"]
    with isoloss.connect(local.address) as client:
        source = load_spec(spec)
        campaign = client.launch_campaign(source, load_if_exists=True, folder=spec.parent)
        begun = time.monotonic()
        while (found := campaign.info()["forecast"]) is None:
            assert time.monotonic() - begun < 60, "the fitter fits what the user owned"
            time.sleep(0.2)
        assert math.log2(found["lr"]) == pytest.approx(-9, abs=1)
        (spec.parent / "old_runs.csv").write_text((spec.parent / "old_runs.csv").read_text().replace("adamw", "muon"))
        with pytest.raises(errors.InvalidSpec, match=r"observations old_runs\.csv: row 1: recipe is .*muon"):
            client.launch_campaign(source, load_if_exists=True, folder=spec.parent)
        request = campaign_pb2.LaunchCampaignRequest(spec_json=json.dumps(source))
        with pytest.raises(errors.InvalidSpec, match="observations names 1 files and 0 runs came"):
            client.transport.call(client.transport.campaigns.LaunchCampaign, request)
    assert "45 observations (45 your own)" in run(local, "show", "owned")
    run(local, "export", "owned", "--out", str(spec.parent / "all.csv"))
    assert len(read_observations(spec.parent / "all.csv").one_recipe()) == 45
