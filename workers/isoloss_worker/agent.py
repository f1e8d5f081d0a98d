"""The agent: registers, leases a task for every free slot, and tells how each ended.

It outlives its controller: while nobody answers it trains on, keeps its endings, and asks again. It leaves when told to:
to ``release``, its trainers are asked to save and their tasks are given back; when the controller drains it, it
finishes what it holds; or by itself, when it had nothing to do for ``leave_after`` seconds. Leases are renewed by a thread of their own (``client.pulse``), whatever the loop does.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import socket
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Final

import structlog

from isoloss.client.pulse import Pulse
from isoloss.client.transport import AsyncTransport
from isoloss.domain.lease import Ending, LeaseKey, slots_taken
from isoloss.errors import IsolossError, NotFound, Unreachable, WrongState
from isoloss.v1 import common_pb2 as pb
from isoloss.v1 import work_pb2
from isoloss.wire.values import from_key, to_ending
from isoloss_worker import gpus
from isoloss_worker.allow import AllowList
from isoloss_worker.attempt import Attempt
from isoloss_worker.cleaner import Cleaner
from isoloss_worker.code import version_of
from isoloss_worker.endings import Endings
from isoloss_worker.energy import Gauge, Meter
from isoloss_worker.messages import Measured, Saved
from isoloss_worker.objects import Objects, sweep
from isoloss_worker.quota import Quota
from isoloss_worker.saving import Saving
from isoloss_worker.slots import Slot, Stopped

log = structlog.get_logger()
WAIT_SECONDS: Final = 20.0
BREATH_SECONDS: Final = 0.5  # between two empty answers that came at once: the controller is ending
PATIENCE_SECONDS: Final = 900.0  # without a controller and without work
REFUSED: Final = ("", "refused", "stale", "cancelling")  # after others, a newer controller's too, a checkpoint stays
GOODBYE_SECONDS: Final = 5.0  # beyond the grace, to tell what was saved
STORE_SECONDS: Final = 60.0  # and for a store to take it


class Agent:
    """One worker process."""

    def __init__(
        self,
        address: str,
        *,
        name: str,
        slots: list[Slot],
        allowed: AllowList,
        begin_again: bool = False,
        nodes: int = 1,
        objects: Objects | None = None,
        quota: Quota | None = None,
        leave_after: float = math.inf,
    ) -> None:
        self._transport = AsyncTransport(address, patience=WAIT_SECONDS)
        self._address = address
        self._name = name
        self._incarnation = uuid.uuid4().hex
        self._slots = slots
        self._allowed = allowed
        self._begin_again = begin_again
        self._nodes = nodes
        self._objects = objects
        self._quota = quota
        self._leave_after = leave_after
        self._rests_since = time.monotonic()
        self._gpu_ids = tuple(gpu for slot in slots for gpu in slot.gpu_ids)
        self._of_each = min((len(slot.gpu_ids) for slot in slots), default=0)
        self._own_gpus = len({*self._gpu_ids}) == len(self._gpu_ids)  # no slot shares one with another
        self._endings = Endings(self._transport)
        self._pulse: Pulse | None = None
        self._holding: dict[
            LeaseKey, asyncio.Future[str]
        ] = {}  # a task comes again under another epoch before the loss is heard
        self._cleaner = Cleaner(busy=lambda: {key.task_id for key in self._holding}, objects=objects)
        self._freed = asyncio.Event()  # a slot is free, or the worker is to leave
        self._leaving = ""  # "" | "finish" what is held | "release" it
        self._gave_up: Unreachable | WrongState | None = None

    async def run(self, joined: Callable[[], None] = lambda: None) -> None:
        """Work until told to leave; raises ``Unreachable`` after long without a controller and without work."""
        loop = asyncio.get_running_loop()
        await self._register()
        joined()
        await asyncio.to_thread(sweep)
        drained = _threadsafe(loop, self.leave, "finish")
        self._pulse = Pulse(
            self._address, worker_id=self._name, on_drain=drained, checkpoint_root=f"{self._objects.url if self._objects else self._cleaner.root}/",
            on_dropped=_threadsafe(loop, self._cleaner.dropped), load=Gauge(tuple(dict.fromkeys(self._gpu_ids))).read,
            disk=self._quota,
        )  # fmt: skip
        try:
            async with asyncio.TaskGroup() as group:
                beside = [
                    group.create_task(self._endings.run(), name="endings"),
                    group.create_task(self._cleaner.run(self._pulse.removed), name="cleaner"),
                ]
                if self._quota is not None:
                    beside.append(group.create_task(self._quota.run(), name="quota"))
                await self._work()
                for task in beside:
                    task.cancel()
        finally:
            await asyncio.gather(*(slot.close() for slot in self._slots))
            await asyncio.to_thread(self._pulse.close)
            await self._transport.close()
        log.info("worker.left", worker=self._name)
        if self._gave_up is not None:
            raise self._gave_up

    def leave(self, how: str) -> None:
        """Lease nothing more; ``finish`` or ``release`` what is held."""
        if self._leaving not in (how, "release"):
            log.info("worker.leaving", worker=self._name, how=how, held=len(self._holding))
            self._leaving = how
            self._freed.set()
        if how == "release":
            for stop in self._holding.values():
                _resolve(stop, "drain")

    @property
    def idle_seconds(self) -> float | None:
        """For how long there was nothing to do, by the word of a controller; ``None`` at work."""
        return None if self._holding else time.monotonic() - self._rests_since

    def leave_idle(self, seconds: float) -> None:
        """Leave if there was nothing to do for so long."""
        if (idle := self.idle_seconds) is not None and idle >= seconds:
            self.leave("finish")

    async def _work(self) -> None:
        attempts: set[asyncio.Task[None]] = set()
        async with asyncio.TaskGroup() as group:
            await self._warm()
            await self._measured()
            while not self._leaving:
                self._freed.clear()
                free = [slot for slot in self._slots if not slot.busy]
                if not free:
                    await self._freed.wait()
                    continue
                for lease in await self._lease(len(free)):
                    attempt = Attempt.of(lease, self._objects)
                    takes = slots_taken(attempt.gpus, self._of_each) if self._own_gpus else 1
                    if takes > len(free):
                        await self._give_back(lease)
                        continue
                    slots, free, stop = free[:takes], free[takes:], asyncio.get_running_loop().create_future()
                    for slot in slots:
                        slot.busy = True
                    self._holding[from_key(lease.key)] = stop
                    attempts.add(
                        group.create_task(self._attempt(slots, attempt, stop), name=f"task {lease.key.task_id}")
                    )
                attempts = {attempt for attempt in attempts if not attempt.done()}
                self.leave_idle(self._leave_after)
            for lost in await self._lost_leases():
                await self._give_back(lost)
            await self._farewell(attempts)

    async def _warm(self) -> None:
        try:
            await asyncio.gather(*(slot.warm() for slot in self._slots))
        except OSError as error:
            log.warning("child.missed", error=str(error))

    async def _measured(self) -> None:
        """Until the controller knows how much lies on the disk: it gives no task to one that is full."""
        quota, pulse = self._quota, self._pulse
        while quota is not None and pulse is not None and not quota.known and not self._leaving:
            if quota.news() is not None:
                pulse.hurry()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._freed.wait(), BREATH_SECONDS)
        self._rests_since = time.monotonic()

    async def _farewell(self, attempts: set[asyncio.Task[None]]) -> None:
        """Until the attempts have ended; when they are to be given back, for so long and no longer."""
        pending = attempts
        while pending and self._leaving != "release":
            self._freed.clear()
            freed = asyncio.ensure_future(self._freed.wait())
            await asyncio.wait({*pending, freed}, return_when=asyncio.FIRST_COMPLETED)
            freed.cancel()
            pending = {attempt for attempt in pending if not attempt.done()}
        if pending:
            seconds = GOODBYE_SECONDS + max(slot.grace_seconds for slot in self._slots)
            _, pending = await asyncio.wait(pending, timeout=seconds + (STORE_SECONDS if self._objects else 0.0))
        for attempt in pending:
            attempt.cancel()

    # ---- leases ------------------------------------------------------------------------------------------------

    async def _register(self) -> None:
        allowed = self._allowed.message([slot.gpu_ids for slot in self._slots], self._nodes)
        request = work_pb2.RegisterRequest(
            worker_id=self._name, incarnation=self._incarnation, host=socket.gethostname(), slots=len(self._slots),
            device=gpus.describe(tuple(dict.fromkeys(self._gpu_ids))), allowed=allowed,
        )  # fmt: skip
        await self._transport.call(self._transport.workers.Register, request)
        log.info("worker.registered", worker=self._name, address=self._address, slots=len(self._slots))

    async def _lease(self, slots: int) -> list[pb.Lease]:
        """Up to so many leases; none when the wait ran out, when told to leave, or when nobody answers for long."""
        begun = time.monotonic()
        while not self._leaving:
            until_idle = max(BREATH_SECONDS, self._leave_after - (self.idle_seconds or 0.0))
            calling = asyncio.ensure_future(self._ask(slots, min(WAIT_SECONDS, until_idle)))
            changed = asyncio.ensure_future(self._freed.wait())
            await asyncio.wait({calling, changed}, return_when=asyncio.FIRST_COMPLETED)
            changed.cancel()
            if not calling.done() and not self._leaving:
                await asyncio.wait({calling}, timeout=BREATH_SECONDS)  # a busy controller is about to answer
            if not calling.done():
                calling.cancel()  # more slots are free than it was told of, or the worker is to leave
                break
            try:
                return await calling
            except Unreachable as error:
                log.warning("controller.unreachable", error=error.message)
                self._rests_since = time.monotonic()  # nobody said that there is nothing to do
                if not self._holding and time.monotonic() - begun > PATIENCE_SECONDS:
                    self._gave_up = error
                    self.leave("finish")
            except WrongState as error:  # another process has this worker's name now
                log.warning("worker.replaced", error=str(error))
                self._gave_up = error
                self.leave("release")
            except IsolossError as error:  # no answer ends a worker: the next controller may know better
                log.warning("lease.refused", error=str(error))
                await asyncio.sleep(BREATH_SECONDS)
        return []

    async def _ask(self, slots: int, wait_seconds: float) -> list[pb.Lease]:
        begun = time.monotonic()
        request = work_pb2.LeaseRequest(
            worker_id=self._name, incarnation=self._incarnation, slots=slots, wait_seconds=wait_seconds,
            holding=[key.task_id for key in self._holding],
        )  # fmt: skip
        try:
            reply = await self._transport.call(self._transport.workers.Lease, request)
        except NotFound:
            await self._register()
            return []
        if reply.drain:
            self.leave("finish")
        if not reply.leases and wait_seconds and time.monotonic() - begun < BREATH_SECONDS:
            await asyncio.sleep(BREATH_SECONDS)
        return list(reply.leases)

    async def _lost_leases(self) -> list[pb.Lease]:
        """What a call that was broken off may have been granted."""
        try:
            async with asyncio.timeout(2.0):
                return await self._ask(0, 0.0)
        except (TimeoutError, IsolossError):
            return []

    async def _give_back(self, lease: pb.Lease) -> None:
        with contextlib.suppress(TimeoutError, IsolossError):
            async with asyncio.timeout(2.0):
                await self._endings.deliver(to_ending(from_key(lease.key), Ending(kind="release")))

    # ---- attempts ----------------------------------------------------------------------------------------------

    async def _attempt(self, slots: Sequence[Slot], attempt: Attempt, stop: asyncio.Future[str]) -> None:
        """Run one leased task on the GPUs of its slots, in the child of the first, and tell how it ended."""
        key, pulse = from_key(attempt.lease.key), self._pulse
        assert pulse is not None  # noqa: S101 - it lives as long as the loop that leases
        structlog.contextvars.bind_contextvars(slot=slots[0].number, **attempt.identity)
        begun = time.monotonic()
        try:
            ended = _threadsafe(asyncio.get_running_loop(), _resolve, stop)
            pulse.hold(key, attempt.lease.ttl_seconds, ended, slots[0].said)
            ending = await self._train(slots, attempt, stop)
            verdict = "" if ending is None else await self._tell(key, ending)
            await self._apart(attempt.tidy, None if verdict in REFUSED else ending)
            how, why = (ending.kind, ending.message.partition("\n")[0]) if ending else ("lost", "")
            log.info("task.ended", how=how, verdict=verdict, seconds=round(time.monotonic() - begun, 3), why=why)
        finally:
            pulse.forget(key)
            del self._holding[key]
            self._rests_since = time.monotonic()
            for slot in slots:
                slot.busy = False
            self._freed.set()

    async def _train(self, slots: Sequence[Slot], attempt: Attempt, stop: asyncio.Future[str]) -> Ending | None:
        """How the attempt ended; ``None`` when its lease is somebody else's, and nothing is to be told."""
        key, pulse = from_key(attempt.lease.key), self._pulse
        assert pulse is not None  # noqa: S101

        attempt.announce = partial(pulse.announce, key)
        saving = Saving(attempt, key, pulse)

        def listen(message: Measured | Saved) -> None:
            if isinstance(message, Measured):
                pulse.report(key, [(message.step, message.values)])
            else:
                saving.take(message)

        try:
            if attempt.lease.resume_from:
                refusal = await asyncio.to_thread(attempt.refusal, begin_again=self._begin_again)
                if refusal is not None:
                    return refusal
            leased = tuple(gpu for slot in slots for gpu in slot.gpu_ids)
            folder = attempt.code_folder
            code = await asyncio.to_thread(version_of, folder) if folder else ""
            job, run = attempt.job(self._allowed, leased, own_gpus=self._own_gpus, code=code)
            log.info("task.started", budget_from=job.budget_from, budget_to=job.budget_to)
            meter = Meter(
                job.gpu_ids if job.own_gpus else ()
            )  # a counter is a device's: shared, it has the other's too
            ended = await slots[0].run(job, listen, stop, run.timeout)
            measured = meter.values()
            await saving.settle()
            if isinstance(ended, Stopped):
                return None if ended.why == "stale" else Ending(kind="release")
            ending: Ending = await self._apart(attempt.ending, ended, measured)
            if ending.kind != "fail":  # which quotes them
                await slots[0].words()
            return replace(ending, code=code, tail="" if ending.kind == "fail" else slots[0].said())
        except IsolossError as error:
            return Ending(kind="fail", retryable=False, message=str(error))
        except OSError as error:
            return Ending(kind="fail", retryable=True, message=str(error))

    async def _apart(self, call: Callable[..., Any], *given: Any) -> Any:
        """Call it, in a thread when a store has to be asked: that may take long."""
        return await asyncio.to_thread(call, *given) if self._objects else call(*given)

    async def _tell(self, key: LeaseKey, ending: Ending) -> str:
        """Deliver the ending with the last points, and before it what has to go before; the verdict in words."""
        pulse = self._pulse
        assert pulse is not None  # noqa: S101
        while pulse.owing(key) and not await asyncio.to_thread(pulse.flush, key):  # noqa: ASYNC110 - nobody answers: there is no event
            await asyncio.sleep(BREATH_SECONDS)
        try:
            return await self._endings.deliver(to_ending(key, ending, pulse.take(key)))
        except IsolossError as error:
            log.warning("finish.refused", error=str(error))
            return "refused"


def _threadsafe(loop: asyncio.AbstractEventLoop, function: Callable[..., None], *first: Any) -> Callable[..., None]:
    """The function, to be called from the pulse's thread."""

    def call(*rest: Any) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended
            loop.call_soon_threadsafe(partial(function, *first), *rest)

    return call


def _resolve(future: asyncio.Future[str], value: str) -> None:
    if not future.done():
        future.set_result(value)
