"""With real workers the files of dropped checkpoints vanish, and the study can still be deepened."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from isoloss.client.blocking import Client, Study
from isoloss.testing.cluster import Cluster, wait_until

TRAINER = """
    from pathlib import Path
    def main(trial):
        start = int(Path(trial.resume_from, "state").read_text()) if trial.resume_from else 0
        assert start == trial.budget_from, (start, trial.budget_from)
        for step in range(start + 1, trial.budget_to + 1):
            trial.report(step, val_loss=trial.params["x"] + 1 / step)
        (trial.save_to / "state").write_text(str(trial.budget_to))
"""
STEPS = """
    SELECT task.trial_no, task.level, task.budget_from FROM task JOIN study ON study.id = task.study_id
    WHERE study.name = %s ORDER BY task.id"""


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with Cluster(lease_seconds=2) as cluster:
        (cluster.home / "saver.py").write_text(textwrap.dedent(TRAINER))
        yield cluster


def launch(client: Client, name: str, keep: str) -> Study:
    return client.launch_study(
        {
            "name": name, "space": {"x": {"type": "float", "low": 0, "high": 1}}, "objective": {"metric": "val_loss"},
            "method": {"min_budget": 1, "max_budget": 9, "sampler": "random"}, "seed": 9,  # old losers go up after deepening
            "run": {"function": "saver:main"}, "fidelity": {"keep": keep},
        }
    )  # fmt: skip


def folders(cluster: Cluster, study: str) -> set[tuple[int, int]]:
    """The (trial, level) whose folders are there."""
    root = cluster.home / "checkpoints" / "default" / study
    return {(int(f.parent.name), int(f.name.split("-")[0])) for f in root.glob("*/*") if f.is_dir()}


def told(cluster: Cluster, *words: str) -> str:
    command = [sys.executable, "-m", "isoloss.cli", "study", *words]
    done = subprocess.run(command, env=cluster.environment, capture_output=True, text=True, check=True)
    return " ".join(done.stdout.split())


def settled(study: Study) -> None:
    wait_until(lambda: study.info().state == "idle", 60, what=f"{study.name} idle")
    wait_until(lambda: study.info().checkpoints["to_remove"] == 0, 20, what=f"{study.name} tidied")


def test_superseded_folders_vanish_and_a_deepening_begins_nowhere_again(cluster: Cluster, client: Client) -> None:
    cluster.worker("keeper", slots=2, allow=("saver:main",))
    study = launch(client, "ahead", "needed")
    settled(study)
    highest = {trial.number: trial.levels[-1].level for trial in study.trials()}
    assert folders(cluster, "ahead") == set(highest.items())
    assert study.info().checkpoints["kept"] == 9 and study.info().checkpoints["dropped"] >= 4
    study.deepen(27)
    settled(study)
    assert all(begun > 0 for trial, level, begun in cluster.rows(STEPS, "ahead") if level and trial < 9)
    manifests = (cluster.home / "checkpoints" / "default" / "ahead").glob("*/*.manifest.json")
    assert all(Path(str(file).removesuffix(".manifest.json")).is_dir() for file in manifests)


def test_a_plan_that_ran_keeps_the_best_alone_and_a_deepening_begins_again_where_it_must(
    cluster: Cluster, client: Client
) -> None:
    study = launch(client, "lean", "planned")
    settled(study)
    best = study.best_trial
    assert folders(cluster, "lean") == {(best.number, best.level)}
    assert "checkpoints: 1 kept (1 bytes), 12 dropped (" in told(cluster, "show", "lean")
    before = len(cluster.rows(STEPS, "lean"))
    bill = study.preview_change(max_budget=27)
    assert bill["retrained_budget"] > 0
    said = told(cluster, "deepen", "lean", "--max-budget", "27", "--dry-run")
    assert f"and up to {bill['retrained_budget']} steps because checkpoints were dropped" in said
    assert "Its checkpoint was dropped: it would begin again." in told(cluster, "why", "lean")
    study.deepen(27)
    settled(study)
    revived = [row for row in cluster.rows(STEPS, "lean")[before:] if row[0] < 9]
    assert any(level and not begun for _, level, begun in revived), "a loser went up after all, from step 0"
    assert all(level.state == "ok" for trial in study.trials() for level in trial.levels)


def test_the_next_worker_of_a_host_removes_what_one_that_is_gone_left_and_never_what_is_not_its_own(
    cluster: Cluster, client: Client
) -> None:
    for worker in cluster.workers:
        worker.process.kill()
        worker.process.wait(10)
    cluster.workers.clear()
    study = launch(client, "left", "all")
    cluster.worker("gone", slots=2, allow=("saver:main",))
    wait_until(lambda: study.info().state == "idle", 60)
    cluster.workers[0].kill()
    there = folders(cluster, "left")
    assert len(there) == 13
    outside = cluster.home / "precious" / "default" / "left" / "0" / "0-1-1"
    outside.mkdir(parents=True)
    cluster.rows(
        "UPDATE checkpoint SET dropped_at = now() FROM task JOIN study ON study.id = study_id "
        "WHERE task.id = task_id AND study.name = 'left' RETURNING 1"
    )
    cluster.rows(
        "UPDATE checkpoint SET path = %s WHERE path LIKE '%%/left/0/%%' RETURNING 1",
        str(cluster.home / "checkpoints" / ".." / "precious" / "default" / "left" / "0" / "0-1-1"),
    )
    cluster.worker("next", allow=("saver:main",))
    wait_until(lambda: {trial for trial, _ in folders(cluster, "left")} == {0}, 20, what="removed by another")
    assert outside.is_dir() and study.info().checkpoints["to_remove"] > 0
    assert "checkpoint.not_ours" in cluster.workers[-1].said
