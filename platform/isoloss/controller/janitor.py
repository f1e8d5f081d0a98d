"""The janitor: who throws away what nobody can need any more, so that no table grows by age alone."""

from __future__ import annotations

from typing import Final

import structlog

from isoloss.store import dedup
from isoloss.store.pool import Pool

log = structlog.get_logger()


class Janitor:
    """Forgets the replies of calls that were made a week ago: nobody makes those again."""

    name: Final = "janitor"
    seconds: Final = 0.0
    pause: Final = 600.0  # a clock's work: no ring makes it due

    def __init__(self, pool: Pool) -> None:
        self.pool = pool

    async def once(self) -> int:
        """One pass; always 0, since what is left is for the next."""
        async with self.pool.connection() as conn:
            forgotten = await dedup.forget(conn)
        if forgotten:
            log.info("replies.forgotten", n=forgotten)
        return 0
