"""Which version of the trainer's code a run has, as git tells: ``1a2b3c4d5e6f``, or ``1a2b3c4d5e6f+9f8e7d6c`` when it was changed.

What git does not follow is not seen, nor anything outside of the folder's repository.
"""

from __future__ import annotations

import hashlib
import subprocess
import time
from pathlib import Path
from typing import Final

SECONDS: Final = 1.0  # git is not asked again within
DIGITS: Final = 12
PATIENCE: Final = 5.0
_asked: dict[Path, tuple[float, str]] = {}


def version_of(folder: Path) -> str:
    """The commit and, after ``+``, a hash of the uncommitted changes; empty where there is no repository or no git."""
    asked, version = _asked.get(folder, (0.0, ""))
    if not asked or time.monotonic() - asked > SECONDS:
        version = _version(folder)
        _asked[folder] = time.monotonic(), version
    return version


def _version(folder: Path) -> str:
    commit = _git(folder, "rev-parse", "HEAD")
    if commit is None:
        return ""
    changes = _git(folder, "diff", "HEAD", "--no-ext-diff")
    changed = f"+{hashlib.sha256(changes).hexdigest()[:8]}" if changes else ""
    return commit.decode()[:DIGITS] + changed


def _git(folder: Path, *words: str) -> bytes | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *words], stdin=subprocess.DEVNULL, capture_output=True, timeout=PATIENCE, check=False
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None
