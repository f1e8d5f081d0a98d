"""What can happen to a search and what it decides: the words of the ledger.

A ledger is a study's events in order; with the spec it is all a search ever knows. Every event and decision becomes a
JSON-able mapping with a ``kind`` and comes back from it, strictly: an unknown kind or key is refused.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Final, Literal

import msgspec

from isoloss.domain.space import AnyParameter, Scalar
from isoloss.errors import InvalidSpec

Status = Literal["ok", "diverged", "failed", "cancelled"]
ENQUEUED: Final = "enqueued"  # the source of configurations a user put in line
CONFIRM: Final = "confirm"  # the source of a finalist's run with another seed


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """Somebody can run up to ``n`` tasks now."""

    n: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Proposed:
    """Configurations to be started in this order: a model's, which learned from ``level``, or a user's (``ENQUEUED``)."""

    configurations: tuple[dict[str, Scalar], ...]
    source: str
    level: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskDone:
    """A task has its one result. The score is minimised; ``None`` or any status but ok ranks last."""

    trial: int
    level: int
    status: Status = "ok"
    score: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Deepened:
    """The maximum budget is raised; everything that ran stays."""

    max_budget: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Widened:
    """So many iterations are pooled from now on: the brackets take more configurations, the maximum budget stays."""

    width: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SpaceChanged:
    """The space is larger from now on; every configuration there is remains a point of it."""

    space: dict[str, AnyParameter]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rescored:
    """Finished tasks have other scores now: promotions made stand, member sets are computed anew."""

    scores: tuple[tuple[int, int, float | None], ...]  # (trial, level, score)


@dataclass(frozen=True, slots=True, kw_only=True)
class Retried:
    """A task that failed runs again; until its new result is there the failure stands."""

    trial: int
    level: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Dropped:
    """The checkpoints of these trials are gone: one that goes up again after all begins from step 0."""

    trials: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialAdded:
    """Somebody wants this configuration run to ``level`` (``None``: the top), outside brackets and quotas."""

    configuration: dict[str, Scalar]
    level: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Confirming:
    """When there is nothing else to run, so many ``finalists`` run again at the largest budget, at most ``runs`` times."""

    finalists: int
    delta: float
    runs: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Stopped:
    """The study ends for good."""

    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CreateTrial:
    """A configuration begins its life; trials are numbered from 0 in the order of their creation.

    ``bracket`` is -1 for a trial that was added; ``index`` counts within the bracket. ``repeat`` is added to the seed.
    """

    trial: int
    bracket: int
    index: int
    configuration: dict[str, Scalar]
    source: str
    repeat: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class CreateTask:
    """Run a trial from ``budget_from`` to ``budget_to``, decaying from ``decay_from`` (``budget_to``: no decay)."""

    trial: int
    level: int
    budget_from: int
    decay_from: int
    budget_to: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CancelTask:
    """Nobody needs this task's result any more."""

    trial: int
    level: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Idle:
    """There is nothing to run until a result arrives or the study is deepened."""


Event = (
    Asked
    | Proposed
    | TaskDone
    | Deepened
    | Widened
    | SpaceChanged
    | Rescored
    | Retried
    | Dropped
    | TrialAdded
    | Confirming
    | Stopped
)
Decision = CreateTrial | CreateTask | CancelTask | Idle

EVENTS: Final[dict[str, type[Event]]] = {
    "asked": Asked,
    "proposed": Proposed,
    "task_done": TaskDone,
    "deepened": Deepened,
    "widened": Widened,
    "space_changed": SpaceChanged,
    "rescored": Rescored,
    "retried": Retried,
    "dropped": Dropped,
    "trial_added": TrialAdded,
    "confirming": Confirming,
    "stopped": Stopped,
}
DECISIONS: Final[dict[str, type[Decision]]] = {
    "create_trial": CreateTrial,
    "create_task": CreateTask,
    "cancel_task": CancelTask,
    "idle": Idle,
}
KINDS: Final = {kind: name for name, kind in (EVENTS | DECISIONS).items()}


def to_mapping(value: Event | Decision) -> dict[str, Any]:
    """JSON-able data of an event or a decision; a score that is not finite becomes ``None``."""
    body: dict[str, Any] = msgspec.to_builtins(value)
    if isinstance(value, TaskDone) and value.score is not None and not math.isfinite(value.score):
        body["score"] = None
    return {"kind": KINDS[type(value)], **body}


def event_from_mapping(source: Mapping[str, Any]) -> Event:
    """The event a mapping of ``to_mapping`` came from; ``InvalidSpec`` when it is none."""
    event: Event = _from_mapping(source, EVENTS, "event")
    return event


def decision_from_mapping(source: Mapping[str, Any]) -> Decision:
    """The decision a mapping of ``to_mapping`` came from; ``InvalidSpec`` when it is none."""
    decision: Decision = _from_mapping(source, DECISIONS, "decision")
    return decision


def _from_mapping(source: Mapping[str, Any], kinds: Mapping[str, type], what: str) -> Any:
    kind = kinds.get(source.get("kind", ""))
    if kind is None:
        raise InvalidSpec(f"{what}.kind is {source.get('kind')!r}; accepted are {', '.join(kinds)}.")
    body = {key: value for key, value in source.items() if key != "kind"}
    if unknown := sorted(set(body) - {field.name for field in fields(kind)}):
        raise InvalidSpec(f"{what}.{unknown[0]} is no key of {source['kind']}.")
    try:
        return msgspec.convert(body, kind)
    except msgspec.ValidationError as error:
        raise InvalidSpec(f"{what} {source['kind']}: {error}.") from None
