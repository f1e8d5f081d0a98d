"""The lease state machine on a real Postgres: I1–I7, I12–I15, I18."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

import psycopg
import pytest

from isoloss.controller import decider as deciding
from isoloss.controller.decider import Decider
from isoloss.controller.duty import Bell
from isoloss.domain.curve import Series, series_of
from isoloss.domain.lease import Checkpoint, Ending, LeaseKey
from isoloss.domain.spec import decode_study, encode
from isoloss.domain.task import MAX_INFRA_FAILURES, NEXT, TERMINAL, TaskState
from isoloss.errors import InvalidSpec, StoreUnavailable, WrongState
from isoloss.search.events import Deepened, Stopped, TrialAdded
from isoloss.store import curves, ledger, studies, tasks, workers
from isoloss.store.pool import Pool
from isoloss.store.tasks import Lease, Want

InStore = Callable[[Callable[[Pool], Awaitable[Any]]], Any]
TTL = timedelta(seconds=30)
GONE = timedelta(seconds=-1)


def spec(**changes: Any) -> dict[str, Any]:
    base: dict[str, Any] = {
        "name": "s", "space": {"x": {"type": "float", "low": 0, "high": 1}}, "objective": {"metric": "loss"},
        "method": {"min_budget": 1, "max_budget": 9},
    }  # fmt: skip
    whole: dict[str, Any] = encode(decode_study(base | changes))
    return whole


async def study(pool: Pool, **changes: Any) -> tuple[Decider, Any]:
    mapping = spec(**changes)
    async with pool.connection() as conn:
        row = await deciding.create(conn, decode_study(mapping), mapping=mapping, trainable="gpt")
    assert row is not None
    return Decider(pool, Bell()), row


async def lease(pool: Pool, study_id: Any, n: int = 1, *, worker: str = "w", ttl: timedelta = TTL) -> list[Lease]:
    async with pool.connection() as conn:
        return await tasks.describe(
            conn, await tasks.lease_next(conn, [study_id], [Want(holder=worker, incarnation="i", n=n)], ttl)
        )


def key(found: Lease, **changes: Any) -> LeaseKey:
    given: dict[str, Any] = {"task_id": found.task_id, "epoch": found.epoch, "secret": found.secret} | changes
    return LeaseKey(**given)


def done(loss: float) -> Ending:
    return Ending(kind="complete", values={"loss": loss})


async def finish(pool: Pool, which: LeaseKey, ending: Ending) -> str:
    async with pool.connection() as conn:
        (verdict,), _ = await tasks.finish(conn, [(which, ending)], owed)
        return verdict


async def points_of(conn: Any, study_id: Any, metric: str) -> list[tuple[int, float]]:
    """One metric of a study's first trial."""
    found, more = await curves.page(conn, study_id, 0)
    assert not more
    return [(step, values[metric]) for step, values in found if metric in values]


async def owed(conn: Any, study_id: Any, version: int) -> tuple[str, ...]:
    return ("loss",)


async def fingerprint(pool: Pool) -> list[Any]:
    """The content of every table a stale message could touch."""
    async with pool.connection() as conn:
        return [
            await (await conn.execute(f"SELECT t::text FROM {table} t ORDER BY 1".encode())).fetchall()
            for table in ("task", "lease", "attempt", "result", "metric_chunk", "checkpoint", "event")
        ]


def test_a_lease_is_granted_once_whoever_asks_at_the_same_moment(in_store: InStore) -> None:
    async def body(pool: Pool) -> None:
        decider, row = await study(pool)
        assert (await decider.decide(row.id, ask=9)).created == 9
        granted = await asyncio.gather(*(lease(pool, row.id, 2, worker=f"w{i}") for i in range(8)))
        taken = [one.task_id for some in granted for one in some]
        assert len(taken) == len(set(taken)) == 9
        assert all(one.epoch == 1 for some in granted for one in some)

    in_store(body)


