"""What results are worth, as it stands in the database: written where it is decided, and again when a preference changes."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from isoloss.controller import decider as deciding
from isoloss.controller.decider import Decider
from isoloss.controller.duty import Bell
from isoloss.domain.lease import Ending, LeaseKey
from isoloss.domain.spec import decode_study, encode
from isoloss.search.desirability import overall
from isoloss.search.judging import Judge
from isoloss.store import preferences, studies, tasks
from isoloss.store.pool import Pool
from isoloss.store.tasks import Want

InStore = Callable[[Callable[[Pool], Awaitable[Any]]], Any]
WISHES = {
    "loss": {"shape": "smaller", "target": 0.1, "limit": 0.6},
    "joules": {"shape": "smaller", "target": 1, "limit": 12, "kind": "cumulative"},
    "size": {"shape": "smaller", "target": 0.2, "limit": 1, "kind": "static", "formula": "x"},
}
SPEC = {
    "name": "w", "space": {"x": {"type": "float", "low": 0, "high": 1}}, "desirability": WISHES,
    "method": {"min_budget": 1, "max_budget": 9, "sampler": "random"},
}  # fmt: skip


async def owed(*_: object) -> tuple[str, ...]:
    return ("loss", "joules")


async def run(pool: Pool, decider: Decider, study_id: Any, most: int = 40) -> None:
    """Run what there is to run, as a worker does."""
    for _ in range(most):
        found = (await decider.decide(study_id, wants=[Want(holder="w", incarnation="i")])).leases
        if not found:
            return
        ((_, lease),) = found
        x = float(lease.params["x"])
        ending = Ending(kind="complete", values={"loss": x / 2 + 1 / lease.budget_to, "joules": x * lease.budget_to})
        async with pool.connection() as conn:
            key = LeaseKey(task_id=lease.task_id, epoch=lease.epoch, secret=lease.secret)
            assert (await tasks.finish(conn, [(key, ending)], owed))[0] == ["accepted"]


async def kept(pool: Pool, study_id: Any) -> dict[tuple[int, int], tuple[Any, Any, Any]]:
    """Values, score and worth of every result that was measured."""
    sql = """SELECT trial_no, level, result."values", score, worth FROM result JOIN task ON task.id = task_id
             WHERE task.study_id = %s AND result.status = 'ok'"""
    async with pool.connection() as conn:
        rows = await (await conn.execute(sql, [study_id])).fetchall()
    return {(row[0], row[1]): (row[2], row[3], row[4]) for row in rows}


def test_worth_and_score_are_those_of_the_newest_preference_in_the_same_transaction(in_store: InStore) -> None:
    async def body(pool: Pool) -> None:
        spec = decode_study(SPEC)
        async with pool.connection() as conn:
            row = await deciding.create(conn, spec, mapping=encode(spec), trainable="f")
        assert row is not None
        decider = Decider(pool, Bell())
        await run(pool, decider, row.id)
        before = await kept(pool, row.id)
        assert len(before) > 9

        async def check(desirability: dict[str, Any]) -> dict[tuple[int, int], tuple[Any, Any, Any]]:
            """Everything is worth what the preference says now, by a judge of its own."""
            other, found = decode_study(SPEC | {"desirability": desirability}), await kept(pool, row.id)
            search = await decider.search(row.id)
            judge = Judge(search, {task: values for task, (values, _, _) in sorted(found.items())})
            for (trial, level), (values, score, worth) in found.items():
                wanted = overall(other, values, search.trial(trial).configuration)
                assert worth["D"] == pytest.approx(wanted.overall) and worth["limiting"] == wanted.limiting
                assert worth["d"] == pytest.approx(dict(wanted.parts))
                assert (
                    worth["y"]["size"] == search.trial(trial).configuration["x"]
                    and worth["y"]["loss"] == values["loss"]
                )
                assert score == pytest.approx(judge.score(trial, level, values), rel=1e-6)
            return found

        await check(WISHES)
        wider = WISHES | {"loss": {"shape": "smaller", "target": 0.2, "limit": 2, "importance": 3}}
        async with pool.connection() as conn:
            await decider.prefer(conn, row.id, wider)
        after = await check(wider)
        assert {task: values for task, (values, _, _) in after.items()} == {t: v for t, (v, _, _) in before.items()}
        assert [worth for _, _, worth in after.values()] != [worth for _, _, worth in before.values()]
        async with pool.connection() as conn:
            versions = await preferences.versions(conn, row.id)
            assert [version for version, _, _ in versions] == [1, 2]
            assert versions[1][2] == (await studies.by_name(conn, "default", "w")).next_seq - 2, (
                "one event since: rescored"
            )

    in_store(body)


def test_a_preference_that_is_refused_changes_no_row(in_store: InStore) -> None:
    async def body(pool: Pool) -> None:
        spec = decode_study(SPEC)
        async with pool.connection() as conn:
            row = await deciding.create(conn, spec, mapping=encode(spec), trainable="f")
        assert row is not None
        decider = Decider(pool, Bell())
        await run(pool, decider, row.id, most=3)
        before = await kept(pool, row.id)
        with pytest.raises(Exception, match="latency is a metric that not every result has"):
            async with pool.connection() as conn:
                await decider.prefer(conn, row.id, {"latency": {"shape": "smaller", "target": 1, "limit": 2}})
        assert await kept(pool, row.id) == before
        async with pool.connection() as conn:
            assert await preferences.versions(conn, row.id) == []

    in_store(body)
