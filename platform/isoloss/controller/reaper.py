"""The reaper: who frees the task of a worker that went silent. Only the database's clock is asked."""

from __future__ import annotations

from datetime import timedelta
from typing import Final

import structlog

from isoloss.controller.duty import Bell
from isoloss.store import tasks
from isoloss.store.pool import Pool

log = structlog.get_logger()


class Reaper:
    """Ends leases past their deadline, after making sure that the control plane itself was awake."""

    name: Final = "reaper"

    def __init__(self, pool: Pool, bell: Bell, ttl: timedelta) -> None:
        self.pool = pool
        self.bell = bell
        self.ttl = ttl
        self.seconds = ttl.total_seconds() / 4
        self.pause = min(1.0, ttl.total_seconds() / 20)  # no ring ends a lease: it is only a moment to look

    async def once(self) -> int:
        """Beat, then reap; after an outage every lease is extended first and nothing is reaped in this pass."""
        async with self.pool.connection() as conn:
            if await tasks.beat(conn, self.ttl):
                log.warning("control_plane.was_silent", extended_by_seconds=self.ttl.total_seconds())
                return 0
            ended = await tasks.reap(conn)
        self.pool.refused = ""
        if ended:
            log.info("lease.reaped", n=len(ended))
            self.bell.ring()
        return len(ended)
