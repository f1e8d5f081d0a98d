"""How attempts' endings reach the controller: all that wait in one call, again and again while nobody answers.

An ending is repeated under the same lease until it is acknowledged, so a controller may restart at any moment; the pulse
goes on renewing the lease until then.
"""

from __future__ import annotations

import asyncio
import contextlib

import structlog

from isoloss.client.transport import AsyncTransport
from isoloss.errors import IsolossError, Unreachable
from isoloss.v1 import common_pb2 as pb
from isoloss.v1 import work_pb2

log = structlog.get_logger()
Waiting = tuple[pb.Ending, "asyncio.Future[str]"]


class Endings:
    """Delivers endings; ``run`` is the task that does it."""

    def __init__(self, transport: AsyncTransport) -> None:
        self._transport = transport
        self._queue: asyncio.Queue[Waiting] = asyncio.Queue()

    async def deliver(self, ending: pb.Ending) -> str:
        """The controller's verdict on one ending; raises what the controller raised for it."""
        answer: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._queue.put_nowait((ending, answer))
        return await answer

    async def run(self) -> None:
        """Deliver until cancelled."""
        while True:
            batch = [await self._queue.get()]
            with contextlib.suppress(asyncio.QueueEmpty):
                while True:
                    batch.append(self._queue.get_nowait())
            try:
                await self._send(batch)
            except IsolossError:
                for one in batch:  # one that is refused must not take the others with it
                    await self._send_alone(one)

    async def _send(self, batch: list[Waiting]) -> None:
        request = work_pb2.FinishRequest(endings=[ending for ending, _ in batch])
        while True:
            try:
                reply = await self._transport.call(self._transport.workers.Finish, request)
                break
            except Unreachable as error:
                log.warning("finish.unanswered", endings=len(batch), error=error.message)
        verdicts = {ack.key.task_id: said(ack.verdict) for ack in reply.acks}
        for ending, answer in batch:
            if not answer.done():
                answer.set_result(verdicts[ending.key.task_id])

    async def _send_alone(self, one: Waiting) -> None:
        try:
            await self._send([one])
        except IsolossError as error:
            if not one[1].done():
                one[1].set_exception(error)


def said(verdict: pb.Verdict) -> str:
    """The verdict in words: accepted, stale, already_done or cancelling."""
    return pb.Verdict.Name(verdict).removeprefix("VERDICT_").lower()  # type: ignore[arg-type]  # its stub wants ValueType
