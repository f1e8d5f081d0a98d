"""Ray Tune asks a real controller, on a real local Ray in processes of its own: to the end, wrongly, and over a killed driver."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from isoloss.client.blocking import Client, Study
from isoloss.testing.cluster import Cluster, wait_until

pytestmark = [
    pytest.mark.ray,
    pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed: pip install 'isoloss[ray]'"),
]
DRIVER = """
    import os, sys, time
    from pathlib import Path
    import ray
    from ray import tune
    import isoloss
    from isoloss.client.ray_tune import IsolossSearch

    study, folder, seconds, metric, restore = sys.argv[1], sys.argv[2], float(sys.argv[3]), sys.argv[4], sys.argv[5:]

    def train(config):
        budget = config["isoloss"]
        begun = 0
        if budget["resume_from"]:
            begun = int((Path(budget["resume_from"]) / "step").read_text())
        assert begun == budget["budget_from"], (begun, budget)
        for step in range(begun + 1, budget["budget_to"] + 1):
            time.sleep(seconds)
            if step == budget["budget_to"]:
                (Path(budget["save_to"]) / "step").write_text(str(step))
            tune.report({"val_loss": config["lr"] + 1 / step, "seen": config["fixed"]})

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    if restore:
        tuner = tune.Tuner.restore(folder + "/run", train, resume_unfinished=True, restart_errored=True)
    else:
        tuner = tune.Tuner(
            train, param_space={"fixed": 7},
            tune_config=tune.TuneConfig(
                search_alg=IsolossSearch(study), num_samples=-1, metric=metric, mode="min", reuse_actors=True
            ),
            run_config=tune.RunConfig(name="run", storage_path=folder, verbose=0),
        )
    results = tuner.fit()
    print("ended", len(results), results.num_errors, flush=True)
"""


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with Cluster(lease_seconds=5) as cluster:
        (cluster.home / "driver.py").write_text(textwrap.dedent(DRIVER))
        yield cluster


@pytest.fixture
def client(cluster: Cluster) -> Iterator[Client]:
    with cluster.client() as client:
        yield client


def create(client: Client, name: str) -> Study:
    return client.launch_study(
        {
            "name": name, "space": {"lr": {"type": "float", "low": 1e-3, "high": 1e-1, "log": True}},
            "objective": {"metric": "val_loss"}, "method": {"name": "idhb", "min_budget": 1, "max_budget": 9},
        }
    )  # fmt: skip


def drive(cluster: Cluster, study: str, *more: str, seconds: float = 0.0, metric: str = "val_loss") -> Any:
    """A driver in a session of its own, so that its Ray can be ended with it."""
    own = {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_AUTH_MODE": "token",
        "HOME": str(cluster.home),
        "RAY_TRAIN_V2_ENABLED": "1",
    }
    own |= {"TUNE_GLOBAL_CHECKPOINT_S": "1", "RAY_AUTH_TOKEN": "0" * 64}
    with (cluster.home / f"{study}.log").open("ab") as sink:
        return subprocess.Popen(
            [sys.executable, "driver.py", study, str(cluster.home / f"{study}-ray"), str(seconds), metric, *more],
            env={**cluster.environment, **own}, cwd=cluster.home, stdin=subprocess.DEVNULL, stdout=sink, stderr=sink,
        )  # fmt: skip


def said(cluster: Cluster, study: str) -> str:
    return (cluster.home / f"{study}.log").read_text(errors="replace")


def done(study: Study) -> dict[tuple[int, int], float]:
    """What was told, by trial and level."""
    return {
        (t.number, level.level): level.values["val_loss"] for t in study.trials() for level in t.levels if level.values
    }


def test_a_tuner_runs_a_study_to_its_end(cluster: Cluster, client: Client) -> None:
    study = create(client, "whole")
    assert drive(cluster, "whole").wait(240) == 0, said(cluster, "whole")[-4000:]
    assert study.info().state == "idle"
    told = done(study)
    assert f"ended {len(told)} 0" in said(cluster, "whole")
    lrs = {trial.number: trial.params["lr"] for trial in study.trials()}
    budgets = {(t.number, level.level): level.budget for t in study.trials() for level in t.levels}
    assert all(
        value == pytest.approx(float(lrs[trial]) + 1 / budgets[trial, level]) for (trial, level), value in told.items()
    )
    deepest = max(told, key=lambda place: place[1])[0]
    curve = study.curves(deepest)
    assert [step for step, _ in curve] == sorted({step for step, _ in curve}) and curve[0][1]["seen"] == 7


def test_another_metric_than_the_objective_is_refused(cluster: Cluster, client: Client) -> None:
    study = create(client, "wrong")
    assert drive(cluster, "wrong", metric="accuracy").wait(120) != 0
    assert "metric is 'accuracy'; accepted is 'val_loss', the objective of study 'wrong'." in said(cluster, "wrong")
    assert not done(study) and study.info().tasks.get("leased", 0) == 0


def test_a_killed_driver_loses_nothing_that_was_told(cluster: Cluster, client: Client) -> None:
    study = create(client, "killed")
    driver = drive(cluster, "killed", seconds=0.7)
    wait_until(lambda: len(done(study)) >= 3 or driver.poll() is not None, 150, what="three results")
    assert driver.poll() is None, said(cluster, "killed")[-4000:]
    before = done(study)
    driver.kill()
    driver.wait(20)
    assert list(Path(cluster.home / "killed-ray").rglob("tuner.pkl"))
    assert drive(cluster, "killed", "restore").wait(240) == 0, said(cluster, "killed")[-4000:]
    assert study.info().state == "idle" and study.info().reserved == 0
    after = done(study)
    assert before.items() <= after.items() and len(after) > len(before)
