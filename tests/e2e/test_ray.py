"""On a real local Ray, in processes of its own: Ray Tune asks a controller, and a pool of actors works for one; both are killed."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from isoloss.client.blocking import Client, Study
from isoloss.testing.cluster import Cluster, free_port, wait_until

pytestmark = [
    pytest.mark.ray,
    pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed: pip install 'isoloss[ray]'"),
]
DRIVER = """
    import os, sys, time
    from pathlib import Path
    import numpy as np
    import ray
    from ray import tune
    import isoloss
    from isoloss.client.ray_tune import IsolossSearch

    study, folder, seconds, metric, words = sys.argv[1], sys.argv[2], float(sys.argv[3]), sys.argv[4], sys.argv[5:]

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
            loss = config["lr"] + 1 / step
            if "nan" in words and config["lr"] > 0.01 and step == 1:
                loss = float("nan")
            tune.report({"val_loss": np.float32(loss), "seen": config.get("fixed", 7), "aside": float("nan") if "nan" in words else 1.0})
            if "early" in words:
                return

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    search = IsolossSearch(study, step="epoch" if "nostep" in words else "training_iteration")
    stop = {"training_iteration": 2} if "stopped" in words else search if "stops" in words else None
    if "restore" in words:
        tuner = tune.Tuner.restore(folder + "/run", train, resume_unfinished=True, restart_errored=True)
    else:
        tuner = tune.Tuner(
            train, param_space={} if "noparams" in words else {"fixed": 7},
            tune_config=tune.TuneConfig(search_alg=search, num_samples=-1, metric=metric, mode="min", reuse_actors=True),
            run_config=tune.RunConfig(name="run", storage_path=folder, verbose=0, stop=stop),
        )
    results = tuner.fit()
    print("ended", len(results), results.num_errors, flush=True)
"""


TRAINER = """
    import time
    def main(trial):
        with open("begun", "a") as file:
            file.write(f"{trial.budget_from}\\n")
        for step in trial.steps():
            time.sleep(0.2)
            trial.report(step, val_loss=trial.params["lr"] + 1 / step)
            (trial.save_to / "draft").write_text(str(step))
            (trial.save_to / "draft").replace(trial.save_to / "DONE")
