"""Every panel of every dashboard, on a database as a campaign leaves it and on an empty one."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from isoloss.dash.boards import BOARDS
from isoloss.dash.feed import Feed
from isoloss.dash.macros import Window, expand
from isoloss.dash.panels import COLUMNS, Board, Panel
from isoloss.dash.query import Reader, Table
from isoloss.store.embedded import Embedded
from isoloss.store.migrate import migrate
from isoloss.store.pool import Pool
from isoloss.testing.showcase import populate

PANELS = [pytest.param(board, panel, id=f"{board.id}-{panel.id}") for board in BOARDS for panel in board.panels]
VARIABLES = {"campaign": "our-1b", "study": "our-1b-120m", "parameter": ""}
WISHES = VARIABLES | {"study": "small-and-good", "parameter": "width"}


@pytest.fixture(scope="module")
def empty(cluster: Embedded) -> Iterator[str]:
    yield from database(cluster, "dash_empty")


@pytest.fixture(scope="module")
def full(cluster: Embedded) -> Iterator[str]:
    for dsn in database(cluster, "dash_full"):
        asyncio.run(fill(dsn))
        yield dsn


def database(cluster: Embedded, name: str) -> Iterator[str]:
    with psycopg.connect(cluster.dsn, autocommit=True) as conn:
        conn.execute(f"CREATE DATABASE {name}".encode())
        dsn = make_conninfo(cluster.dsn, dbname=name)
        asyncio.run(migrated(dsn))
        yield dsn
        conn.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())


async def migrated(dsn: str) -> None:
    async with Pool(dsn, size=1) as pool:
        await migrate(pool)


async def fill(dsn: str) -> None:
    async with Pool(dsn, size=4) as pool:
        await populate(pool, refit_every=40)


def ask(dsn: str, sql: str, variables: dict[str, str] = VARIABLES) -> Table:
    window = Window(time.time() - 7200, time.time() + 60)

    async def body() -> Table:
        async with Reader(dsn) as reader:
            return await reader.run(expand(sql, variables, window))

    return asyncio.run(body())


def check_columns(panel: Panel, table: Table) -> None:
    """The columns are those of the panel's kind."""
    found = list(table.kinds)
    for wanted in COLUMNS[panel.kind]:
        kind = wanted.rstrip("?*")
        if wanted == "metric?":
            if len(found) > 1 and table.columns[1] == "metric":
                assert found.pop(0) == "text"
        elif wanted.endswith("*"):
            assert found, panel.id
            assert kind == "any" or set(found) == {kind}, panel.id
            found = []
        elif wanted.endswith("?"):
            assert not found or found.pop(0) == kind, panel.id
        else:
            assert found.pop(0) == kind, panel.id
    assert not found, f"{panel.id} has columns too many: {found}"


@pytest.mark.parametrize(("board", "panel"), PANELS)
def test_every_panel_runs_where_a_campaign_ran_and_has_the_columns_of_its_kind(
    full: str, board: Board, panel: Panel
) -> None:
    table = ask(full, panel.sql, WISHES if board.id == "preference" else VARIABLES)
    check_columns(panel, table)
    assert table.rows, f"{panel.id} shows nothing of a finished campaign"
    if panel.kind == "stat":
        assert len(table.rows) == 1
        assert isinstance(table.rows[0][0], int | float)
    if panel.kind in ("timeseries", "state"):
        assert table.columns[0] == "time"
        assert [row[0] for row in table.rows] == sorted(row[0] for row in table.rows)
    if panel.kind in ("xy", "basin"):
        assert all(None not in row[:3] for row in table.rows)
        assert all(row[1] > 0 for row in table.rows) or not panel.log_x
    if panel.band:
        assert set(panel.band) <= set(table.columns)


@pytest.mark.parametrize(("board", "panel"), PANELS)
def test_every_panel_runs_on_an_empty_database(empty: str, board: Board, panel: Panel) -> None:
    table = ask(empty, panel.sql, dict.fromkeys(VARIABLES, ""))
    check_columns(panel, table)
    assert len(table.rows) == 0 or (panel.kind == "stat" and board.id == "workers")


