"""What every call passes through: our own errors become statuses, anything else an id that the log explains."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
import structlog

from isoloss.errors import IsolossError
from isoloss.wire.errors import to_status

log = structlog.get_logger()
Continuation = Callable[[grpc.HandlerCallDetails], Awaitable[Any]]


class Errors(grpc.aio.ServerInterceptor):
    """Maps errors once, for calls with one answer and for streams."""

    async def intercept_service(self, continuation: Continuation, handler_call_details: grpc.HandlerCallDetails) -> Any:
        """Wrap the handler of the method; its name is what the log says."""
        handler = await continuation(handler_call_details)
        method = handler_call_details.method
        if handler is None:
            return None
        if handler.unary_unary is not None:
            return grpc.unary_unary_rpc_method_handler(
                _unary(handler.unary_unary, method), handler.request_deserializer, handler.response_serializer
            )
        if handler.unary_stream is not None:
            return grpc.unary_stream_rpc_method_handler(
                _stream(handler.unary_stream, method), handler.request_deserializer, handler.response_serializer
            )
        return handler


def _unary(behaviour: Any, method: str) -> Any:
    async def wrapped(request: Any, context: Any) -> Any:
        try:
            return await behaviour(request, context)
        except Exception as error:  # noqa: BLE001 - every error of a call is answered here
            await _abort(error, context, method)

    return wrapped


def _stream(behaviour: Any, method: str) -> Any:
    async def wrapped(request: Any, context: Any) -> AsyncIterator[Any]:
        try:
            async for reply in behaviour(request, context):
                yield reply
        except Exception as error:  # noqa: BLE001 - every error of a call is answered here
            await _abort(error, context, method)

    return wrapped


async def _abort(error: Exception, context: Any, method: str) -> None:
    if isinstance(error, IsolossError):
        await context.abort_with_status(to_status(error))
    if isinstance(error, grpc.aio.AbortError):
        raise error
    number = uuid.uuid4().hex[:12]
    log.error("call.crashed", method=method, error_id=number, exc_info=error)
    await context.abort(
        grpc.StatusCode.INTERNAL, f"Something went wrong in the controller (error {number} in its log)."
    )
