"""The built-in page: one static page, one event stream, nothing from elsewhere.

The page has no login: it answers only on loopback and only to loopback's names, so that no other site's script can
reach it through a name that resolves here. Everything it shows is text to the browser, never markup.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Final

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from isoloss.dash.boards import BOARDS, BY_ID
from isoloss.dash.feed import Feed
from isoloss.dash.query import Reader

STATIC: Final = Path(__file__).parent / "static"
LOOPBACK: Final = frozenset(("localhost", "127.0.0.1", "[::1]"))
HEADERS: Final = {
    "content-security-policy": "default-src 'self'; style-src 'self' 'unsafe-inline'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-cache",
}


@contextlib.asynccontextmanager
async def build(
    dsn: str,
    *,
    metrics: Callable[[], Awaitable[bytes]] | None = None,
    ready: Callable[[], Awaitable[bool]] | None = None,
) -> AsyncIterator[Starlette]:
    """The page's application over a database; its loop rests until somebody looks.

    ``app.state.close()`` ends the viewers' streams, so that a server that stops need not wait for them.
    """
    async with Reader(dsn) as reader, asyncio.TaskGroup() as group:
        feed = Feed(reader)
        loop = group.create_task(feed.run(), name="dash")
        try:
            yield app(feed, metrics, ready)
        finally:
            loop.cancel()


def app(
    feed: Feed, metrics: Callable[[], Awaitable[bytes]] | None, ready: Callable[[], Awaitable[bool]] | None
) -> Starlette:
    """The routes over a feed; with them what Prometheus reads and whether calls are served, where somebody says."""

    async def index(_: Request) -> Response:
        return FileResponse(STATIC / "index.html")

    async def boards(_: Request) -> Response:
        described = [
            {
                "id": board.id, "title": board.title, "about": board.about,
                "variables": [{"name": v.name, "title": v.title} for v in board.variables],
                "panels": [panel.meta() for panel in board.panels],
            }
            for board in BOARDS
        ]  # fmt: skip
        return JSONResponse(described)

    async def stream(request: Request) -> Response:
        board = request.query_params.get("board", BOARDS[0].id)
        if board not in BY_ID:
            return PlainTextResponse(f"board is {board!r}; accepted is one of {', '.join(BY_ID)}.\n", status_code=404)
        wanted = {v.name: request.query_params.get(v.name, "")[:300] for b in BOARDS for v in b.variables}
        last = request.headers.get("last-event-id", "")
        return StreamingResponse(feed.stream(board, wanted, last), media_type="text/event-stream")

    async def healthz(_: Request) -> Response:
        return PlainTextResponse("ok\n")

    async def readyz(_: Request) -> Response:
        served = ready is None or await ready()
        return PlainTextResponse("ready\n" if served else "not ready\n", status_code=200 if served else 503)

    async def prometheus(_: Request) -> Response:
        if metrics is None:
            return PlainTextResponse("nobody counts here\n", status_code=404)
        return Response(await metrics(), media_type="text/plain; version=0.0.4")

    async def favicon(_: Request) -> Response:
        return FileResponse(STATIC / "favicon.svg", media_type="image/svg+xml")

    made = Starlette(
        routes=[
            Route("/", index), Route("/boards", boards), Route("/stream", stream), Route("/healthz", healthz),
            Route("/readyz", readyz), Route("/metrics", prometheus),
            Route("/favicon.ico", favicon), Mount("/static", StaticFiles(directory=STATIC)),
        ],
        middleware=[Middleware(Guard)],
    )  # fmt: skip
    made.state.close = feed.close
    return made


class Guard:
    """Refuse any host name but loopback's, and say on every answer what the browser may do with it."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer 421."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                given = [(k.encode(), v.encode()) for k, v in HEADERS.items()]
                message["headers"] = [(k, v) for k, v in message["headers"] if k.decode() not in HEADERS] + given
            await send(message)

        host = next((v.decode("latin-1") for k, v in scope["headers"] if k == b"host"), "")
        name = host.rpartition(":")[0] if host.rpartition(":")[2].isdecimal() else host
        if name.lower() in LOOPBACK:
            await self.app(scope, receive, guarded)
        else:
            refusal = PlainTextResponse(f"{name!r} is not a name of this machine's loopback.\n", status_code=421)
            await refusal(scope, receive, guarded)
