"""The two transports under the SDK: the only code that is not the same in its async and its blocking face.

Calls that fail because nobody answers are made again with jittered back-off, so a controller may restart under a
running client; every call that writes carries an idempotency key or a lease, so that is safe.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import threading
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any, Final

import grpc
import stamina

from isoloss.client.credentials import found
from isoloss.errors import Busy, Unreachable
from isoloss.v1 import campaign_pb2_grpc, study_pb2_grpc, work_pb2_grpc
from isoloss.wire.errors import from_rpc_error

PATIENCE_SECONDS: Final = 30.0
CALL_SECONDS: Final = 45.0


def new_key() -> str:
    """A fresh idempotency key: one for each thing a caller means once."""
    return uuid.uuid4().hex


def _again(error: Exception) -> bool | float:
    """Whether to make the call again, or in how many seconds, when the controller has said so."""
    return (isinstance(error, Busy) and error.retry_seconds) or isinstance(error, Unreachable)


def _tries(patience: float) -> Any:
    """Tries that are soon made: until the channel is up again one costs nobody anything, and a controller is back within seconds."""
    return stamina.retry_context(on=_again, timeout=patience, attempts=None, wait_max=0.5, wait_jitter=0.25)


class Turns:
    """How many tasks are still to be run by several at once; none more once it was ended."""

    def __init__(self, n: int | None) -> None:
        self._left = math.inf if n is None else n
        self._lock = threading.Lock()

    def take(self) -> bool:
        """Whether there was one left, which is the caller's now."""
        with self._lock:
            taken = self._left > 0
            self._left -= taken
            return taken

    def give_back(self) -> None:
        """There was nothing to run."""
        with self._lock:
            self._left += 1

    def end(self) -> None:
        """No more, whatever is given back."""
        with self._lock:
            self._left = -math.inf

    @property
    def ended(self) -> bool:
        """Whether ``end`` was called."""
        return self._left == -math.inf


class AsyncTransport:
    """gRPC on asyncio."""

    def __init__(self, address: str, *, patience: float = PATIENCE_SECONDS) -> None:
        self.address = address
        self._patience = patience
        self.credentials = found()
        self._channel = self.credentials.channel(address, grpc.aio)
        self.studies: Any = study_pb2_grpc.StudyServiceStub(self._channel)
        self.trials: Any = work_pb2_grpc.TrialServiceStub(self._channel)
        self.workers: Any = work_pb2_grpc.WorkerServiceStub(self._channel)
        self.campaigns: Any = campaign_pb2_grpc.CampaignServiceStub(self._channel)
        self.laws: Any = campaign_pb2_grpc.LawServiceStub(self._channel)

    async def call(self, method: Any, request: Any) -> Any:
        """One call, made again while nobody answers."""
        with contextlib.suppress(Unreachable):  # nearly every call is answered
            return await self._once(method, request)
        async for attempt in _tries(self._patience):
            with attempt:
                return await self._once(method, request)
        raise AssertionError("stamina returns or raises")

    async def _once(self, method: Any, request: Any) -> Any:
        try:
            return await method(request, timeout=CALL_SECONDS, metadata=self.credentials.metadata)
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error) from None

    async def stream(self, method: Any, request: Any) -> AsyncIterator[Any]:
        """The messages of a server stream."""
        try:
            async for message in method(request, metadata=self.credentials.metadata):
                yield message
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error) from None

    async def run(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """A blocking function of the user's, beside the loop."""
        return await asyncio.to_thread(function, *arguments)

    async def parallel(self, n: int, work: Callable[[], Any], end: Callable[[], None]) -> None:
        """``n`` copies of ``work`` at once; the first error calls ``end``, cancels the others, and is raised."""
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(n):
                    group.create_task(work())
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None
        finally:
            end()

    async def close(self) -> None:
        """Give the channel back."""
        await self._channel.close()


class BlockingTransport:
    """gRPC on threads; the same names."""

    def __init__(self, address: str, *, patience: float = PATIENCE_SECONDS) -> None:
        self.address = address
        self._patience = patience
        self.credentials = found()
        self._channel = self.credentials.channel(address)
        self.studies: Any = study_pb2_grpc.StudyServiceStub(self._channel)
        self.trials: Any = work_pb2_grpc.TrialServiceStub(self._channel)
        self.workers: Any = work_pb2_grpc.WorkerServiceStub(self._channel)
        self.campaigns: Any = campaign_pb2_grpc.CampaignServiceStub(self._channel)
        self.laws: Any = campaign_pb2_grpc.LawServiceStub(self._channel)

    def call(self, method: Any, request: Any) -> Any:
        """One call, made again while nobody answers."""
        with contextlib.suppress(Unreachable):  # nearly every call is answered
            return self._once(method, request)
        for attempt in _tries(self._patience):
            with attempt:
                return self._once(method, request)
        raise AssertionError("stamina returns or raises")

    def _once(self, method: Any, request: Any) -> Any:
        try:
            return method(request, timeout=CALL_SECONDS, metadata=self.credentials.metadata)
        except grpc.RpcError as error:
            raise from_rpc_error(error) from None  # type: ignore[arg-type]

    def stream(self, method: Any, request: Any) -> Iterator[Any]:
        """The messages of a server stream."""
        try:
            yield from method(request, metadata=self.credentials.metadata)
        except grpc.RpcError as error:
            raise from_rpc_error(error) from None  # type: ignore[arg-type]

    def run(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """A function of the user's."""
        return function(*arguments)

    def parallel(self, n: int, work: Callable[[], Any], end: Callable[[], None]) -> None:
        """``n`` copies of ``work`` at once, in threads; the first error, or Ctrl-C, calls ``end`` and is raised."""
        if n == 1:
            work()
            return
        with ThreadPoolExecutor(n) as pool:
            try:
                for future in as_completed([pool.submit(work) for _ in range(n)]):
                    future.result()
            finally:
                end()

    def close(self) -> None:
        """Give the channel back."""
        self._channel.close()


def wait_until_serving(address: str, seconds: float) -> bool:
    """Whether a controller answers at ``address`` within so long."""
    deadline = time.monotonic() + seconds
    with found().channel(address) as channel:
        try:
            grpc.channel_ready_future(channel).result(timeout=max(0.1, deadline - time.monotonic()))
        except grpc.FutureTimeoutError:
            return False
    return True
