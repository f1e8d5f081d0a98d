"""Work over the wire: workers with their slots, and programs that ask and tell. Both hold the same leases."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any, Final

from google.protobuf.json_format import MessageToDict

from isoloss.controller.access import PRINCIPAL
from isoloss.controller.dispatch import Dispatcher, shown
from isoloss.domain.study import StudyState
from isoloss.errors import InvalidSpec
from isoloss.store import checkpoints, disks, tasks, uploads, workers
from isoloss.store.checkpoints import Folder
from isoloss.store.tasks import Lease, Want
from isoloss.v1 import common_pb2, work_pb2_grpc
from isoloss.v1 import work_pb2 as pb
from isoloss.wire.values import printable

MOST_SLOTS: Final = 1024
LONGEST_AGO: Final = 1e6  # seconds since a disk was measured
Context = Any  # grpc.aio.ServicerContext, generic in its stubs only


class WorkerService(work_pb2_grpc.WorkerServiceServicer):
    """Register, lease, heartbeat, report, finish."""

    def __init__(self, dispatcher: Dispatcher) -> None:
        self.dispatcher = dispatcher
        self.pool = dispatcher.pool

    async def Register(self, request: pb.RegisterRequest, context: Context) -> pb.RegisterReply:
        if not request.worker_id or not 1 <= request.slots <= MOST_SLOTS:
            raise InvalidSpec(
                f"worker {request.worker_id!r} has {request.slots} slots; accepted is a name and 1 to {MOST_SLOTS} slots."
            )
        allowed = MessageToDict(request.allowed, preserving_proto_field_name=True)
        async with self.pool.connection() as conn:
            await workers.register(
                conn, worker_id=request.worker_id, incarnation=request.incarnation, host=request.host, slots=request.slots,
                device=request.device, allowed=allowed,
            )  # fmt: skip
            await tasks.end_former(conn, request.worker_id, request.incarnation)
        return pb.RegisterReply(ttl_seconds=self.dispatcher.ttl.total_seconds())

    async def Lease(self, request: pb.LeaseRequest, context: Context) -> pb.LeaseReply:
        if not 0 <= request.slots <= MOST_SLOTS:
            raise InvalidSpec(f"slots is {request.slots}; accepted are 0 to {MOST_SLOTS}.")
        want = Want(
            holder=request.worker_id, incarnation=request.incarnation, n=request.slots, holding=tuple(request.holding),
            project=PRINCIPAL.get().project,
        )  # fmt: skip
        return await self.dispatcher.lease(want, request.wait_seconds)

    async def Wanted(self, request: pb.WantedRequest, context: Context) -> pb.WantedReply:
        if not 1 <= request.slots <= MOST_SLOTS:
            raise InvalidSpec(f"slots is {request.slots}; accepted are 1 to {MOST_SLOTS}.")
        allowed = MessageToDict(request.allowed, preserving_proto_field_name=True)
        return pb.WantedReply(
            workers=await self.dispatcher.demand.workers(allowed, request.slots, PRINCIPAL.get().project)
        )

    async def Heartbeat(self, request: pb.HeartbeatRequest, context: Context) -> pb.AckReply:
        if request.uploads:  # known before the lease is renewed: what is acknowledged was written down
            async with self.pool.connection() as conn:
                for one in request.uploads:
                    await uploads.name(conn, shown(one.key), _place(one.url))
        drain, acks = await self.dispatcher.heartbeat(request.keys, request.worker_id)
        found, root = list[Folder](), request.checkpoint_root
        project = PRINCIPAL.get().project
        if request.removed or root or request.tails or request.HasField("load") or request.HasField("disk"):
            async with self.pool.connection() as conn:
                if request.HasField("load"):
                    await workers.loaded(conn, request.worker_id, _finite(request.load))
                if request.HasField("disk"):
                    await disks.measured(conn, request.worker_id, project, **_measured(request.disk))
                if request.tails:
                    await tasks.keep_tails(conn, [(shown(one.key), printable(one.tail)) for one in request.tails])
                if request.removed:
                    gone = [Folder(task_id=one.task_id, epoch=one.epoch, path=one.path) for one in request.removed]
                    await checkpoints.removed(conn, gone, project)
                    await uploads.removed(conn, [one.path for one in gone], project)
                # a store, and the disk with what it did not take
                for place in dict.fromkeys((root, request.disk.root)):
                    found += await checkpoints.to_remove(conn, request.worker_id, place, project) if place else []
                found += await uploads.left(conn, root, project) if "://" in root else []
        dropped = [pb.CheckpointFolder(task_id=one.task_id, epoch=one.epoch, path=one.path) for one in found]
        return pb.AckReply(acks=acks, drain=drain, dropped=dropped)

    async def Report(self, request: pb.ReportRequest, context: Context) -> pb.AckReply:
        return pb.AckReply(acks=await self.dispatcher.report(request))

    async def Finish(self, request: pb.FinishRequest, context: Context) -> pb.AckReply:
        return pb.AckReply(acks=await self.dispatcher.finish(request.endings))

    async def ListWorkers(self, request: pb.ListWorkersRequest, context: Context) -> pb.ListWorkersReply:
        async with self.pool.connection() as conn:
            rows = await workers.listed(conn)
        now = time.monotonic()
        return pb.ListWorkersReply(
            workers=[
                pb.Worker(
                    worker_id=row.id, host=row.host, slots=row.slots, device=row.device, leases=row.leases,
                    seen_seconds_ago=row.seen_seconds_ago, draining=row.draining, taken=row.taken,
                    cools_seconds=max(0.0, (self.dispatcher.health.cools_until(row.id, now) or 0.0) - now),
                    load=pb.Load(**row.load) if row.load else None, full=row.full is not None,
                )
                for row in rows
            ]
        )  # fmt: skip

    async def Drain(self, request: pb.DrainRequest, context: Context) -> pb.DrainReply:
        async with self.pool.connection() as conn:
            await workers.drain(conn, request.worker_id)
        self.dispatcher.bell.ring()
        return pb.DrainReply()


def _finite(load: pb.Load) -> dict[str, Any]:
    return {field.name: value for field, value in load.ListFields() if isinstance(value, str) or math.isfinite(value)}


def _place(url: str) -> str:
    if "://" not in url:
        raise InvalidSpec(f"upload.url is {url!r}; accepted is a URL in a store.")
    return printable(url)


def _measured(disk: pb.Disk) -> dict[str, Any]:
    said = {field.name: getattr(disk, field.name) for field in disk.DESCRIPTOR.fields}
    if not (disk.id and disk.root and disk.quota_bytes > 0 <= disk.used_bytes and 0 <= disk.seconds_ago < LONGEST_AGO):
        raise InvalidSpec(
            f"disk is {said}; accepted are an id, a root, bytes from 1 and from 0, and 0 to {LONGEST_AGO:g} seconds."
        )
    return said


class TrialService(work_pb2_grpc.TrialServiceServicer):
    """Ask and tell, from a user's own process."""

    def __init__(self, dispatcher: Dispatcher) -> None:
        self.dispatcher = dispatcher
        self.pool = dispatcher.pool

    async def Ask(self, request: pb.AskRequest, context: Context) -> pb.AskReply:
        return await self._asked(request, ())

    async def _asked(self, request: pb.AskRequest, endings: Sequence[common_pb2.Ending]) -> pb.AskReply:
        study, want = request.study, Want(holder=request.holder, project=PRINCIPAL.get().project)
        answer, acks = await self.dispatcher.ask(study.project, study.name, want, request.wait_seconds, endings)
        if isinstance(answer, Lease):
            return pb.AskReply(lease=self.dispatcher.to_lease(answer), acks=acks)
        return pb.AskReply(idle=answer in (StudyState.IDLE, StudyState.STOPPED), acks=acks)

    async def Heartbeat(self, request: pb.HeartbeatRequest, context: Context) -> pb.AckReply:
        _, acks = await self.dispatcher.heartbeat(request.keys)
        return pb.AckReply(acks=acks)

    async def Report(self, request: pb.ReportRequest, context: Context) -> pb.AckReply:
        return pb.AckReply(acks=await self.dispatcher.report(request))

    async def Tell(self, request: pb.FinishRequest, context: Context) -> pb.AckReply:
        return pb.AckReply(acks=await self.dispatcher.tell(request.endings))

    async def TellAndAsk(self, request: pb.TellAndAskRequest, context: Context) -> pb.AskReply:
        return await self._asked(request.ask, request.tell.endings)
