"""A disk that is full, Postgres's or a worker's: said by its name, nothing lost, and gone on with once there is room."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from isoloss import errors
from isoloss.client.held import manifest
from isoloss.testing.cluster import Cluster, until_idle, wait_until
from isoloss.testing.oracles import violations

pytestmark = pytest.mark.long
TRAINERS = """
    import time
    from pathlib import Path
    def slow(trial):
        time.sleep(0.2)
        return trial.params["x"]
    def saves(trial):  # a megabyte, but at the second level, as long as nothing was freed, all there is
        with open(trial.save_to / "state", "wb", buffering=0) as file:
            file.write(bytes(1 << 20))
            while trial.level and not Path("freed").exists():
                file.write(bytes(1 << 12))
        return trial.params["x"]
    def saves_on_the_way(trial):
        for name, size in (("state", 1 << 12), ("room", 1 << 12), ("filler", 1 << 23)):
            try:
                (trial.save_to / name).write_bytes(bytes(size))
            except OSError:
                pass
        (trial.save_to / "room").unlink()
        (trial.save_to / "DONE").write_text("3")
        time.sleep(1)
        (trial.save_to / "filler").unlink()
        (trial.save_to / "DONE").write_text("4")
        return trial.params["x"]
    def saves_all_it_can(trial):  # and says nothing of it
        try:
            return saves(trial)
        except OSError:
            return trial.params["x"]
"""


@pytest.fixture
def disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Mounts small disks, gone afterwards; skips where that is not allowed."""
    mounted: list[Path] = []

    def mount(megabytes: int) -> Path:
        folder = Path(tempfile.mkdtemp(prefix="isoloss-disk-"))
        command = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m,mode=0711", "tmpfs", str(folder)]
        if os.geteuid() != 0 or subprocess.run(command, capture_output=True, check=False).returncode:
            folder.rmdir()
            pytest.skip("a small disk can be mounted by root only, where mounting is allowed")
        mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        subprocess.run(["umount", "-l", str(folder)], check=True)
        folder.rmdir()


def fill(folder: Path) -> Path:
    """The file that takes all the room there was."""
    with contextlib.suppress(OSError), (file := folder / "filler").open("wb", buffering=0) as sink:
        for size in (1 << 20, 1 << 12):
            with contextlib.suppress(OSError):
                while sink.write(bytes(size)):
                    pass
    return file


def for_ever(call: Callable[[], Any]) -> None:
    while True:
        call()


def spec(name: str, function: str, method: dict[str, Any]) -> dict[str, Any]:
    return {
        "name": name, "space": {"x": {"type": "float", "low": 0.0, "high": 1.0}}, "objective": {"metric": "loss"},
        "method": method, "run": {"function": f"trainers:{function}"}, "seed": 2,
    }  # fmt: skip


