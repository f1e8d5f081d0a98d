"""Every panel's query over a million trials, alone and while trial cycles run; and what that does to the cycles.

    python tests/bench/bench_dashboards.py [--studies 10] [--trials 100000] [--seconds 20]

Studies of finished trials with their ledgers, by COPY, the tasks spread over thirty days. A query runs as the page runs it: as the role that can only read,
over the window of its board. Cycles run at half the rate they were measured at alone.
"""

# ruff: noqa: T201  a bench prints

from __future__ import annotations

import argparse
import asyncio
import statistics
import threading
import time
from collections.abc import Callable
from typing import Final

import psycopg
from bench_capacity import history
from bench_controller import our_client, our_study, ours, postgres
from load import Cycle, Latencies, closed_loop
from psycopg import sql

from isoloss.dash.boards import BOARDS
from isoloss.dash.feed import SHARE, TICK_SECONDS
from isoloss.dash.macros import Window, expand
from isoloss.dash.query import Reader

CLIENTS, DAYS = 4, 30
SPREAD: Final = """
    WITH moment AS MATERIALIZED (
        SELECT id, now() - make_interval(secs => 86400 * %(days)s * (1 - id::float8 / %(highest)s)) AS at FROM task),
    attempted AS (UPDATE attempt SET started_at = at - interval '1 minute', ended_at = at FROM moment WHERE id = task_id),
    finished AS (UPDATE result SET received_at = at FROM moment WHERE id = task_id)
    UPDATE task SET created_at = at - interval '1 minute', ended_at = at FROM moment WHERE moment.id = task.id"""
SHIFTED: Final = {
    "trial": ("study_id",), "task": ("id", "study_id"), "attempt": ("task_id",), "event": ("study_id",),
    "result": ("task_id", "study_id"),
}  # fmt: skip
Timed = dict[str, list[float]]


def copied(dsn: str, name: str, copies: int, size: int) -> None:
    """The study so many times more, under other names and ids."""
    with psycopg.connect(dsn) as conn:
        row = conn.execute("SELECT id, (SELECT max(id) FROM task) FROM study WHERE name = %s", (name,)).fetchone()
        assert row is not None
        study, task = row
        shift = sql.SQL("{} + {}")
        for table, shifted in {"study": ("id",), **SHIFTED}.items():
            names = [
                one for (one,) in conn.execute(
                    "SELECT column_name FROM information_schema.columns WHERE table_schema = 'public' AND table_name = %s", (table,)
                )
            ]  # fmt: skip
            for k in range(1, copies + 1):
                by = {"study_id": k, "task_id": k * (task + 1), "id": k if table == "study" else k * (task + 1)}
                values = [
                    shift.format(sql.Identifier(one), sql.Literal(by[one])) if one in shifted
                    else sql.SQL("name || {}").format(sql.Literal(f"-{k}")) if (table, one) == ("study", "name")
                    else sql.Identifier(one) for one in names
                ]  # fmt: skip
                where = "id = {0}" if table == "study" else "study_id = {0}"
                where = "task_id <= {1}" if table == "attempt" else where
                conn.execute(
                    sql.SQL("INSERT INTO {} ({}) OVERRIDING SYSTEM VALUE SELECT {} FROM {} WHERE ").format(
                        sql.Identifier(table), sql.SQL(", ").join(map(sql.Identifier, names)), sql.SQL(", ").join(values),
                        sql.Identifier(table),
                    ) + sql.SQL(where).format(sql.Literal(study), sql.Literal(task))
                )  # fmt: skip
        for table, highest in (("task", (copies + 1) * (task + 1)), ("study", study + copies)):
            conn.execute("SELECT setval(pg_get_serial_sequence(%s, 'id'), %s)", (table, highest))
        conn.execute(SPREAD, {"days": DAYS, "highest": (copies + 1) * (task + 1)})
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute("VACUUM FULL")
        conn.execute("VACUUM ANALYZE")