"""
OWN = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_TOKEN": "0" * 64}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with Cluster(lease_seconds=5) as cluster:
        (cluster.home / "trainer.py").write_text(textwrap.dedent(TRAINER))
        (cluster.home / "driver.py").write_text(textwrap.dedent(DRIVER))
        yield cluster


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
        **OWN,
        "RAY_AUTH_MODE": "token",
        "HOME": str(cluster.home),
        "RAY_TRAIN_V2_ENABLED": "1",
        "TUNE_GLOBAL_CHECKPOINT_S": "1",
    }
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


def states(study: Study) -> set[tuple[str, str]]:
    """How the tasks ended, and what was said of it."""
    return {(level.state, level.message) for trial in study.trials() for level in trial.levels}


def test_a_nan_is_a_run_that_diverged_and_what_numpy_calls_a_number_is_one(cluster: Cluster, client: Client) -> None:
    study = create(client, "nan")
    assert drive(cluster, "nan", "nan").wait(240) == 0, said(cluster, "nan")[-4000:]
    assert study.info().state == "idle"
    ended = {trial.number: {level.state for level in trial.levels} for trial in study.trials()}
    lrs = {trial.number: float(trial.params["lr"]) for trial in study.trials()}
    assert {n for n, how in ended.items() if "diverged" in how} == {n for n, lr in lrs.items() if lr > 0.01}
    assert {n for n, how in ended.items() if how == {"ok"}} == {n for n, lr in lrs.items() if lr <= 0.01}


def test_a_trial_that_tune_stops_before_its_budget_has_failed_and_one_that_ends_by_itself_has_not(
    cluster: Cluster, client: Client
) -> None:
    study = create(client, "stopped")
    assert drive(cluster, "stopped", "stopped").wait(240) == 0, said(cluster, "stopped")[-4000:]
    assert study.info().state == "idle"
    for trial in study.trials():
        for level in trial.levels:
            short = level.budget - (1 if level.level else 0) <= 2  # the first level is a step, the next two more
            assert (level.state == "ok") == short and (short or "Ray Tune stopped it at step" in level.message), level
    early = create(client, "early")
    assert drive(cluster, "early", "early").wait(240) == 0, said(cluster, "early")[-4000:]
    assert {state for state, _ in states(early)} == {"ok"}


def test_a_result_without_its_step_fails_its_trial_in_words_and_not_the_driver(
    cluster: Cluster, client: Client
) -> None:
    study = create(client, "nostep")
    assert drive(cluster, "nostep", "nostep").wait(240) == 0, said(cluster, "nostep")[-4000:]
    assert states(study) == {
        ("failed", "A result lacks the number 'epoch'; accepted is the step in the study's unit, in every result.")
    }


def test_without_a_param_space_the_study_goes_by_its_own_objective_whatever_tune_is_told(
    cluster: Cluster, client: Client
) -> None:
    study = create(client, "noparams")
    assert drive(cluster, "noparams", "noparams", metric="seen").wait(240) == 0, said(cluster, "noparams")[-4000:]
    assert study.best_value == pytest.approx(min(done(study).values()))


@pytest.mark.parametrize("stops", [True, False])
def test_a_trial_that_was_leased_again_meanwhile_is_stopped_or_said_to_train_in_vain_and_who_has_it_tells_it(
    cluster: Cluster, client: Client, stops: bool
) -> None:
    name = "taken" if stops else "in-vain"
    words = ["stops"] if stops else []
    study = create(client, name)
    driver = drive(cluster, name, *words, seconds=2.0)
    wait_until(lambda: study.info().tasks.get("leased") == 2 and len(done(study)) >= 9, 150, what="the second level")
    wait_until(lambda: list((cluster.home / f"{name}-ray").rglob("searcher-state-*")), 10)
    time.sleep(2.0)  # what runs is in the files of Tune, which it writes once a second
    driver.kill()
    driver.wait(20)
    before = done(study)
    wait_until(lambda: not study.info().tasks.get("leased"), 30, what="leases that ran out")
    ready = study.info().tasks["ready"]
    taken = [trial for trial, _ in (study.ask_or_idle() for _ in range(ready)) if trial is not None]
    again = drive(cluster, name, "restore", *words, seconds=2.0)
    told_in_vain = [f"result.not_told: trial {trial.number}, level {trial.level}" for trial in taken]
    wait_until(lambda: any(one in said(cluster, name) for one in told_in_vain), 60, what="that they are not told")
    assert ("lease.lost: Trial" in said(cluster, name)) is not stops
    for trial in taken:
        study.tell(trial, val_loss=7.0)
    assert again.wait(120) == 0, said(cluster, name)[-4000:]
    after = done(study)
    assert before.items() <= after.items() and study.info().state == "idle"
    assert all(after[trial.number, trial.level] == 7.0 for trial in taken)
    assert not stops or " 0\n" in said(cluster, name).split("ended ")[-1], "a trial that was stopped is no error"


@contextlib.contextmanager
def head(cluster: Cluster, auth: str) -> Iterator[dict[str, str]]:
    """A Ray of two CPUs, and the environment of who is to speak to it."""
    environment = {**cluster.environment, **OWN, "HOME": str(cluster.home), "PYTHONPATH": str(cluster.home)}
    address = f"127.0.0.1:{free_port()}"
    command = [
        "ray",
        "start",
        "--head",
        f"--port={address.partition(':')[2]}",
        "--num-cpus=2",
        "--include-dashboard=false",
    ]
    scripts = str(Path(sys.executable).parent)
    environment["PATH"] = f"{scripts}:{os.environ['PATH']}"
    subprocess.run(command, env=environment | {"RAY_AUTH_MODE": auth}, check=True, capture_output=True, timeout=90)
    try:
        yield environment | {"POOL_CLUSTER": address}
    finally:
        subprocess.run(["ray", "stop", "--force"], env=environment, check=False, capture_output=True, timeout=60)


def pool(environment: dict[str, str], workers: int, *words: str) -> tuple[int, Any]:
    return sized(environment, "--workers", str(workers), *words)


def sized(environment: dict[str, str], *words: str) -> tuple[int, Any]:
    command = [sys.executable, "-m", "isoloss.cli", "worker", "ray", "--json", *words]
    command += ["--cluster", environment["POOL_CLUSTER"]]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=120)
    return done.returncode, json.loads(done.stdout) if done.stdout else done.stderr


def actors() -> set[int]:
    """The processes of Ray actors in which a worker runs."""
    children = subprocess.run(["pgrep", "-f", "isoloss_worker.child"], capture_output=True, text=True, check=False)
    parents = {
        int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1]) for pid in children.stdout.split()
    }
    return {pid for pid in parents if b"ray::" in Path(f"/proc/{pid}/cmdline").read_bytes()}


def test_a_pool_of_actors_that_are_killed_comes_back_and_goes_on_where_they_were(
    cluster: Cluster, client: Client
) -> None:
    with head(cluster, "token") as environment:
        allow = ("--allow", "trainer:main")
        code, said = pool(environment, 2, *allow)
        assert (code, said["joined"], said["refused"]) == (0, ["pool-0", "pool-1"], {})
        study = client.launch_study({
            "name": "pooled", "space": {"lr": {"type": "float", "low": 1e-3, "high": 1e-1}}, "objective": {"metric": "val_loss"},
            "method": {"name": "fixed", "budget": 40, "sampler": "random"}, "limits": {"trials": 2},
            "run": {"function": "trainer:main", "cwd": str(cluster.home)},
        })  # fmt: skip
        wait_until(
            lambda: min((len(study.curves(n)) for n in (0, 1) if study.info().trials == 2), default=0) > 5,
            30,
            what="steps",
        )
        before = actors()
        assert len(before) == 2
        for pid in before:
            os.kill(pid, signal.SIGKILL)
        wait_until(lambda: study.info().state == "idle", 90, what="the end of the study")
        assert len(done(study)) == 2
        assert sorted(cluster.attempts("pooled")) == ["expired", "expired", "ok", "ok"]
        begun = [int(line) for line in (cluster.home / "begun").read_text().split()]
        assert begun[:2] == [0, 0] and len(begun) == 4 and min(begun[2:]) > 3
        assert len(actors()) == 2 and not actors() & before
        client.drain_worker("ray-pool-0")
        wait_until(lambda: len(actors()) == 1, 30, what="a drained worker's actor to go")
        code, said = pool(environment, 2, *allow)  # said again, the pool is whole again
        assert (code, said["joined"], len(actors())) == (0, ["pool-0", "pool-1"], 2)
        assert pool(environment, 1, *allow)[1]["left"] == ["pool-1"]
        assert pool(environment, 0)[1]["left"] == ["pool-0"]
        assert not actors()


def test_a_ray_that_asks_nobody_for_a_token_is_refused_and_a_worker_that_cannot_join_says_why(cluster: Cluster) -> None:
    with head(cluster, "disabled") as environment:
        code, said = pool(environment, 1)
        assert code == 4 and "This Ray asks for no token: whoever reaches it may run anything" in said
        nobody = f"127.0.0.1:{free_port()}"
        code, said = pool(environment, 1, "--insecure", "--address", nobody)
        assert code == 1 and said["joined"] == [] and nobody in said["refused"]["pool-0"]
    code, said = pool(environment, 1)
    assert code == 5 and "There is no Ray at" in said


def keepers() -> set[int]:
    """The processes of the actors that keep pools."""
    found = subprocess.run(["pgrep", "-f", "^ray::Keeper"], capture_output=True, text=True, check=False)
    return {int(pid) for pid in found.stdout.split()}


def test_a_pool_grows_with_the_work_there_is_and_shrinks_when_there_is_none_though_its_keeper_is_killed(
    cluster: Cluster, client: Client
) -> None:
    def work(name: str, budget: int, trials: int) -> Study:
        return client.launch_study({
            "name": name, "space": {"lr": {"type": "float", "low": 1e-3, "high": 1e-1}}, "objective": {"metric": "val_loss"},
            "method": {"name": "fixed", "budget": budget, "sampler": "random"}, "limits": {"trials": trials},
            "run": {"function": "trainer:main", "cwd": str(cluster.home)},
        })  # fmt: skip

    bounds = ("--min", "0", "--max", "2", "--idle", "4s")
    with head(cluster, "token") as environment:
        nobody = f"127.0.0.1:{free_port()}"
        code, said = sized(environment, *bounds, "--address", nobody)
        assert code == 1 and nobody in said["refused"]["keeper of pool"] and not keepers()
        assert sized(environment, *bounds, "--allow", "trainer:main") == (
            0, {"pool": "pool", "joined": [], "waiting": [], "left": [], "refused": {}, "min": 0, "max": 2}
        )  # fmt: skip
        assert not actors()
        one = work("one", budget=20, trials=1)
        wait_until(lambda: one.info().state == "idle", 90, what="the end of a study")
        assert len(actors()) == 1, "one was enough"
        wait_until(lambda: not actors(), 30, what="a worker without work to leave")

        many = work("many", budget=20, trials=4)
        wait_until(lambda: many.info().tasks.get("leased") == 2, 60, what="two workers")
        before = keepers()
        assert len(before) == 1
        os.kill(min(before), signal.SIGKILL)
        longer = work("longer", budget=150, trials=1)
        wait_until(lambda: many.info().state == "idle", 120, what="the end of many")
        wait_until(lambda: len(actors()) == 1, 60, what="the one at rest to leave")
        assert longer.info().tasks == {"leased": 1}, "the one at work stays"
        assert len(keepers()) == 1 and keepers() != before
        wait_until(lambda: longer.info().state == "idle", 120, what="the end of the longer one")
        assert {*cluster.attempts("one"), *cluster.attempts("many"), *cluster.attempts("longer")} == {"ok"}
        assert sized(environment, "--min", "1", "--max", "2", "--allow", "trainer:main")[1]["joined"] == ["pool-0"]
        left = pool(environment, 0)[1]["left"]  # whichever ran the longer one may rest there still
        assert "pool-0" in left and not keepers() and not actors()
