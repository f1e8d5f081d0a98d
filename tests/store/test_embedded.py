"""The embedded server: both majors, adopted and stopped when it should be, and errors that name the folder."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psycopg
import pytest

from isoloss.errors import StoreUnavailable
from isoloss.store.embedded import Embedded, refuse_network_file_system
from isoloss.store.migrate import load, migrate
from isoloss.store.pool import Pool, check_dsn


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that an unprivileged Postgres can reach."""
    made = Path(tempfile.mkdtemp(prefix="isoloss-pg-"))
    made.chmod(0o711)
    yield made
    shutil.rmtree(made, ignore_errors=True)


@pytest.mark.parametrize("major", [18, 16])
def test_both_majors_of_the_wheel_start_and_take_every_migration(folder: Path, major: int) -> None:
    embedded = Embedded(home=folder / "pg", major=major, fsync=False)
    keeper = embedded.start()

    async def body() -> list[str]:
        async with Pool(embedded.dsn) as pool:
            return await migrate(pool)

    try:
        assert keeper.info.server_version // 10000 == major
        assert asyncio.run(body()) == [m.name for m in load()]
    finally:
        assert embedded.stop(keeper)


def test_many_starters_share_one_server_and_the_last_one_stops_it(folder: Path) -> None:
    embedded = Embedded(home=folder / "pg", fsync=False)
    with ThreadPoolExecutor(4) as starters:
        keepers = list(starters.map(lambda _: embedded.start(), range(4)))
    pids = {k.execute("SELECT pg_postmaster_start_time()").fetchone() for k in keepers}
    assert len(pids) == 1
    assert [embedded.stop(keeper) for keeper in keepers] == [False, False, False, True]


def test_after_kill_9_of_the_server_what_was_committed_is_there(folder: Path) -> None:
    embedded = Embedded(home=folder / "pg")
    keeper = embedded.start()
    keeper.execute("CREATE TABLE kept (n int)")
    keeper.execute("INSERT INTO kept SELECT generate_series(1, 100)")
    os.kill(int((embedded.data / "postmaster.pid").read_text().splitlines()[0]), signal.SIGKILL)
    keeper.close()
    again = embedded.start()
    row = again.execute("SELECT count(*) FROM kept").fetchone()
    assert row == (100,)
    assert embedded.stop(again)


def test_a_cluster_of_another_major_is_refused_and_left_alone(folder: Path) -> None:
    embedded = Embedded(home=folder / "pg", major=16, fsync=False)
    embedded.stop(embedded.start())
    with pytest.raises(StoreUnavailable, match="is of Postgres 16; accepted is 18"):
        Embedded(home=folder / "pg", major=18).start()
    embedded.stop(embedded.start())


MOUNTS = "/dev/sda / ext4 rw 0 0\nserver:/x /mnt/shared nfs4 rw 0 0\ntmpfs /mnt/shared/local tmpfs rw 0 0\n"


def test_a_network_file_system_is_refused_by_name() -> None:
    with pytest.raises(StoreUnavailable, match="lies on nfs4, a network file system; accepted is a local disk"):
        refuse_network_file_system(Path("/mnt/shared/home"), MOUNTS)
    refuse_network_file_system(Path("/mnt/shared/local/home"), MOUNTS)
    refuse_network_file_system(Path("/home"), MOUNTS)


def test_a_folder_that_cannot_be_written_is_named(folder: Path) -> None:
    (folder / "file").write_text("")
    with pytest.raises(StoreUnavailable, match=r"The data folder .*file/pg cannot be written"):
        Embedded(home=folder / "file" / "pg").start()


@pytest.mark.parametrize("dsn", ["not a dsn", "", "postgresql://host:port/x y"])
def test_a_malformed_dsn_is_refused_before_anything_is_tried(dsn: str) -> None:
    with pytest.raises(StoreUnavailable, match="--dsn is"):
        check_dsn(dsn)


def test_a_server_that_is_not_there_is_unavailable_and_no_traceback() -> None:
    async def body() -> None:
        pool = Pool("host=/nonexistent dbname=x")
        pool._pool.timeout = 0.5
        async with pool:
            pass

    with pytest.raises(StoreUnavailable, match="No connection|does not answer"):
        asyncio.run(body())


def test_nothing_connects_from_outside_the_folder(folder: Path) -> None:
    embedded = Embedded(home=folder / "pg", fsync=False)
    keeper = embedded.start()
    try:
        with pytest.raises(psycopg.OperationalError):
            psycopg.connect("host=127.0.0.1 port=5432 user=isoloss dbname=postgres connect_timeout=1")
        assert (embedded.home.stat().st_mode & 0o777) == 0o700
    finally:
        embedded.stop(keeper)
