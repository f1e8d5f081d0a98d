"""Limits on use, on a real Postgres: a study ends by itself, for good and in words; what it runs is cancelled."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest

from isoloss.controller import decider as deciding
from isoloss.controller.campaigner import Campaigner, buy_column, exhausted
from isoloss.controller.decider import Decider
from isoloss.controller.duty import Bell
from isoloss.controller.fitter import Fitter
from isoloss.controller.limiter import Limiter
from isoloss.domain.campaign import campaign_mapping, decode_campaign
from isoloss.domain.lease import Ending, LeaseKey
from isoloss.domain.spec import decode_study, encode
from isoloss.domain.study import StudyState
from isoloss.errors import WrongState
from isoloss.search.events import TrialAdded
from isoloss.search.geometry import confirmable
from isoloss.store import campaigns, ledger, limits, studies, tasks
from isoloss.store.campaigns import CampaignRow
from isoloss.store.pool import Pool
from isoloss.store.tasks import Want

InStore = Callable[[Callable[[Pool], Awaitable[Any]]], Any]
SPEC: dict[str, Any] = {
    "name": "s", "space": {"x": {"type": "float", "low": 0, "high": 1}}, "objective": {"metric": "loss"},
    "method": {"min_budget": 512, "max_budget": 4608}, "budget": {"unit": "tokens", "multiple": 512},
    "run": {"gpt": {"width": 16, "depth": 1}, "gpus": 4},
}  # fmt: skip
TASK = 6 * 12 * 16**2 * 512.0  # FLOPs of one task of the first rung


async def launched(pool: Pool, **limited: Any) -> tuple[Decider, Any]:
    spec = decode_study(SPEC | {"limits": limited})
    async with pool.connection() as conn:
        row = await deciding.create(conn, spec, mapping=encode(spec), trainable="gpt", n_params=spec.n_params)
    assert row is not None
    return Decider(pool, Bell()), row


async def ran(pool: Pool, decider: Decider, study_id: Any, *, finish: bool) -> None:
    """Ask for one task and lease it; end it with a loss, or leave it running."""
    await decider.decide(study_id, ask=1)
    async with pool.connection() as conn:
        wants = [Want(holder="w", incarnation="i")]
        (found,) = await tasks.describe(conn, await tasks.lease_next(conn, [study_id], wants, timedelta(seconds=30)))
        key = LeaseKey(task_id=found.task_id, epoch=found.epoch, secret=found.secret)
        if finish:
            await tasks.finish(conn, [(key, Ending(kind="complete", values={"loss": 1.0}))], owed)
    await decider.decide(study_id)


async def owed(conn: Any, study_id: Any, version: int) -> tuple[str, ...]:
    return ("loss",)


async def ended(pool: Pool, decider: Decider, study_id: Any) -> tuple[str, str]:
    """The study's state and the reason it stopped for, after a pass of the limiter."""
    assert await Limiter(pool, decider).once() == 0
    async with pool.connection() as conn:
        row = await studies.lock(conn, study_id)
        reasons = [body["reason"] for _, kind, body, _ in await ledger.events(conn, study_id) if kind == "stopped"]
    return row.state, "; ".join(reasons)


async def moved(pool: Pool, table: str, column: str, by: str) -> None:
    async with pool.connection() as conn:
        await conn.execute(f"UPDATE {table} SET {column} = {column} - interval '{by}'".encode())


def test_a_study_stops_when_its_time_is_over_even_while_it_is_paused(in_store: InStore) -> None:
    async def body(pool: Pool) -> None:
        decider, row = await launched(pool, wall="2h")
        assert await ended(pool, decider, row.id) == ("active", "")
        await moved(pool, "study", "created_at", "3 hours")
        async with pool.connection() as conn:
            await studies.set_state(conn, row.id, StudyState.PAUSED)
        assert await ended(pool, decider, row.id) == ("stopped", "limits.wall: 1.08e+04 of 7200 seconds used")
        assert (await ended(pool, decider, row.id))[1].count("wall") == 1, "it stops once"

    in_store(body)


def test_device_hours_count_every_device_and_the_attempt_that_runs(in_store: InStore) -> None:
    async def body(pool: Pool) -> None:
        decider, row = await launched(pool, gpu_hours=10)
        await ran(pool, decider, row.id, finish=True)
        await moved(pool, "attempt", "started_at", "1 hour")  # 1 h × 4 GPUs
        assert await ended(pool, decider, row.id) == ("active", "")
        await ran(pool, decider, row.id, finish=False)
        await moved(pool, "attempt", "started_at", "1 hour")  # 2 h and 1 h × 4 GPUs
        assert await ended(pool, decider, row.id) == ("stopped", "limits.gpu_hours: 12 of 10 used")
        async with pool.connection() as conn:
            counted = (await studies.counts(conn, row.id))[1]
        assert counted == {"done": 1, "cancelling": 1}

    in_store(body)


