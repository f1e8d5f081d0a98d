"""Two workers that share no folder: what one saved goes through a store of fsspec, and the other goes on from it."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from isoloss.client.blocking import Client
from isoloss.testing.cluster import Cluster, wait_until

TRAINER = """
    import time
    from pathlib import Path
    def main(trial):
        start = int(Path(trial.resume_from, "DONE").read_text()) if trial.resume_from else 0
        assert start == trial.budget_from, (start, trial.budget_from)
        assert not start or Path(trial.resume_from, f"state.{start}").read_text() == str(start)
        with open("begun", "a") as file:
            file.write(f"{trial.number} {trial.level} {start}\\n")
        for step in range(start + 1, trial.budget_to + 1):
            trial.report(step, val_loss=trial.params["x"] + 1 / step)
            (trial.save_to / f"state.{step}").write_text(str(step))
            (trial.save_to / "draft").write_text(str(step))
            (trial.save_to / "draft").replace(trial.save_to / "DONE")
            (trial.save_to / f"state.{step - 1}").unlink(missing_ok=True)
            time.sleep(0.2 if trial.budget_to > 9 else 0)
"""
TASK = "SELECT max(task.id) FROM task WHERE level = 2 AND state = 'done'"


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with Cluster(lease_seconds=2) as cluster:
        (cluster.home / "saver.py").write_text(textwrap.dedent(TRAINER))
        yield cluster


def test_a_trial_goes_on_where_a_killed_machine_had_saved_it_and_what_is_superseded_leaves_the_store(
    cluster: Cluster, client: Client
) -> None:
    bucket = cluster.home / "bucket"

    def machine(name: str) -> Path:
        cluster.worker(
            name, allow=("saver:main",),
            environment={"ISOLOSS_HOME": str(cluster.home / name), "ISOLOSS_STORE": f"file://{bucket}"},
        )  # fmt: skip
        return cluster.home / name / "checkpoints"

    first = machine("first")
    study = client.launch_study(
        {
            "name": "far", "space": {"x": {"type": "float", "low": 0, "high": 1}}, "objective": {"metric": "val_loss"},
            "method": {"min_budget": 3, "max_budget": 27, "brackets": "first:1", "sampler": "random"},
            "run": {"function": "saver:main"}, "fidelity": {"keep": "planned"},
        }
    )  # fmt: skip
    wait_until(
        lambda: 9 < cluster.rows("SELECT coalesce(max(step), 0) FROM checkpoint")[0][0] < 27,
        60,
        what="a save in mid-run",
    )
    cluster.kill_workers()
    second = machine("second")
    wait_until(lambda: study.info().state == "idle", 60, what="idle")
    begun = [tuple(map(int, line.split())) for line in (cluster.home / "begun").read_text().splitlines()]
    again = [start for trial, level, start in begun if level == 2]
    assert len(again) == 2 and again[0] == 9 and again[1] > 9, "the second machine began where the first had saved"
    assert all(start > 0 for _, level, start in begun if level)
    wait_until(lambda: study.info().checkpoints["to_remove"] == 0, 20, what="tidied")
    best = study.best_trial
    left = [path.relative_to(bucket / "default" / "far") for path in bucket.rglob("*.manifest.json")]
    kept = [str(path) for path in left if not str(path.parent).endswith("-1")]  # one that nobody was told of may stay
    assert kept == [f"{best.number}/2-{task}-2/27.manifest.json" for task in cluster.rows(TASK)[0]] and len(left) <= 2
    assert not [path for path in second.rglob("*") if path.is_file()], "no disk keeps what the store has"
    assert first.exists()
