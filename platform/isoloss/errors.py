"""Every error isoloss raises on purpose: one small tree, so that a caller catches a class and never a string.

``reason`` is the stable word that crosses the wire (``ErrorInfo.reason``); ``hint`` is what to do next. ``exit_code``
is what the command line answers with: 2 wrong usage or input, 3 not found, 4 refused by state, 5 unreachable, 1 failed.
"""

from __future__ import annotations

from typing import ClassVar


class IsolossError(Exception):
    """Something went wrong that isoloss understands; the message is one sentence for a person."""

    reason: ClassVar[str] = "ISOLOSS_ERROR"
    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} {self.hint}".strip()


class NotFound(IsolossError):
    """No such study, trial, campaign or fit."""

    reason = "NOT_FOUND"
    exit_code = 3


class AlreadyExists(IsolossError):
    """The name is taken, or the same thing was already said differently."""

    reason = "ALREADY_EXISTS"
    exit_code = 4


class InvalidSpec(IsolossError):
    """A spec, a value or an argument is not what it must be; the message names field, value and what is accepted."""

    reason = "INVALID_SPEC"
    exit_code = 2


class WrongState(IsolossError):
    """The request is fine, but not in the state the thing is in."""

    reason = "WRONG_STATE"
    exit_code = 4


class LeaseLost(IsolossError):
    """The caller's lease is no longer the current one; nothing was written."""

    reason = "LEASE_LOST"
    exit_code = 4


class NotAllowed(IsolossError):
    """A worker's allow-list, or a role, does not permit this."""

    reason = "NOT_ALLOWED"
    exit_code = 4


class Unauthenticated(IsolossError):
    """The call shows no token, or one that is not accepted."""

    reason = "UNAUTHENTICATED"
    exit_code = 4


class TrainableFailed(IsolossError):
    """The user's trainer ended without the result it owed."""

    reason = "TRAINABLE_FAILED"


class FitFailed(IsolossError):
    """The observations do not determine the law that was asked for."""

    reason = "FIT_FAILED"


class Unreachable(IsolossError):
    """No controller answers at the address."""

    reason = "UNREACHABLE"
    exit_code = 5


class StoreUnavailable(Unreachable):
    """Postgres cannot be reached, started or used; a controller without it is as good as none, and is asked again."""

    reason = "STORE_UNAVAILABLE"
    exit_code = 5


class Busy(Unreachable):
    """More is asked for than is served at a time: nothing was done, and the same call may be made again in ``retry_seconds``."""

    reason = "BUSY"
    exit_code = 5

    def __init__(self, message: str, *, hint: str = "", retry_seconds: float = 0.0) -> None:
        super().__init__(message, hint=hint)
        self.retry_seconds = retry_seconds
