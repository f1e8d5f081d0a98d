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
MANY = """
    import time
    def main(trial):
        for number in range(4000):
            (trial.save_to / f"shard.{number}").write_bytes(b"weights")
        (trial.save_to / "DONE").write_text("2")
        time.sleep(60)
"""
TASK = "SELECT max(task.id) FROM task WHERE level = 2 AND state = 'done'"


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with Cluster(lease_seconds=2) as cluster:
        (cluster.home / "saver.py").write_text(textwrap.dedent(TRAINER))
        (cluster.home / "many.py").write_text(textwrap.dedent(MANY))
        yield cluster


def machine(cluster: Cluster, name: str, bucket: Path) -> Path:
    """A worker with a disk of its own; where that keeps checkpoints."""
    cluster.worker(
        name, allow=("saver:main", "many:main"),
        environment={"ISOLOSS_HOME": str(cluster.home / name), "ISOLOSS_STORE": f"file://{bucket}"},
    )  # fmt: skip
    return cluster.home / name / "checkpoints"


def passed(cluster: Cluster) -> None:
    """Ten minutes and more since whatever attempt has ended."""
    cluster.rows("UPDATE attempt SET ended_at = ended_at - interval '11 minutes' RETURNING 1")


def manifests(folder: Path) -> list[str]:
    """The checkpoints below, by their manifests."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*.manifest.json"))


def test_a_trial_goes_on_where_a_killed_machine_had_saved_it_and_what_is_superseded_leaves_the_store(
    cluster: Cluster, client: Client
) -> None:
    bucket = cluster.home / "bucket"
    first = machine(cluster, "first", bucket)
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
    second = machine(cluster, "second", bucket)
    wait_until(lambda: study.info().state == "idle", 60, what="idle")
    begun = [tuple(map(int, line.split())) for line in (cluster.home / "begun").read_text().splitlines()]
    again = [start for trial, level, start in begun if level == 2]
    assert len(again) == 2 and again[0] == 9 and again[1] > 9, "the second machine began where the first had saved"
    assert all(start > 0 for _, level, start in begun if level)
    wait_until(lambda: study.info().checkpoints["to_remove"] == 0, 20, what="tidied")
    best = study.best_trial
    kept = [f"{best.number}/2-{task}-2/27.manifest.json" for task in cluster.rows(TASK)[0]]
    passed(cluster)
    wait_until(lambda: manifests(bucket / "default" / "far") == kept, 20, what="what nobody was told of, removed")
    assert not [path for path in second.rglob("*") if path.is_file()], "no disk keeps what the store has"
    assert first.exists()


def test_what_a_worker_was_writing_into_the_store_when_it_was_killed_is_removed_by_another(
    cluster: Cluster, client: Client
) -> None:
    bucket = cluster.home / "half"
    cluster.kill_workers()
    machine(cluster, "killed", bucket)
    study = client.launch_study(
        {
            "name": "half", "space": {"x": {"type": "float", "low": 0, "high": 1}}, "objective": {"metric": "val_loss"},
            "method": {"name": "fixed", "budget": 3}, "limits": {"trials": 1}, "run": {"function": "many:main"},
        }
    )  # fmt: skip
    folder = bucket / "default" / "half" / "0"
    wait_until(lambda: [*folder.glob("0-*-1/2/shard.*")], 30, what="a part of it")
    cluster.kill_workers()
    assert not manifests(bucket), "it was killed on the way"
    wait_until(lambda: cluster.attempts("half") == ["expired"], 20, what="the lease's end")
    (cluster.home / "many.py").write_text("def main(trial):\n    return 0.0\n")
    machine(cluster, "after", bucket)
    wait_until(lambda: study.info().state in ("idle", "stopped"), 30, what="the end")
    assert cluster.attempts("half") == ["expired", "ok"]
    assert [*folder.glob("0-*-1/2/shard.*")], "a worker that was cut off might still register it"
    passed(cluster)
    wait_until(lambda: not [path for path in bucket.rglob("*") if path.is_file()], 30, what="nothing left")
    wait_until(
        lambda: not cluster.rows("SELECT FROM upload WHERE path LIKE '%%/half/%%'"), 10, what="nothing to remove"
    )