def test_who_leases_leaves_the_other_tasks_to_others(in_store: InStore) -> None:
    async def body(pool: Pool) -> None:
        decider, row = await study(pool)
        await decider.decide(row.id, ask=9)
        async with pool.connection() as conn:
            mine = await tasks.lease_next(conn, [row.id], [Want(holder="w", incarnation="i", n=2)], TTL)
            theirs = await lease(pool, row.id, 9, worker="v")
        assert (len(mine), len(theirs)) == (2, 7)

    in_store(body)


def test_a_stale_epoch_or_a_wrong_secret_changes_no_row_and_is_told_so(in_store: InStore) -> None:
    async def body(pool: Pool) -> None:
        decider, row = await study(pool)
        await decider.decide(row.id, ask=1)
        (old,) = await lease(pool, row.id, ttl=GONE)
        async with pool.connection() as conn:
            assert len(await tasks.reap(conn)) == 1
        (new,) = await lease(pool, row.id)
        assert new.epoch == old.epoch + 1
        before = await fingerprint(pool)
        for forged in (key(old), key(new, secret="guess"), key(new, epoch=7), key(new, task_id=99)):
            assert await finish(pool, forged, done(0.1)) == "stale"
            async with pool.connection() as conn:
                assert await tasks.heartbeat(conn, [forged], ttl=TTL) == {}
                await curves.add(conn, [(forged, series_of([(1, {"loss": 1.0})]))])
                await tasks.add_checkpoint(conn, forged, Checkpoint(step=1, path="/x"))
        assert await fingerprint(pool) == before
        assert await finish(pool, key(new), done(0.2)) == "accepted"

    in_store(body)


def test_an_equal_repetition_is_acknowledged_and_a_different_one_is_told_that_the_first_stands(
    in_store: InStore,
) -> None:
    async def body(pool: Pool) -> None:
        decider, row = await study(pool)
        await decider.decide(row.id, ask=1)
        (found,) = await lease(pool, row.id)
        assert await finish(pool, key(found), done(0.5)) == "accepted"
        before = await fingerprint(pool)
        assert await finish(pool, key(found), done(0.5)) == "accepted"
        assert await finish(pool, key(found), done(0.6)) == "already_done"
        assert await fingerprint(pool) == before

    in_store(body)


def test_a_lost_lease_reply_is_sent_again_under_a_new_secret(in_store: InStore) -> None:
    async def body(pool: Pool) -> None:
        decider, row = await study(pool)
        await decider.decide(row.id, ask=1)
        (lost,) = await lease(pool, row.id)
        async with pool.connection() as conn:
            knows, forgot = (Want(holder="w", incarnation="i", holding=held) for held in ([lost.task_id], []))
            assert await tasks.reclaim(conn, [row.id], [knows], TTL) == []
            (again,) = await tasks.describe(conn, await tasks.reclaim(conn, [row.id], [forgot], TTL))
        assert (again.task_id, again.epoch) == (lost.task_id, lost.epoch) and again.secret != lost.secret
        assert await finish(pool, key(lost), done(0.1)) == "stale"
        assert await finish(pool, key(again), done(0.1)) == "accepted"

    in_store(body)


def test_an_exception_is_retried_twice_and_then_the_task_has_failed(in_store: InStore) -> None:
    async def body(pool: Pool) -> None:
        decider, row = await study(pool)
        await decider.decide(row.id, ask=1)
        for attempt in range(3):
            async with pool.connection() as conn:
                await conn.execute("UPDATE task SET not_before = now() WHERE state = 'ready'")
            (found,) = await lease(pool, row.id)
            assert found.epoch == attempt + 1
            assert await finish(pool, key(found), Ending(kind="fail", message="boom")) == "accepted"
        assert await lease(pool, row.id) == []
        decided = await decider.decide(row.id)
        assert decided.results == 1
        search = await decider.search(row.id)
        assert search.best() is None and search.outstanding == 0

    in_store(body)


