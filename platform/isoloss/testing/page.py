"""The built-in page beside a test: an embedded Postgres, and the page over one of its databases in a thread."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import socket
import tempfile
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import uvicorn
from starlette.applications import Starlette

from isoloss.dash.page import build
from isoloss.store.embedded import Embedded

# For a headless Chromium that calls nobody.
CHROMIUM_FLAGS: Final[Sequence[str]] = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-background-networking", "--disable-component-update",
    "--disable-sync",
)  # fmt: skip
START_SECONDS: Final = 20.0


@contextlib.contextmanager
def postgres() -> Iterator[str]:
    """A fresh embedded Postgres; yields its connection string."""
    folder = Path(tempfile.mkdtemp(prefix="isoloss-page-"))
    folder.chmod(0o711)
    embedded = Embedded(home=folder / "postgres", fsync=False)
    keeper = embedded.start()
    try:
        yield embedded.dsn
    finally:
        embedded.stop(keeper)
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def serving(dsn: str) -> Iterator[str]:
    """The page over a database, on a free port, for as long as the block lasts; yields its address."""
    started = threading.Event()
    running: list[tuple[uvicorn.Server, Starlette, asyncio.AbstractEventLoop]] = []

    async def serve(listen: socket.socket) -> None:
        async with build(dsn) as app:
            config = uvicorn.Config(app, log_config=None, lifespan="off", timeout_graceful_shutdown=1)
            running.append((uvicorn.Server(config), app, asyncio.get_running_loop()))
            started.set()
            await running[0][0].serve(sockets=[listen])

    with socket.create_server(("127.0.0.1", 0)) as listen:
        thread = threading.Thread(target=asyncio.run, args=(serve(listen),), name="page")
        thread.start()
        try:
            if not started.wait(START_SECONDS):
                raise TimeoutError(f"the page did not start within {START_SECONDS:.0f} s")
            yield f"http://127.0.0.1:{listen.getsockname()[1]}"
        finally:
            for server, app, loop in running:
                loop.call_soon_threadsafe(app.state.close)
                server.should_exit = True
            thread.join(START_SECONDS)
