"""A pass of leases looks at few of many studies and deals as if it had looked at all, on a real Postgres."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

import psycopg
import pytest

from isoloss.controller import decider as deciding
from isoloss.controller import dispatch
from isoloss.controller.deal import deal
from isoloss.controller.decider import Decider
from isoloss.controller.dispatch import Dispatcher
from isoloss.controller.duty import Bell
from isoloss.controller.why import slots_for
from isoloss.domain.ids import StudyId, TaskId
from isoloss.domain.lease import Ending, LeaseKey
from isoloss.domain.spec import decode_study, encode
from isoloss.store import projects, studies, tasks, workers
from isoloss.store.pool import Pool
from isoloss.store.studies import Hungry
from isoloss.store.tasks import Want
from isoloss.testing.oracles import violations
from isoloss.v1 import common_pb2 as pb

InStore = Callable[[Callable[[Pool], Awaitable[Any]]], Any]
TTL = timedelta(seconds=30)
ALLOWED = {"functions": ["m:a", "m:b"], "gpus": 1, "most_gpus": 4}, {"functions": ["m:a"], "gpus": 1, "most_gpus": 1}
SPEC = {
    "space": {"x": {"type": "float", "low": 0, "high": 1}}, "objective": {"metric": "loss"},
    "method": {"name": "fixed", "budget": 3, "sampler": "random"}, "run": {"function": "m:a"},
}  # fmt: skip


def fill(conn: psycopg.Connection, rng: random.Random) -> list[Hungry]:
    """Studies of every sort, with leases, tasks that wait and results: those that may have a task for a free slot."""
    found, task_id = [], 0
    conn.execute("SET LOCAL session_replication_role = replica")  # rows alone, without all that they refer to
    for number in range(1, 120):
        project, trainable = rng.choice("pq"), rng.choice(["function:m:a", "function:m:a", "function:m:b", ""])
        gpus, weight = rng.choice([0, 0, 4]), rng.choice([0.5, 1.0, 1.0, 3.0])
        state, startable = rng.choice(["active"] * 5 + ["paused", "idle", "stopped"]), rng.choice([0, 1, 5])
        spec = f'{{"weight": {weight}, "run": {{"gpus": {gpus}}}}}'
        conn.execute(
            "INSERT INTO study (id, project, name, spec, trainable, state, max_budget, startable) OVERRIDING SYSTEM VALUE "
            "VALUES (%s, %s, %s, %s, %s, %s, 1, %s)",
            (number, project, str(number), spec, trainable, state, startable),
        )
        leased, ready, backs_off, undecided = (rng.choice([0, 0, 0, 1, 2]) for _ in range(4))
        for kind, n in (("leased", leased), ("ready", ready), ("backs off", backs_off), ("done", undecided)):
            for _ in range(n):
                task_id += 1
                conn.execute(
                    "INSERT INTO task (id, study_id, trial_no, level, budget_from, decay_from, budget_to, state, not_before, ended_at) "
                    "OVERRIDING SYSTEM VALUE VALUES (%s, %s, %s, 0, 0, 1, 1, %s, now() + %s * interval '1 minute', %s)",
                    (task_id, number, task_id, "ready" if kind == "backs off" else kind, 1 if kind == "backs off" else -1, "now" if kind == "done" else None),
                )  # fmt: skip
                if kind == "leased":
                    conn.execute(
                        "INSERT INTO lease (task_id, study_id, epoch, worker_id, incarnation, secret_hash, expires_at) "
                        "VALUES (%s, %s, 1, 'w', '1', '', now())", (task_id, number),
                    )  # fmt: skip
                if kind == "done":
                    conn.execute(
                        "INSERT INTO result (task_id, study_id, epoch, status, \"values\") VALUES (%s, %s, 1, 'ok', '{}')",
                        (task_id, number),
                    )
        if state == "active" and trainable and (startable or ready or undecided):
            one = Hungry(
                id=StudyId(number), project=project, trainable=trainable, gpus=gpus, nodes=1, leased=leased, weight=weight,
                waits=60.0 if ready and gpus > 1 else None,
            )  # fmt: skip
            found.append(one)
    return found


@pytest.mark.parametrize("seed", range(12))
def test_slots_are_dealt_as_if_every_study_had_been_looked_at(in_store: InStore, dsn: str, seed: int) -> None:
    rng = random.Random(seed)
    with psycopg.connect(dsn) as conn:
        every = {study.id: study for study in fill(conn, rng)}
    lacking = {"v": rng.randrange(1, 3), "w": rng.randrange(1, 3)}
    vain = {study: rng.choice([1, 2]) for study in rng.sample(sorted(every), 5)}

    async def body(pool: Pool) -> None:
        async with pool.connection() as conn:
            most = sum(lacking.values())
            found = await studies.hungry(conn, most, vain)
            everyone = await studies.hungry(conn, 1000, {})
            shares = {share.name: share for share in await projects.shares(conn)}
        assert {(s.id, s.leased, s.weight, s.gpus, s.waits is None) for s in everyone} == {
            (s.id, s.leased, s.weight, s.gpus, s.waits is None) for s in every.values()
        }
        left = [study for study in everyone if vain.get(study.id) != 1]
        assert len(found) < len(left) and {study.id for study in found} <= {study.id for study in left}

        def dealt(among: list[Hungry]) -> Any:
            able = {
                holder: {s: takes for s in among if (takes := slots_for(allows, s.trainable, s.gpus, s.nodes))}
                for holder, allows in zip(lacking, ALLOWED, strict=True)
            }
            return deal(lacking, able, shares)

        assert dealt(found) == dealt(left) != {}

    in_store(body)


async def study(pool: Pool, name: str, **changes: Any) -> StudyId:
    mapping = encode(decode_study(SPEC | {"name": name} | changes))
    async with pool.connection() as conn:
        row = await deciding.create(conn, decode_study(mapping), mapping=mapping, trainable="function:m:a")
    assert row is not None
    return row.id


class House:
    """A dispatcher with one worker, and the studies that its decider was asked of."""

    def __init__(self, pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
        self.pool, self.asked = pool, list[StudyId]()
        self.decider = Decider(pool, Bell(), TTL)
        self.dispatcher = Dispatcher(pool, self.decider, self.decider.bell, TTL)
        decide = self.decider.decide

        async def noted(study_id: StudyId, **given: Any) -> Any:
            self.asked.append(study_id)
            return await decide(study_id, **given)

        monkeypatch.setattr(self.decider, "decide", noted)

    async def lease(self, n: int, *held: pb.LeaseKey) -> list[pb.LeaseKey]:
        self.asked.clear()
        want = Want(holder="w", incarnation="1", n=n, holding=[key.task_id for key in held])
        return [lease.key for lease in (await self.dispatcher.lease(want, 0.0)).leases]

    async def end(self, key: pb.LeaseKey) -> None:
        """Its result is durable, and nobody has decided yet."""
        said = (
            LeaseKey(task_id=TaskId(key.task_id), epoch=key.epoch, secret=key.secret),
            Ending(kind="complete", values={"loss": 0.5}),
        )
        async with self.pool.connection() as conn:
            await tasks.finish(conn, [said], self.decider.specs.owed)


async def registered(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> House:
    async with pool.connection() as conn:
        await workers.register(conn, worker_id="w", incarnation="1", host="h", slots=4, device="", allowed=ALLOWED[0])
    return House(pool, monkeypatch)


def test_a_study_that_waits_for_its_results_is_not_asked_until_there_is_one(
    in_store: InStore, dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def body(pool: Pool) -> None:
        house = await registered(pool, monkeypatch)
        one, two = await study(pool, "one", limits={"trials": 1}), await study(pool, "two", limits={"trials": 3})
        held = await house.lease(4)
        assert len(held) == 4 and sorted(house.asked) == [one, two, two], "what one had not, the other was asked for"
        assert await house.lease(1, *held) == [] == house.asked
        await house.end(
            next(key for key, study_id in zip(held, await owners(pool, held), strict=True) if study_id == two)
        )
        assert await house.lease(1, *held) == [] and house.asked == [two], "its result may have made something"
        assert await house.lease(1, *held) == [] == house.asked
        with psycopg.connect(dsn) as conn:
            assert violations(conn) == []

    in_store(body)


async def owners(pool: Pool, held: list[pb.LeaseKey]) -> list[StudyId]:
    async with pool.connection() as conn:
        rows = await (await conn.execute("SELECT task_id, study_id FROM lease")).fetchall()
    return [dict(rows)[key.task_id] for key in held]


def test_a_study_that_a_limit_binds_is_asked_once_a_second_or_when_its_ledger_moves(
    in_store: InStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def body(pool: Pool) -> None:
        house = await registered(pool, monkeypatch)
        bound = await study(pool, "bound", limits={"total_budget": 8})  # two tasks of three fit
        held = await house.lease(4)
        assert len(held) == 2 and house.asked == [bound]
        assert await house.lease(1, *held) == [] == house.asked
        await house.end(held.pop())
        await house.decider.once()
        assert await house.lease(1, *held) == [] and house.asked == [bound], "its ledger has moved"
        monkeypatch.setattr(dispatch, "VAIN_SECONDS", 0.0)
        assert await house.lease(1, *held) == [] and house.asked == [bound], "once, though a second is over at once"

    in_store(body)


def test_a_large_task_behind_a_study_that_a_limit_binds_is_seen_to_wait(
    in_store: InStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def body(pool: Pool) -> None:
        house = await registered(pool, monkeypatch)
        large = {"run": {"function": "m:a", "gpus": 4}}
        bound = await study(pool, "bound", weight=100, limits={"total_budget": 8}, **large)
        other = await study(pool, "other", **large)
        for one, n in ((bound, 2), (other, 1)):
            await house.decider.decide(one, wants=[Want(holder="x", incarnation="1", n=n)])
        assert await house.lease(1) == [] and house.asked == [bound, other]
        async with pool.connection() as conn:
            assert (await studies.waiting(conn, bound), await studies.waiting(conn, other)) == (0, 1)

    in_store(body)
