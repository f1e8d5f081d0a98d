"""The lease state machine: what a task can be, and the only moves there are.

A task is one trial at one level. ``READY`` tasks wait for a worker; a lease makes a task ``LEASED`` and raises its
epoch, which is from then on the only authority to report on it. Waiting at a rung is not a state: a promotion inserts
the next task, so there is nothing to resume and nothing to lose. The same words are the Postgres enum ``task_state``;
``NEXT`` is enforced by the trigger ``task_moves`` and a test compares the two.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final

from isoloss.errors import WrongState


class TaskState(StrEnum):
    """Where a task stands."""

    READY = "ready"
    LEASED = "leased"
    CANCELLING = "cancelling"  # asked to stop; the worker hears it in its next heartbeat
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"


class ResultStatus(StrEnum):
    """How a task ended."""

    OK = "ok"
    DIVERGED = "diverged"
    FAILED = "failed"
    CANCELLED = "cancelled"


class AttemptOutcome(StrEnum):
    """How one leased execution of a task ended."""

    OK = "ok"
    DIVERGED = "diverged"
    FAILED = "failed"
    RELEASED = "released"
    EXPIRED = "expired"
    CANCELLED = "cancelled"


NEXT: Final = {
    TaskState.READY: frozenset({TaskState.LEASED, TaskState.CANCELLED}),
    TaskState.LEASED: frozenset({TaskState.READY, TaskState.DONE, TaskState.FAILED, TaskState.CANCELLING}),
    TaskState.CANCELLING: frozenset({TaskState.CANCELLED}),
    TaskState.DONE: frozenset[TaskState](),
    TaskState.FAILED: frozenset({TaskState.READY}),  # retried: its result goes, attempts and events stay
    TaskState.CANCELLED: frozenset[TaskState](),
}
TERMINAL: Final = frozenset({TaskState.DONE, TaskState.FAILED, TaskState.CANCELLED})

MAX_FAILURES: Final = 3  # an exception is retried twice, then the task has failed
MAX_INFRA_FAILURES: Final = (
    5  # a task that took so many workers with it, and saved nothing new with any, is poisoned: failed
)


def check_move(before: TaskState, after: TaskState) -> None:
    """Raise ``WrongState`` unless ``before → after`` is one of the listed moves."""
    if after not in NEXT[before]:
        allowed = ", ".join(sorted(NEXT[before])) or "nothing: it is final"
        raise WrongState(f"A task cannot go from {before} to {after}; from {before} it can go to {allowed}.")
