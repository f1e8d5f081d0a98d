"""A database of any earlier schema, with data in it, is upgraded and loses and reorders nothing (I22)."""

from __future__ import annotations

import asyncio
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import make_conninfo
from psycopg.types.json import Jsonb

from isoloss.controller.decider import Decider
from isoloss.controller.duty import Bell
from isoloss.domain.ids import StudyId
from isoloss.domain.spec import decode_study, encode
from isoloss.search import events as ev
from isoloss.search.search import Search
from isoloss.store import curves
from isoloss.store.embedded import Embedded
from isoloss.store.migrate import load, migrate
from isoloss.store.pool import Pool
from isoloss.testing.oracles import violations

SPEC = {
    "name": "old", "space": {"x": {"type": "float", "low": 0, "high": 1}}, "objective": {"metric": "loss"},
    "method": {"min_budget": 1, "max_budget": 9},
}  # fmt: skip


async def points_of(conn: Any, study_id: Any, metric: str) -> list[tuple[int, float]]:
    """One metric of a study's first trial."""
    found, more = await curves.page(conn, study_id, 0)
    assert not more
    return [(step, values[metric]) for step, values in found if metric in values]


def fill(dsn: str) -> None:
    """A study with one finished task, its curve in chunks, and one task that waits, as the first release wrote them."""
    spec = decode_study(SPEC)
    search = Search(spec)
    happened: list[ev.Event] = [ev.Asked(n=2), ev.TaskDone(trial=0, level=0, score=0.5)]
    with psycopg.connect(dsn) as conn:
        conn.execute(
            "INSERT INTO study (project, name, spec, trainable, max_budget, next_seq, reserved, spent) "
            "VALUES ('default', 'old', %s, '', 9, 3, 1, 1)", (Jsonb(encode(spec)),),
        )  # fmt: skip
        for seq, event in enumerate(happened, start=1):
            made = search.apply(event)
            body, decisions = ev.to_mapping(event), [ev.to_mapping(one) for one in made]
            conn.execute(
                "INSERT INTO event VALUES (1, %s, %s, %s, %s)", (seq, body["kind"], Jsonb(body), Jsonb(decisions))
            )
            for one in made:
                if isinstance(one, ev.CreateTrial):
                    conn.execute(
                        "INSERT INTO trial VALUES (1, %s, %s, %s, %s, %s)",
                        (one.trial, one.bracket, one.index, Jsonb(one.configuration), one.source),
                    )
                if isinstance(one, ev.CreateTask):
                    conn.execute(
                        "INSERT INTO task (study_id, trial_no, level, budget_from, decay_from, budget_to) "
                        "VALUES (1, %s, %s, 0, 1, 1)", (one.trial, one.level),
                    )  # fmt: skip
        conn.execute("UPDATE task SET state = 'leased', epoch = 1 WHERE id = 1")
        conn.execute("UPDATE task SET state = 'done', ended_at = now() WHERE id = 1")
        conn.execute("INSERT INTO attempt VALUES (1, 1, 'w', now(), now(), 'ok')")
        conn.execute(
            'INSERT INTO result (task_id, study_id, epoch, status, "values", score, decided_seq) '
            "VALUES (1, 1, 1, 'ok', '{\"loss\": 0.5}', 0.5, 2)"
        )
        for step0, steps, values in (
            (1, [1, 2, 3], [3.0, 2.0, 1.5]),
            (7, [7, 8, 11], [1.0, 0.75, 0.5]),
            (20, [20], [0.25]),
            (30, [30, 31], [1e300, 1e-300]),
        ):
            conn.execute(
                'INSERT INTO metric_chunk (task_id, epoch, metric, step0, steps, "values") VALUES (1, 1, %s, %s, %s, %s)',
                ("loss", step0, steps, values),
            )


@pytest.mark.parametrize("known", range(1, 11))
def test_a_database_of_an_earlier_schema_goes_on_with_everything_it_had(cluster: Embedded, known: int) -> None:
    dsn = make_conninfo(cluster.dsn, dbname=f"at_{known}")
    with psycopg.connect(cluster.dsn, autocommit=True) as conn:
        conn.execute(f"CREATE DATABASE at_{known}".encode())

    async def body() -> tuple[list[str], Any, int]:
        migrations = load()
        async with Pool(dsn, size=2) as pool:
            await migrate(pool, migrations[:known])
            fill(dsn)
            applied = await migrate(pool)
            async with pool.connection() as conn:
                curve = await points_of(conn, 1, "loss")
            decided = await Decider(pool, Bell()).decide(StudyId(1), ask=1)
        return applied, curve, decided.created

    applied, curve, created = asyncio.run(body())
    assert applied == [migration.name for migration in load()[known:]] and created == 1
    assert curve == [
        (1, 3.0),
        (2, 2.0),
        (3, 1.5),
        (7, 1.0),
        (8, 0.75),
        (11, 0.5),
        (20, 0.25),
        (30, float("inf")),
        (31, 0.0),
    ]
    with psycopg.connect(dsn) as conn:
        assert violations(conn) == []
