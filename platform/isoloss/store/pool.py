"""Connections: one async pool a controller, every statement with a deadline, and errors in our own words."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Any, Final, Self

import psycopg
from psycopg import AsyncConnection, AsyncCursor
from psycopg.conninfo import conninfo_to_dict
from psycopg.rows import TupleRow
from psycopg_pool import AsyncConnectionPool, PoolTimeout

from isoloss.errors import Busy, InvalidSpec, StoreUnavailable

Conn = AsyncConnection[TupleRow]
Cursor = AsyncCursor[TupleRow]
OPTIONS: Final = (
    "-c lock_timeout=5s -c statement_timeout=30s -c idle_in_transaction_session_timeout=30s -c timezone=UTC"
)
WAIT_SECONDS: Final = 3.0  # for a connection; then whoever waits is sent away to come again
OLDEST: Final = 160000  # the oldest server the SQL is written for


class Pool:
    """A pool of connections in which every ``connection()`` is one transaction."""

    def __init__(self, dsn: str, *, size: int = 8, name: str = "isoloss controller") -> None:
        check_dsn(dsn)
        self.refused = ""  # why Postgres took the last write not; empty again once the reaper's beat is written
        self._pool = AsyncConnectionPool(
            dsn, min_size=1, max_size=size, timeout=WAIT_SECONDS, open=False, max_lifetime=3600,
            kwargs={"options": OPTIONS, "application_name": name, "connect_timeout": 5},
        )  # fmt: skip

    async def __aenter__(self) -> Self:
        await self._pool.open()
        async with self.connection() as conn:
            version = conn.info.server_version
        if version < OLDEST:
            raise StoreUnavailable(f"The server is Postgres {version // 10000}; accepted is 16 or newer.")
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._pool.close(timeout=5)

    def stats(self) -> dict[str, int]:
        """Connections: how many there are, are free, and how many callers wait for one."""
        found = self._pool.get_stats()
        return {
            "size": found.get("pool_size", 0), "free": found.get("pool_available", 0),
            "waiting": found.get("requests_waiting", 0),
        }  # fmt: skip

    @contextlib.asynccontextmanager
    async def connection(self) -> AsyncIterator[Conn]:
        """One transaction: committed at the end of the block, rolled back when it raises."""
        try:
            async with self._pool.connection() as conn:
                yield conn
        except PoolTimeout:
            if self._pool.get_stats().get("pool_size", 0) < self._pool.max_size:
                raise StoreUnavailable(f"No connection to Postgres could be made within {WAIT_SECONDS:g} s.") from None
            raise Busy(f"No connection to Postgres was free within {WAIT_SECONDS:g} s.") from None
        except (psycopg.errors.ReadOnlySqlTransaction, psycopg.errors.InsufficientPrivilege) as error:
            self.refused = f"Postgres does not let this controller write: {_first_line(error)}."
            raise StoreUnavailable(self.refused) from None
        except psycopg.errors.DiskFull as error:
            self.refused = f"The disk of Postgres is full: {_first_line(error)}."
            raise StoreUnavailable(
                self.refused,
                hint="Free some room there: nothing that was acknowledged is lost, and all goes on by itself.",
            ) from None
        except psycopg.DataError as error:  # a number out of range, a text that is none: no check before has caught it
            raise InvalidSpec(f"A value does not fit the database ({_first_line(error)}).") from None
        except psycopg.OperationalError as error:  # gone, restarting, or a lock or deadlock that a second try resolves
            raise StoreUnavailable(f"Postgres does not answer: {_first_line(error)}") from None


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def check_dsn(dsn: str) -> None:
    """Raise ``StoreUnavailable`` when the text is no connection string at all."""
    try:
        parts: dict[str, Any] = conninfo_to_dict(dsn)
    except psycopg.ProgrammingError as error:
        raise StoreUnavailable(
            f"--dsn is {dsn!r}, no connection string ({str(error).strip()}); "
            "accepted is postgresql://user@host/database or 'host=… dbname=…'."
        ) from None
    if not parts:
        raise StoreUnavailable("--dsn is empty; accepted is postgresql://user@host/database or 'host=… dbname=…'.")