def test_a_task_that_takes_many_workers_with_it_is_failed_and_the_study_goes_on(in_store: InStore) -> None:
    async def body(pool: Pool) -> None:
        decider, row = await study(pool)
        await decider.decide(row.id, ask=1)
        for _ in range(MAX_INFRA_FAILURES):
            assert len(await lease(pool, row.id, ttl=GONE)) == 1
            async with pool.connection() as conn:
                await tasks.reap(conn)
        assert await lease(pool, row.id) == []
        assert (await decider.decide(row.id, ask=1)).created == 1

    in_store(body)


def test_a_metric_that_is_missing_fails_at_once_and_one_that_is_nan_diverges(in_store: InStore) -> None:
    async def body(pool: Pool) -> None:
        decider, row = await study(pool)
        await decider.decide(row.id, ask=2)
        first, second = await lease(pool, row.id, 2)
        await finish(pool, key(first), Ending(kind="complete", values={"acc": 1.0}))
        await finish(pool, key(second), done(float("nan")))
        async with pool.connection() as conn:
            rows = await studies.trials(conn, row.id)
        states = {r["state"]: r["message"] for r in rows}
        assert set(states) == {"failed", "diverged"}
        assert "without its metric loss (it reported acc)" in states["failed"]
        await decider.decide(row.id)
        async with pool.connection() as conn:
            scores = await (await conn.execute("SELECT score FROM result")).fetchall()
        assert scores == [(None,), (None,)]

    in_store(body)


def test_after_an_outage_leases_are_extended_before_anything_is_reaped(in_store: InStore) -> None:
    async def body(pool: Pool) -> None:
        decider, row = await study(pool)
        await decider.decide(row.id, ask=1)
        await lease(pool, row.id, ttl=GONE)
        async with pool.connection() as conn:
            await conn.execute("UPDATE control_plane SET beat_at = now() - interval '1 hour'")
            assert await tasks.beat(conn, TTL)
            assert await tasks.reap(conn) == []
            assert not await tasks.beat(conn, TTL)

    in_store(body)


def test_the_newest_complete_checkpoint_of_the_trial_is_where_it_resumes(in_store: InStore) -> None:
    async def body(pool: Pool) -> None:
        decider, row = await study(pool, method={"min_budget": 10, "max_budget": 90})
        await decider.decide(row.id, ask=1)
        (found,) = await lease(pool, row.id, ttl=GONE)
        async with pool.connection() as conn:
            await tasks.add_checkpoint(conn, key(found), Checkpoint(step=4, path="/four"))
            await tasks.add_checkpoint(conn, key(found), Checkpoint(step=7, path="/seven", manifest={"a": 1}))
            await tasks.reap(conn)
        (again,) = await lease(pool, row.id)
        assert (again.budget_from, again.resume_from, again.budget_to) == (7, "/seven", 10)

    in_store(body)


def test_curves_are_read_in_pages_that_end_between_steps(in_store: InStore) -> None:
    async def body(pool: Pool) -> None:
        decider, row = await study(pool)
        await decider.decide(row.id, ask=1)
        (found,) = await lease(pool, row.id)
        points = [(step, {"a": float(step), "b": -float(step)}) for step in (1, 2, 3, 5, 8)]
        async with pool.connection() as conn:
            for part in (points[:2], points[2:]):
                await curves.add(conn, [(key(found), series_of(part))])
            read, more, begin = [], True, 0
            while more:
                page, more = await curves.page(conn, row.id, 0, begin, most=3)
                assert 1 <= len(page) <= 2
                read += page
                begin = read[-1][0] + 1
            assert read == points
            assert await curves.page(conn, row.id, 0, 6) == (points[-1:], False)
            assert await curves.page(conn, row.id, 0, 9) == ([], False)

    in_store(body)