def test_flops_are_six_n_a_token_of_what_has_ended(in_store: InStore) -> None:
    async def body(pool: Pool) -> None:
        decider, row = await launched(pool, flops=2 * TASK)
        await ran(pool, decider, row.id, finish=True)
        assert await ended(pool, decider, row.id) == ("active", "")
        await ran(pool, decider, row.id, finish=True)
        state, reason = await ended(pool, decider, row.id)
        assert state == "stopped" and reason == f"limits.flops: {2 * TASK:.4g} of {2 * TASK:.4g} used"

    in_store(body)


def test_flops_are_reserved_before_a_task_begins_and_never_passed(in_store: InStore) -> None:
    async def body(pool: Pool) -> None:
        decider, row = await launched(pool, flops=3.5 * TASK)
        assert (await decider.decide(row.id, ask=20)).created == 3
        for _ in range(3):
            await ran(pool, decider, row.id, finish=True)
        await decider.decide(row.id, ask=1)
        state, reason = await ended(pool, decider, row.id)
        assert state == "stopped" and reason == f"limits.flops: {3.5 * TASK:.4g} would be exceeded"
        async with pool.connection() as conn:
            row = await studies.lock(conn, row.id)
            assert (row.spent, row.reserved) == (3 * 512, 0)

    in_store(body)


async def took(pool: Pool, decider: Decider, study_id: Any, by: str, *, finish: bool = True) -> None:
    """One task that has taken so long, on its four devices."""
    await ran(pool, decider, study_id, finish=finish)
    async with pool.connection() as conn:
        await conn.execute(
            f"UPDATE attempt SET started_at = started_at - interval '{by}' WHERE started_at > now() - interval '1 minute'".encode()
        )


def test_device_hours_are_reserved_before_a_task_begins_as_done_ones_foretell(in_store: InStore) -> None:
    async def body(pool: Pool) -> None:
        decider, row = await launched(pool, gpu_hours=15)
        assert (await decider.decide(row.id, ask=2)).created == 2, "nothing tells yet what a task takes"
        await took(pool, decider, row.id, "1 hour")
        await took(pool, decider, row.id, "1 hour")  # 8 of 15 are used, and a task takes 4
        assert (await decider.decide(row.id, ask=5)).created == 0, "another waits already, and has reserved 4"
        (said,) = await decider.exceeded(row.id)
        assert said.startswith(
            "limits.gpu_hours: 15 would be exceeded: 3 device hours are left, and a task is foreseen"
        )
        assert await decider.startable(row.id, 9) == 0

    in_store(body)


def test_a_study_whose_next_task_would_pass_its_device_hours_ends_without_beginning_it(in_store: InStore) -> None:
    async def body(pool: Pool) -> None:
        decider, row = await launched(pool, gpu_hours=15)
        for _ in range(3):
            await took(pool, decider, row.id, "1 hour")
        assert await ended(pool, decider, row.id) == ("active", ""), "12 of 15 are used"
        assert (await decider.decide(row.id, ask=1)).created == 0
        state, reason = await ended(pool, decider, row.id)
        assert (state, reason.partition(": 3")[0]) == ("stopped", "limits.gpu_hours: 15 would be exceeded")
        async with pool.connection() as conn:
            assert (await studies.counts(conn, row.id))[1] == {"done": 3}, "nothing had to be cancelled"

    in_store(body)


def test_time_is_foreseen_for_each_task_by_itself_since_they_run_beside_each_other(in_store: InStore) -> None:
    async def body(pool: Pool) -> None:
        decider, row = await launched(pool, wall="3h")
        await took(pool, decider, row.id, "1 hour")
        await moved(pool, "study", "created_at", "90 minutes")
        assert (await decider.decide(row.id, ask=5)).created == 5, "each of them fits into the 90 minutes left"
        await moved(pool, "study", "created_at", "31 minutes")
        assert (await decider.decide(row.id, ask=10)).created == 0
        (said,) = await decider.exceeded(row.id)
        assert said.startswith("limits.wall: 10800 seconds would be exceeded: 3.54e+03 seconds are left, and a task")
        with pytest.raises(WrongState, match=r"limits\.wall.*accepted is a trial that fits below it"):
            await decider.decide(row.id, events=[TrialAdded(configuration={"x": 0.5})])
        async with pool.connection() as conn:
            assert sum((await studies.counts(conn, row.id))[1].values()) == 6

    in_store(body)


