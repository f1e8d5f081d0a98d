"""Removes the checkpoints that the controller dropped: only attempts' folders, only below this worker's own root.

The controller says them again with every beat until it has heard that they are gone, so nothing is lost when this
process ends in between. A folder that is not there counts as removed. What an attempt of this process still writes to is
left for a later beat.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Final

import structlog

from isoloss.client.held import checkpoint_root
from isoloss.client.locate import home
from isoloss.v1 import work_pb2
from isoloss_worker import checkpoint
from isoloss_worker.objects import Objects, is_url

log = structlog.get_logger()
DEPTH: Final = 4  # project, study, trial, attempt


class Cleaner:
    """Removes folders one after another, beside everything else; ``run`` is the task that does it."""

    def __init__(self, *, busy: Callable[[], Iterable[int]], objects: Objects | None = None) -> None:
        self._objects = objects
        self.root = checkpoint_root(home().absolute())
        self._busy = busy
        self._queue: asyncio.Queue[Sequence[work_pb2.CheckpointFolder]] = asyncio.Queue(maxsize=1)

    def dropped(self, folders: Sequence[work_pb2.CheckpointFolder]) -> None:
        """Take what a beat said, unless the last one's is still being removed: it will be said again."""
        if not self._queue.full():
            self._queue.put_nowait(folders)

    async def run(self, removed: Callable[[work_pb2.CheckpointFolder], None]) -> None:
        """Remove until cancelled, and say what is gone."""
        while True:
            for folder in await self._queue.get():
                if folder.task_id not in self._busy() and await asyncio.to_thread(self.remove, folder):
                    removed(folder)

    def remove(self, folder: work_pb2.CheckpointFolder) -> bool:
        """Whether the folder is gone; ``False`` for one that is none of ours, or that the system does not let go."""
        if self._objects is not None and is_url(folder.path):
            return self._remove_object(self._objects, folder)
        path = Path(folder.path)
        if not self._ours(path, folder):
            log.warning("checkpoint.not_ours", path=folder.path, root=str(self.root))
            return False
        checkpoint.discard(path)
        if path.exists():
            log.warning("checkpoint.not_removed", path=folder.path)
            return False
        log.info("checkpoint.removed", path=folder.path)
        return True

    def _remove_object(self, objects: Objects, folder: work_pb2.CheckpointFolder) -> bool:
        below = folder.path.removeprefix(f"{objects.url}/").split("/")
        ours = len(below) == DEPTH + 1 and below[-2].endswith(f"-{folder.task_id}-{folder.epoch}") and ".." not in below
        if not ours or not folder.path.startswith(f"{objects.url}/"):
            log.warning("checkpoint.not_ours", path=folder.path, root=objects.url)
            return False
        try:
            objects.remove(folder.path)
        except Exception as error:  # noqa: BLE001 - each store has errors of its own; it is said again
            log.warning("checkpoint.not_removed", path=folder.path, error=str(error))
            return False
        log.info("checkpoint.removed", path=folder.path)
        return True

    def _ours(self, path: Path, folder: work_pb2.CheckpointFolder) -> bool:
        """A folder of that very attempt, really below the root: no links and no dots on the way."""
        resolved = path.parent.resolve() / path.name
        root = self.root.resolve()
        return (
            resolved.is_relative_to(root)
            and len(resolved.relative_to(root).parts) == DEPTH
            and path.name.endswith(f"-{folder.task_id}-{folder.epoch}")
            and not path.is_symlink()
        )
