"""The keeper: who brings an embedded Postgres back when somebody killed it. A DSN's own is its administrator's."""

from __future__ import annotations

import asyncio
from typing import Final

import psycopg
import structlog

from isoloss.store.embedded import Embedded

log = structlog.get_logger()


class Keeper:
    """Holds the connection by which a server is known to be in use, and looks whether it still answers."""

    name: Final = "keeper"
    seconds: Final = 0.0
    pause: Final = 1.0  # a clock's work: no ring makes it due

    def __init__(self, embedded: Embedded) -> None:
        self.embedded = embedded
        self.connection = embedded.start()

    async def once(self) -> int:
        """Look; start the server again, or adopt it from whoever did, when it is gone."""
        return await asyncio.to_thread(self._look)

    def _look(self) -> int:
        try:
            self.connection.execute("SELECT 1")
        except psycopg.Error:
            log.warning("postgres.gone")
            self.connection.close()
            self.connection = self.embedded.start()
            log.warning("postgres.back")
        return 0

    def stop(self) -> None:
        """Let go of the server; it stops when nobody else uses it."""
        self.embedded.stop(self.connection)
