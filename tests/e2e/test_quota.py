"""A disk with a quota and real workers on it: what is least missed goes first, and when nothing more may, they wait for room."""

from __future__ import annotations

import socket
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from isoloss.client.blocking import Client, Study
from isoloss.testing.cluster import Cluster, until_idle, wait_until

TRAINER = """
    from pathlib import Path
    def main(trial):
        start = int(Path(trial.resume_from, "step").read_text()) if trial.resume_from else 0
        assert start == trial.budget_from, (start, trial.budget_from)
        trial.report(trial.budget_to, val_loss=trial.params["x"] + 1 / trial.budget_to)
        (trial.save_to / "state").write_bytes(bytes(1_000_000))
        (trial.save_to / "step").write_text(str(trial.budget_to))
"""


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with Cluster(lease_seconds=2) as cluster:
        (cluster.home / "saver.py").write_text(textwrap.dedent(TRAINER))
        yield cluster


def launch(client: Client, name: str) -> Study:
    return client.launch_study(
        {
            "name": name, "space": {"x": {"type": "float", "low": 0, "high": 1}}, "objective": {"metric": "val_loss"},
            "method": {"min_budget": 1, "max_budget": 9, "sampler": "random"}, "seed": 9,
            "run": {"function": "saver:main"},
        }
    )  # fmt: skip


def lies(home: Path) -> int:
    """The bytes below the root."""
    return sum(file.stat().st_size for file in (home / "checkpoints").rglob("*") if file.is_file())


def told(cluster: Cluster, *words: str) -> str:
    command = [sys.executable, "-m", "isoloss.cli", *words]
    done = subprocess.run(command, env=cluster.environment, capture_output=True, text=True, check=False)
    return " ".join((done.stdout + done.stderr).split())


def test_workers_stay_below_their_quota_and_wait_where_nothing_more_may_go(cluster: Cluster, client: Client) -> None:
    foreign = cluster.home / "checkpoints" / "foreign"
    cluster.worker("one", allow=("saver:main",), quota="6.5MB")
    cluster.worker("two", allow=("saver:main",), environment={"ISOLOSS_QUOTA": "6.5MB"})
    study = launch(client, "kept")
    until_idle(study, 60)
    wait_until(lambda: lies(cluster.home) <= 6_500_000, 30, what="room made")
    wait_until(lambda: study.info().checkpoints["to_remove"] == 0, 20, what="tidied")
    found, best = study.info().checkpoints, study.best_trial
    assert 5 <= found["kept"] <= 6 and found["for_room"] == found["dropped"] == 13 - found["kept"]
    assert list((cluster.home / "checkpoints" / "default" / "kept" / str(best.number)).glob(f"{best.level}-*/state"))
    assert f"; {found['for_room']} went for the quota of a worker's disk" in told(cluster, "study", "show", "kept")

    foreign.write_bytes(bytes(9_000_000))
    wait_until(lambda: cluster.rows("SELECT 1 FROM disk WHERE is_full"), 30, what="full")
    assert study.info().checkpoints["kept"] == 1, "all that may go went before"
    later = launch(client, "later")
    why = wait_until(lambda: [s for s in later.why() if "10 MB" in s], 30)[0]
    assert why.startswith(f"Workers on {socket.gethostname()} are given no new task: 10 MB lie in {foreign.parent}/, ")
    assert "whose quota is 6.5 MB" in why and not cluster.attempts("later")
    assert [worker["full"] for worker in client.workers()] == [True, True]
    assert "quota" in told(cluster, "worker", "ls")
    foreign.unlink()
    until_idle(later, 60)
    study.deepen(27)
    until_idle(study, 60)
    assert {*cluster.attempts("kept"), *cluster.attempts("later")} == {"ok"}, "what begins again begins at 0"


def test_a_quota_beside_a_store_counts_the_disk_alone_and_a_full_one_gives_a_new_worker_nothing(
    client: Client, cluster: Cluster
) -> None:
    cluster.kill_workers()
    own, bucket = cluster.home / "own", cluster.home / "bucket"
    disk, foreign = {"ISOLOSS_HOME": str(own)}, own / "checkpoints" / "foreign"
    stored = {**disk, "ISOLOSS_STORE": f"file://{bucket}"}
    cluster.worker("plain", allow=("saver:main",), environment=disk)
    study = launch(client, "both")
    until_idle(study, 60)
    assert lies(own) > 13_000_000, "saved on the disk"
    cluster.kill_workers()
    foreign.write_bytes(bytes(9_000_000))
    cluster.worker("early", allow=("saver:main",), quota="6.5MB", environment=stored)
    wait_until(lambda: study.info().checkpoints["kept"] == 1, 30, what="all that may go")
    wait_until(lambda: lies(own) < 11_000_000, 30, what="removed from the disk by a worker of a store")
    held = "SELECT 1 FROM disk WHERE is_full AND used_bytes < 11000000"
    wait_until(lambda: study.info().checkpoints["to_remove"] == 0 and cluster.rows(held), 30, what="full all the same")
    cluster.kill_workers()
    later = launch(client, "stored")
    cluster.worker("new", allow=("saver:main",), quota="6.5MB", environment=stored)
    wait_until(lambda: any(w["full"] for w in client.workers() if w["worker_id"] == "new"), 30, what="known to be full")
    assert not cluster.attempts("stored"), "nothing is given to who has not measured yet"
    foreign.unlink()
    until_idle(later, 60)
    assert {*cluster.attempts("stored")} == {"ok"} and later.info().checkpoints["for_room"] == 0
    assert len([*bucket.rglob("*.manifest.json")]) == 13, "the store has no quota"
    study.deepen(27)
    until_idle(study, 60)
    assert {*cluster.attempts("both")} == {"ok"}, "from the disk, from the store, or from 0"


@pytest.mark.parametrize("given", ["lots", "0", "-3GB", "12 parsecs", "1e30TB"])
def test_a_quota_that_is_none_is_said(cluster: Cluster, given: str) -> None:
    said = told(cluster, "worker", "start", f"--quota={given}")
    assert f"--quota (or ISOLOSS_QUOTA) is '{given}'; accepted is a size from 1 byte, such as 200GB or 1.5TiB" in said
