"""A real Postgres for the store's tests: one embedded cluster a test process, its tables emptied between tests."""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import psycopg
import pytest

from isoloss.store.embedded import Embedded
from isoloss.store.migrate import migrate
from isoloss.store.pool import Pool

T = TypeVar("T")
TABLES = """
    SELECT string_agg(format('%I', relname), ', ') FROM pg_class
    WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace AND relname NOT IN ('migration', 'control_plane')"""


@pytest.fixture(scope="session")
def cluster() -> Iterator[Embedded]:
    """A running cluster with the migrated schema; ``ISOLOSS_PG_MAJOR`` chooses its version."""
    folder = Path(tempfile.mkdtemp(prefix="isoloss-store-"))
    folder.chmod(0o711)
    embedded = Embedded(home=folder / "postgres", major=int(os.environ.get("ISOLOSS_PG_MAJOR", "18")), fsync=False)
    keeper = embedded.start()
    asyncio.run(_migrated(embedded.dsn))
    yield embedded
    embedded.stop(keeper)
    shutil.rmtree(folder, ignore_errors=True)


async def _migrated(dsn: str) -> None:
    async with Pool(dsn) as pool:
        await migrate(pool)


@pytest.fixture
def dsn(cluster: Embedded) -> Iterator[str]:
    """The connection string of an empty database."""
    with psycopg.connect(cluster.dsn, autocommit=True) as conn:
        row = conn.execute(TABLES).fetchone()
        assert row is not None
        conn.execute(f"TRUNCATE {row[0]} RESTART IDENTITY CASCADE".encode())
    yield cluster.dsn


@pytest.fixture
def in_store(dsn: str) -> Callable[[Callable[[Pool], Awaitable[T]]], T]:
    """Run an async test body with a pool."""

    async def body(test: Callable[[Pool], Awaitable[Any]]) -> Any:
        async with Pool(dsn, size=12) as pool:
            return await test(pool)

    return lambda test: asyncio.run(body(test))
