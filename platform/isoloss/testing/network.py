"""A network that fails between real programs: a TCP proxy on loopback whose faults the test chooses.

with Cluster() as cluster, Network(cluster.address) as network, connect(network.address) as client:
    network.delay, network.rate = 0.2, 2000.0   # every chunk comes later; so many bytes a second
    network.held = True                         # a partition: nothing passes until it heals, and then nothing is missing
    network.cut()                               # the next message ends in its middle, and both ends are closed
    network.reset()                             # both ends hear RST at once
    network.swallow("up")                       # half-open: stays up, and what is sent (and nothing else) is gone for ever
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import socket
import struct
import threading
from asyncio import StreamReader, StreamWriter
from dataclasses import dataclass, field
from typing import Final, Self

CHUNK: Final = 1 << 12
LINGER_NOT: Final = struct.pack("ii", 1, 0)  # SO_LINGER of no seconds: closing says RST


@dataclass(slots=True, eq=False)
class Link:
    """One connection through the proxy: its two sides, and what is wrong with it."""

    sides: tuple[StreamWriter, StreamWriter]
    swallowed: set[str] = field(default_factory=set)
    cut: bool = False

    def reset(self) -> None:
        """End both sides as a machine does that knows of no connection."""
        for side in self.sides:
            side.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_NOT)
            side.transport.abort()


class Network:
    """Forwards to ``target`` what comes to ``address``; a fault of a link is of those there are, not of later ones."""

    def __init__(self, target: str) -> None:
        self.target = target.rsplit(":", 1)
        self.address = ""
        self.delay, self.rate, self.held = 0.0, math.inf, False
        self.links: set[Link] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="network")

    def __enter__(self) -> Self:
        self._thread.start()
        begun = asyncio.run_coroutine_threadsafe(asyncio.start_server(self._link, "127.0.0.1", 0), self._loop)
        self._server = begun.result()
        self.address = "{}:{}".format(*self._server.sockets[0].getsockname()[:2])
        return self

    def __exit__(self, *_: object) -> None:
        self.delay, self.rate, self.held = 0.0, math.inf, False
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def cut(self) -> None:
        """Let half of the next chunk of every link through, and close it."""
        for link in self._living():
            link.cut = True

    def reset(self) -> None:
        """Reset every link."""
        for link in self._living():
            self._loop.call_soon_threadsafe(link.reset)

    def swallow(self, *ways: str) -> None:
        """Drop what comes ``up`` from the clients, or ``down`` to them, on every link that there is."""
        for link in self._living():
            link.swallowed.update(ways)

    def _living(self) -> list[Link]:
        return [link for link in tuple(self.links) if not link.swallowed]

    async def _link(self, reader: StreamReader, client: StreamWriter) -> None:
        try:
            answers, server = await asyncio.open_connection(*self.target)
        except OSError:  # nobody listens there: nobody does here
            client.transport.abort()
            return
        self.links.add(link := Link((client, server)))
        ways = self._carry(link, "up", reader, server), self._carry(link, "down", answers, client)
        tasks = [*map(asyncio.ensure_future, ways)]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self.links.discard(link)
            for task in tasks:
                task.cancel()
            for side in link.sides:
                side.close()

    async def _carry(self, link: Link, way: str, source: StreamReader, sink: StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await source.read(CHUNK):
                await asyncio.sleep(self.delay + len(data) / self.rate)
                while self.held:  # noqa: ASYNC110 - it is set from another thread
                    await asyncio.sleep(0.01)
                if way not in link.swallowed:
                    sink.write(data[: len(data) // 2] if link.cut else data)
                    await sink.drain()
                if link.cut:
                    break
        while link.swallowed:  # noqa: ASYNC110 - the other side does not hear of this end either
            await asyncio.sleep(0.01)

    async def _end(self) -> None:
        self._server.close()
        for link in tuple(self.links):
            link.swallowed.clear()
            link.reset()
        await asyncio.gather(*asyncio.all_tasks() - {asyncio.current_task()}, return_exceptions=True)
