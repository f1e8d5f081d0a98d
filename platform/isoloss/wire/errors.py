"""Errors across the wire: a class becomes a status code with its reason, and comes back as the same class."""

from __future__ import annotations

from typing import Any, Final

import grpc
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from isoloss import errors
from isoloss.errors import IsolossError

DOMAIN: Final = "isoloss"
CODES: Final[dict[type[IsolossError], grpc.StatusCode]] = {
    errors.NotFound: grpc.StatusCode.NOT_FOUND,
    errors.AlreadyExists: grpc.StatusCode.ALREADY_EXISTS,
    errors.InvalidSpec: grpc.StatusCode.INVALID_ARGUMENT,
    errors.WrongState: grpc.StatusCode.FAILED_PRECONDITION,
    errors.LeaseLost: grpc.StatusCode.ABORTED,
    errors.NotAllowed: grpc.StatusCode.PERMISSION_DENIED,
    errors.TrainableFailed: grpc.StatusCode.FAILED_PRECONDITION,
    errors.FitFailed: grpc.StatusCode.FAILED_PRECONDITION,
    errors.StoreUnavailable: grpc.StatusCode.UNAVAILABLE,
    errors.Unreachable: grpc.StatusCode.UNAVAILABLE,
    errors.IsolossError: grpc.StatusCode.UNKNOWN,
}
CLASSES: Final = {kind.reason: kind for kind in CODES}


def to_status(error: IsolossError) -> Any:
    """The rich status of an error, for ``context.abort_with_status``."""
    info = error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN, metadata={"hint": error.hint})
    status = status_pb2.Status(code=CODES[type(error)].value[0], message=error.message)
    status.details.add().Pack(info)
    return rpc_status.to_status(status)


def from_rpc_error(error: grpc.aio.AioRpcError) -> IsolossError:
    """The error a call ended with, as the class the server raised; a transport's own failure is ``Unreachable``."""
    status = rpc_status.from_call(error)
    for detail in status.details if status else ():
        info = error_details_pb2.ErrorInfo()
        if detail.Unpack(info) and info.domain == DOMAIN and info.reason in CLASSES:
            return CLASSES[info.reason](status.message, hint=info.metadata.get("hint", ""))
    if error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
        return errors.Unreachable(f"The controller does not answer ({error.details()}).")
    return IsolossError(f"The controller answered {error.code().name}: {error.details()}")
