"""Where the controller is: an address given, ``ISOLOSS_ADDRESS``, or this user's own local controller.

A running controller writes ``controller.json`` (mode 0600) into ``ISOLOSS_HOME``; the SDK and the demo start one when
there is none, on free ports, as a process of its own that outlives them.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Final

import msgspec

from isoloss.client.join import Join, joined, read_join
from isoloss.errors import Unreachable

ADMIN_JOIN: Final = "admin.join"
LOOPBACK: Final = ("127.0.0.1", "localhost", "[::1]")
CONTROLLER_FILE: Final = "controller.json"
START_SECONDS: Final = 60.0


class Local(msgspec.Struct, frozen=True, kw_only=True):
    """A controller of this user on this machine."""

    address: str
    dash: str
    pid: int
    dsn: str

    def write(self, file: Path) -> None:
        """Write the file so that it is whole or not there, readable by its owner only."""
        file.parent.mkdir(parents=True, exist_ok=True)
        draft = file.with_suffix(f".{os.getpid()}")
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "wb") as handle:
            handle.write(msgspec.json.encode(self))
        draft.replace(file)

    @property
    def alive(self) -> bool:
        """Whether its process is there, and is an isoloss; a child of ours that has ended is reaped first."""
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self.pid, os.WNOHANG)
        try:  # a number is given again: the file may be older than the process that has it now
            with contextlib.suppress(PermissionError):
                os.kill(self.pid, 0)
            return b"isoloss" in Path(f"/proc/{self.pid}/cmdline").read_bytes()
        except ProcessLookupError:
            return False
        except OSError:
            return not Path("/proc/self").exists()


def home() -> Path:
    """The folder of everything local: ``ISOLOSS_HOME``, else the user's state folder (``/var/lib/isoloss`` for root)."""
    if stated := os.environ.get("ISOLOSS_HOME"):
        return Path(stated).expanduser().absolute()
    if os.geteuid() == 0:
        return Path("/var/lib/isoloss")
    import platformdirs

    return platformdirs.user_state_path("isoloss")


def find_local() -> Local | None:
    """This user's running controller, if there is one."""
    with contextlib.suppress(OSError, msgspec.DecodeError):
        local = msgspec.json.decode((home() / CONTROLLER_FILE).read_bytes(), type=Local)
        if local.alive:
            return local
    return None


def own_join() -> Join | None:
    """How this user's own controller is joined, when it listens beyond loopback and wrote files to join by."""
    local, file = find_local(), home() / ADMIN_JOIN
    beyond = local is not None and not local.address.startswith(LOOPBACK)
    return read_join(str(file)) if beyond and file.exists() else None


def find_address(stated: str | None = None) -> str:
    """The address to call; ``Unreachable`` says how to get a controller when there is none."""
    if address := stated or os.environ.get("ISOLOSS_ADDRESS"):
        return address
    if (join := joined()) is not None:
        return join.address
    if (local := find_local()) is not None:
        return local.address if own_join() is None else f"127.0.0.1:{local.address.rpartition(':')[2]}"
    raise Unreachable(
        "There is no controller: no --address, no ISOLOSS_ADDRESS, no ISOLOSS_JOIN, and none of yours runs on this machine.",
        hint="`isoloss up` starts one.",
    )


def start_local(*flags: str) -> Local:
    """This user's controller, started on free ports if none runs."""
    if (local := find_local()) is not None:
        return local
    log = home() / "controller.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "isoloss.cli", "up", "--listen", "127.0.0.1:0", "--dash", "127.0.0.1:0", *flags]
    with log.open("ab") as sink:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=sink, stderr=sink, start_new_session=True)
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if (local := find_local()) is not None:
            return local
        if process.poll() is not None:
            said = log.read_text(errors="replace").strip().splitlines()[-1:]
            raise Unreachable(f"The controller did not start: {' '.join(said)}", hint=f"The whole log is {log}.")
        time.sleep(0.05)
    raise Unreachable(f"The controller did not start within {START_SECONDS:.0f} s.", hint=f"See {log}.")
