"""N controllers on one Postgres are one controller, as far as an observer can tell (I1–I4, I8, I10, I11, I19)."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

import psycopg
import pytest

from isoloss.controller import decider as deciding
from isoloss.controller.decider import Decider
from isoloss.controller.dispatch import Dispatcher
from isoloss.controller.duty import Bell
from isoloss.controller.reaper import Reaper
from isoloss.domain.spec import decode_study, encode
from isoloss.domain.study import StudyState
from isoloss.errors import IsolossError
from isoloss.store import ledger, studies
from isoloss.store.pool import Pool
from isoloss.store.tasks import Lease, Want
from isoloss.testing.oracles import violations
from isoloss.v1 import common_pb2 as pb

InStore = Callable[[Callable[[Pool], Awaitable[Any]]], Any]
TTL = timedelta(seconds=0.6)
SPEC = {
    "name": "shared", "space": {"x": {"type": "float", "low": 0, "high": 1}}, "objective": {"metric": "loss"},
    "method": {"min_budget": 1, "max_budget": 27, "width": 6},
}  # fmt: skip


class Controller:
    """Everything a controller is but its listener, in this process: killed by cancelling it at any await."""

    def __init__(self, pool: Pool) -> None:
        bell = Bell()
        self.decider = Decider(pool, bell, TTL)
        self.dispatcher = Dispatcher(pool, self.decider, bell, TTL)
        self.reaper = Reaper(pool, bell, TTL)
        self.calls: set[asyncio.Task[Any]] = set()

    async def call(self, coroutine: Awaitable[Any]) -> Any:
        """A call that dies with its controller."""
        task = asyncio.ensure_future(coroutine)
        self.calls.add(task)
        task.add_done_callback(self.calls.discard)
        return await task

    def kill(self) -> None:
        """As a power cut would: whatever is under way ends where it is."""
        for call in [*self.calls, *(line._passes for line in self._lines() if line._passes)]:
            call.cancel()

    def _lines(self) -> list[Any]:
        d = self.dispatcher
        return [d._endings, d._beats, d._curves, d._slots, *d._asks.values()]


async def work(name: int, house: list[Controller], rng: random.Random, acks: list[tuple[int, float]]) -> None:
    """Ask any controller, run for a moment, tell any other; sometimes say it twice, or die without a word."""
    refused = 0
    while refused < 40:
        lease = None
        with contextlib.suppress(IsolossError, asyncio.CancelledError):
            want = Want(holder=f"w{name}-{rng.random()}")
            one = rng.choice(house)
            lease, _ = await one.call(one.dispatcher.ask("default", "shared", want, 0.2))
        if lease is StudyState.IDLE:
            return
        if not isinstance(lease, Lease) or rng.random() < 0.1:
            refused += lease is None
            continue
        await asyncio.sleep(rng.random() * 0.01)
        loss = float(lease.params["x"]) + lease.level
        ending = pb.Ending(key=pb.LeaseKey(task_id=lease.task_id, epoch=lease.epoch, secret=lease.secret))
        ending.complete.values["loss"] = loss
        for _ in range(1 + (rng.random() < 0.2)):
            with contextlib.suppress(IsolossError, asyncio.CancelledError):
                one = rng.choice(house)
                (said,) = await one.call(one.dispatcher.finish([ending]))
                if said.verdict == pb.VERDICT_ACCEPTED:
                    acks.append((lease.task_id, loss))


async def storm(house: list[Controller], pool: Pool, rng: random.Random) -> None:
    """Controllers are killed and come back without what they knew."""
    while True:
        await asyncio.sleep(0.03 + 0.1 * rng.random())
        place = rng.randrange(len(house))
        house[place].kill()
        house[place] = Controller(pool)
        with contextlib.suppress(IsolossError):
            await house[place].reaper.once()
            await house[place].decider.once()


@pytest.mark.parametrize("seed", [1, 2])
def test_three_controllers_that_are_killed_at_any_await_are_one(in_store: InStore, dsn: str, seed: int) -> None:
    async def body(pool: Pool) -> None:
        mapping = encode(decode_study(SPEC))
        async with pool.connection() as conn:
            row = await deciding.create(conn, decode_study(SPEC), mapping=mapping, trainable="")
        assert row is not None
        rng, acks = random.Random(seed), []  # type: ignore[var-annotated]
        house = [Controller(pool) for _ in range(3)]
        trouble = asyncio.create_task(storm(house, pool, rng))
        workers = [asyncio.create_task(work(n, house, random.Random(seed * 100 + n), acks)) for n in range(16)]
        await asyncio.wait(workers, timeout=20)
        trouble.cancel()
        for worker in workers:
            worker.cancel()
        with psycopg.connect(dsn) as conn:
            assert violations(conn) == []
            stored: dict[int, float] = dict(
                conn.execute("SELECT task_id, (\"values\" ->> 'loss')::float8 FROM result").fetchall()
            )
            assert dict(acks) == {task: stored.get(task) for task, _ in acks}, "acknowledged"
            assert len({task for task, _ in acks}) > 30, "the storm let something through"
        async with pool.connection() as conn:
            assert (await studies.by_name(conn, "default", "shared")).state in (StudyState.IDLE, StudyState.ACTIVE)

    in_store(body)


def test_who_comes_next_begins_at_the_fold_that_was_saved_while_it_grew(
    in_store: InStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def body(pool: Pool) -> None:
        spec = decode_study(
            SPEC | {"name": "grows", "method": {"name": "fixed", "budget": 1}, "limits": {"trials": 40}}
        )
        async with pool.connection() as conn:
            row = await deciding.create(conn, spec, mapping=encode(spec), trainable="f")
        assert row is not None
        decider = Decider(pool, Bell(), TTL)
        for _ in range(6):
            await decider.decide(row.id, ask=2)
        await decider.once()
        async with pool.connection() as conn:
            (saved,) = await (await conn.execute("SELECT seq FROM snapshot")).fetchone() or (0,)
        assert saved == 6
        await decider.decide(row.id, ask=1)
        await decider.once()
        began: list[int] = []
        read = ledger.events

        async def events(conn: Any, study_id: Any, *, after: int, limit: int | None = None) -> Any:
            began.append(after)
            return await (
                read(conn, study_id, after=after) if limit is None else read(conn, study_id, after=after, limit=limit)
            )

        monkeypatch.setattr(ledger, "events", events)
        other = await Decider(pool, Bell(), TTL).search(row.id)
        assert began == [6], "one event since, which was too few to save again"
        assert other.snapshot() == (await decider.search(row.id)).snapshot()

    monkeypatch.setattr(deciding, "SNAPSHOT_LEAST", 4)
    in_store(body)


def test_a_long_ledger_is_folded_page_by_page_to_the_same_search(
    in_store: InStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def body(pool: Pool) -> None:
        spec = decode_study(SPEC | {"name": "long", "method": {"name": "fixed", "budget": 1}})
        async with pool.connection() as conn:
            row = await deciding.create(conn, spec, mapping=encode(spec), trainable="f")
        assert row is not None
        decider = Decider(pool, Bell(), TTL)
        for _ in range(7):
            await decider.decide(row.id, ask=1)
        read = ledger.events

        async def events(conn: Any, study_id: Any, *, after: int, limit: int | None = None) -> Any:
            assert limit is not None, "nothing is left to be read under the study's lock"
            return await read(conn, study_id, after=after, limit=limit)

        monkeypatch.setattr(ledger, "events", events)
        for page in (1, 3, 7, 100):
            monkeypatch.setattr(deciding, "PAGE", page)
            other = await Decider(pool, Bell(), TTL).search(row.id)
            assert other.snapshot() == (await decider.search(row.id)).snapshot()

    in_store(body)