def test_the_reader_is_the_dashboards_role_and_can_neither_write_nor_see_a_table(full: str) -> None:
    async def body(sql: str) -> None:
        async with Reader(full) as reader:
            assert (await reader.run("SELECT current_user")).rows == [["isoloss_dash"]]
            await reader.run("SELECT set_config('default_transaction_read_only', 'off', false)")
            await reader.run(sql)

    for sql in (
        "DELETE FROM campaign",
        "UPDATE task SET epoch = 7",
        "SELECT * FROM lease",
        "CREATE TABLE mine (a int)",
    ):
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            asyncio.run(body(sql))
    with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
        ask(full, "CREATE TABLE mine (a int)", {})


def test_a_query_without_end_is_cut_off(full: str) -> None:
    async def body() -> None:
        async with Reader(full) as reader:
            assert (await reader.run("SHOW statement_timeout")).rows == [["5s"]]
            await reader.run("SELECT set_config('statement_timeout', '50ms', false)")
            with pytest.raises(psycopg.errors.QueryCanceled):
                await reader.run("SELECT pg_sleep(2)")
            assert (await reader.run("SELECT 1")).rows == [[1]]  # the connection goes on

    asyncio.run(body())


def test_curves_of_one_study_are_read_by_index_among_many_chunks(full: str) -> None:
    sql = next(p.sql for b in BOARDS for p in b.panels if p.id == "curves")
    more = """INSERT INTO metric_chunk (task_id, epoch, metric, step0, steps, "values")
        SELECT task_id, epoch, 'more-' || n, n, ARRAY[n], ARRAY[1.0] FROM attempt, generate_series(1, 400) AS n"""
    with psycopg.connect(full) as conn:
        conn.execute(more.encode())
        conn.execute("ANALYZE")
        expanded = expand(sql, VARIABLES, Window(0, 1e9))
        plan = "\n".join(row[0] for row in conn.execute(f"EXPLAIN {expanded}".encode()).fetchall())
        conn.rollback()
    assert "Seq Scan on metric_chunk" not in plan, plan


def test_a_viewer_gets_every_panel_once_then_only_what_changed_and_nobody_costs_nothing(full: str) -> None:
    async def body() -> None:
        async with Reader(full) as reader, asyncio.TaskGroup() as group:
            feed = Feed(reader)
            loop = group.create_task(feed.run())
            await asyncio.sleep(0.2)
            assert feed.rounds == 0
            stream = feed.stream("campaign", {"campaign": "our-1b"}, "")
            events = [await anext(stream) for _ in range(2 + len(BOARDS[0].panels))]
            assert [e.split(b"\n")[0] for e in events[1:]] == [b"event: state"] + [b"event: panel"] * len(
                BOARDS[0].panels
            )
            basin = next(e for e in events if b'"id":"basin"' in e)
            assert b'"contours":[[[' in basin
            last = events[-1].split(b"\n")[1].removeprefix(b"id: ").decode()
            again = feed.stream("campaign", {"campaign": "our-1b"}, last)
            assert await anext(again) == b"retry: 2000\n\n"
            with pytest.raises(TimeoutError):  # it has seen everything
                await asyncio.wait_for(anext(again), 2.5)
            await again.aclose()
            await stream.aclose()
            await asyncio.sleep(2.0)
            rounds = feed.rounds
            await asyncio.sleep(2.0)
            assert feed.rounds == rounds
            connections: Any = await asyncio.to_thread(count_connections, full)
            assert connections == 0
            loop.cancel()

    asyncio.run(body())


def count_connections(dsn: str) -> int:
    with psycopg.connect(dsn) as conn:
        row = conn.execute("SELECT count(*) FROM pg_stat_activity WHERE application_name = 'isoloss dash'").fetchone()
        assert row is not None
        return int(row[0])