def test_a_checkpoint_that_is_lost_is_dropped_and_the_trial_goes_on_from_the_one_before(in_store: InStore) -> None:
    async def body(pool: Pool) -> None:
        decider, row = await study(pool, method={"min_budget": 10, "max_budget": 90})
        await decider.decide(row.id, ask=2)
        (other,), (first,) = await lease(pool, row.id), await lease(pool, row.id, ttl=GONE)
        async with pool.connection() as conn:
            await workers.register(conn, worker_id="w", incarnation="", host="gpu-1", slots=1, device="cpu", allowed={})
            await tasks.add_checkpoint(conn, key(first), Checkpoint(step=4, path="/four"))
            await tasks.add_checkpoint(conn, key(first), Checkpoint(step=7, path="/seven"))
            await tasks.reap(conn)
        (second,) = await lease(pool, row.id)
        assert (second.resume_from, second.resume_host) == ("/seven", "gpu-1")
        async with pool.connection() as conn:
            mine = Ending(kind="release", message="?", lost="/seven")
            await tasks.finish(conn, [(key(other), mine)], owed)
            assert (await tasks.describe(conn, [(second.task_id, "", "w")]))[0].resume_from == "/seven", (
                "another trial's"
            )
            await tasks.finish(conn, [(key(second), Ending(kind="release", message="torn", lost="/seven"))], owed)
        third = next(found for found in await lease(pool, row.id, 2) if found.task_id == second.task_id)
        assert (third.task_id, third.resume_from, third.budget_from) == (second.task_id, "/four", 4), "at once"

    in_store(body)


def test_a_task_that_goes_on_with_every_worker_it_loses_is_not_what_kills_them(in_store: InStore) -> None:
    async def body(pool: Pool) -> None:
        decider, row = await study(pool, method={"min_budget": 10, "max_budget": 90})
        await decider.decide(row.id, ask=1)
        for saved in (2, 4, 6, 6, 8, 5):  # each of these workers is killed after it saved
            (found,) = await lease(pool, row.id, ttl=GONE)
            async with pool.connection() as conn:
                await tasks.add_checkpoint(conn, key(found), Checkpoint(step=saved, path=f"/{found.epoch}"))
                await tasks.reap(conn)
        async with pool.connection() as conn:
            counted = await (await conn.execute("SELECT infra_failures FROM task")).fetchone()
        assert counted == (2,), "those that saved nothing new"
        for _ in range(MAX_INFRA_FAILURES - 2):
            await lease(pool, row.id, ttl=GONE)
            async with pool.connection() as conn:
                await tasks.reap(conn)
        async with pool.connection() as conn:
            ended = await (await conn.execute("SELECT state::text FROM task")).fetchone()
        assert ended == ("failed",)

    in_store(body)


def test_a_task_that_a_worker_cannot_run_waits_for_another_and_counts_no_failure(in_store: InStore) -> None:
    async def body(pool: Pool) -> None:
        decider, row = await study(pool)
        await decider.decide(row.id, ask=1)
        (found,) = await lease(pool, row.id)
        async with pool.connection() as conn:
            await tasks.finish(conn, [(key(found), Ending(kind="release", message="I do not see it."))], owed)
            assert await studies.given_back(conn, row.id) == [(found.trial_no, "I do not see it.")]
            counted = await (await conn.execute("SELECT failures, infra_failures FROM task")).fetchone()
        assert counted == (0, 0) and await lease(pool, row.id) == [], "not at once"

    in_store(body)


def test_points_delivered_twice_and_out_of_order_give_the_same_curve(in_store: InStore) -> None:
    async def body(pool: Pool) -> None:
        decider, row = await study(pool)
        await decider.decide(row.id, ask=1)
        (found,) = await lease(pool, row.id)
        batches = [[(1, {"loss": 3.0}), (2, {"loss": 2.0})], [(3, {"loss": 1.0})]]
        async with pool.connection() as conn:
            for points in (batches[1], batches[0], batches[1], batches[0]):
                await curves.add(conn, [(key(found), series_of(points))])
            assert await points_of(conn, row.id, "loss") == [(1, 3.0), (2, 2.0), (3, 1.0)]

    in_store(body)


