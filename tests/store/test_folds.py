"""The folds that a controller keeps: never ahead of what was committed, and not made again because somebody was refused."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import random
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from isoloss.controller import decider as deciding
from isoloss.controller.decider import Decider
from isoloss.controller.duty import Bell
from isoloss.controller.health import Health
from isoloss.controller.study_service import StudyService
from isoloss.domain.lease import Ending, LeaseKey
from isoloss.domain.spec import decode_study, encode
from isoloss.errors import InvalidSpec, IsolossError, WrongState
from isoloss.search import events as ev
from isoloss.store import preferences, studies, tasks
from isoloss.store.pool import Pool
from isoloss.store.tasks import Want
from isoloss.v1 import study_pb2 as pb

InStore = Callable[[Callable[[Pool], Awaitable[Any]]], Any]
SPEC = {
    "name": "folded", "space": {"x": {"type": "float", "low": 0, "high": 1}}, "objective": {"metric": "loss"},
    "method": {"min_budget": 1, "max_budget": 9, "sampler": "random"}, "limits": {"total_budget": 60},
}  # fmt: skip


async def owed(*_: object) -> tuple[str, ...]:
    return ("loss",)


async def opened(pool: Pool, **changes: Any) -> Any:
    spec = decode_study(SPEC | changes)
    async with pool.connection() as conn:
        row = await deciding.create(conn, spec, mapping=encode(spec), trainable="f")
    assert row is not None
    return row.id


async def end(pool: Pool, lease: Any) -> None:
    key, ending = LeaseKey(task_id=lease.task_id, epoch=lease.epoch, secret=lease.secret), {"loss": lease.params["x"]}
    async with pool.connection() as conn:
        await tasks.finish(conn, [(key, Ending(kind="complete", values=ending))], owed)


async def ask(decider: Decider, study_id: Any) -> list[Any]:
    return [lease for _, lease in (await decider.decide(study_id, wants=[Want(holder="w", incarnation="i")])).leases]


async def within(pool: Pool, decider: Decider, study_id: Any, *events: ev.Event, fails: bool = False) -> None:
    async with pool.connection() as conn:
        await decider.decide_within(conn, study_id, *events)
        if fails:
            raise WrongState("the caller's own trouble")


ADDED = ev.TrialAdded(configuration={"x": 0.5})


def test_who_is_refused_makes_nobody_fold_a_study_again(in_store: InStore) -> None:
    async def body(pool: Pool) -> None:
        study_id = await opened(pool)
        decider = Decider(pool, Bell())
        for _ in range(3):
            (lease,) = await ask(decider, study_id)
            await end(pool, lease)
        with pytest.raises(InvalidSpec, match="max_budget"):
            await within(pool, decider, study_id, ev.Deepened(max_budget=3))
        with pytest.raises(WrongState, match="would be exceeded"):
            await within(pool, decider, study_id, *[ADDED] * 7)
        await decider.decide(study_id)
        with pytest.raises(InvalidSpec, match="lacks x"):
            await decider.decide(study_id, events=[ev.TrialAdded(configuration={})])
        with pytest.raises(WrongState, match="trouble"):
            await within(pool, decider, study_id, ADDED, fails=True)
        looks = asyncio.create_task(decider.search(study_id))
        await asyncio.sleep(0)
        looks.cancel()
        await asyncio.wait([looks])
        await within(pool, decider, study_id, ADDED, ev.Stopped(reason="enough"))
        for late in (decider.decide(study_id, events=[ADDED]), within(pool, decider, study_id, ADDED)):
            with pytest.raises(WrongState, match="is stopped"):
                await late
        assert (await decider.search(study_id)).snapshot() == (await Decider(pool, Bell()).search(study_id)).snapshot()
        assert decider.opened == 1

    in_store(body)


def test_a_study_that_nobody_has_looked_at_yet_is_folded_once_however_often_a_change_is_refused(
    in_store: InStore,
) -> None:
    async def body(pool: Pool) -> None:
        study_id = await opened(pool)
        decider = Decider(pool, Bell())
        for _ in range(3):
            await decider.warm(study_id)
            with pytest.raises(InvalidSpec):
                await within(pool, decider, study_id, ev.Deepened(max_budget=3))
        assert decider.opened == 1
        called = Decider(pool, Bell())
        service, name = StudyService(pool, called, Bell(), Health()), pb.StudyName(project="default", name="folded")
        changes: list[tuple[Any, Any]] = [
            (service.DeepenStudy, pb.DeepenStudyRequest(study=name, max_budget=3)),
            (service.ChangeStudy, pb.ChangeStudyRequest(study=name, desirability_json="{}")),
            (service.AddTrial, pb.AddTrialRequest(study=name)),
        ]
        for _ in range(3):
            for method, request in changes:
                with pytest.raises(IsolossError):
                    await method(request, None)
        assert called.opened == 1

    in_store(body)


async def step(pool: Pool, rng: random.Random, one: Decider, study_id: Any, leases: list[Any]) -> None:
    """One thing that somebody does with a study, which may be refused."""
    match rng.randrange(6):
        case 0 | 1:
            leases.extend(await ask(one, study_id))
        case 2 if leases:
            await end(pool, leases.pop())
        case 3:
            event = rng.choice((ADDED, ev.Widened(width=1), ev.Deepened(max_budget=27)))
            await within(pool, one, study_id, ADDED, event, fails=rng.random() < 0.4)
        case 4:
            await one.decide(study_id, events=[ADDED, rng.choice((ADDED, ev.Widened(width=1)))])
        case _:
            await one.search(study_id)


@pytest.mark.parametrize("seed", range(6))
def test_whatever_is_refused_fails_or_is_decided_elsewhere_the_fold_is_that_of_the_ledger(
    in_store: InStore, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    rng, fails = random.Random(seed), [False]
    update = studies.update

    async def updated(*given: Any, **named: Any) -> None:
        if fails[0]:
            raise WrongState("after everything was folded")
        await update(*given, **named)

    async def body(pool: Pool) -> None:
        study_id = await opened(pool, limits={})
        decider, other = Decider(pool, Bell()), Decider(pool, Bell())
        leases: list[Any] = []

        refused = 0
        for _ in range(60):
            fails[0] = rng.random() < 0.15
            try:
                await step(pool, rng, rng.choice((decider, decider, other)), study_id, leases)
            except IsolossError:
                refused += 1
            fails[0] = False
            assert (await decider.search(study_id)).snapshot() == (
                await Decider(pool, Bell()).search(study_id)
            ).snapshot()
        assert refused > 5 and decider.opened > 1

    monkeypatch.setattr(studies, "update", updated)
    in_store(body)


def test_a_controller_keeps_the_folds_it_used_last_and_no_lock_that_nobody_holds(
    in_store: InStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def body(pool: Pool) -> None:
        studies_ = [await opened(pool, name=f"s{number}") for number in range(6)]
        decider = Decider(pool, Bell())
        for study_id in studies_[:3]:
            await ask(decider, study_id)
        await ask(decider, studies_[0])
        await ask(decider, studies_[3])
        assert decider.opened == 4
        for study_id in (studies_[2], studies_[0], studies_[3]):
            await ask(decider, study_id)
        assert decider.opened == 4, "what was used last is there"
        await asyncio.gather(*(ask(decider, study_id) for study_id in studies_ * 3))
        assert len(decider._cache) == 3 and not decider._locks
        for study_id in studies_:
            found = (await decider.search(study_id)).snapshot()
            assert found == (await Decider(pool, Bell()).search(study_id)).snapshot()
        async with decider._lock(studies_[0]):
            gc.collect()
            assert decider._lock(studies_[0]).locked(), "a lock that is held is nobody's to forget"

    monkeypatch.setattr(deciding, "MOST_KEPT", 3 * deciding.LEAST_KEPT)
    in_store(body)


def test_a_preference_that_was_undone_is_not_what_the_next_one_means(in_store: InStore) -> None:
    async def body(pool: Pool) -> None:
        wish = {"loss": {"shape": "smaller", "target": 0.0, "limit": 1.0}}
        spec = {name: value for name, value in SPEC.items() if name not in ("objective", "limits")}
        decoded = decode_study(spec | {"desirability": wish})
        async with pool.connection() as conn:
            row = await deciding.create(conn, decoded, mapping=encode(decoded), trainable="f")
        assert row is not None
        decider = Decider(pool, Bell())
        for _ in range(3):
            (lease,) = await ask(decider, row.id)
            await end(pool, lease)
        wider = [{"loss": {"shape": "smaller", "target": 0.0, "limit": limit}} for limit in (3.0, 7.0)]
        with contextlib.suppress(WrongState):
            async with pool.connection() as conn:
                await decider.prefer(conn, row.id, wider[0])
                raise WrongState("the caller's own trouble")
        async with pool.connection() as conn:
            await decider.prefer(conn, row.id, wider[1])
            assert len(await preferences.versions(conn, row.id)) == 2
        search = await decider.search(row.id)
        assert search.spec.desirability is not None
        assert encode(search.spec)["desirability"]["loss"]["limit"] == 7.0
        assert search.snapshot() == (await Decider(pool, Bell()).search(row.id)).snapshot()

    in_store(body)
