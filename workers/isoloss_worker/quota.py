"""How much lies below this home's folder of checkpoints, measured now and then: the controller makes room, or holds tasks back.

Workers of one home share the folder, on several hosts too where the home is shared: what is written in it says that it is
the same. It is measured in a thread, for at most a twentieth of the time, however many files there are.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
import uuid
from pathlib import Path
from typing import Final

import structlog

from isoloss.client.held import checkpoint_root
from isoloss.client.locate import home
from isoloss.v1 import work_pb2

log = structlog.get_logger()
IDENTITY: Final = ".disk"
REST_SECONDS: Final = 5.0  # between two measurements, at least …
SHARE: Final = 20.0  # … and so many times as long as one takes


class Quota:
    """So many bytes may lie below the root; ``run`` is the task that measures."""

    def __init__(self, quota_bytes: int) -> None:
        self.root = checkpoint_root(home().absolute())
        self.quota_bytes = quota_bytes
        self._measured: tuple[float, work_pb2.Disk] | None = None
        self._used = -1  # when it was last news
        self.known = False  # to the controller: before that, a full disk would be given tasks

    async def run(self) -> None:
        """Measure until cancelled."""
        while True:
            begun = time.monotonic()
            try:
                await asyncio.to_thread(self.measure)
            except OSError as error:
                log.warning("disk.not_measured", root=str(self.root), error=str(error))
            await asyncio.sleep(max(REST_SECONDS, SHARE * (time.monotonic() - begun)))

    def measure(self) -> None:
        """Take what lies there now, if that is news: as long as it is too much, it always is."""
        begun = time.monotonic()
        said = work_pb2.Disk(id=identity(self.root), root=f"{self.root}/", quota_bytes=self.quota_bytes)
        said.used_bytes = used(self.root)
        if said.used_bytes != self._used or said.used_bytes > self.quota_bytes:
            self._measured, self._used = (begun, said), said.used_bytes

    def news(self) -> work_pb2.Disk | None:
        """What was measured, until it was ``heard``."""
        if (measured := self._measured) is None:
            return None
        begun, said = measured
        said.seconds_ago = time.monotonic() - begun
        return said

    def heard(self, said: work_pb2.Disk) -> None:
        """The controller knows this measurement."""
        self.known = True
        if self._measured is not None and self._measured[1] is said:
            self._measured = None


def used(folder: str | Path) -> int:
    """The bytes of all files below, as manifests count them; what vanishes meanwhile counts for nothing."""
    found = 0
    with contextlib.suppress(FileNotFoundError), os.scandir(folder) as entries:
        for entry in entries:
            with contextlib.suppress(FileNotFoundError):
                inside = entry.is_dir(follow_symlinks=False)
                found += used(entry.path) if inside else entry.stat(follow_symlinks=False).st_size
    return found


def identity(root: Path) -> str:
    """What names this folder wherever it is seen; the first who looks writes it."""
    root.mkdir(parents=True, exist_ok=True)
    file = root / IDENTITY
    if not file.exists():
        draft = root / f"{IDENTITY}.{uuid.uuid4().hex}"
        draft.write_text(uuid.uuid4().hex)
        draft.replace(file)  # whole or not at all; of two who write at once, both read the later next time
    return file.read_text()
