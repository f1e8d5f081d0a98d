"""A real controller inside a test's own process: its loop runs in a thread, its Postgres in a temporary folder."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from isoloss.client.locate import Local


@contextlib.contextmanager
def temporary_home() -> Iterator[Path]:
    """An ``ISOLOSS_HOME`` that an unprivileged Postgres can reach, gone afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="isoloss-"))
    folder.chmod(0o711)
    before = os.environ.get("ISOLOSS_HOME")
    os.environ["ISOLOSS_HOME"] = str(folder)
    try:
        yield folder
    finally:
        os.environ.pop("ISOLOSS_HOME")
        if before is not None:
            os.environ["ISOLOSS_HOME"] = before
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def controller(**settings: Any) -> Iterator[Local]:
    """A controller on free ports for as long as the block lasts; the keywords are settings."""
    from isoloss.controller.server import running
    from isoloss.controller.settings import load

    found: list[Local | BaseException] = []
    ready, end = threading.Event(), asyncio.Event()
    loop = asyncio.new_event_loop()

    async def serve() -> None:
        try:
            async with running(load(listen="127.0.0.1:0", dash="127.0.0.1:0", fsync=False, **settings)) as local:
                found.append(local)
                ready.set()
                await end.wait()
        except BaseException as error:
            found.append(error)
            ready.set()
            raise

    def work() -> None:
        with contextlib.suppress(BaseException):
            loop.run_until_complete(serve())
        loop.close()

    thread = threading.Thread(target=work, name="controller")
    thread.start()
    ready.wait()
    try:
        if not isinstance(found[0], Local):
            raise found[0]
        yield found[0]
    finally:
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(end.set)
        thread.join()