def test_only_the_listed_moves_exist_in_postgres_too(in_store: InStore) -> None:
    async def body(pool: Pool) -> None:
        decider, row = await study(pool)
        await decider.decide(row.id, ask=1)
        for before in TaskState:
            for after in set(TaskState) - {before}:
                async with pool.connection() as conn:
                    await conn.execute("ALTER TABLE task DISABLE TRIGGER task_moves")
                    ended = "now()" if before in TERMINAL else "NULL"
                    await conn.execute(f"UPDATE task SET state = '{before}', ended_at = {ended}".encode())
                    await conn.execute("ALTER TABLE task ENABLE TRIGGER task_moves")
                epoch = "epoch + 1" if (before, after) == (TaskState.READY, TaskState.LEASED) else "epoch"
                ended = "now()" if after in TERMINAL else "NULL"
                move = f"UPDATE task SET state = '{after}', epoch = {epoch}, ended_at = {ended}".encode()
                if after in NEXT[before]:
                    async with pool.connection() as conn:
                        await conn.execute(move)
                else:
                    with pytest.raises(psycopg.errors.CheckViolation):
                        async with pool.connection() as conn:
                            await conn.execute(move)

    in_store(body)


def test_the_ledger_has_no_gap_and_folds_to_the_same_search_in_any_controller(in_store: InStore) -> None:
    async def body(pool: Pool) -> None:
        one, row = await study(pool)
        other = Decider(pool, Bell())
        finished = 0
        while True:
            await asyncio.gather(one.decide(row.id, ask=1), other.decide(row.id, ask=2))
            found = await lease(pool, row.id, 5)
            if not found:
                break
            for one_lease in found:
                finished += 1
                await finish(pool, key(one_lease), done(one_lease.params["x"]))
        async with pool.connection() as conn:
            events = await ledger.events(conn, row.id)
            undecided = await ledger.undecided(conn, row.id)
        assert [seq for seq, *_ in events] == list(range(1, len(events) + 1)) and not undecided
        assert sum(kind == "task_done" for _, kind, _, _ in events) == finished
        fresh = await Decider(pool, Bell()).search(row.id)
        assert fresh.snapshot() == (await one.search(row.id)).snapshot() == (await other.search(row.id)).snapshot()
        async with pool.connection() as conn:
            stored = await studies.by_name(conn, "default", "s")
        assert stored.reserved == 0 and stored.spent > 0 and stored.state == "idle"

    in_store(body)


def test_deepening_loses_nothing_and_a_stopped_study_takes_nothing_more(in_store: InStore) -> None:
    async def body(pool: Pool) -> None:
        decider, row = await study(pool)
        await decider.decide(row.id, ask=3)
        await decider.decide(row.id, events=[Deepened(max_budget=27)])
        found = await lease(pool, row.id, 3)
        assert len(found) == 3
        await decider.decide(row.id, ask=1, events=[TrialAdded(configuration={"x": 0.5})])
        await decider.decide(row.id, events=[Stopped(reason="enough")])
        async with pool.connection() as conn:
            stored = await studies.by_name(conn, "default", "s")
            held = await tasks.heartbeat(conn, [key(one) for one in found], ttl=TTL)
            states = {r["state"] for r in await studies.trials(conn, row.id)}
        assert (stored.state, stored.reserved, stored.max_budget) == ("stopped", 0, 27)
        assert set(held.values()) == {TaskState.CANCELLING} and states == {"cancelling", "cancelled"}
        assert await finish(pool, key(found[0]), Ending(kind="release")) == "accepted"
        with pytest.raises(WrongState, match="is stopped"):
            await decider.decide(row.id, events=[Deepened(max_budget=81)])

    in_store(body)


def test_the_cap_on_the_budget_is_never_passed_and_stops_the_study(in_store: InStore) -> None:
    async def body(pool: Pool) -> None:
        decider, row = await study(pool, limits={"total_budget": 7})
        while (await decider.decide(row.id, ask=4)).created:
            for found in await lease(pool, row.id, 9):
                await finish(pool, key(found), done(found.params["x"]))
        async with pool.connection() as conn:
            stored = await studies.by_name(conn, "default", "s")
        assert stored.state == "stopped" and stored.spent <= 7 and stored.reserved == 0

    in_store(body)


