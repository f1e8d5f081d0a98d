"""Plain SQL migrations, forward only: one transaction a file under one advisory lock, each file's digest on record.

A changed or missing file that was applied is refused: history is not edited. The runner looks for the repository's
``migrations/`` first, so that an editable installation never reads the stale copy a wheel carries.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from isoloss.errors import StoreUnavailable
from isoloss.store.pool import Conn, Pool

LOCK: Final = "SELECT pg_advisory_xact_lock(7102938475)"
CREATE_LEDGER: Final = """
    CREATE TABLE IF NOT EXISTS migration
        (number integer PRIMARY KEY, name text NOT NULL, sha256 text NOT NULL, applied_at timestamptz NOT NULL DEFAULT now())"""
APPLIED: Final = "SELECT number, name, sha256 FROM migration ORDER BY number"
RECORD: Final = "INSERT INTO migration (number, name, sha256) VALUES (%(number)s, %(name)s, %(sha256)s)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Migration:
    """One file of ``migrations/``."""

    number: int
    name: str
    sql: str

    @property
    def sha256(self) -> str:
        """The digest that is recorded when the file is applied."""
        return hashlib.sha256(self.sql.encode()).hexdigest()


def folder() -> Path:
    """The repository's ``migrations/`` when there is one, else the copy in the wheel."""
    repository = Path(__file__).parents[3] / "migrations"
    return repository if repository.is_dir() else Path(__file__).parent / "migrations"


def load(source: Path | None = None) -> list[Migration]:
    """The migrations in order; numbers must run from 1 without a gap."""
    found = [
        Migration(number=int(path.name[:4]), name=path.stem, sql=path.read_text())
        for path in sorted((source or folder()).glob("[0-9]*.sql"))
    ]
    if [m.number for m in found] != list(range(1, len(found) + 1)):
        raise StoreUnavailable(
            f"The migrations are numbered {[m.number for m in found]}; accepted is 1, 2, 3, … no gap."
        )
    return found


async def migrate(pool: Pool, migrations: list[Migration] | None = None) -> list[str]:
    """Apply what is missing; returns the names applied. Any number of controllers may call it at once."""
    wanted = load() if migrations is None else migrations
    applied = []
    for migration in wanted:
        async with pool.connection() as conn:
            await conn.execute(LOCK)
            await conn.execute(CREATE_LEDGER)
            if await _is_applied(conn, migration, wanted):
                continue
            await conn.execute(migration.sql.encode())
            await conn.execute(RECORD, {"number": migration.number, "name": migration.name, "sha256": migration.sha256})
            applied.append(migration.name)
    return applied


async def _is_applied(conn: Conn, migration: Migration, wanted: list[Migration]) -> bool:
    rows = await (await conn.execute(APPLIED)).fetchall()
    if len(rows) > len(wanted):
        raise StoreUnavailable(
            f"The database is at migration {rows[-1][1]}, newer than this isoloss.", hint="Upgrade isoloss."
        )
    for number, name, digest in rows:
        if number == migration.number and digest != migration.sha256:
            raise StoreUnavailable(f"Migration {name} was edited after it was applied; migrations are forward only.")
    return any(number == migration.number for number, _, _ in rows)
