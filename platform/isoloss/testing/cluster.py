"""A whole isoloss of one's own for a test: a real controller with its Postgres, and real workers, as processes.

with Cluster() as cluster, cluster.client() as client:
    cluster.worker(allow=("train:main",), cwd=folder)
    study = client.launch_study(spec)
    wait_until(lambda: study.info().state == "idle", 30)

Everything lives below a temporary ``ISOLOSS_HOME`` and ends with the block, whatever was killed in it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self

if TYPE_CHECKING:
    from isoloss.client.blocking import Client, Study

START_SECONDS: Final = 60.0
END_SECONDS: Final = 20.0


@dataclass(slots=True)
class WorkerProcess:
    """A worker that a test may kill."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path

    def kill(self) -> None:
        """End it as a power cut would (-9)."""
        self.process.kill()
        self.process.wait(END_SECONDS)

    def terminate(self) -> int:
        """Ask it to leave; its exit code."""
        self.process.terminate()
        return self.process.wait(END_SECONDS)

    @property
    def said(self) -> str:
        """Its log so far."""
        return self.log.read_text(errors="replace")


class Cluster:
    """A controller at a fixed address, which may be killed and started again, and its workers."""

    def __init__(
        self, *, lease_seconds: float = 30.0, environment: Mapping[str, str] | None = None, fsync: bool = False
    ) -> None:
        self.lease_seconds = lease_seconds
        self.fsync = fsync
        self.home = Path()
        self.address = f"127.0.0.1:{free_port()}"
        self.workers: list[WorkerProcess] = []
        self._environment = dict(environment or {})
        self._controller: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.home = Path(tempfile.mkdtemp(prefix="isoloss-cluster-"))
        self.home.chmod(0o711)  # Postgres does not run as root: its own user has to pass
        try:
            self.start_controller()
        except BaseException:
            shutil.rmtree(self.home, ignore_errors=True)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for worker in self.workers:
            with contextlib.suppress(subprocess.TimeoutExpired):
                worker.terminate()
            worker.process.kill()
        if self._controller is None:
            self.start_controller()  # only a controller stops the Postgres that a killed one left behind
        self.stop_controller()
        shutil.rmtree(self.home, ignore_errors=True)

    @property
    def environment(self) -> dict[str, str]:
        """What its processes run with; for a process of the test's own that shall belong to it."""
        own = {"ISOLOSS_HOME": str(self.home), "ISOLOSS_FSYNC": str(self.fsync), "ISOLOSS_ADDRESS": self.address}
        return {**os.environ, **own, **self._environment}

    def client(self, *, patience: float = 30.0) -> Client:
        """A blocking client."""
        from isoloss.client.blocking import connect

        return connect(self.address, start=False, patience=patience)

    @property
    def dsn(self) -> str:
        """The connection string of the cluster's own Postgres."""
        from isoloss.store.embedded import Embedded

        return Embedded(home=self.home / "postgres").dsn

    def rows(self, query: str, *values: Any) -> list[tuple[Any, ...]]:
        """What the cluster's own Postgres answers, for what no call says."""
        import psycopg

        with psycopg.connect(self.dsn, autocommit=True) as conn:
            return conn.execute(query.encode(), values or None).fetchall()

    def attempts(self, study: str) -> list[str]:
        """How the attempts of a study ended, in order; ``runs`` for those that have not."""
        query = """SELECT coalesce(attempt.outcome::text, 'runs') FROM attempt JOIN task ON task.id = attempt.task_id
                   JOIN study ON study.id = task.study_id WHERE study.name = %s ORDER BY attempt.task_id, attempt.epoch"""
        return [row[0] for row in self.rows(query, study)]

    def kill_workers(self) -> None:
        """End every worker at once."""
        for worker in self.workers:
            worker.process.kill()
            worker.process.wait(END_SECONDS)
        self.workers.clear()

    def start_controller(self) -> None:
        """Start the controller (again), and wait until it serves."""
        from isoloss.client.transport import wait_until_serving

        listen = ("--listen", self.address, "--dash", "127.0.0.1:0", "--lease-seconds", f"{self.lease_seconds:g}")
        log = self.home / "controller.log"
        with log.open("ab") as sink:
            self._controller = subprocess.Popen(
                [sys.executable, "-m", "isoloss.cli", "up", *listen],
                env=self.environment, stdin=subprocess.DEVNULL, stdout=sink, stderr=sink,
            )  # fmt: skip
        if not wait_until_serving(self.address, START_SECONDS):
            raise AssertionError(f"The controller did not start:\n{log.read_text(errors='replace')[-4000:]}")

    def signal_controller(self, number: signal.Signals) -> None:
        """Send the controller a signal, such as SIGSTOP."""
        assert self._controller is not None, "no controller runs"  # noqa: S101
        self._controller.send_signal(number)

    def postgres_pid(self) -> int:
        """The postmaster's pid."""
        file = self.home / "postgres" / "data" / "postmaster.pid"
        wait_until(lambda: file.exists() and bool(file.read_text()), END_SECONDS, what="Postgres, which starts again")
        return int(file.read_text().splitlines()[0])

    def stop_controller(self) -> None:
        """End the controller cleanly, and its Postgres with it."""
        self._end_controller(signal.SIGTERM)

    def kill_controller(self) -> None:
        """End the controller as a power cut would; Postgres goes on."""
        self._end_controller(signal.SIGKILL)

    def _end_controller(self, number: signal.Signals) -> None:
        controller, self._controller = self._controller, None
        assert controller is not None, "no controller runs"  # noqa: S101
        controller.send_signal(number)
        controller.wait(END_SECONDS)

    def worker(
        self,
        name: str = "worker",
        *,
        slots: int = 1,
        gpus: str = "auto",
        nodes: int = 1,
        allow: Sequence[str] = (),
        allow_command: Sequence[str] = (),
        everything: bool = False,
        begin_again: bool = False,
        quota: str = "",
        leave_after: str = "",
        address: str = "",
        cwd: Path | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> WorkerProcess:
        """Start a worker; it leases as soon as it is up."""
        flags = ["--address", address or self.address, "--name", name, "--slots", str(slots), "--gpus", gpus]
        flags += ["--nodes", str(nodes)]
        flags += [word for function in allow for word in ("--allow", function)]
        flags += [word for prefix in allow_command for word in ("--allow-command", prefix)]
        flags += ["--allow-everything"] if everything else []
        flags += ["--begin-again"] if begin_again else []
        flags += ["--quota", quota] if quota else []
        flags += ["--leave-after", leave_after] if leave_after else []
        log = self.home / f"{name}.log"
        with log.open("ab") as sink:
            process = subprocess.Popen(
                [sys.executable, "-m", "isoloss_worker", *flags], env={**self.environment, **(environment or {})},
                cwd=cwd or self.home, stdin=subprocess.DEVNULL, stdout=sink, stderr=sink,
            )  # fmt: skip
        worker = WorkerProcess(name=name, process=process, log=log)
        self.workers.append(worker)
        return worker


def until_idle(study: Study, seconds: float = 30) -> None:
    """Wait until the study has nothing more to run."""
    wait_until(lambda: study.info().state == "idle", seconds, what=f"{study.name} idle ({study.why()})")


def wait_until(condition: Callable[[], Any], seconds: float, *, what: str = "") -> Any:
    """What ``condition`` answers once it is true; ``AssertionError`` when that takes too long."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if answer := condition():
            return answer
        time.sleep(0.05)
    raise AssertionError(f"{what or 'The condition'} did not come true within {seconds:g} s.")


def free_port() -> int:
    """A port of the loopback that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
