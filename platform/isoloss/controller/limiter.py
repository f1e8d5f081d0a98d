"""The limiter: who ends a study that has used the time, device hours or FLOPs its spec allows."""

from __future__ import annotations

from typing import Final

import structlog

from isoloss.controller.decider import Decider
from isoloss.errors import IsolossError
from isoloss.search.events import Stopped
from isoloss.store import limits
from isoloss.store.pool import Pool

log = structlog.get_logger()


class Limiter:
    """Stops studies at their limits; what they run is cancelled."""

    name: Final = "limiter"
    seconds: Final = 0.0
    pause: Final = 1.0  # a clock's work: no ring makes it due

    def __init__(self, pool: Pool, decider: Decider) -> None:
        self.pool = pool
        self.decider = decider

    async def once(self) -> int:
        """Stop what has reached a limit; always 0, since the next pass finds nothing more."""
        async with self.pool.connection() as conn:
            found = await limits.reached(conn)
        for one in found:
            try:
                await self.decider.decide(one.study_id, events=[Stopped(reason=one.reason)])
            except IsolossError as error:  # one study's trouble is not the others'
                log.warning("study.not_stopped", study_id=one.study_id, error=error.message)
        return 0
