"""How an attempt ends: the pure rule that turns what a worker said into one move of the task.

A worker says complete, diverge, fail or release; the reaper says expire. What follows depends only on the task's
counters and on whether somebody asked for its cancellation. A result of ``diverged`` is knowledge (a law uses it as
censored data); a result of ``failed`` is not.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from isoloss.domain.curve import Series
from isoloss.domain.ids import TaskId
from isoloss.domain.task import MAX_FAILURES, MAX_INFRA_FAILURES, AttemptOutcome, ResultStatus, TaskState

RETRY_SECONDS = 1.0  # doubled with every failure of the task
REFUSED_SECONDS = 5.0  # until a task that a worker could not run is leased again, perhaps to another


def slots_taken(gpus: int, of_each_slot: int) -> int:
    """How many slots of one worker a task of so many GPUs takes, when each slot has so many."""
    return max(1, -(-gpus // of_each_slot)) if of_each_slot else 1


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseKey:
    """What a worker shows to be heard: task, epoch and the lease's secret."""

    task_id: TaskId
    epoch: int
    secret: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A folder a trainer completed at ``step`` units of budget; ``manifest`` maps file names to bytes."""

    step: int
    path: str
    manifest: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """What was said about an attempt."""

    kind: Literal["complete", "diverge", "fail", "release", "expire"]
    values: Mapping[str, float] = field(default_factory=dict)
    step: int | None = None
    retryable: bool = True
    message: str = ""
    checkpoint: Checkpoint | None = None
    series: Sequence[Series] = ()  # the last points of its curves
    code: str = ""  # the version of what ran
    tail: str = ""  # the last lines it printed
    went_on: bool = False  # expired: after a checkpoint beyond those of before
    lost: str = ""  # released: the folder it was to resume from, when nobody can any more


@dataclass(frozen=True, slots=True, kw_only=True)
class Move:
    """What the ending does to the task; ``status`` is the result's, ``None`` while the task lives on."""

    state: TaskState
    outcome: AttemptOutcome
    status: ResultStatus | None = None
    values: Mapping[str, float] = field(default_factory=dict)
    failures: int = 0
    infra_failures: int = 0
    delay_seconds: float = 0.0
    message: str = ""


def judge(ending: Ending, *, state: TaskState, failures: int, infra_failures: int, needed: Sequence[str]) -> Move:
    """The move that ``ending`` makes of a task in ``state`` with so many failures; ``needed`` are the metrics owed."""
    if state is TaskState.CANCELLING:
        return Move(
            state=TaskState.CANCELLED,
            outcome=AttemptOutcome.CANCELLED,
            status=ResultStatus.CANCELLED,
            message=ending.message,
        )
    match ending.kind:
        case "complete":
            return _completed(ending, failures, needed)
        case "diverge":
            return Move(
                state=TaskState.DONE, outcome=AttemptOutcome.DIVERGED, status=ResultStatus.DIVERGED,
                values=finite(ending.values), message=ending.message,
            )  # fmt: skip
        case "fail":
            return _failed(failures, ending.message, retryable=ending.retryable)
        case "release":
            return Move(
                state=TaskState.READY, outcome=AttemptOutcome.RELEASED, message=ending.message,
                delay_seconds=REFUSED_SECONDS if ending.message and not ending.lost else 0.0,
            )  # fmt: skip
        case "expire":
            return _expired(infra_failures, went_on=ending.went_on)


def _completed(ending: Ending, failures: int, needed: Sequence[str]) -> Move:
    missing = [metric for metric in needed if metric not in ending.values]
    if missing:
        said = ", ".join(sorted(ending.values)) or "no metric"
        message = f"The trainer ended without its metric {missing[0]} (it reported {said}). {ending.message}".strip()
        return _failed(failures, message, retryable=False)
    if not all(math.isfinite(ending.values[metric]) for metric in needed):
        return Move(
            state=TaskState.DONE,
            outcome=AttemptOutcome.DIVERGED,
            status=ResultStatus.DIVERGED,
            values=finite(ending.values),
        )
    return Move(state=TaskState.DONE, outcome=AttemptOutcome.OK, status=ResultStatus.OK, values=finite(ending.values))


def _failed(failures: int, message: str, *, retryable: bool) -> Move:
    if retryable and failures + 1 < MAX_FAILURES:
        return Move(
            state=TaskState.READY, outcome=AttemptOutcome.FAILED, failures=1, message=message,
            delay_seconds=RETRY_SECONDS * 2**failures,
        )  # fmt: skip
    return Move(
        state=TaskState.FAILED, outcome=AttemptOutcome.FAILED, status=ResultStatus.FAILED, failures=1, message=message
    )


def _expired(infra_failures: int, *, went_on: bool) -> Move:
    if went_on:  # what a task that kills workers never does, and one that is often preempted without a word always
        return Move(state=TaskState.READY, outcome=AttemptOutcome.EXPIRED, message="The worker went silent.")
    if infra_failures + 1 < MAX_INFRA_FAILURES:
        return Move(
            state=TaskState.READY, outcome=AttemptOutcome.EXPIRED, infra_failures=1, message="The worker went silent."
        )
    message = f"{MAX_INFRA_FAILURES} workers went silent on this task: it is taken to be what kills them."
    return Move(
        state=TaskState.FAILED,
        outcome=AttemptOutcome.EXPIRED,
        status=ResultStatus.FAILED,
        infra_failures=1,
        message=message,
    )


def finite(values: Mapping[str, float]) -> dict[str, float]:
    """The finite ones; NaN and infinities have no place in jsonb."""
    return {name: value for name, value in values.items() if math.isfinite(value)}
