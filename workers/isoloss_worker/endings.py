"""How attempts' endings reach the controller: all that wait in one call, again and again while nobody answers.

An ending is repeated under the same lease until it is acknowledged, so a controller may restart at any moment; the pulse
goes on renewing the lease until then.
"""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass
from typing import Final

import structlog

from isoloss.client.transport import AsyncTransport
from isoloss.errors import IsolossError, Unreachable
from isoloss.v1 import common_pb2 as pb
from isoloss.v1 import work_pb2
from isoloss.wire.states import word

log = structlog.get_logger()
BREATH_SECONDS: Final = 0.5
MOST_TRIES: Final = 600  # of an ending that the controller stumbles over, without a reason of its own


@dataclass(slots=True)
class Waiting:
    """An ending, who waits for the verdict on it, and how often the controller stumbled over it."""

    ending: pb.Ending
    answer: asyncio.Future[str]
    tries: int = 0


class Endings:
    """Delivers endings; ``run`` is the task that does it."""

    def __init__(self, transport: AsyncTransport) -> None:
        self._transport = transport
        self._queue: asyncio.Queue[Waiting] = asyncio.Queue()

    async def deliver(self, ending: pb.Ending) -> str:
        """The controller's verdict on one ending; raises what the controller raised for it."""
        answer: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._queue.put_nowait(Waiting(ending, answer))
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
        request = work_pb2.FinishRequest(endings=[one.ending for one in batch])
        while True:
            try:
                reply = await self._transport.call(self._transport.workers.Finish, request)
                break
            except Unreachable as error:
                log.warning("finish.unanswered", endings=len(batch), error=error.message)
        verdicts = {(ack.key.task_id, ack.key.epoch): word(pb.Verdict, ack.verdict) for ack in reply.acks}
        for one in batch:
            if not one.answer.done():
                one.answer.set_result(verdicts[one.ending.key.task_id, one.ending.key.epoch])

    async def _send_alone(self, one: Waiting) -> None:
        try:
            await self._send([one])
        except IsolossError as error:
            if one.answer.done():
                return
            one.tries += 1
            if type(error) is IsolossError and one.tries < MOST_TRIES:  # no refusal: the controller's own trouble
                log.warning("finish.unanswered", endings=1, error=error.message)
                await asyncio.sleep(BREATH_SECONDS)
                self._queue.put_nowait(one)
            else:
                one.answer.set_exception(error)
