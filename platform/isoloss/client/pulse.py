"""The pulse of whoever holds leases: a thread that renews them and carries their reports, whatever the program does.

It lives in a thread of its own, with a channel of its own, because a trainer that computes for minutes must not lose
its lease for it. A worker that cannot reach the controller trains on; it stops when told that its epoch is stale.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

import grpc

from isoloss.client.credentials import found
from isoloss.domain.lease import Checkpoint, LeaseKey
from isoloss.v1 import common_pb2 as pb
from isoloss.v1 import work_pb2, work_pb2_grpc
from isoloss.wire.values import to_checkpoint, to_key, to_series

log = logging.getLogger(__name__)  # a program's own stdout is not ours to write on
LOAD_SECONDS: Final = 15.0  # between two looks at how busy the machine is
BEATS: Final = 5  # per lease: four may be lost
REPORT_SECONDS: Final = 1.0
MOST_POINTS: Final = 1000
MOST_WAITING: Final = 50_000
MOST_TRIES: Final = 100  # of a checkpoint that the controller stumbles over, without a reason of its own
TRANSIENT: Final = frozenset(
    (
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.ABORTED,
    )
)

Point = tuple[int, dict[str, float]]


class Measuring(Protocol):
    """Who measures a disk: has ``news`` until they were ``heard``."""

    def news(self) -> work_pb2.Disk | None: ...  # noqa: D102
    def heard(self, said: work_pb2.Disk) -> None: ...  # noqa: D102


@dataclass(slots=True)
class Held:
    """One lease under the pulse: what is still to be reported, and whether it is lost or to be stopped."""

    key: LeaseKey
    ended: Callable[[str], None]  # called once with "stale" or "cancelling"
    words: Callable[[], str]
    told: str = ""  # of its words
    points: list[Point] = field(default_factory=list)
    checkpoints: list[Checkpoint] = field(default_factory=list)
    lost: bool = False
    tries: int = 0


Taken = tuple[Held, list[Point], list[Checkpoint]]


class Pulse:
    """Renews every lease it was given, and delivers points and checkpoints in between."""

    def __init__(
        self,
        address: str,
        *,
        worker_id: str = "",
        on_drain: Callable[[], None] | None = None,
        checkpoint_root: str = "",
        on_dropped: Callable[[Sequence[work_pb2.CheckpointFolder]], None] | None = None,
        load: Callable[[], work_pb2.Load | None] | None = None,
        disk: Measuring | None = None,
    ) -> None:
        self._credentials = found()
        self._channel = self._credentials.channel(address)
        service = work_pb2_grpc.WorkerServiceStub if worker_id else work_pb2_grpc.TrialServiceStub
        self._stub: Any = service(self._channel)
        self._worker_id = worker_id
        self._on_drain = on_drain
        self._checkpoint_root = checkpoint_root
        self._on_dropped = on_dropped
        self._load = load
        self._loaded = -math.inf
        self._disk = disk
        self._removed: list[work_pb2.CheckpointFolder] = []
        self._held: dict[int, Held] = {}
        self._ttl = 30.0
        self._lock = threading.Lock()
        self._delivering = threading.Lock()  # one delivery at a time: what is taken is removed when it was heard
        self._wake = threading.Event()
        self._hurried = threading.Event()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="isoloss-pulse", daemon=True)
        self._thread.start()

    def hold(
        self, key: LeaseKey, ttl_seconds: float, ended: Callable[[str], None], words: Callable[[], str] = lambda: ""
    ) -> None:
        """Renew this lease from now on; ``ended`` is called when it is lost or being cancelled, ``words`` are its trainer's last.

        Whoever is granted a task that it still holds under an earlier epoch has lost that lease, and hears so here.
        """
        with self._lock:
            former = self._held.get(key.task_id)
            superseded = former is not None and former.key.epoch != key.epoch and not former.lost
            self._held[key.task_id] = Held(key=key, ended=ended, words=words)
            sooner, self._ttl = ttl_seconds < self._ttl, min(self._ttl, ttl_seconds)
        if superseded and former is not None:
            former.ended("stale")
        if sooner:
            self._wake.set()

    def report(self, key: LeaseKey, points: list[Point], checkpoint: Checkpoint | None = None) -> None:
        """Take points, and a complete checkpoint, to be delivered with the next beat."""
        with self._lock:
            held = self._held.get(key.task_id)
            if held is not None and held.key.epoch == key.epoch:
                held.points += points
                if len(held.points) > MOST_WAITING:  # a long outage costs resolution, never memory without bound
                    held.points[MOST_POINTS:] = held.points[MOST_POINTS::2]  # the first may be on their way
                if checkpoint is not None:
                    held.checkpoints.append(checkpoint)

    def flush(self, key: LeaseKey) -> bool:
        """Deliver what is left of this lease, which stays renewed; ``False`` when nobody answers."""
        while self.waiting(key):
            if not self._deliver():
                return not self.waiting(key)
        return True

    def drop(self, key: LeaseKey) -> list[Point]:
        """Renew this lease no more; returns the points that are left, to be told with its ending."""
        if self.owing(key):
            self.flush(key)
        left = self.take(key)
        self.forget(key)
        return left

    def owing(self, key: LeaseKey) -> bool:
        """Whether anything has to be delivered before the ending: a checkpoint, or more points than one message holds."""
        with self._lock:
            mine = self._mine(key)
            return mine is not None and bool(mine.checkpoints or len(mine.points) > MOST_POINTS)

    def take(self, key: LeaseKey) -> list[Point]:
        """The points that are left, to be told with the ending of this lease, which stays renewed."""
        with self._lock:
            mine = self._mine(key)
            left = mine.points[:MOST_POINTS] if mine is not None else []
            if mine is not None:
                del mine.points[: len(left)]
            return left

    def forget(self, key: LeaseKey) -> None:
        """Renew this lease no more; what was not delivered is dropped."""
        with self._lock:
            held = self._held.get(key.task_id)
            if held is not None and held.key.epoch == key.epoch:
                del self._held[key.task_id]

    def announce(self, key: LeaseKey, url: str) -> bool:
        """Say where in a store this lease is about to write; whether it may, since it is still held.

        When nobody answers it may: what is earned meanwhile is worth more than what is left there if this process ends, too.
        """
        request = work_pb2.HeartbeatRequest(
            worker_id=self._worker_id, keys=[to_key(key)], uploads=[work_pb2.Upload(key=to_key(key), url=url)]
        )
        reply = self._call(self._stub.Heartbeat, request)
        if isinstance(reply, work_pb2.AckReply):
            self._hear(reply)
        with self._lock:
            return self._mine(key) is not None

    def removed(self, folder: work_pb2.CheckpointFolder) -> None:
        """Say with the next beat that a dropped checkpoint is gone."""
        with self._lock:
            self._removed.append(folder)

    def hurry(self) -> None:
        """Beat now: somebody waits for what it says to be known."""
        self._hurried.set()
        self._wake.set()

    def close(self) -> None:
        """End the thread."""
        self._closed = True
        self._wake.set()
        self._thread.join(timeout=5)
        self._channel.close()

    def waiting(self, key: LeaseKey) -> bool:
        """Whether anything of this lease is still to be delivered."""
        with self._lock:
            mine = self._mine(key)
            return mine is not None and bool(mine.points or mine.checkpoints)

    def _mine(self, key: LeaseKey) -> Held | None:
        """What is held under this very key and not lost."""
        held = self._held.get(key.task_id)
        return held if held is not None and held.key.epoch == key.epoch and not held.lost else None

    def _run(self) -> None:
        beaten = time.monotonic()
        while not self._closed:
            self._wake.wait(min(REPORT_SECONDS, self._ttl / BEATS))
            self._wake.clear()
            self._deliver()
            due = time.monotonic() - beaten >= self._ttl / BEATS  # a report renews only the leases it names
            if due or self._hurried.is_set():
                self._hurried.clear()
                beaten = time.monotonic()
                self._beat()

    def _deliver(self) -> bool:
        """Send the waiting points and checkpoints; kept when nobody answers. Returns whether any were sent."""
        with self._delivering:
            with self._lock:
                taken = [
                    (held, held.points[:MOST_POINTS], list(held.checkpoints))
                    for held in self._held.values()
                    if (held.points or held.checkpoints) and not held.lost
                ]
            return bool(taken) and self._send(taken)

    def _send(self, taken: list[Taken]) -> bool:
        request = work_pb2.ReportRequest(
            batches=[pb.SeriesBatch(key=to_key(held.key), series=to_series(points)) for held, points, _ in taken],
            checkpoints=[
                work_pb2.HeldCheckpoint(key=to_key(held.key), checkpoint=to_checkpoint(checkpoint))
                for held, _, checkpoints in taken
                for checkpoint in checkpoints
            ],
        )
        reply = self._call(self._stub.Report, request)
        refused = isinstance(reply, grpc.StatusCode)
        if refused and reply in TRANSIENT:
            return False
        if refused and len(taken) > 1:  # one that is refused must not take the others with it
            return sum(self._send([one]) for one in taken) > 0
        kept = False
        with self._lock:
            for held, points, checkpoints in taken:
                del held.points[: len(points)]
                held.tries = held.tries + 1 if reply is grpc.StatusCode.INTERNAL else 0
                kept = bool(checkpoints) and 0 < held.tries < MOST_TRIES  # later runs may begin from it
                if not kept:
                    del held.checkpoints[: len(checkpoints)]
        if not refused:
            self._hear(reply)
        return not kept

    def _beat(self) -> None:
        with self._lock:
            held, removed = [one for one in self._held.values() if not one.lost], list(self._removed)
        if held or self._worker_id:
            said = [(one, text) for one in held if (text := one.words()) != one.told]
            request = work_pb2.HeartbeatRequest(
                worker_id=self._worker_id, keys=[to_key(one.key) for one in held], checkpoint_root=self._checkpoint_root,
                removed=removed, tails=[work_pb2.Tail(key=to_key(one.key), tail=text) for one, text in said],
            )  # fmt: skip
            if self._load is not None and time.monotonic() - self._loaded >= LOAD_SECONDS:
                request.load.MergeFrom(self._load() or work_pb2.Load())
            if (disk := None if self._disk is None else self._disk.news()) is not None:
                request.disk.CopyFrom(disk)
            reply = self._call(self._stub.Heartbeat, request)
            if isinstance(reply, work_pb2.AckReply):
                if self._disk is not None and disk is not None:
                    self._disk.heard(disk)
                with self._lock:
                    del self._removed[: len(removed)]
                for one, text in said:
                    one.told = text
                self._loaded = time.monotonic() if request.HasField("load") else self._loaded
                self._hear(reply)
                if reply.dropped and self._on_dropped is not None:
                    self._on_dropped(reply.dropped)
                if reply.drain and self._on_drain is not None:
                    self._on_drain()

    def _call(self, method: Any, request: Any) -> Any:
        """The reply, or the status code of a call that has none."""
        try:
            return method(request, timeout=max(1.0, self._ttl / 2), metadata=self._credentials.metadata)
        except grpc.RpcError as error:
            code = error.code()
            if code in TRANSIENT:
                log.debug("pulse.missed: %s", error)
            else:
                log.warning("pulse.refused: %s %s", code.name, error.details())
            return code

    def _hear(self, reply: work_pb2.AckReply) -> None:
        for ack in reply.acks:
            said = {pb.VERDICT_STALE: "stale", pb.VERDICT_CANCELLING: "cancelling"}.get(ack.verdict)
            with self._lock:
                held = self._held.get(ack.key.task_id)
                news = said is not None and held is not None and held.key.epoch == ack.key.epoch and not held.lost
                if news and held is not None:
                    held.lost = True
            if news and held is not None and said is not None:
                held.ended(said)