def test_a_longer_repetition_of_a_batch_brings_its_new_points(in_store: InStore) -> None:
    async def body(pool: Pool) -> None:
        decider, row = await study(pool)
        await decider.decide(row.id, ask=1)
        (found,) = await lease(pool, row.id)
        points = [(step, {"loss": float(step)}) for step in range(1, 6)]
        async with pool.connection() as conn:
            for batch in (points[:3], points, points[:3]):  # the first reply was lost, more had come in between
                await curves.add(conn, [(key(found), series_of(batch))])
            assert await points_of(conn, row.id, "loss") == [(s, float(s)) for s in range(1, 6)]

    in_store(body)


def test_an_added_trial_that_does_not_fit_below_the_cap_is_refused_in_words(in_store: InStore) -> None:
    async def body(pool: Pool) -> None:
        decider, row = await study(pool, limits={"total_budget": 5})
        with pytest.raises(WrongState, match="a trial that fits below it"):
            await decider.decide(row.id, events=[TrialAdded(configuration={"x": 0.5})])
        assert (await decider.decide(row.id, ask=1)).created == 1

    in_store(body)


@pytest.mark.parametrize(("loss", "verdict"), [(0.5, "accepted"), (0.7, "already_done")])
def test_two_endings_of_one_lease_at_the_same_moment_are_one_and_its_repetition(
    in_store: InStore, loss: float, verdict: str
) -> None:
    async def body(pool: Pool) -> None:
        decider, row = await study(pool)
        await decider.decide(row.id, ask=1)
        (found,) = await lease(pool, row.id)

        async def again() -> tasks.Ended:
            async with pool.connection() as conn:
                return await tasks.finish(conn, [(key(found), done(loss))], owed)

        async with pool.connection() as conn:
            assert (await tasks.finish(conn, [(key(found), done(0.5))], owed)).verdicts == ["accepted"]
            second = asyncio.create_task(again())
            await asyncio.sleep(0.2)
            assert not second.done(), "it waits for the row"
        assert await second == ([verdict], {}), "it ended nothing"

    in_store(body)


def test_a_task_that_failed_is_not_leased_again_before_its_time(in_store: InStore) -> None:
    async def body(pool: Pool) -> None:
        decider, row = await study(pool)
        await decider.decide(row.id, ask=1)
        (found,) = await lease(pool, row.id)
        assert await finish(pool, key(found), Ending(kind="fail", message="boom")) == "accepted"
        assert await lease(pool, row.id) == []
        async with pool.connection() as conn:
            await conn.execute("UPDATE task SET not_before = now()")
        assert len(await lease(pool, row.id)) == 1

    in_store(body)


