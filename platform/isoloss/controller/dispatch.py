"""Leasing: an idle slot becomes a task. One mechanism for workers and for programs that ask.

Ready tasks go first, those nearest the top before others. When there are too few, every study that the caller may run
is asked for more, those with the fewest leases first; tasks are created against this demand and never before it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import timedelta
from typing import Any, Final

import msgspec

from isoloss.controller.decider import Decider
from isoloss.controller.duty import Bell
from isoloss.domain.ids import StudyId
from isoloss.domain.lease import Ending, LeaseKey
from isoloss.domain.spec import decode_study
from isoloss.domain.study import StudyState
from isoloss.domain.task import TaskState
from isoloss.store import curves, tasks
from isoloss.store.pool import Pool
from isoloss.store.tasks import Lease
from isoloss.v1 import common_pb2 as pb
from isoloss.v1 import work_pb2
from isoloss.wire.states import VERDICTS
from isoloss.wire.values import from_checkpoint, from_ending, from_key, to_key, to_values

LOOK_AGAIN_SECONDS: Final = 1.0
LONGEST_WAIT_SECONDS: Final = 30.0


class Dispatcher:
    """Grants leases and takes their heartbeats, reports and endings."""

    def __init__(self, pool: Pool, decider: Decider, bell: Bell, ttl: timedelta) -> None:
        self.pool = pool
        self.decider = decider
        self.bell = bell
        self.ttl = ttl
        self.draining = False
        self._metrics: dict[StudyId, tuple[Any, tuple[str, ...]]] = {}  # with the preference they follow from

    async def lease(
        self,
        eligible: Sequence[tuple[StudyId, StudyState]],
        *,
        holder: str,
        incarnation: str,
        n: int,
        holding: Sequence[int],
    ) -> list[Lease]:
        """Up to ``n`` leases of the eligible studies: lost ones again, then ready tasks, then new ones on demand."""
        ids = [study_id for study_id, _ in eligible]
        who: dict[str, Any] = {"worker_id": holder, "incarnation": incarnation, "ttl": self.ttl}
        async with self.pool.connection() as conn:
            found = await tasks.reclaim(conn, ids, holding=holding, **who)
            if len(found) < n and ids:
                found += await tasks.lease_next(conn, ids, n=n - len(found), **who)
        for study_id, state in eligible:
            missing = n - len(found)
            if missing <= 0:
                break
            if state is StudyState.ACTIVE and (await self.decider.decide(study_id, ask=missing)).created:
                async with self.pool.connection() as conn:
                    found += await tasks.lease_next(conn, [study_id], n=missing, **who)
        return found

    async def patiently(self, seconds: float, attempt: Any) -> Any:
        """Call ``attempt`` until it answers something, a ring or a second apart, for at most so long."""
        deadline = asyncio.get_running_loop().time() + min(max(seconds, 0.0), LONGEST_WAIT_SECONDS)
        while True:
            answer = await attempt()
            rest = deadline - asyncio.get_running_loop().time()
            if answer or rest <= 0 or self.draining:
                return answer
            await self.bell.wait(min(rest, LOOK_AGAIN_SECONDS))

    async def heartbeat(self, keys: Sequence[LeaseKey]) -> list[pb.Ack]:
        """Renew leases; what is not held any more is told so."""
        async with self.pool.connection() as conn:
            held = await tasks.heartbeat(conn, keys, ttl=self.ttl)
        said = {TaskState.LEASED: "accepted", TaskState.CANCELLING: "cancelling"}
        return [ack(key, said.get(held.get(key.task_id, TaskState.CANCELLED), "stale")) for key in keys]

    async def report(self, request: work_pb2.ReportRequest) -> list[pb.Ack]:
        """Store points and checkpoints, and renew the leases they came under."""
        async with self.pool.connection() as conn:
            for batch in sorted(request.batches, key=lambda b: b.key.task_id):
                points = [(point.step, dict(point.values)) for point in batch.points]
                await curves.add_points(conn, from_key(batch.key), points)
        for held in request.checkpoints:  # a transaction of their own: a checkpoint is acknowledged durably
            async with self.pool.connection() as conn:
                if (checkpoint := from_checkpoint(held.checkpoint)) is not None:
                    await tasks.add_checkpoint(conn, from_key(held.key), checkpoint)
        keys = [*(batch.key for batch in request.batches), *(held.key for held in request.checkpoints)]
        return await self.heartbeat(list({key.task_id: from_key(key) for key in keys}.values()))

    async def finish(self, endings: Sequence[pb.Ending]) -> list[pb.Ack]:
        """End attempts, all in one transaction; what the studies decide of it follows in another."""
        parsed = sorted(((from_key(e.key), from_ending(e)) for e in endings), key=lambda pair: pair[0].task_id)
        acks = []
        async with self.pool.connection() as conn:
            for key, ending in parsed:
                needed = await self._needed(conn, key, ending)
                verdict = await tasks.finish(conn, key, ending, needed)
                acks.append(ack(key, verdict.said))
        self.bell.ring()
        return acks

    async def _needed(self, conn: Any, key: LeaseKey, ending: Ending) -> tuple[str, ...]:
        if ending.kind != "complete":
            return ()
        found = await tasks.study_of(conn, key.task_id)
        if found is None:
            return ()
        study_id, mapping = found
        known = self._metrics.get(study_id)
        if known is None or known[0] != mapping["desirability"]:  # the user may prefer something else meanwhile
            self._metrics[study_id] = known = (mapping["desirability"], decode_study(mapping).metrics)
        return known[1]


def ack(key: LeaseKey, said: str) -> pb.Ack:
    """An acknowledgement of one lease."""
    return pb.Ack(key=to_key(key), verdict=VERDICTS[said])


def to_lease(lease: Lease, ttl: timedelta) -> pb.Lease:
    """A granted lease as a message; the fixed values of the spec are parameters like the searched ones."""
    spec = decode_study(lease.spec)
    key = LeaseKey(task_id=lease.task_id, epoch=lease.epoch, secret=lease.secret)
    run = lease.spec.get("run")
    return pb.Lease(
        key=to_key(key), study=lease.study, project=lease.project, trial=lease.trial_no, level=lease.level,
        budget_from=lease.budget_from, decay_from=lease.decay_from, budget_to=lease.budget_to,
        params=to_values(spec.fixed | lease.params), resume_from=lease.resume_from,
        seed=spec.seed, run_json=msgspec.json.encode(run).decode() if run else "",
        metrics=spec.metrics, ttl_seconds=ttl.total_seconds(),
    )  # fmt: skip
