"""Checkpoints that nothing will resume from: dropped where that is decided, told to workers until they are gone."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

import psycopg
import pytest

from isoloss.controller import decider as deciding
from isoloss.controller.decider import Decider
from isoloss.controller.duty import Bell
from isoloss.controller.steward import Steward
from isoloss.domain.lease import Checkpoint, Ending, LeaseKey
from isoloss.domain.spec import decode_study, encode
from isoloss.search.events import Deepened, Retried, Stopped, TrialAdded
from isoloss.store import checkpoints, disks, studies, tasks, uploads, workers
from isoloss.store.checkpoints import Tally
from isoloss.store.pool import Pool
from isoloss.store.tasks import Lease, Want

InStore = Callable[[Callable[[Pool], Awaitable[Any]]], Any]
TTL = timedelta(seconds=30)


async def owed(conn: Any, study_id: Any, version: int) -> tuple[str, ...]:
    return ("loss",)


class House:
    """A study of nine trials, three of them to the second level and one to the third, and who works on it."""

    def __init__(self, pool: Pool) -> None:
        self.pool = pool
        self.decider = Decider(pool, Bell())
        self.study_id: Any = None

    async def open(self, keep: str, **changes: Any) -> House:
        mapping = encode(
            decode_study(
                {"name": "s", "space": {"x": {"type": "float", "low": 0, "high": 1}}, "objective": {"metric": "loss"},
                 "method": {"min_budget": 1, "max_budget": 9}, "fidelity": {"keep": keep}, **changes}
            )
        )  # fmt: skip
        async with self.pool.connection() as conn:
            row = await deciding.create(conn, decode_study(mapping), mapping=mapping, trainable="gpt")
            for name, host in (("a", "here"), ("b", "here"), ("c", "there")):
                await workers.register(
                    conn, worker_id=name, incarnation="i", host=host, slots=1, device="", allowed={}
                )  # fmt: skip
        assert row is not None
        self.study_id = row.id
        return self

    async def lease(self, worker: str = "a") -> Lease | None:
        await self.decider.decide(self.study_id, ask=1)
        async with self.pool.connection() as conn:
            wants = [Want(holder=worker, incarnation="i")]
            found = await tasks.describe(conn, await tasks.lease_next(conn, [self.study_id], wants, TTL))
        return found[0] if found else None

    async def end(self, lease: Lease, ending: Ending | None = None) -> None:
        key = LeaseKey(task_id=lease.task_id, epoch=lease.epoch, secret=lease.secret)
        saved = Checkpoint(step=lease.decay_from, path=f"/root/{lease.task_id}-{lease.epoch}", manifest={"w": 10})
        ending = ending or Ending(kind="complete", values={"loss": float(lease.trial_no)}, checkpoint=saved)
        async with self.pool.connection() as conn:
            await tasks.finish(conn, [(key, ending)], owed)
        await self.decider.decide(self.study_id)

    async def run(self) -> list[Lease]:
        """Everything there is to run; lower trial numbers are better."""
        leases = []
        while (lease := await self.lease()) is not None:
            leases.append(lease)
            await self.end(lease)
        return leases

    async def kept(self) -> set[tuple[int, int]]:
        async with self.pool.connection() as conn:
            rows = await conn.execute(
                "SELECT trial_no, level FROM checkpoint JOIN task ON task.id = task_id WHERE dropped_at IS NULL"
            )
            return {(r[0], r[1]) for r in await rows.fetchall()}

    async def told(self, worker: str, root: str = "/root/") -> list[checkpoints.Folder]:
        async with self.pool.connection() as conn:
            return await checkpoints.to_remove(conn, worker, root)

    async def measured(self, used: int, quota: int, *, by: str = "a", ago: float = 0.0, root: str = "/root/") -> None:
        """A worker measures its disk, and the steward looks."""
        async with self.pool.connection() as conn:
            await disks.measured(
                conn, by, "", id="disk", root=root, quota_bytes=quota, used_bytes=used, seconds_ago=ago
            )
        await Steward(self.pool, Bell(), self.decider).once()

    async def remove(self, worker: str = "a") -> list[checkpoints.Folder]:
        """A worker removes what it is told of."""
        gone = await self.told(worker)
        async with self.pool.connection() as conn:
            await checkpoints.removed(conn, gone)
        return gone

    async def full(self) -> list[str]:
        """The workers that are given nothing, because their disk is full."""
        async with self.pool.connection() as conn:
            return sorted(row.id for row in await workers.listed(conn) if row.full)

    async def tally(self) -> Tally:
        async with self.pool.connection() as conn:
            return await checkpoints.tally(conn, self.study_id)


def test_all_keeps_every_checkpoint_until_the_end_and_after_it(in_store: InStore) -> None:
    async def body(pool: Pool) -> None:
        house = await House(pool).open("all")
        assert len(await house.run()) == 13
        await house.decider.decide(house.study_id, events=[Stopped(reason="enough")])
        assert await house.tally() == Tally(kept=13, kept_bytes=130, dropped=0, dropped_bytes=0, to_remove=0)

    in_store(body)


def test_needed_drops_what_a_higher_level_superseded_and_every_old_trial_goes_up_from_its_checkpoint(
    in_store: InStore,
) -> None:
    async def body(pool: Pool) -> None:
        house = await House(pool).open("needed")
        await house.run()
        assert await house.kept() == {(0, 2), (1, 1), (2, 1), *((t, 0) for t in range(3, 9))}
        await house.decider.decide(house.study_id, events=[Deepened(max_budget=27)])
        again = await house.run()
        assert all(lease.budget_from > 0 for lease in again if lease.trial_no < 9), "nothing old begins again"

    in_store(body)


def test_planned_keeps_the_best_and_what_is_promoted_after_all_begins_from_step_0_at_its_price(
    in_store: InStore,
) -> None:
    async def body(pool: Pool) -> None:
        house = await House(pool).open("planned")
        await house.run()
        assert await house.kept() == {(0, 2)}
        spent = await spent_of(house)
        await house.decider.decide(house.study_id, events=[Deepened(max_budget=27)])
        again = await house.run()
        revived = {lease.trial_no: lease for lease in again if lease.trial_no < 9}
        assert {(t, lease.budget_from, lease.resume_from) for t, lease in revived.items() if t} >= {(3, 0, "")}
        assert await spent_of(house) - spent == sum(lease.budget_to - lease.budget_from for lease in again)

    in_store(body)


async def spent_of(house: House) -> float:
    async with house.pool.connection() as conn:
        return (await studies.lock(conn, house.study_id)).spent


def test_a_failure_keeps_what_a_retry_resumes_and_a_divergence_keeps_nothing(in_store: InStore) -> None:
    async def body(pool: Pool) -> None:
        house = await House(pool).open("planned")
        for _ in range(9):
            lease = await house.lease()
            assert lease is not None
            await house.end(lease)
        first, second = await house.lease(), await house.lease()
        assert first is not None and second is not None and (first.level, second.level) == (1, 1)
        await house.end(first, Ending(kind="fail", retryable=False, message="crash"))
        await house.end(second, Ending(kind="diverge", step=2))
        assert (0, 0) in await house.kept() and (1, 0) not in await house.kept()
        await house.decider.decide(house.study_id, events=[Retried(trial=0, level=1)])
        third, fourth = await house.lease(), await house.lease()
        resumed = {lease.trial_no: lease.budget_from for lease in (third, fourth) if lease is not None}
        assert resumed == {0: 1, 2: 1}

    in_store(body)


def test_a_stopped_study_keeps_the_best_and_what_was_added_by_hand(in_store: InStore) -> None:
    async def body(pool: Pool) -> None:
        house = await House(pool).open("needed")
        await house.run()
        await house.decider.decide(house.study_id, events=[TrialAdded(configuration={"x": 0.5})])
        await house.run()
        await house.decider.decide(house.study_id, events=[Stopped(reason="enough")])
        assert await house.kept() == {(0, 2), (9, 2)}
        tally = await house.tally()
        assert (tally.kept, tally.dropped, tally.to_remove) == (2, 12, 12)

    in_store(body)


def test_what_is_still_saved_for_a_stopped_study_is_dropped_as_it_comes(in_store: InStore) -> None:
    async def body(pool: Pool) -> None:
        for keep, left in (("needed", 0), ("all", 1)):
            house = await House(pool).open(keep, name=keep)
            lease = await house.lease()
            assert lease is not None
            await house.decider.decide(house.study_id, events=[Stopped(reason="enough")])
            key = LeaseKey(task_id=lease.task_id, epoch=lease.epoch, secret=lease.secret)
            async with pool.connection() as conn:
                await tasks.add_checkpoint(conn, key, Checkpoint(step=1, path=f"/root/{lease.task_id}-1"))
            assert (await house.tally()).kept == left

    in_store(body)


def test_workers_of_a_host_are_told_of_its_folders_until_they_say_that_those_are_gone(in_store: InStore) -> None:
    async def body(pool: Pool) -> None:
        house = await House(pool).open("planned")
        await house.run()
        folders = await house.told("a")
        assert len(folders) == 12 and await house.told("b") == folders
        assert await house.told("c") == [] == await house.told("a", "/elsewhere/") == await house.told("nobody")
        gone, nowhere = folders[:5], checkpoints.Folder(task_id=10**6, epoch=1, path="/root/1000000-1")
        async with pool.connection() as conn:  # a worker of another project hears of none and says nothing of any
            assert await checkpoints.to_remove(conn, "a", "/root/", "elsewhere") == []
            assert await checkpoints.to_remove(conn, "a", "/root/", "default") == folders
            await checkpoints.removed(conn, gone, "elsewhere")
        assert await house.told("a") == folders
        for _ in range(2):
            async with pool.connection() as conn:
                await checkpoints.removed(conn, [*gone, nowhere])
        assert await house.told("b") == folders[5:]
        assert (await house.tally()).to_remove == 7
        async with pool.connection() as conn:
            said = [checkpoints.Folder(task_id=task, epoch=1, path=f"/root/{task}-1") for task in range(1, 14)]
            await checkpoints.removed(conn, said)
        assert (await house.tally()).kept == 1, "what was never dropped is not removed by saying so"

    in_store(body)


def test_what_an_attempt_named_and_never_registered_is_removed_once_it_has_ended_and_never_before(
    in_store: InStore,
) -> None:
    root = "s3://bucket/"

    async def body(pool: Pool) -> None:
        house = await House(pool).open("all")
        lease = await house.lease()
        assert lease is not None
        key = LeaseKey(task_id=lease.task_id, epoch=lease.epoch, secret=lease.secret)
        told, lost, early = (f"{root}default/s/0/0-{lease.task_id}-1/{step}" for step in (1, 2, 3))

        async def named(*places: str, by: LeaseKey = key) -> None:
            async with pool.connection() as conn:
                for place in places:
                    await uploads.name(conn, by, place)

        async def left(within: str = root, project: str = "") -> list[str]:
            async with pool.connection() as conn:
                return [one.path for one in await uploads.left(conn, within, project)]

        async def gone(*places: str, project: str = "") -> None:
            async with pool.connection() as conn:
                await uploads.removed(conn, places, project)

        async def ended(ago: str) -> None:
            async with pool.connection() as conn:
                await conn.execute("UPDATE attempt SET ended_at = now() - %s::interval WHERE ended_at < now()", (ago,))

        await named(told, lost)
        await named(early, by=LeaseKey(task_id=key.task_id, epoch=key.epoch, secret="guessed"))
        async with pool.connection() as conn:
            await tasks.add_checkpoint(conn, key, Checkpoint(step=1, path=told, manifest={"w": 10}))
        await named(told)
        await gone(lost)
        await house.end(lease, Ending(kind="release"))
        await ended("9 minutes")
        assert await left() == [], "a worker that was cut off may still write"
        await ended("11 minutes")
        assert await left() == [lost] == await left(project="default"), "what is registered is no upload any more"
        assert await left("s3://bucket/other/") == [] == await left(project="elsewhere")
        await gone(lost, project="elsewhere")
        assert await left() == [lost]
        await gone(lost)
        assert await left() == []

    in_store(body)


def test_a_step_in_a_store_is_removed_though_a_later_one_of_its_attempt_is_kept(in_store: InStore) -> None:
    async def body(pool: Pool) -> None:
        house = await House(pool).open("needed")
        lease = await house.lease()
        assert lease is not None
        key = LeaseKey(task_id=lease.task_id, epoch=lease.epoch, secret=lease.secret)
        places = [f"s3://bucket/default/s/0/0-{lease.task_id}-1/{step}" for step in (0, 1)]
        async with pool.connection() as conn:
            await tasks.add_checkpoint(conn, key, Checkpoint(step=0, path=places[0], manifest={"w": 10}))
        saved = Checkpoint(step=1, path=places[1], manifest={"w": 10})
        await house.end(lease, Ending(kind="complete", values={"loss": 0.0}, checkpoint=saved))
        await house.decider.make_room(house.study_id, [(lease.task_id, 1)], [])
        assert [one.path for one in await house.told("c", "s3://bucket/")] == places[:1]
        async with pool.connection() as conn:
            await conn.execute("UPDATE checkpoint SET dropped_at = now() WHERE dropped_at IS NULL")
            await checkpoints.removed(conn, [checkpoints.Folder(task_id=lease.task_id, epoch=1, path=places[0])])
        assert [one.path for one in await house.told("c", "s3://bucket/")] == places[1:], "one that goes is not all"

    in_store(body)


def test_no_row_says_removed_that_was_not_dropped(in_store: InStore) -> None:
    async def body(pool: Pool) -> None:
        house = await House(pool).open("all")
        await house.run()
        async with pool.connection() as conn:
            with pytest.raises(psycopg.errors.CheckViolation):
                await conn.execute("UPDATE checkpoint SET removed_at = now()")

    in_store(body)


def test_room_is_made_in_the_stated_order_and_never_more_than_is_lacking(in_store: InStore) -> None:
    async def body(pool: Pool) -> None:
        house = await House(pool).open("all")
        await house.run()
        everything = await house.kept()
        await house.measured(130, 105, ago=30)
        assert everything - await house.kept() == {(0, 0), (1, 0), (2, 0)}, "superseded, the oldest first"
        async with pool.connection() as conn:
            assert await disks.crowded(conn) == [], "every measurement is acted on once"
        await house.measured(130, 105, ago=20)
        assert len(await house.kept()) == 10, "what was dropped and still lies there counts"
        assert len(await house.remove()) == 3
        await house.measured(130, 105, ago=10)
        assert len(await house.kept()) == 10, "what was removed since it was measured counts too"
        await house.measured(100, 60)
        await house.measured(999, 60, by="b", ago=5)
        assert await house.kept() == {(0, 2), (1, 1), (2, 1), *((t, 0) for t in range(3, 6))}, "then the worst below"
        assert await house.full() == []
        tally = await house.tally()
        assert (tally.dropped, tally.for_room) == (7, 7)
        async with pool.connection() as conn:
            rows = await (await conn.execute("SELECT used_bytes FROM disk")).fetchall()
        assert rows == [(100,)], "of two measurements the later counts"
        spent = await spent_of(house)
        await house.decider.decide(house.study_id, events=[Deepened(max_budget=27)])
        ran = await house.run()
        assert await spent_of(house) - spent == sum(lease.budget_to - lease.budget_from for lease in ran)
        again = {lease.trial_no: lease for lease in ran if lease.trial_no < 9}
        assert {t for t, lease in again.items() if lease.level == 1} == {3, 4, 5, 6, 7, 8}
        for trial in (3, 4, 5):
            assert again[trial].budget_from == 1
        assert {(again[t].budget_from, again[t].resume_from) for t in (6, 7, 8)} == {(0, "")}, "the ledger knows"

    in_store(body)


def test_a_stopped_study_gives_way_before_one_that_goes_on_and_keeps_its_best(in_store: InStore) -> None:
    async def body(pool: Pool) -> None:
        going = await House(pool).open("all", name="going")
        await going.run()
        ended = await House(pool).open("all", name="ended")
        await ended.run()
        await ended.decider.decide(ended.study_id, events=[Stopped(reason="enough")])
        await going.measured(260, 260 - 80 - 70)
        assert ((await going.tally()).dropped, (await ended.tally()).dropped) == (4, 11)
        await going.remove()
        await going.measured(110, 100)
        assert ((await going.tally()).dropped, (await ended.tally()).dropped) == (4, 12)
        await going.remove()
        await going.measured(100, 1)
        assert ((await going.tally()).kept, (await ended.tally()).kept) == (1, 1)
        assert await going.kept() == {(0, 2)}, "of both the best"

    in_store(body)


def test_the_best_stays_though_a_higher_level_made_it_worse_and_so_does_what_has_gone_up_meanwhile(
    in_store: InStore,
) -> None:
    async def body(pool: Pool) -> None:
        house = await House(pool).open("all")
        for _ in range(12):
            lease = await house.lease()
            assert lease is not None
            await house.end(lease)
        await house.decider.make_room(house.study_id, [], [5, 4])
        top = await house.lease()
        assert top is not None and (top.trial_no, top.level) == (0, 2)
        await house.decider.make_room(house.study_id, [], [0, 3])
        assert {trial for trial in range(6) if (trial, 0) in await house.kept()} == {0, 1, 2}
        saved = Checkpoint(step=9, path=f"/root/{top.task_id}-1", manifest={"w": 10})
        await house.end(top, Ending(kind="complete", values={"loss": 99.0}, checkpoint=saved))
        await house.measured(130, 60, ago=5)
        assert await house.kept() == {(0, 1), (0, 2), (1, 1), (2, 1), (6, 0), (7, 0)}
        await house.measured(130, 1)
        assert await house.kept() == {(0, 1), (0, 2)}, "the best and the settled best"

    in_store(body)


def test_a_disk_is_full_when_nothing_more_may_go_until_a_measurement_finds_room(in_store: InStore) -> None:
    async def body(pool: Pool) -> None:
        house = await House(pool).open("all")
        lease = await house.lease()
        assert lease is not None
        async with pool.connection() as conn:
            key = LeaseKey(task_id=lease.task_id, epoch=lease.epoch, secret=lease.secret)
            await tasks.add_checkpoint(conn, key, Checkpoint(step=1, path="/root/1-1", manifest={"w": 10}))
        await house.measured(50, 40)
        await house.measured(50, 40, by="b")
        assert (await house.tally()).dropped == 0, "what runs keeps what it saved"
        assert await house.full() == ["a", "b"], "and who works on that disk takes nothing more"
        async with pool.connection() as conn:
            known = await workers.seen(conn, ["a", "b", "c"])
        assert {name: one.full for name, one in known.items()} == {"a": True, "b": True, "c": False}
        await house.measured(40, 40, by="b")
        assert await house.full() == []

    in_store(body)


def test_of_workers_that_share_a_disk_the_smallest_quota_counts_while_its_worker_is_heard_of(in_store: InStore) -> None:
    async def body(pool: Pool) -> None:
        house = await House(pool).open("all")
        await house.run()
        await house.measured(90, 100, ago=30)
        await house.measured(90, 80, by="b", ago=20)
        await house.measured(90, 100, ago=10)
        async with pool.connection() as conn:
            rows = await (await conn.execute("SELECT quota_bytes FROM disk")).fetchall()
            assert rows == [(80,)], "whoever measured last"
            await conn.execute("UPDATE worker SET seen_at = now() - interval '2 minutes' WHERE id = 'b'")
        await house.measured(90, 100)
        async with pool.connection() as conn:
            rows = await (await conn.execute("SELECT quota_bytes FROM disk")).fetchall()
        assert rows == [(100,)]

    in_store(body)


def test_a_full_disk_is_full_from_the_first_that_its_worker_says_of_it_until_room_is_made(in_store: InStore) -> None:
    async def body(pool: Pool) -> None:
        house = await House(pool).open("all")
        await house.run()

        async def says(used: int, ago: float) -> None:
            async with pool.connection() as conn:
                await disks.measured(
                    conn, "a", "", id="disk", root="/root/", quota_bytes=100, used_bytes=used, seconds_ago=ago
                )

        await says(130, 30)
        assert await house.full() == ["a"], "nobody has looked yet whether something may go"
        await house.measured(130, 100, ago=20)
        assert await house.full() == [] and len(await house.kept()) == 10
        await says(130, 10)
        assert await house.full() == [], "what it says later is the steward's to judge"

    in_store(body)


def test_what_no_worker_removes_in_time_makes_a_disk_full_and_drops_nothing_more(in_store: InStore) -> None:
    async def body(pool: Pool) -> None:
        house = await House(pool).open("all")
        await house.run()
        await house.measured(130, 120)
        assert await house.full() == [] and len(await house.kept()) == 12
        async with pool.connection() as conn:
            await conn.execute("UPDATE checkpoint SET dropped_at = now() - interval '2 minutes' WHERE for_room")
        await house.measured(130, 120)
        assert await house.full() == ["a"] and len(await house.kept()) == 12

    in_store(body)


def test_a_home_that_hosts_share_is_one_disk_and_each_of_them_removes_what_another_wrote(in_store: InStore) -> None:
    async def body(pool: Pool) -> None:
        house = await House(pool).open("all")
        await house.run()
        await house.measured(130, 130, ago=10)
        assert await house.told("c") == []
        await house.measured(130, 115, by="c")
        assert len(await house.kept()) == 11 and len(await house.told("c")) == 2
        assert await house.told("c") == await house.told("a")

    in_store(body)


def test_a_disk_says_nothing_of_folders_elsewhere_or_of_another_project(in_store: InStore) -> None:
    async def body(pool: Pool) -> None:
        house = await House(pool).open("all")
        await house.run()
        await house.measured(130, 1, by="c")
        await house.measured(130, 1, root="/elsewhere/")
        async with pool.connection() as conn:
            await disks.measured(
                conn, "a", "elsewhere", id="disk", root="/root/", quota_bytes=1, used_bytes=130, seconds_ago=0
            )
        await Steward(pool, Bell(), house.decider).once()
        assert (await house.tally()).dropped == 0

    in_store(body)
