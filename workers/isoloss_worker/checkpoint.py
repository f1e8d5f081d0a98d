"""The folder an attempt saves to: sealed with a manifest when complete, checked before anybody resumes from it.

Every attempt has a folder of its own, so a worker that lost its lease and does not know it yet can never write into what
another one reads. A folder whose files are not those of its manifest is torn: the run begins again from step 0.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Final

import msgspec

from isoloss.client.current import DONE, stated_step
from isoloss.client.held import checkpoint_folder, manifest
from isoloss.client.locate import home
from isoloss.domain.lease import Checkpoint
from isoloss.v1 import common_pb2 as pb
from isoloss_worker import sums

SUFFIX: Final = ".manifest.json"


def folder_of(lease: pb.Lease) -> Path:
    """Where the attempt saves."""
    return checkpoint_folder(home().absolute(), lease)


def seal(folder: Path, step: int, *, goes_on: bool = False) -> Checkpoint | None:
    """The complete state at ``step`` with its manifest, which is written beside the folder; ``None`` when it is empty.

    Of a trainer that ``goes_on`` only what was written before ``DONE`` counts: the rest is the next step's, half of it perhaps.
    """
    until = (folder / DONE).stat().st_mtime_ns if goes_on and (folder / DONE).exists() else None
    found = manifest(folder, until=until)
    if not found:
        return None
    draft = beside(folder).with_suffix(f".{os.getpid()}")
    try:
        draft.write_bytes(msgspec.json.encode(found))
        draft.replace(beside(folder))
    finally:
        draft.unlink(missing_ok=True)  # where there was no room for it
    return Checkpoint(step=step, path=str(folder), manifest=found)


def reached(folder: str, registered: int, most: int) -> int:
    """The step to resume from: what was registered, or what the trainer has written since and could not tell any more."""
    stated = stated_step(Path(folder)) if folder else None
    return registered if stated is None or not registered < stated <= most else stated


def flaw(folder: Path, registered: int, most: int) -> str:
    """Why nobody can resume from the folder, in words; empty when it is as it was sealed, or at a later step by ``DONE``."""
    found = manifest(folder)
    if not found:
        return "it is not there, or empty"
    if not beside(folder).exists() or reached(str(folder), registered, most) > registered:
        return ""  # the trainer went on before it was killed: its files are no more those of the manifest, and complete
    try:
        sealed = msgspec.json.decode(beside(folder).read_bytes(), type=dict[str, int])
    except msgspec.DecodeError as error:
        return f"its manifest cannot be read ({error})"
    for name, size in sealed.items():
        if found.get(name) != size:
            return f"{name} has {found.get(name, 'no')} bytes instead of {size}"
    return sums.flaw(folder)


def discard(folder: Path) -> None:
    """Remove an attempt's folder with its manifest and sums."""
    shutil.rmtree(folder, ignore_errors=True)
    beside(folder).unlink(missing_ok=True)
    sums.beside(folder).unlink(missing_ok=True)


def beside(folder: Path) -> Path:
    """Where the folder's manifest is."""
    return folder.with_name(folder.name + SUFFIX)