CAMPAIGN: dict[str, Any] = {
    "name": "c", "target": {"n_tokens": 4608, "set": {"width": 32}}, "sizes": [{"name": "a"}, {"name": "b"}],
    "tokens": {"min": 512, "max": 1024}, "run": {"gpt": {"width": 16, "depth": 1}},
    "fidelity": {"mode": "resume"}, "space": {"lr": {"type": "float", "low": 1e-3, "high": 1e-1, "log": True}},
}  # fmt: skip


async def searching(pool: Pool, executor: Any, **limited: Any) -> tuple[Campaigner, CampaignRow, list[Any]]:
    """A campaign whose two studies are launched."""
    decider, spec = Decider(pool, Bell()), decode_campaign(CAMPAIGN | {"limits": limited})
    campaigner = Campaigner(pool, Bell(), decider, Fitter(pool, Bell(), executor))
    async with pool.connection() as conn:
        row = await campaigns.insert(conn, campaign_mapping(spec), max_tokens=1024, confirm=False)
    assert row is not None and await campaigner.advance(row.id) == 2
    async with pool.connection() as conn:
        return campaigner, row, await studies.listed(conn, campaign_id=row.id)


def test_the_studies_of_a_campaign_reserve_of_one_limit_whoever_asks_first(in_store: InStore) -> None:
    async def body(pool: Pool) -> None:
        with ThreadPoolExecutor(1) as executor:
            campaigner, row, (a, b) = await searching(pool, executor, flops=3.5 * TASK)
            async with pool.connection() as mine, pool.connection() as theirs:
                assert await limits.rooms(mine, a, decode_study(a.spec), 0.0)
                with pytest.raises(TimeoutError):
                    await asyncio.wait_for(limits.rooms(theirs, b, decode_study(b.spec), 0.0), 0.3)
                await theirs.rollback()
            other = Decider(pool, Bell())  # of another controller
            made = await asyncio.gather(*(
                decider.decide(study.id, ask=1) for _ in range(4) for decider, study in ((campaigner.decider, a), (other, b))
            ))  # fmt: skip
            assert sum(decided.created for decided in made) == 3
            begun = [study for study, decided in zip((a, b) * 4, made, strict=True) for _ in range(decided.created)]
            for study in begun:
                assert await campaigner.advance(row.id) == 0
                await ran(pool, campaigner.decider, study.id, finish=True)
            for study in (a, b):  # nothing that runs may give back what the next task needs
                await campaigner.decider.decide(study.id, ask=1)
            assert await campaigner.advance(row.id) == 1
        async with pool.connection() as conn:
            row = await campaigns.lock(conn, row.id)
            assert (row.state, row.reason) == ("stopped", f"limits.flops: {3.5 * TASK:.4g} would be exceeded")
            assert (await limits.used(conn, row.id))["flops"] == 3 * TASK

    in_store(body)


def test_a_campaign_at_its_limit_over_all_studies_buys_nothing_more(in_store: InStore) -> None:
    async def body(pool: Pool) -> None:
        with ThreadPoolExecutor(1) as executor:
            campaigner, row, (a, b) = await searching(pool, executor, gpu_hours=2)
            await ran(pool, campaigner.decider, a.id, finish=True)
            assert await campaigner.advance(row.id) == 0
            await ran(pool, campaigner.decider, b.id, finish=False)
            await moved(pool, "attempt", "started_at", "1 hour")
            assert await campaigner.advance(row.id) == 1
            assert await campaigner.advance(row.id) == 0
        async with pool.connection() as conn:
            row = await campaigns.lock(conn, row.id)
            assert (row.state, row.reason) == ("stopped", "limits.gpu_hours: 2 of 2 used")
            assert {study.state for study in await studies.listed(conn, campaign_id=row.id)} == {"stopped"}
            assert (await studies.counts(conn, b.id))[1]["cancelling"] == 1
            with pytest.raises(WrongState, match="is stopped"):
                await buy_column(conn, decode_campaign(row.spec), row, 2048)

    in_store(body)


