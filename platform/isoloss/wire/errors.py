"""Errors across the wire: a class becomes a status code with its reason, and comes back as the same class."""

from __future__ import annotations

from datetime import timedelta
from typing import Any, Final

import grpc
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from isoloss.errors import (
    AlreadyExists,
    Busy,
    FitFailed,
    InvalidSpec,
    IsolossError,
    LeaseLost,
    NotAllowed,
    NotFound,
    StoreUnavailable,
    TrainableFailed,
    Unauthenticated,
    Unreachable,
    WrongState,
)

DOMAIN: Final = "isoloss"
CODES: Final[dict[type[IsolossError], grpc.StatusCode]] = {
    NotFound: grpc.StatusCode.NOT_FOUND,
    AlreadyExists: grpc.StatusCode.ALREADY_EXISTS,
    InvalidSpec: grpc.StatusCode.INVALID_ARGUMENT,
    WrongState: grpc.StatusCode.FAILED_PRECONDITION,
    LeaseLost: grpc.StatusCode.ABORTED,
    NotAllowed: grpc.StatusCode.PERMISSION_DENIED,
    Unauthenticated: grpc.StatusCode.UNAUTHENTICATED,
    Busy: grpc.StatusCode.RESOURCE_EXHAUSTED,
    TrainableFailed: grpc.StatusCode.FAILED_PRECONDITION,
    FitFailed: grpc.StatusCode.FAILED_PRECONDITION,
    StoreUnavailable: grpc.StatusCode.UNAVAILABLE,
    Unreachable: grpc.StatusCode.UNAVAILABLE,
    IsolossError: grpc.StatusCode.UNKNOWN,
}
CLASSES: Final = {kind.reason: kind for kind in CODES}


def to_status(error: IsolossError) -> Any:
    """The rich status of an error, for ``context.abort_with_status``."""
    info = error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN, metadata={"hint": error.hint})
    status = status_pb2.Status(code=CODES[type(error)].value[0], message=error.message)
    status.details.add().Pack(info)
    if isinstance(error, Busy) and error.retry_seconds:
        again = error_details_pb2.RetryInfo()
        again.retry_delay.FromTimedelta(timedelta(seconds=error.retry_seconds))
        status.details.add().Pack(again)
    return rpc_status.to_status(status)


TLS_SIGNS: Final = {  # what a transport says when the two ends do not speak the same way
    "Socket closed": "Something listens there: if it speaks TLS, ISOLOSS_CA has to name its ca.pem.",
    "WRONG_VERSION_NUMBER": "It speaks no TLS: without ISOLOSS_CA it is called in plain text.",
    "CERTIFICATE_VERIFY_FAILED": "Its certificate is not of the CA in ISOLOSS_CA, is too old, or has another name.",
}


def from_rpc_error(error: grpc.aio.AioRpcError) -> IsolossError:
    """The error a call ended with, as the class the server raised; a transport's own failure is ``Unreachable``."""
    status = rpc_status.from_call(error)
    info, again = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
    for detail in status.details if status else ():
        _ = detail.Unpack(info) or detail.Unpack(again)
    if info.domain == DOMAIN and info.reason in CLASSES:
        kind, hint = CLASSES[info.reason], info.metadata.get("hint", "")
        if kind is Busy:
            return Busy(status.message, hint=hint, retry_seconds=again.retry_delay.ToTimedelta().total_seconds())
        return kind(status.message, hint=hint)
    if error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED:
        if "larger than" in (said := str(error.details())):
            return InvalidSpec(f"The message is too large: {said}.")
        return Busy(f"The controller serves too many calls at this moment ({said}).")
    if error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
        said = str(error.details())
        hint = next((hint for sign, hint in TLS_SIGNS.items() if sign in said), "")
        return Unreachable(f"The controller does not answer ({said}).", hint=hint)
    return IsolossError(f"The controller answered {error.code().name}: {error.details()}")
