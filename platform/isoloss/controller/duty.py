"""A duty makes one pass (``once``); the loop around it is dumb. Tests call ``once``; the server runs the loops.

Nothing here is fired and forgotten: all loops live in the server's one task group. A pass that fails is logged and
made again, because polling, not the doorbell, is the truth.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Protocol

import structlog

from isoloss.errors import IsolossError

log = structlog.get_logger()


class Bell:
    """A doorbell: whoever waits is woken by the next ring; it carries no message."""

    def __init__(self) -> None:
        self._event = asyncio.Event()
        self._listeners: list[Callable[[], None]] = []

    def listen(self, heard: Callable[[], None]) -> None:
        """Call this at every ring."""
        self._listeners.append(heard)

    def ring(self) -> None:
        """Wake everybody who waits now."""
        self._event.set()
        self._event = asyncio.Event()
        for heard in self._listeners:
            heard()

    async def wait(self, seconds: float) -> None:
        """Return at the next ring, or after so many seconds."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._event.wait()


class Duty(Protocol):
    """Something the controller does over and over."""

    @property
    def name(self) -> str:
        """What the logs call it."""
        ...

    @property
    def seconds(self) -> float:
        """How long it rests when there was nothing to do."""
        ...

    @property
    def pause(self) -> float:
        """How long it rests after every pass and every ring: what comes meanwhile is done in the same pass."""
        ...

    async def once(self) -> int:
        """One pass; returns how much there was to do."""
        ...


async def run(duty: Duty, bell: Bell) -> None:
    """Make passes for ever: again at once while there is something to do, else at the next ring or after a while."""
    while True:
        try:
            done = await duty.once()
        except IsolossError as error:
            log.warning("duty.failed", duty=duty.name, reason=error.reason, error=str(error))
            done = 0
        except Exception:
            log.exception("duty.crashed", duty=duty.name)
            done = 0
        if not done:
            await bell.wait(duty.seconds)
        await asyncio.sleep(duty.pause)