def test_a_size_that_nothing_has_run_of_is_foreseen_from_the_flops_of_the_others(in_store: InStore) -> None:
    async def body(pool: Pool) -> None:
        with ThreadPoolExecutor(1) as executor:
            campaigner, row, (a, b) = await searching(pool, executor, gpu_hours=5)
            await took(pool, campaigner.decider, a.id, "2 hours")  # on one device
            assert (await campaigner.decider.decide(b.id, ask=9)).created == 1, "3 are left, and a task takes 2"
            assert (await campaigner.decider.decide(a.id, ask=1)).created == 0
            assert await campaigner.advance(row.id) == 0
            async with pool.connection() as conn:
                assert (await studies.lock(conn, a.id)).state == "active", "what the other holds may be given back"
            await took(pool, campaigner.decider, b.id, "2 hours")
            for study in (a, b):
                await campaigner.decider.decide(study.id, ask=1)
            assert await campaigner.advance(row.id) == 1
        async with pool.connection() as conn:
            found = await campaigns.lock(conn, row.id)
            assert found.state == "stopped" and found.reason.startswith(
                "limits.gpu_hours: 5 would be exceeded: 1 device"
            )
            assert (await limits.used(conn, row.id))["gpu_hours"] == pytest.approx(4, rel=1e-3)

    in_store(body)


def test_what_device_hours_leave_to_a_target_is_foreseen_in_flops(in_store: InStore) -> None:
    async def body(pool: Pool) -> None:
        with ThreadPoolExecutor(1) as executor:
            campaigner, row, (a, _) = await searching(pool, executor, gpu_hours=7)
            spec = decode_campaign(row.spec)
            async with pool.connection() as conn:
                assert (await limits.left(conn, row.id, spec.limits)).left == math.inf, "nothing is known of it yet"
            await took(pool, campaigner.decider, a.id, "2 hours")
        async with pool.connection() as conn:
            assert (await limits.left(conn, row.id, spec.limits)).left == pytest.approx(2.5 * TASK, rel=1e-3)
            spent, beyond = await exhausted(conn, spec, row)
        assert (
            spent == "" and beyond.startswith("limits.gpu_hours: ") and "runs of the cheapest cell take more" in beyond
        )

    in_store(body)


def test_device_hours_of_a_campaign_are_those_of_all_its_studies(in_store: InStore) -> None:
    async def body(pool: Pool) -> None:
        with ThreadPoolExecutor(1) as executor:
            campaigner, row, found = await searching(pool, executor, gpu_hours=3)
            for study in found:
                await ran(pool, campaigner.decider, study.id, finish=False)
            await moved(pool, "attempt", "started_at", "1 hour")
            assert await campaigner.advance(row.id) == 0
            await moved(pool, "attempt", "started_at", "1 hour")
            assert await campaigner.advance(row.id) == 1
        async with pool.connection() as conn:
            assert (await campaigns.lock(conn, row.id)).reason == "limits.gpu_hours: 4 of 3 used"

    in_store(body)


def test_a_target_that_does_not_fit_below_the_limit_gives_way_to_a_cell_that_does(in_store: InStore) -> None:
    async def body(pool: Pool) -> None:
        needed = 3 * 6 * 12 * 32**2 * 4608.0
        with ThreadPoolExecutor(1) as executor:
            _, row, _ = await searching(pool, executor, flops=needed)
        spec = decode_campaign(row.spec)
        assert confirmable(spec, row.max_tokens, needed / 3) == (None, 12 * 32**2, 4608.0)
        size, n_params, n_tokens = confirmable(spec, row.max_tokens, 0.99 * needed / 3) or (None, 0.0, 0.0)
        assert size in spec.sizes and (n_params, n_tokens) == (12 * 16**2, row.max_tokens)
        async with pool.connection() as conn:
            assert await exhausted(conn, spec, row) == ("", "")
            await conn.execute("UPDATE study SET spent = 512")
            assert await exhausted(conn, spec, row) == ("", "")
            await conn.execute(
                "UPDATE study SET spent = 0.997 * 4608 * 3 * 12 * 32^2 / (SELECT sum(n_params) FROM study)"
            )
            spent, beyond = await exhausted(conn, spec, row)
        assert spent == "" and beyond.startswith("limits.flops: 3.06e+06 FLOPs are left, and 3 runs of the cheapest")

    in_store(body)


@pytest.mark.parametrize("limited", [{}, {"trials": 5}, {"wall": "1d", "gpu_hours": 9, "flops": "1e18"}])
def test_who_is_below_its_limits_goes_on(in_store: InStore, limited: dict[str, Any]) -> None:
    async def body(pool: Pool) -> None:
        decider, row = await launched(pool, **limited)
        await ran(pool, decider, row.id, finish=True)
        async with pool.connection() as conn:
            assert await limits.reached(conn) == []

    in_store(body)