def test_what_a_transaction_that_failed_had_decided_is_forgotten(
    in_store: InStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def body(pool: Pool) -> None:
        decider, row = await study(pool)
        await decider.decide(row.id, ask=1)
        with monkeypatch.context() as patch:
            patch.setattr(studies, "update", unreachable)
            with pytest.raises(StoreUnavailable):
                await decider.decide(row.id, ask=2)
        assert (await decider.decide(row.id, ask=1)).created == 1
        async with pool.connection() as conn:
            assert {r["no"] for r in await studies.trials(conn, row.id)} == {0, 1}

    in_store(body)


async def unreachable(*_: Any, **__: Any) -> None:
    raise StoreUnavailable("gone")


def test_a_curve_keeps_its_steps_even_or_not_and_what_was_said_last_of_a_step(in_store: InStore) -> None:
    async def body(pool: Pool) -> None:
        decider, row = await study(pool)
        await decider.decide(row.id, ask=1)
        (found,) = await lease(pool, row.id)
        said = [(s, {"loss": float(s)}) for s in (10, 20, 30)] + [(35, {"loss": 1e300, "lr": 0.5}), (35, {"loss": 2.0})]
        async with pool.connection() as conn:
            await curves.add(conn, [(key(found), series_of(said)), (key(found), series_of([(40, {"loss": 1e300})]))])
            points = await points_of(conn, row.id, "loss")
            assert points == [(10, 10.0), (20, 20.0), (30, 30.0), (35, 2.0), (40, float("inf"))]
            assert await points_of(conn, row.id, "lr") == [(35, 0.5)]
            kept = await (await conn.execute("SELECT steps FROM metric_chunk ORDER BY metric, step0")).fetchall()
        assert kept == [([10, 20, 30, 35],), (None,), (None,)]

    in_store(body)
    for wrong in (Series("m", 1, 0, (), ()), Series("m", 1, 0, (), (1.0, 2.0)), Series("m", 1, 0, (1, 1), (1.0, 2.0)),
                  Series("m", 1, 0, (1,), (1.0, 2.0)), Series("m", -1, 1, (), (1.0, 2.0)),
                  Series("m", 1, 0, (5,), (1.0,)), Series("m", 1, 2**63 - 1, (), (1.0, 2.0))):  # fmt: skip
        with pytest.raises(InvalidSpec, match="series of 'm'"):
            wrong.checked()


def test_who_stands_beside_a_forged_key_in_one_transaction_is_heard_and_the_forger_is_not(in_store: InStore) -> None:
    async def body(pool: Pool) -> None:
        decider, row = await study(pool)
        await decider.decide(row.id, ask=1)
        (found,) = await lease(pool, row.id)
        forged = key(found, secret="guess")
        async with pool.connection() as conn:
            assert set(await tasks.heartbeat(conn, [forged, key(found)], ttl=TTL)) == {key(found)}
            verdicts, _ = await tasks.finish(conn, [(forged, done(0.1)), (key(found), done(0.2))], owed)
        assert verdicts == ["already_done", "accepted"], "the forger is told that another result stands"
        async with pool.connection() as conn:
            assert await (await conn.execute('SELECT "values" FROM result')).fetchall() == [({"loss": 0.2},)]

    in_store(body)


def test_who_tells_and_asks_again_gets_the_lease_that_followed_even_of_the_same_task(in_store: InStore) -> None:
    async def body(pool: Pool) -> None:
        decider, row = await study(pool)
        ((_, first),) = (await decider.decide(row.id, wants=[Want(holder="lost")])).leases
        given_back = key(first), Ending(kind="release")
        assert await finish(pool, *given_back) == "accepted"
        ((_, second),) = (await decider.decide(row.id, wants=[Want(holder="lost", again=True)])).leases
        assert (second.task_id, second.epoch) == (first.task_id, 2)
        decided = await decider.decide(row.id, wants=[Want(holder="lost", said=[given_back], again=True)])
        ((_, again),) = decided.leases
        assert decided.verdicts == (("accepted",),) and (again.task_id, again.epoch) == (second.task_id, 2)

    in_store(body)


def test_who_asks_again_for_a_lost_reply_gets_that_lease_and_no_second_one(in_store: InStore) -> None:
    async def body(pool: Pool) -> None:
        decider, row = await study(pool)
        await decider.decide(row.id, ask=3)  # three wait
        asking = Want(holder="lost", again=True)
        ((_, first),) = (await decider.decide(row.id, wants=[asking])).leases
        ((_, again),) = (await decider.decide(row.id, wants=[asking])).leases
        assert (again.task_id, again.epoch) == (first.task_id, first.epoch) and again.secret != first.secret

    in_store(body)


def test_values_that_32_bits_do_not_hold_are_kept_as_what_is_nearest(in_store: InStore) -> None:
    async def body(pool: Pool) -> None:
        decider, row = await study(pool)
        await decider.decide(row.id, ask=1)
        (found,) = await lease(pool, row.id)
        points = [(1, {"m": 1e-300}), (2, {"m": -1e300}), (3, {"m": float("nan")}), (4, {"m": 0.5})]
        async with pool.connection() as conn:
            await curves.add(conn, [(key(found), series_of(points))])
            kept = dict(await points_of(conn, row.id, "m"))
        assert (kept[1], kept[2], kept[4]) == (0.0, float("-inf"), 0.5) and kept[3] != kept[3]

    in_store(body)
