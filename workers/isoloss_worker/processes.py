"""Processes that die with their parent, and killing a process with everything it started.

A worker killed with -9 must not leave trainers behind that hold its GPUs: on Linux the kernel tells a child that its
parent is gone. Elsewhere a child ends when its pipe does.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
from pathlib import Path
from typing import Any, Final

PR_SET_PDEATHSIG: Final = 1
PR_SET_CHILD_SUBREAPER: Final = 36
_LIBC: Final[Any] = ctypes.CDLL(None) if sys.platform == "linux" else None  # loaded now: not between fork and exec


def die_with_parent() -> None:
    """Ask the kernel to kill this process when the one that started it dies."""
    if _LIBC is not None:
        _LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def adopt_orphans() -> None:
    """Become the parent of whatever this process's descendants leave behind, so that ``kill_orphans`` finds it."""
    if _LIBC is not None:
        _LIBC.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def kill_orphans() -> None:
    """Kill all that descends from this process, and reap it.

    A killed process's children become this one's, perhaps after they were looked for: so look until there are none.
    """
    while found := children(os.getpid()):
        for pid in found:
            kill_tree(pid)
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, 0)


def kill_tree(pid: int) -> None:
    """Kill a process, its group and all that descend from it, sessions of their own included."""
    found = [pid, *descendants(pid)]
    kill_group(pid)
    for one in found:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(one, signal.SIGKILL)


def kill_group(pid: int) -> None:
    """Kill what is left of the group that ``pid`` led."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


def descendants(pid: int) -> list[int]:
    """The processes started by ``pid`` and by those, as far as the system says."""
    return [one for child in children(pid) for one in (child, *descendants(child))]


def children(pid: int) -> list[int]:
    """The children of a process, as far as the system says."""
    found: list[int] = []
    for file in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            found += map(int, file.read_text().split())
    return found
