"""What programs tell is written in the rounds that serve their study's asks, and needs nothing of the study."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from isoloss.controller import decider as deciding
from isoloss.controller.decider import Decider
from isoloss.controller.dispatch import Dispatcher
from isoloss.controller.duty import Bell
from isoloss.controller.study_service import StudyService
from isoloss.domain.spec import decode_study, encode
from isoloss.search import events as ev
from isoloss.store import ledger, studies
from isoloss.store.pool import Pool
from isoloss.store.tasks import Lease, Want
from isoloss.v1 import common_pb2 as pb
from isoloss.v1 import study_pb2

InStore = Callable[[Callable[[Pool], Awaitable[Any]]], Any]
TTL = timedelta(seconds=30)
SPEC = {
    "name": "told", "space": {"x": {"type": "float", "low": 0, "high": 1}}, "objective": {"metric": "loss"},
    "method": {"name": "fixed", "sampler": "random", "budget": 1},
}  # fmt: skip


class House:
    """A controller's dispatcher, with one study."""

    def __init__(self, pool: Pool) -> None:
        self.pool = pool
        self.decider = Decider(pool, Bell(), TTL)
        self.dispatcher = Dispatcher(pool, self.decider, Bell(), TTL)

    async def open(self) -> House:
        spec = decode_study(SPEC)
        async with self.pool.connection() as conn:
            row = await deciding.create(conn, spec, mapping=encode(spec), trainable="")
        assert row is not None
        self.id = row.id
        return self

    async def ask(self, *endings: pb.Ending, holder: str = "me", seconds: float = 5) -> tuple[Lease, list[int]]:
        answer, acks = await self.dispatcher.ask("default", "told", Want(holder=holder), seconds, endings)
        assert isinstance(answer, Lease)
        return answer, [ack.verdict for ack in acks]

    async def tell(self, lease: Lease, loss: float = 1.0) -> list[int]:
        return [ack.verdict for ack in await self.dispatcher.tell([ending(lease, loss)])]

    async def state(self) -> tuple[int, int]:
        """Results that are durable, and those of them that were taken up."""
        async with self.pool.connection() as conn:
            rows = await conn.execute("SELECT count(*), count(decided_seq) FROM result")
            found = await rows.fetchone()
        assert found is not None
        return found[0], found[1]


def ending(lease: Lease, loss: float = 1.0) -> pb.Ending:
    key = pb.LeaseKey(task_id=lease.task_id, epoch=lease.epoch, secret=lease.secret)
    return pb.Ending(key=key, complete=pb.Ending.Complete(values={"loss": loss}))


def test_a_tell_is_taken_up_by_the_round_that_serves_the_asks(in_store: InStore) -> None:
    async def body(pool: Pool) -> None:
        house = await House(pool).open()
        lease, _ = await house.ask()
        assert await house.tell(lease) == [pb.VERDICT_ACCEPTED]
        assert await house.state() == (1, 1), "decided with it, and not after it"
        assert await house.tell(lease) == [pb.VERDICT_ACCEPTED], "told twice, done once"
        assert await house.tell(lease, 2.0) == [pb.VERDICT_ALREADY_DONE]
        assert await house.state() == (1, 1)

    in_store(body)


def test_tells_and_asks_of_one_round_are_told_apart(in_store: InStore) -> None:
    async def body(pool: Pool) -> None:
        house = await House(pool).open()
        held = [(await house.ask(holder=f"h{n}"))[0] for n in range(4)]
        forged = replace(held[3], secret="forged")
        told, (fresh, _), late, also = await asyncio.gather(
            house.tell(held[0]), house.ask(ending(held[1]), holder="h1"), house.tell(forged), house.tell(held[2])
        )
        assert told == also == [pb.VERDICT_ACCEPTED] and late == [pb.VERDICT_STALE]
        assert fresh.task_id not in {lease.task_id for lease in held}
        assert await house.state() == (3, 3)

    in_store(body)


@pytest.mark.parametrize("asks", [False, True])
def test_what_is_told_while_another_controller_decides_is_durable_at_once(in_store: InStore, asks: bool) -> None:
    async def body(pool: Pool) -> None:
        house = await House(pool).open()
        lease, _ = await house.ask()
        async with pool.connection() as other:
            await studies.lock(other, house.id)
            calling: Coroutine[Any, Any, Any] = house.ask(ending(lease)) if asks else house.tell(lease)
            telling = asyncio.create_task(calling)
            for _ in range(400):  # 4 s, less than a lock is waited for
                if (await house.state())[0]:
                    break
                await asyncio.sleep(0.01)
            assert await house.state() == (1, 0)
            if not asks:
                assert await telling == [pb.VERDICT_ACCEPTED]
        if asks:
            fresh, verdicts = await telling
            assert verdicts == [pb.VERDICT_ACCEPTED] and fresh.task_id != lease.task_id
        await house.decider.once()
        assert await house.state() == (1, 1)

    in_store(body)


def test_a_study_that_cannot_decide_keeps_no_result_from_being_written(
    in_store: InStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def body(pool: Pool) -> None:
        house = await House(pool).open()
        lease, _ = await house.ask()

        async def broken(*_: Any) -> None:
            raise RuntimeError("a fold that breaks")

        with monkeypatch.context() as patch:
            patch.setattr(ledger, "write", broken)
            assert await house.tell(lease) == [pb.VERDICT_ACCEPTED]
        assert await house.state() == (1, 0)
        await house.decider.once()
        assert await house.state() == (1, 1)

    in_store(body)


def test_a_tell_waits_for_no_history(in_store: InStore) -> None:
    async def body(pool: Pool) -> None:
        house = await House(pool).open()
        lease, _ = await house.ask()
        house.decider._cache.clear()
        async with house.decider._lock(house.id):  # as while it folds what there is
            assert await house.tell(lease) == [pb.VERDICT_ACCEPTED]

    in_store(body)


def test_what_is_shown_of_a_study_holds_every_result_there_is(in_store: InStore) -> None:
    async def body(pool: Pool) -> None:
        house = await House(pool).open()
        lease, _ = await house.ask()
        await house.dispatcher.finish([ending(lease)])
        assert await house.state() == (1, 0)
        service = StudyService(pool, house.decider, Bell(), house.dispatcher.health)
        shown = await service.GetStudy(study_pb2.StudyName(project="default", name="told"), None)
        assert (shown.spent, shown.reserved) == (1.0, 0.0) and await house.state() == (1, 1)

    in_store(body)


def test_what_is_told_to_a_stopped_study_is_kept(in_store: InStore) -> None:
    async def body(pool: Pool) -> None:
        house = await House(pool).open()
        lease, _ = await house.ask()
        await house.decider.decide(house.id, events=[ev.Stopped(reason="enough")])
        assert await house.tell(lease) == [pb.VERDICT_ACCEPTED]
        assert await house.state() == (1, 0), "the ledger is closed"

    in_store(body)
