"""What waits for a slot, as pools and autoscalers are told it, on a real Postgres."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from isoloss.controller import decider as deciding
from isoloss.controller import demand as demanding
from isoloss.controller.decider import Decider
from isoloss.controller.demand import Demand
from isoloss.controller.duty import Bell
from isoloss.domain.ids import StudyId
from isoloss.domain.lease import Ending, LeaseKey
from isoloss.domain.spec import decode_study, encode
from isoloss.search.events import Deepened
from isoloss.store import projects, tasks
from isoloss.store.pool import Pool
from isoloss.store.tasks import Lease, Want

InStore = Callable[[Callable[[Pool], Awaitable[Any]]], Any]
ANY = {"everything": True, "gpus": 2, "most_gpus": 8}


async def study(pool: Pool, name: str, trainable: str = "function:m:f", **changes: Any) -> StudyId:
    base = {
        "name": name, "space": {"x": {"type": "float", "low": 0, "high": 1}}, "objective": {"metric": "loss"},
        "method": {"name": "fixed", "budget": 3, "sampler": "random"}, "limits": {"trials": 5},
    }  # fmt: skip
    mapping = encode(decode_study(base | changes))
    async with pool.connection() as conn:
        row = await deciding.create(conn, decode_study(mapping), mapping=mapping, trainable=trainable)
    assert row is not None
    return row.id


async def leased(decider: Decider, study_id: StudyId, n: int) -> list[Lease]:
    decided = await decider.decide(study_id, wants=[Want(holder="w", incarnation="i", n=n)])
    return [lease for _, lease in decided.leases]


async def end(pool: Pool, leases: list[Lease], decider: Decider) -> None:
    said = [
        (LeaseKey(task_id=one.task_id, epoch=one.epoch, secret=one.secret), Ending(kind="complete", values={"loss": 1.0}))
        for one in leases
    ]  # fmt: skip
    async with pool.connection() as conn:
        verdicts, _ = await tasks.finish(conn, said, decider.specs.owed)
    assert set(verdicts) <= {"accepted"}


def test_what_a_study_would_create_is_wanted_before_anybody_asked_for_it_and_no_longer_than_it_lasts(
    in_store: InStore,
) -> None:
    async def body(pool: Pool) -> None:
        decider = Decider(pool, Bell())
        demand, one = Demand(decider), await study(pool, "one")
        assert await demand.workers(ANY, 1, "") == 5 and await demand.workers(ANY, 4, "") == 2
        held = await leased(decider, one, 3)
        assert await demand.workers(ANY, 1, "") == 2 and await demand.slots() == {("default", "function:m:f", 0): 5}
        await decider.decide(one, ask=1)  # one is ready now: it waits as the other does
        assert await demand.workers(ANY, 1, "") == 2
        held += await leased(decider, one, 5)
        assert await demand.workers(ANY, 1, "") == 0 and await demand.slots() == {("default", "function:m:f", 0): 5}
        await end(pool, held, decider)
        await decider.decide(one)
        assert await demand.workers(ANY, 1, "") == 0 and await demand.slots() == {}, "idle"

    in_store(body)


def test_what_a_worker_may_not_run_or_is_anothers_or_beyond_a_limit_is_not_wanted(in_store: InStore) -> None:
    async def body(pool: Pool) -> None:
        demand = Demand(Decider(pool, Bell()))
        await study(pool, "theirs", project="b", run={"function": "m:f", "gpus": 4})
        await study(pool, "own", trainable="")  # its own program asks
        assert await demand.workers(ANY | {"everything": False}, 4, "") == 0
        assert await demand.workers(ANY | {"everything": False, "functions": ["m:f"]}, 4, "") == 3, "two slots each"
        assert await demand.workers(ANY | {"most_gpus": 2}, 4, "") == 0, "too small"
        assert await demand.workers(ANY, 4, "a") == 0 and await demand.workers(ANY, 4, "b") == 3
        assert await demand.slots() == {("b", "function:m:f", 4): 20}
        async with pool.connection() as conn:
            await projects.set_share(conn, "b", weight=1.0, most=1)
        assert await demand.workers(ANY, 4, "b") == 1
        await study(pool, "poor", project="c", limits={"total_budget": 7, "trials": 5})
        assert await demand.workers(ANY, 1, "c") == 2, "each takes three of seven"

    in_store(body)


def test_what_is_known_of_a_study_is_asked_again_when_its_ledger_moves_or_after_a_while(
    in_store: InStore, monkeypatch: Any
) -> None:
    async def body(pool: Pool) -> None:
        decider = Decider(pool, Bell())
        demand, one, looked = (
            Demand(decider),
            await study(
                pool, "one", method={"min_budget": 1, "max_budget": 3}, limits={"trials": 5, "total_budget": 1000}
            ),
            list[StudyId](),
        )
        looks = decider.startable

        async def startable(study_id: StudyId, most: int) -> int:
            looked.append(study_id)
            return await looks(study_id, most)

        monkeypatch.setattr(decider, "startable", startable)
        for _ in range(3):
            assert await demand.workers(ANY, 1, "") == 3
        assert looked == [one]
        await decider.decide(one, events=[Deepened(max_budget=9)])
        assert await demand.workers(ANY, 1, "") == 5 and looked == [one, one]
        monkeypatch.setattr(demanding, "KEPT_SECONDS", 0.0)
        await demand.slots()
        assert looked == [one, one, one]
        held = await leased(decider, one, 2)
        await end(pool, held, decider)
        await decider.decide(one)
        other = Decider(pool, Bell())  # another controller, which has folded nothing of it yet
        assert await Demand(other).workers(ANY, 1, "") == await demand.workers(ANY, 1, "") > 0
        assert (await other.decide(one, ask=9)).seq == (await decider.decide(one)).seq, "looking changed no fold"

    in_store(body)
