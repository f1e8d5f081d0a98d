"""What a worker does when the controller stumbles or refuses: its pulse goes on, and nothing is lost that was earned."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import grpc
import pytest

from isoloss.client.pulse import Pulse
from isoloss.domain.ids import TaskId
from isoloss.domain.lease import Checkpoint, Ending, LeaseKey
from isoloss.errors import InvalidSpec, IsolossError, StoreUnavailable, Unreachable
from isoloss.v1 import common_pb2 as pb
from isoloss.v1 import work_pb2
from isoloss.wire.values import decode_json, from_ending, to_ending
from isoloss_worker import endings
from isoloss_worker.agent import Agent
from isoloss_worker.allow import AllowList
from isoloss_worker.endings import Endings

BUSY, SILENT = (LeaseKey(task_id=TaskId(n), epoch=1, secret="s") for n in (1, 2))


class Refusal(grpc.RpcError):
    def __init__(self, code: grpc.StatusCode) -> None:
        self._code = code

    def code(self) -> grpc.StatusCode:
        return self._code

    def details(self) -> str:
        return "no"


class Stub:
    """A controller that notes what it is told and refuses the reports of some tasks."""

    def __init__(self) -> None:
        self.refused: dict[int, grpc.StatusCode] = {}
        self.reported: list[int] = []
        self.renewed: list[int] = []
        self.checkpoints: list[int] = []
        self.dropped: list[work_pb2.CheckpointFolder] = []
        self.removed: list[int] = []
        self.uploads: list[str] = []
        self.stale: list[pb.LeaseKey] = []

    def Report(self, request: work_pb2.ReportRequest, **_: float) -> work_pb2.AckReply:
        ids = [batch.key.task_id for batch in request.batches]
        for task_id in ids:
            if task_id in self.refused:
                raise Refusal(self.refused[task_id])
        self.reported += ids
        self.checkpoints += [held.key.task_id for held in request.checkpoints]
        return work_pb2.AckReply()

    def Heartbeat(self, request: work_pb2.HeartbeatRequest, **_: float) -> work_pb2.AckReply:
        if refusal := next((self.refused[one.key.task_id] for one in request.uploads if self.refused), None):
            raise Refusal(refusal)
        self.uploads += [one.url for one in request.uploads]
        self.renewed += [key.task_id for key in request.keys]
        self.removed += [folder.task_id for folder in request.removed]
        self.dropped = [folder for folder in self.dropped if folder not in request.removed]
        acks = [pb.Ack(key=key, verdict=pb.VERDICT_STALE) for key in self.stale]
        return work_pb2.AckReply(dropped=self.dropped, acks=acks)


@pytest.fixture
def pulse() -> Iterator[Pulse]:
    made = Pulse("127.0.0.1:1")
    made._stub = Stub()
    yield made
    made.close()


def until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_silent_lease_is_renewed_beside_one_that_reports_all_the_time(pulse: Pulse) -> None:
    for key in (BUSY, SILENT):
        pulse.hold(key, 0.25, print)

    def busy() -> bool:
        pulse.report(BUSY, [(1, {"loss": 1.0})])
        return bool(pulse._stub.renewed.count(SILENT.task_id) >= 3)

    until(busy)
    assert pulse._stub.reported.count(BUSY.task_id) >= 3


def test_a_refused_report_takes_no_other_with_it(pulse: Pulse) -> None:
    pulse._stub.refused[BUSY.task_id] = grpc.StatusCode.INVALID_ARGUMENT
    for key in (BUSY, SILENT):
        pulse.hold(key, 30.0, print)
        pulse.report(key, [(1, {"loss": 1.0})])
    assert pulse.flush(BUSY) and pulse.flush(SILENT)
    assert pulse._stub.reported == [SILENT.task_id]


def test_a_checkpoint_is_kept_while_the_controller_stumbles(pulse: Pulse) -> None:
    pulse._stub.refused[BUSY.task_id] = grpc.StatusCode.INTERNAL
    pulse.hold(BUSY, 30.0, print)
    pulse.report(BUSY, [], Checkpoint(step=4, path="/c"))
    assert not pulse.flush(BUSY)
    pulse._stub.refused.clear()
    assert pulse.flush(BUSY) and pulse._stub.checkpoints == [BUSY.task_id]


def test_who_is_about_to_write_into_a_store_hears_whether_it_may(pulse: Pulse) -> None:
    ended: list[str] = []
    pulse.hold(BUSY, 30.0, ended.append)
    pulse._stub.refused[BUSY.task_id] = grpc.StatusCode.UNAVAILABLE
    assert pulse.announce(BUSY, "s3://b/1"), "where nobody answers it goes on"
    pulse._stub.refused.clear()
    assert pulse.announce(BUSY, "s3://b/2")
    pulse._stub.stale = [pb.LeaseKey(task_id=BUSY.task_id, epoch=BUSY.epoch)]
    assert not pulse.announce(BUSY, "s3://b/3") and not pulse.announce(SILENT, "s3://b/4")
    assert pulse._stub.uploads == ["s3://b/2", "s3://b/3", "s3://b/4"] and ended == ["stale"]


def test_who_holds_a_task_and_is_granted_it_again_has_lost_the_former_lease(pulse: Pulse) -> None:
    ended: list[str] = []
    for _ in range(2):
        pulse.hold(BUSY, 30.0, ended.append)
    assert not ended, "it is the same lease"
    pulse.hold(replace(BUSY, epoch=2), 30.0, print)
    assert ended == ["stale"]


class Transport:
    """A transport whose calls of one ending answer from a list, then accept."""

    verdict: Any = pb.VERDICT_ACCEPTED

    def __init__(self, *answers: Exception) -> None:
        self.answers = list(answers)
        self.workers = SimpleNamespace(Finish=None, Lease=None)

    async def call(self, _method: Any, request: Any) -> Any:
        if self.answers:
            raise self.answers.pop(0)
        if isinstance(request, work_pb2.LeaseRequest):
            return work_pb2.LeaseReply(leases=[pb.Lease(trial=7)])
        return work_pb2.AckReply(acks=[pb.Ack(key=ending.key, verdict=self.verdict) for ending in request.endings])


def told(*answers: Exception) -> str:
    async def body() -> str:
        mine = Endings(Transport(*answers))  # type: ignore[arg-type]
        running = asyncio.ensure_future(mine.run())
        try:
            return await asyncio.wait_for(mine.deliver(to_ending(BUSY, Ending(kind="release"))), 10)
        finally:
            running.cancel()

    return asyncio.run(body())


def test_an_ending_is_kept_while_the_controller_stumbles_and_given_up_when_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(endings, "BREATH_SECONDS", 0.01)
    assert told(StoreUnavailable("gone"), IsolossError("INTERNAL"), IsolossError("INTERNAL")) == "accepted"
    with pytest.raises(InvalidSpec):
        told(InvalidSpec("no"), InvalidSpec("no"))


def test_each_epoch_of_a_task_hears_its_own_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    async def call(_: Transport, _method: Any, request: work_pb2.FinishRequest) -> work_pb2.AckReply:
        verdicts = {1: pb.VERDICT_STALE, 2: pb.VERDICT_ACCEPTED}
        acks = [pb.Ack(key=one.key, verdict=verdicts[one.key.epoch]) for one in request.endings]
        return work_pb2.AckReply(acks=acks)

    async def body() -> list[str]:
        mine = Endings(Transport())  # type: ignore[arg-type]
        endings = [to_ending(replace(BUSY, epoch=epoch), Ending(kind="release")) for epoch in (1, 2)]
        told = asyncio.gather(*map(mine.deliver, endings))
        await asyncio.sleep(0)
        running = asyncio.ensure_future(mine.run())
        try:
            return await asyncio.wait_for(told, 10)
        finally:
            running.cancel()

    monkeypatch.setattr(Transport, "call", call)
    assert asyncio.run(body()) == ["stale", "accepted"]


def test_a_verdict_that_only_a_newer_controller_knows_ends_no_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Transport, "verdict", 99)
    assert told() == "unknown (99)"


def test_no_answer_ends_a_worker() -> None:
    async def body() -> list[pb.Lease]:
        agent = Agent("127.0.0.1:1", name="w", slots=[], allowed=AllowList())
        await agent._transport.close()
        agent._transport = Transport(IsolossError("INTERNAL"), StoreUnavailable("gone"))  # type: ignore[assignment]
        return await asyncio.wait_for(agent._lease(1), 10)

    assert [lease.trial for lease in asyncio.run(body())] == [7]


def test_a_database_that_is_gone_is_asked_again_like_a_controller_that_is_gone() -> None:
    assert issubclass(StoreUnavailable, Unreachable)


def test_no_nul_reaches_postgres() -> None:
    ending = to_ending(BUSY, Ending(kind="fail", message="a\0b"))
    assert from_ending(ending).message == "a\N{REPLACEMENT CHARACTER}b"
    for refused in (r'{"a": "\u0000"}', r'{"a": "\\\u0000"}'):
        with pytest.raises(InvalidSpec, match="spec_json holds the character NUL"):
            decode_json(refused, "spec_json")
    assert decode_json(r'{"a": "\\u0000"}', "spec_json") == {"a": r"\u0000"}


def test_dropped_checkpoints_are_told_until_they_are_said_to_be_gone() -> None:
    heard: list[int] = []
    made = Pulse("127.0.0.1:1", worker_id="w", on_dropped=lambda folders: heard.extend(f.task_id for f in folders))
    made._stub = stub = Stub()
    stub.dropped = [work_pb2.CheckpointFolder(task_id=n, epoch=1, path="/c") for n in (1, 2)]
    made._beat()
    made._beat()
    made.removed(stub.dropped[0])
    made._beat()
    made._beat()
    made.close()
    assert (heard, stub.removed) == ([1, 2, 1, 2, 2, 2], [1])
