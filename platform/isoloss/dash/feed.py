"""One loop asks Postgres for all viewers, and every viewer gets what changed.

A channel is a board with its variables; all who look at the same thing share it. Every panel of a channel carries the
version at which it last changed, so a viewer needs nothing but the newest version it has seen: a slow one skips, one
that comes back says ``Last-Event-ID``. Without viewers there is no loop, no query and no connection.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec
import psycopg
import structlog

from isoloss.dash import basin
from isoloss.dash.boards import BOARDS, BY_ID
from isoloss.dash.macros import Window, expand
from isoloss.dash.panels import Board, Panel
from isoloss.dash.query import Reader, Table
from isoloss.errors import IsolossError

log = structlog.get_logger()
TICK_SECONDS: Final = 1.5
SHARE: Final = 8.0  # a round may take at most one part in so many of the time
HEARTBEAT_SECONDS: Final = 15.0
REMEMBERED: Final = 12  # channels kept after their last viewer left
NEWEST: Final = """SELECT observation_hash FROM dash_basin WHERE campaign = ${campaign:sqlstring}"""
BASIN: Final = """SELECT body, target_params, target_tokens FROM dash_basin JOIN dash_campaign USING (campaign)
    WHERE campaign = ${campaign:sqlstring} AND target_params IS NOT NULL"""
BOX: Final = """SELECT lr_low, lr_high, batch_low, batch_high FROM dash_forecast
    WHERE campaign = ${campaign:sqlstring} ORDER BY no DESC LIMIT 1"""
COLUMN: Final = """SELECT n_params, n_tokens FROM dash_cell WHERE campaign = ${campaign:sqlstring}
    AND n_tokens = (SELECT max(n_tokens) FROM dash_cell WHERE campaign = ${campaign:sqlstring}) ORDER BY n_params"""

Key = tuple[str, tuple[tuple[str, str], ...]]


@dataclass
class Message:
    """A panel as it was last sent."""

    version: int
    name: str
    data: bytes


@dataclass
class Channel:
    """What one board shows for one choice of variables; ``messages`` by panel, and ``state`` for the board itself."""

    board: Board
    wanted: Mapping[str, str]
    viewers: int = 0
    left_at: float = 0.0
    messages: dict[str, Message] = field(default_factory=dict)


class Feed:
    """Channels and the loop that fills them while somebody looks."""

    def __init__(self, reader: Reader) -> None:
        self.reader = reader
        self.boot = secrets.token_hex(4)
        self.version = 0
        self.rounds = 0
        self._channels: dict[Key, Channel] = {}
        self._closed = False
        self._changed = asyncio.Event()
        self._watched = asyncio.Event()
        self._arrived = asyncio.Event()
        self._pictures: dict[str, tuple[str, dict[str, Any]]] = {}

    async def run(self) -> None:
        """Look while there are viewers; rest without a connection while there are none."""
        while True:
            if not self._watched.is_set():
                await self.reader.close()
            await self._watched.wait()
            self._arrived.clear()
            begun = time.monotonic()
            try:
                await self._round()
            except Exception as error:  # noqa: BLE001 - a page that fails must not end the controller
                log.warning("dash.failed", error=said(error))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max(TICK_SECONDS, SHARE * (time.monotonic() - begun))):
                    await self._arrived.wait()

    async def _round(self) -> None:
        for channel in [channel for channel in self._channels.values() if channel.viewers]:
            await self._fill(channel)
        self.rounds += 1

    def close(self) -> None:
        """End every stream now; the page goes."""
        self._closed = True
        self._ring()

    def _ring(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def stream(self, board: str, wanted: Mapping[str, str], last_id: str) -> AsyncGenerator[bytes]:
        """The event stream of one viewer."""
        key = (board, tuple(sorted(wanted.items())))
        channel = self._channels.setdefault(key, Channel(BY_ID[board], dict(wanted)))
        boot, _, version = last_id.partition("-")
        seen = int(version) if boot == self.boot and version.isdecimal() else 0
        channel.viewers += 1
        self._watched.set()
        self._arrived.set()
        try:
            yield b"retry: 2000\n\n"
            while not self._closed:
                fresh = sorted((m for m in channel.messages.values() if m.version > seen), key=lambda m: m.version)
                for message in fresh:
                    yield self._frame(message)
                    seen = message.version
                if not fresh and not await self._wait():
                    yield b": still here\n\n"
        finally:
            self._leave(channel)

    async def _wait(self) -> bool:
        try:
            async with asyncio.timeout(HEARTBEAT_SECONDS):
                await self._changed.wait()
        except TimeoutError:
            return False
        return True

    def _leave(self, channel: Channel) -> None:
        channel.viewers -= 1
        channel.left_at = time.monotonic()
        idle = sorted((c.left_at, key) for key, c in self._channels.items() if not c.viewers)
        for _, key in idle[: max(0, len(idle) - REMEMBERED)]:
            del self._channels[key]
        if not any(c.viewers for c in self._channels.values()):
            self._watched.clear()

    def _frame(self, message: Message) -> bytes:
        return b"event: %b\nid: %b-%d\ndata: %b\n\n" % (
            message.name.encode(), self.boot.encode(), message.version, message.data
        )  # fmt: skip

    def _put(self, channel: Channel, place: str, name: str, body: Any) -> None:
        data = msgspec.json.encode(body)
        before = channel.messages.get(place)
        if before is None or before.data != data:
            self.version += 1
            channel.messages[place] = Message(self.version, name, data)
            self._ring()

    async def _fill(self, channel: Channel) -> None:
        """One round of a channel: its choices, its window, its panels."""
        try:
            choices: dict[str, list[str]] = {}
            variables: dict[str, str] = {}
            for variable in (variable for board in BOARDS for variable in board.variables):
                name = variable.name  # its choices may depend on those before it
                listed = choices[name] = await self._column(expand(variable.sql, variables, Window(0.0, 0.0)))
                variables[name] = channel.wanted[name] if channel.wanted.get(name) in listed else next(iter(listed), "")
            window, live = await self._window(channel.board, variables)
        except psycopg.Error as error:
            self._put(channel, "", "state", {"error": said(error)})
            return
        state = {"choices": choices, "chosen": variables, "window": [window.begin, window.end], "live": live}
        self._put(channel, "", "state", state | {"error": None})
        for panel in channel.board.panels:
            self._put(channel, panel.id, "panel", await self._panel(panel, variables, window))

    async def _column(self, sql: str) -> list[str]:
        return [row[0] for row in (await self.reader.run(sql)).rows]

    async def _window(self, board: Board, variables: Mapping[str, str]) -> tuple[Window, bool]:
        """The time there is something to see in, its end rounded up so that it seldom moves; and whether it moves."""
        rows = (await self.reader.run(expand(board.span, variables, Window(0.0, 0.0)))).rows
        now = time.time()
        begin, end, live = rows[0] if rows else (now - 3600, now, False)
        end = max(now if live else end, begin + 60)
        window = Window(begin - 0.01 * (end - begin), end + 0.03 * (end - begin))
        step = window.interval
        return Window(window.begin // step * step, -(-window.end // step) * step), live

    async def _panel(self, panel: Panel, variables: Mapping[str, str], window: Window) -> dict[str, Any]:
        try:
            table = await self.reader.run(expand(panel.sql, variables, window))
            body = body_of(panel.id, table)
            if panel.kind == "basin":
                body["picture"] = await self._picture(variables)
                body["box"] = await self._box(variables)
        except (psycopg.Error, IsolossError, ValueError) as error:
            return {"id": panel.id, "error": said(error)}
        return body

    async def _box(self, variables: Mapping[str, str]) -> list[list[float]] | None:
        """The forecast's intervals of learning rate and batch."""
        rows = (await self.reader.run(expand(BOX, variables, Window(0.0, 0.0)))).rows
        return [rows[0][:2], rows[0][2:]] if rows and None not in rows[0] else None

    async def _picture(self, variables: Mapping[str, str]) -> dict[str, Any] | None:
        """The basin of the newest fit, computed once for the observations it saw."""
        window, campaign = Window(0.0, 0.0), variables["campaign"]
        newest = (await self.reader.run(expand(NEWEST, variables, window))).rows
        if not newest:
            return None
        if self._pictures.get(campaign, ("",))[0] != newest[0][0]:
            rows = (await self.reader.run(expand(BASIN, variables, window))).rows
            cells = (await self.reader.run(expand(COLUMN, variables, window))).rows
            if not rows:
                return None
            body, n_params, n_tokens = rows[0]
            drawn = await asyncio.to_thread(basin.picture, body, n_params, n_tokens, cells)
            self._pictures[campaign] = (newest[0][0], drawn)
        return self._pictures[campaign][1]


def body_of(panel_id: str, table: Table) -> dict[str, Any]:
    """A panel's data as the page takes it."""
    return {"id": panel_id, "columns": table.columns, "kinds": table.kinds, "rows": table.rows, "error": None}


def said(error: BaseException) -> str:
    """An error in one line."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
