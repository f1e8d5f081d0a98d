"""Checkpoints in an object store, or whatever else fsspec speaks to: published whole, fetched before a run resumes from them.

A checkpoint is a folder ``STORE/project/study/trial/attempt/step`` of its own, so that nothing is ever overwritten, and it is there
once its manifest is: that object is written last. Trainers see folders on a disk, as ever.
"""

from __future__ import annotations

import contextlib
import os
import posixpath
import shutil
import socket
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any, Final

import msgspec
import structlog

from isoloss.client.held import checkpoint_root, manifest
from isoloss.client.locate import home
from isoloss.domain.lease import Checkpoint
from isoloss.errors import InvalidSpec
from isoloss_worker import sums

log = structlog.get_logger()
MANIFEST: Final = ".manifest.json"
SUMS: Final = ".sha256"
PAUSES: Final = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0)  # between attempts to publish: stores have their bad minutes


class Lost(Exception):
    """The checkpoint is not in the store, or not as it was published; the message says what is wrong."""


def is_url(path: str) -> bool:
    """Whether a checkpoint lies in a store, and not on a disk."""
    return "://" in path


class Objects:
    """A place in a store, by its URL; ``InvalidSpec`` for one that nothing here speaks to."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        self._files, self._root = _opened(self.url)

    def publish(self, folder: Path, found: Checkpoint) -> Checkpoint:
        """The checkpoint, where it lies in the store now; on the disk still when the store takes it not even after a minute.

        Raises ``Lost`` when its files changed on the way.
        """
        where = self.url_of(folder, found.step)
        try:
            _again(lambda: self._publish(folder, found, where))
        except Lost:
            raise
        except Exception as error:  # noqa: BLE001 - each store has errors of its own
            log.warning("checkpoint.not_published", path=str(folder), url=where, error=_words(error))
            return found
        return replace(found, path=where)

    def url_of(self, folder: Path, step: int) -> str:
        """Where an attempt's step lies once it is published."""
        return f"{self.url}/{folder.relative_to(checkpoint_root(home().absolute()))}/{step}"

    def _publish(self, folder: Path, found: Checkpoint, where: str) -> None:
        place, before = self._place(where), _written(folder, found)
        for name in found.manifest:
            target = posixpath.join(place, name)
            self._files.makedirs(posixpath.dirname(target), exist_ok=True)
            self._files.put_file(str(folder / name), target)
        if sums.beside(folder).exists():
            self._files.put_file(str(sums.beside(folder)), place + SUMS)
        if _written(folder, found) != before:
            raise Lost("the trainer changed it while it was published")  # the next step's follows
        self._files.pipe_file(place + MANIFEST, msgspec.json.encode(found.manifest))

    def remove(self, url: str) -> None:
        """Remove a checkpoint, its manifest first; one that is not there is gone."""
        place = self._place(url)
        for path in (place + MANIFEST, place + SUMS, place):
            if self._files.exists(path):
                self._files.rm(path, recursive=True)

    def forget(self, url: str) -> None:
        """Remove it if the store lets us; it is in nobody's way."""
        try:
            self.remove(url)
        except Exception as error:  # noqa: BLE001 - each store has errors of its own
            log.warning("checkpoint.not_removed", path=url, error=_words(error))

    def _place(self, url: str) -> str:
        return posixpath.join(self._root, url[len(self.url) + 1 :])


def fetch(url: str, into: Path) -> None:
    """Bring a checkpoint into a new folder; ``Lost`` when it is not there, or not what was published."""
    try:
        files, place = _opened(url)
        if not files.exists(place + MANIFEST):
            raise Lost("it is not there")
        sealed = msgspec.json.decode(files.cat_file(place + MANIFEST), type=dict[str, int])
        shutil.rmtree(into, ignore_errors=True)
        for name in sealed:
            (into / name).parent.mkdir(parents=True, exist_ok=True)
            files.get_file(posixpath.join(place, name), str(into / name))
        found = manifest(into)
        if wrong := next((name for name, size in sealed.items() if found.get(name) != size), None):
            raise Lost(f"{wrong} has {found.get(wrong, 'no')} bytes instead of {sealed[wrong]}")
        if files.exists(place + SUMS):
            _rename_sums(files.cat_file(place + SUMS).decode(), into)
    except FileNotFoundError as error:
        raise Lost(f"{PurePosixPath(str(error)).name} is not there") from None
    if flaw := sums.flaw(into):
        raise Lost(flaw)


def fetched() -> Path:
    """Where this process keeps what it fetches."""
    return home() / "fetched" / f"{socket.gethostname()}-{os.getpid()}"


def sweep() -> None:
    """Remove what processes of this host had fetched that are gone: killed, they could not."""
    for folder in fetched().parent.glob("*"):
        host, _, pid = folder.name.rpartition("-")
        if host == socket.gethostname() and pid.isdecimal():
            with contextlib.suppress(PermissionError):  # another user's, alive
                try:
                    os.kill(int(pid), 0)
                except ProcessLookupError:
                    shutil.rmtree(folder, ignore_errors=True)


def _written(folder: Path, found: Checkpoint) -> list[int]:
    """When each file was last written; ``Lost`` when one is not the one of the manifest any more."""
    try:
        seen = [(folder / name).stat() for name in found.manifest]
    except FileNotFoundError as error:
        raise Lost(f"the trainer removed {error.filename}") from None
    if [one.st_size for one in seen] != list(found.manifest.values()):
        raise Lost("the trainer changed it before it was published")
    return [one.st_mtime_ns for one in seen]


def _rename_sums(text: str, into: Path) -> None:
    """Lines begin with the sum and the folder's name, which here is another one."""
    lines = (line.partition("  ") for line in text.splitlines())
    sums.beside(into).write_text("".join(f"{one}  {into.name}/{name.partition('/')[2]}\n" for one, _, name in lines))


def _opened(url: str) -> tuple[Any, str]:
    try:
        from fsspec.core import url_to_fs

        return url_to_fs(url, use_listings_cache=False)  # type: ignore[no-any-return]
    except (ImportError, ValueError) as error:
        raise InvalidSpec(
            f"--store is {url!r}, which this worker cannot speak to ({_words(error)}); accepted is a URL of fsspec whose package "
            "is installed: s3://… with s3fs, gs://… with gcsfs, file:///….",
            hint="pip install fsspec and that package",
        ) from None


def _again(call: Callable[[], None]) -> None:
    for pause in PAUSES:
        try:
            return call()
        except Lost:
            raise
        except Exception as error:  # noqa: BLE001 - each store has errors of its own
            log.info("store.failed", error=_words(error), again_in=pause)
            time.sleep(pause)
    return call()


def _words(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
