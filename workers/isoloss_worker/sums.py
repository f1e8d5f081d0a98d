"""SHA-256 sums of a checkpoint, on request (``run.checksum``): beside its folder, as ``sha256sum`` writes and checks them."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Final

SUFFIX: Final = ".sha256"


def write(folder: Path) -> None:
    """Sum every file of the folder; the sums appear at once, or not at all."""
    found = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    draft = beside(folder).with_suffix(f".{os.getpid()}")
    draft.write_text("".join(f"{_sum(folder / name)}  {folder.name}/{name}\n" for name in found))
    draft.replace(beside(folder))


def flaw(folder: Path) -> str:
    """Which file is not what was summed, in words; empty when all are, or none was summed."""
    if not beside(folder).exists():
        return ""
    for line in beside(folder).read_text().splitlines():
        stated, _, name = line.partition("  ")
        file = folder.parent / name
        if not file.is_file() or _sum(file) != stated:
            return f"{Path(name).relative_to(folder.name)} is not what was saved, by its SHA-256 sum"
    return ""


def beside(folder: Path) -> Path:
    """Where the folder's sums are."""
    return folder.with_name(folder.name + SUFFIX)


def _sum(file: Path) -> str:
    with file.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