def look(dsn: str, study: str, until: Callable[[], bool], found: Timed) -> None:
    """Run every panel of every board, one after another, and rest as the page does, until it is over."""

    async def body() -> None:
        variables = {"study": study, "campaign": "", "parameter": "lr"}
        async with Reader(dsn) as reader:
            while True:
                started = time.perf_counter()
                for board in BOARDS:
                    rows = (await reader.run(expand(board.span, variables, Window(0.0, 0.0)))).rows
                    begin, end, _ = rows[0] if rows else (time.time() - 3600, time.time(), False)
                    for panel in board.panels:
                        begun = time.perf_counter()
                        try:
                            await reader.run(expand(panel.sql, variables, Window(begin - 60, end + 60)))
                        except psycopg.Error as error:
                            print(f"  {board.id}/{panel.id}: {str(error).splitlines()[0]}")
                        found.setdefault(f"{board.id}/{panel.id}", []).append(time.perf_counter() - begun)
                if until():
                    return
                await asyncio.sleep(max(TICK_SECONDS, SHARE * (time.perf_counter() - started)))

    asyncio.run(body())


def paced(number: int, address: str, name: str, seconds: float) -> Cycle:
    """A client that begins a cycle every so many seconds."""
    cycle, due = our_client(number, address, name, 0, joined=True), [time.monotonic()]

    def turn(latencies: Latencies) -> int:
        due[0] = max(due[0] + seconds, time.monotonic() - seconds)
        time.sleep(max(0.0, due[0] - time.monotonic()))
        return cycle(latencies)

    return turn


def said(label: str, found: Timed) -> None:
    """The quantiles over all queries, and the slowest panels."""
    everything = sorted(1e3 * one for many in found.values() for one in many)
    worst = sorted(((1e3 * statistics.median(many), name) for name, many in found.items()), reverse=True)
    print(
        f"{label}: {len(everything)} queries, p50 {statistics.median(everything):.1f} p95 {everything[int(0.95 * len(everything))]:.1f} ms"
    )
    print("  slowest: " + ", ".join(f"{name} {ms:.0f} ms" for ms, name in worst[:8]), flush=True)


def main() -> None:
    """Fill, look, look under load."""
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("--studies", type=int, default=10)
    ask.add_argument("--trials", type=int, default=100_000)
    ask.add_argument("--seconds", type=float, default=20.0)
    given = ask.parse_args()
    with postgres() as (home, dsn, postmaster), ours(home, dsn) as (address, pid):
        big = our_study(address, "random", 0)
        history(dsn, big, given.trials)
        copied(dsn, big, given.studies - 1, given.trials)
        small = our_study(address, "random", 100)
        print(f"{given.studies} studies of {given.trials:,} trials", flush=True)
        look(dsn, big, lambda: True, {})  # what is read first comes from the disk
        alone: Timed = {}
        rounds = iter(range(3))
        look(dsn, big, lambda: next(rounds, None) is None, alone)
        said("alone", alone)
        watch: dict[str, int] = {"server": pid, "postgres": postmaster}
        full = closed_loop(
            our_client, (address, small, 0, True), clients=CLIENTS, seconds=given.seconds / 2, watch=watch
        )
        pace = 2 * CLIENTS / full.rate
        quiet = closed_loop(paced, (address, small, pace), clients=CLIENTS, seconds=given.seconds, watch=watch)
        under: Timed = {}
        over = threading.Event()
        looking = threading.Thread(target=look, args=(dsn, big, over.is_set, under))
        looking.start()
        busy = closed_loop(paced, (address, small, pace), clients=CLIENTS, seconds=given.seconds, watch=watch)
        over.set()
        looking.join()
        said(f"while {busy.rate:.0f} of {full.rate:.0f} cycles/s run", under)
        for label, found in (("nobody looks", quiet), ("somebody looks at every board", busy)):
            p50, p99 = (found.latency("tell_and_ask", q) for q in (0.5, 0.99))
            print(f"tell_and_ask while {label}: {found.rate:.0f}/s, p50 {p50:.1f} p99 {p99:.1f} ms", flush=True)


if __name__ == "__main__":
    main()
