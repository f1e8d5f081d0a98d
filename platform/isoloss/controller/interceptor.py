"""What every call passes through: our own errors become statuses, anything else an id that the log explains."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Final

import grpc
import structlog
from google.protobuf.message import DecodeError

from isoloss.controller.access import ANONYMOUS, METHODS, PRINCIPAL, Gate, narrow
from isoloss.controller.limits import check_limits
from isoloss.controller.metrics import Metrics
from isoloss.controller.rates import Rates
from isoloss.domain.access import LOCAL
from isoloss.errors import InvalidSpec, IsolossError
from isoloss.wire.errors import CODES, to_status

log = structlog.get_logger()
GARBLED: Final = object()
Continuation = Callable[[grpc.HandlerCallDetails], Awaitable[Any]]


class Guarded(grpc.aio.ServerInterceptor):
    """Lets a call in as somebody and holds it to what they may see, and maps errors once; for streams too."""

    def __init__(self, gate: Gate, rates: Rates, metrics: Metrics) -> None:
        self.gate = gate
        self.rates = rates
        self.metrics = metrics

    async def intercept_service(self, continuation: Continuation, handler_call_details: grpc.HandlerCallDetails) -> Any:
        """Wrap the handler of the method; its name is what the log says."""
        handler = await continuation(handler_call_details)
        method = handler_call_details.method
        if handler is None or handler.request_streaming:  # no service here takes a stream
            return None
        if handler.unary_unary is not None:
            return grpc.unary_unary_rpc_method_handler(
                self._unary(handler.unary_unary, method), _read(handler), handler.response_serializer
            )
        return grpc.unary_stream_rpc_method_handler(
            self._stream(handler.unary_stream, method), _read(handler), handler.response_serializer
        )

    def _unary(self, behaviour: Any, method: str) -> Any:
        async def wrapped(request: Any, context: Any) -> Any:
            with self.metrics.call(method) as code:
                try:
                    await self._enter(request, context, method)
                    return await behaviour(request, context)
                except Exception as error:  # noqa: BLE001 - every error of a call is answered here
                    await _abort(error, context, method, code)

        return wrapped

    def _stream(self, behaviour: Any, method: str) -> Any:
        async def wrapped(request: Any, context: Any) -> AsyncIterator[Any]:
            with self.metrics.call(method) as code:
                try:
                    await self._enter(request, context, method)
                    async for reply in behaviour(request, context):
                        yield reply
                except Exception as error:  # noqa: BLE001 - every error of a call is answered here
                    await _abort(error, context, method, code)

        return wrapped

    async def _enter(self, request: Any, context: Any, method: str) -> None:
        principal = LOCAL
        if not method.startswith(ANONYMOUS):
            principal = await self.gate.admit(method, context.invocation_metadata(), host_of(context.peer()))
            if METHODS[method].scope != "lease":  # what runs is renewed and told whatever else its token does
                self.rates.take(principal.id)
        if request is GARBLED:
            raise InvalidSpec(f"The request is no message of {method.rpartition('/')[2]}; accepted is one.")
        check_limits(request)
        narrow(method, request, principal)
        PRINCIPAL.set(principal)


def host_of(peer: str) -> str:
    """The host of gRPC's name of a peer, ``ipv4:10.0.0.1:4711``: its port is another one every time."""
    return peer.rpartition(":")[0].partition(":")[2]


def _read(handler: Any) -> Callable[[bytes], Any]:
    """The request of a handler's bytes; what is none is answered like any other mistake, and not as one of ours."""

    def read(data: bytes) -> Any:
        try:
            return handler.request_deserializer(data)
        except DecodeError:
            return GARBLED

    return read


async def _abort(error: Exception, context: Any, method: str, code: list[str]) -> None:
    code[0] = CODES[type(error)].name if isinstance(error, IsolossError) else "INTERNAL"
    if isinstance(error, IsolossError):
        await context.abort_with_status(to_status(error))
    if isinstance(error, grpc.aio.AbortError):
        raise error
    number = uuid.uuid4().hex[:12]
    log.error("call.crashed", method=method, error_id=number, exc_info=error)
    await context.abort(
        grpc.StatusCode.INTERNAL, f"Something went wrong in the controller (error {number} in its log)."
    )
