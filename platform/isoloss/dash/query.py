"""Reading for dashboards: one connection that can only read, only views, and never for long."""

from __future__ import annotations

import contextlib
import datetime as dt
import decimal
import math
from dataclasses import dataclass
from typing import Any, Final, Self

import psycopg
from psycopg import AsyncConnection
from psycopg.rows import TupleRow

ROLE: Final = "isoloss_dash"
OPTIONS: Final = "-c default_transaction_read_only=on -c statement_timeout=5s -c lock_timeout=1s -c timezone=UTC"
MAY_BECOME: Final = "SELECT 1 FROM pg_roles WHERE rolname = 'isoloss_dash' AND pg_has_role(oid, 'SET')"
MOST_ROWS: Final = 20_000
KINDS: Final = {  # Postgres' type numbers
    16: "boolean", 20: "number", 21: "number", 23: "number", 700: "number", 701: "number", 1700: "number",
    114: "json", 3802: "json", 1114: "time", 1184: "time",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Table:
    """A result as JSON-able rows: times are seconds since 1970, numbers that are not finite are ``None``.

    ``kinds`` are time, number, text, boolean or json, one a column.
    """

    columns: list[str]
    kinds: list[str]
    rows: list[list[Any]]


class Reader:
    """A read-only connection, opened when it is first needed and again after it broke."""

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn
        self._conn: AsyncConnection[TupleRow] | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Let the connection go; the next query opens another."""
        if self._conn is not None:
            with contextlib.suppress(psycopg.Error):
                await self._conn.close()
            self._conn = None

    async def run(self, sql: str) -> Table:
        """The rows of one statement; raises ``psycopg.Error``."""
        conn = await self._open()
        try:
            cursor = await conn.execute(sql.encode())
            described = cursor.description or ()
            rows = [[plain(value) for value in row] for row in await cursor.fetchmany(MOST_ROWS)]
            return Table(
                [column.name for column in described],
                [KINDS.get(column.type_code, "text") for column in described],
                rows,
            )
        except psycopg.OperationalError:
            if conn.closed:
                self._conn = None
            raise

    async def _open(self) -> AsyncConnection[TupleRow]:
        if self._conn is None or self._conn.closed:
            conn = await AsyncConnection.connect(
                self._dsn, autocommit=True, options=OPTIONS, application_name="isoloss dash", connect_timeout=5
            )
            if await (await conn.execute(MAY_BECOME)).fetchone() is not None:
                await conn.execute(f"SET ROLE {ROLE}".encode())
            self._conn = conn
        return self._conn


def plain(value: Any) -> Any:
    """A value of Postgres as one of JSON."""
    match value:
        case dt.datetime():
            return value.timestamp()
        case decimal.Decimal():
            return float(value)
        case float():
            return value if math.isfinite(value) else None
        case _:
            return value
