"""The janitor: who throws away what nobody can need any more, so that no table grows by age alone."""

from __future__ import annotations

import time
from typing import Final

import structlog

from isoloss.store import dedup
from isoloss.store.pool import Pool

log = structlog.get_logger()


class Janitor:
    """Forgets the replies of calls that were made a week ago: nobody makes those again."""

    name: Final = "janitor"
    seconds: Final = 600.0
    pause: Final = 1.0

    def __init__(self, pool: Pool) -> None:
        self.pool = pool
        self._next = 0.0

    async def once(self) -> int:
        """One pass, at most every ten minutes however often the bell rings."""
        if time.monotonic() < self._next:
            return 0
        self._next = time.monotonic() + self.seconds
        async with self.pool.connection() as conn:
            forgotten = await dedup.forget(conn)
        if forgotten:
            log.info("replies.forgotten", n=forgotten)
        return 0