def test_when_the_disk_of_postgres_is_full_nothing_is_lost_and_the_study_goes_on_by_itself(
    disk: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = disk(256)
    monkeypatch.setattr(tempfile, "tempdir", str(small))  # all of ISOLOSS_HOME: data, write-ahead log, logs
    with Cluster(lease_seconds=10) as cluster, cluster.client(patience=1) as client:
        (cluster.home / "trainers.py").write_text(textwrap.dedent(TRAINERS))
        study = client.launch_study(
            spec("full", "slow", {"min_budget": 1, "max_budget": 27}) | {"limits": {"trials": 60}}
        )
        told: dict[int, float] = {}

        def tell() -> None:
            trial = study.ask(wait_seconds=5)
            study.tell(trial, loss=trial.params["x"])
            told[trial.key.task_id] = trial.params["x"]

        worker = cluster.worker("worker", allow=("trainers:slow",))
        wait_until(lambda: "ok" in cluster.attempts("full"), 20, what="a worker at work")
        tell()
        filler = fill(small)
        with pytest.raises(errors.StoreUnavailable, match="The disk of Postgres is full: .* Free some room there"):
            for_ever(tell)
        try:
            reasons = " ".join(study.why())
        except errors.StoreUnavailable as error:  # results wait that cannot be taken up
            reasons = error.message
        assert "The disk of Postgres is full" in reasons
        with pytest.raises(psycopg.OperationalError), psycopg.connect(cluster.dsn, autocommit=True) as conn:
            # without room for another segment of its write-ahead log Postgres ends, and does not start
            for_ever(lambda: conn.execute("SELECT pg_switch_wal(), pg_logical_emit_message(false, '', '')"))
        with pytest.raises(errors.Unreachable):
            tell()
        filler.unlink()
        until_idle(study, 60)
        tasks = {level.state for trial in study.trials() for level in trial.levels}
        assert (tasks, worker.process.poll()) == ({"ok"}, None)
        stored = dict(cluster.rows("SELECT task_id, (\"values\" ->> 'loss')::float8 FROM result"))
        assert told and told.items() <= stored.items()
        with psycopg.connect(cluster.dsn) as conn:
            assert violations(conn) == []


@pytest.mark.parametrize("function", ["saves", "saves_all_it_can"])
def test_a_checkpoint_for_which_there_is_no_room_is_a_failed_attempt_that_says_so_and_is_tried_again(
    disk: Any, function: str
) -> None:
    with Cluster() as cluster, cluster.client() as client:
        (cluster.home / "trainers.py").write_text(textwrap.dedent(TRAINERS))
        study = client.launch_study(
            spec("saved", function, {"name": "sha", "min_budget": 1, "max_budget": 2, "eta": 2})
        )
        small = disk(8)
        worker = cluster.worker("worker", everything=True, environment={"ISOLOSS_HOME": str(small)})
        wait_until(lambda: "failed" in cluster.attempts("saved"), 20, what="no room")
        wait_until(  # it is told first and removed then
            lambda: (
                {path.name for path in (small / "checkpoints").rglob("*-*-*")}
                == {"0-1-1", "0-1-1.manifest.json", "0-2-1", "0-2-1.manifest.json"}
            ),
            10,
            what="nothing of what failed",
        )
        assert any("No space left on device" in level.message for trial in study.trials() for level in trial.levels)
        (cluster.home / "freed").touch()
        until_idle(study)
        assert cluster.attempts("saved") == ["ok", "ok", "failed", "ok"]
        for path, names in cluster.rows("SELECT path, manifest FROM checkpoint"):
            assert manifest(Path(path)) == names == {"state": 1 << 20}
        assert worker.process.poll() is None


def test_a_run_goes_on_where_there_is_no_room_to_register_what_it_saves_on_the_way(disk: Any) -> None:
    with Cluster() as cluster, cluster.client() as client:
        (cluster.home / "trainers.py").write_text(textwrap.dedent(TRAINERS))
        study = client.launch_study(
            spec("way", "saves_on_the_way", {"name": "fixed", "budget": 4}) | {"limits": {"trials": 2}}
        )
        worker = cluster.worker("worker", everything=True, environment={"ISOLOSS_HOME": str(disk(8))})
        until_idle(study)
        assert cluster.attempts("way") == ["ok", "ok"]
        assert worker.said.count("checkpoint.missed") == 2
        assert cluster.rows("SELECT DISTINCT step FROM checkpoint") == [(4,)]


@pytest.mark.parametrize("process", ["isoloss.controller.server", "isoloss_worker.building"])
def test_a_log_line_that_finds_no_room_ends_nobody(process: str) -> None:
    program = f"""
import structlog
from {process} import configure_logs
configure_logs(json=True)
for _ in range(1000):
    structlog.get_logger().warning("said", words="x" * 100)
print("alive", flush=True)
"""
    with Path("/dev/full").open("w") as full:
        done = subprocess.run([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=full, check=False)
    assert done.stdout == b"alive\n"
