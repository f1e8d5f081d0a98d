# ruff: noqa: T201 - a benchmark prints
"""Trials a second through real worker processes when a trial does nothing: what running somebody's trainer costs.

One controller, one Postgres with fsync, one worker of two slots. ``warm``: a function, which children keep between trials. ``fresh``:
a program, so every trial is a new process. Where Ray Tune is installed it runs the same trials on two CPUs, reusing its
actors, in the same run.

    python tests/bench/bench_fleet.py [--trials 300] [--fresh 40] [--reports 1 10]
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from isoloss.testing.cluster import Cluster, wait_until

TRAINER = """
def noop(trial):
    for step in trial.steps():
        trial.report(step, loss=trial.params["x"] + step)
"""
PROGRAM = """
import json, os
with open(os.environ["ISOLOSS_METRICS"], "a") as file:
    for step in range(1, int(os.environ["ISOLOSS_BUDGET_TO"]) + 1):
        file.write(json.dumps({"step": step, "loss": float(os.environ["ISOLOSS_X"]) + step}) + "\\n")
"""


def ours(trials: int, reports: int, run: dict[str, Any]) -> float:
    """Trials a second from the launch to the last result."""
    with Cluster(fsync=True) as cluster, cluster.client() as client:
        (cluster.home / "trainer.py").write_text(TRAINER)
        (cluster.home / "program.py").write_text(PROGRAM)
        cluster.worker("fleet", slots=2, allow=("trainer:noop",), allow_command=(sys.executable,))
        spec: dict[str, Any] = {
            "space": {"x": {"type": "float", "low": 0, "high": 1}}, "objective": {"metric": "loss"},
            "method": {"name": "fixed", "budget": reports, "sampler": "random"}, "run": run,
        }  # fmt: skip
        seconds = 0.0
        for name, count in (("warms-up", 4), ("counts", trials)):
            begun = time.perf_counter()
            study = client.launch_study(spec | {"name": name, "limits": {"trials": count}})
            wait_until(lambda: study.info().state == "idle", 300, what=name)  # noqa: B023 - called at once
            seconds = time.perf_counter() - begun
        assert all(trial.levels[0].state == "ok" for trial in study.trials())
        return trials / seconds


def rays(trials: int, reports: int) -> float:
    """Ray Tune's, on two CPUs with actors reused."""
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AIR_NEW_OUTPUT": "0"}
    import ray
    from ray import tune

    class Noop(tune.Trainable):  # type: ignore[misc]
        def setup(self, config: dict[str, Any]) -> None:
            self.config = config

        def step(self) -> dict[str, float]:
            return {"loss": self.config["x"] + self.iteration, "done": self.iteration + 1 >= reports}

        def reset_config(self, new_config: dict[str, Any]) -> bool:
            self.config = new_config
            return True

        def save_checkpoint(self, checkpoint_dir: str) -> None:
            pass

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    with tempfile.TemporaryDirectory() as folder:
        tuner = tune.Tuner(
            tune.with_resources(Noop, {"cpu": 1}), param_space={"x": tune.uniform(0, 1)},
            tune_config=tune.TuneConfig(num_samples=trials, reuse_actors=True), run_config=tune.RunConfig(storage_path=folder, verbose=0),
        )  # fmt: skip
        begun = time.perf_counter()
        tuner.fit()
        seconds = time.perf_counter() - begun
    ray.shutdown()
    return trials / seconds


def main() -> None:
    """Read the command line and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=300)
    parser.add_argument("--fresh", type=int, default=40)
    parser.add_argument("--reports", type=int, nargs="*", default=[1, 10])
    options = parser.parse_args()
    program = str(Path("program.py"))
    for reports in options.reports:
        print(
            f"{reports} reports, warm: {ours(options.trials, reports, {'function': 'trainer:noop'}):.1f} trials/s",
            flush=True,
        )
        if find_spec("ray") is not None:
            print(
                f"{reports} reports, Ray Tune, actors reused: {rays(options.trials, reports):.1f} trials/s", flush=True
            )
    rate = ours(options.fresh, 1, {"command": [sys.executable, program]})
    print(f"1 report, fresh: {rate:.1f} trials/s", flush=True)


if __name__ == "__main__":
    main()
