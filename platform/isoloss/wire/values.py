"""Parameters, leases and endings across the wire."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final, Literal

import msgspec

from isoloss.domain.curve import Series, series_of
from isoloss.domain.ids import TaskId
from isoloss.domain.lease import Checkpoint, Ending, LeaseKey
from isoloss.domain.space import Scalar
from isoloss.errors import InvalidSpec
from isoloss.v1 import common_pb2 as pb

Point = tuple[int, Mapping[str, float]]
NUL: Final = re.compile(r"(?<!\\)(?:\\\\)*\\u0000")  # escaped in JSON: no text of Postgres holds it


def to_value(value: Scalar) -> pb.Value:
    """A parameter's value as a message; whole numbers stay whole."""
    if isinstance(value, bool):
        return pb.Value(flag=value)
    if isinstance(value, int):
        return pb.Value(integer=value)
    if isinstance(value, float):
        return pb.Value(number=value)
    return pb.Value(text=value)


def from_value(message: pb.Value) -> Scalar:
    """The value of a message; ``InvalidSpec`` for an empty one."""
    kind = message.WhichOneof("kind")
    if kind is None:
        raise InvalidSpec("A parameter has no value; accepted is a number, a text or true/false.")
    value: Scalar = getattr(message, kind)
    return value


def to_values(params: Mapping[str, Scalar]) -> dict[str, pb.Value]:
    """Parameters as messages."""
    return {name: to_value(value) for name, value in params.items()}


def from_values(messages: Mapping[str, pb.Value]) -> dict[str, Scalar]:
    """Parameters of messages."""
    return {name: from_value(message) for name, message in messages.items()}


def to_key(key: LeaseKey) -> pb.LeaseKey:
    """A lease key as a message."""
    return pb.LeaseKey(task_id=key.task_id, epoch=key.epoch, secret=key.secret)


def from_key(message: pb.LeaseKey) -> LeaseKey:
    """The lease key of a message."""
    return LeaseKey(task_id=TaskId(message.task_id), epoch=message.epoch, secret=message.secret)


def to_series(points: Sequence[Point]) -> list[pb.Series]:
    """Points of curves as messages, one a metric."""
    return [
        pb.Series(metric=one.metric, first=one.first, stride=one.stride, steps=one.steps, samples=one.values)
        for one in series_of(points)
    ]


def from_series(messages: Iterable[pb.Series]) -> list[Series]:
    """The series of messages; ``InvalidSpec`` for what is no part of a curve."""
    return [Series(m.metric, m.first, m.stride, list(m.steps), list(m.samples)).checked() for m in messages]


def to_checkpoint(checkpoint: Checkpoint) -> pb.Checkpoint:
    """A checkpoint as a message."""
    manifest = msgspec.json.encode(dict(checkpoint.manifest)).decode()
    return pb.Checkpoint(step=checkpoint.step, path=checkpoint.path, manifest_json=manifest)


def from_checkpoint(message: pb.Checkpoint) -> Checkpoint | None:
    """The checkpoint of a message; ``None`` for an empty one."""
    if not message.path:
        return None
    try:
        manifest = msgspec.json.decode(message.manifest_json or "{}", type=dict[str, int])
    except msgspec.DecodeError as error:
        raise InvalidSpec(
            f"checkpoint.manifest_json is {message.manifest_json[:80]!r} ({error}); accepted is an object."
        ) from None
    return Checkpoint(step=message.step, path=message.path, manifest=manifest)


def to_ending(key: LeaseKey, ending: Ending, points: Sequence[Point] = ()) -> pb.Ending:
    """An ending as a message, with the last points of its curves; ``expire`` is the reaper's alone and never crosses."""
    message = pb.Ending(key=to_key(key), series=to_series(points), code=ending.code, tail=ending.tail)
    checkpoint = to_checkpoint(ending.checkpoint) if ending.checkpoint else None
    match ending.kind:
        case "complete":
            message.complete.CopyFrom(pb.Ending.Complete(values=dict(ending.values), checkpoint=checkpoint))
        case "diverge":
            message.diverge.CopyFrom(pb.Ending.Diverge(step=ending.step or 0, values=dict(ending.values)))
        case "fail":
            message.fail.CopyFrom(pb.Ending.Fail(retryable=ending.retryable, message=ending.message))
        case "release" | "expire":
            message.release.CopyFrom(pb.Ending.Release(checkpoint=checkpoint, reason=ending.message, lost=ending.lost))
    return message


def from_ending(message: pb.Ending) -> Ending:
    """The ending of a message; ``InvalidSpec`` when it names no outcome."""
    series = from_series(message.series)
    return replace(_outcome(message), series=series, code=message.code, tail=printable(message.tail))


def _outcome(message: pb.Ending) -> Ending:
    kind: Literal["complete", "diverge", "fail", "release"] | None = message.WhichOneof("outcome")
    match kind:
        case "complete":
            done = message.complete
            return Ending(kind=kind, values=dict(done.values), checkpoint=from_checkpoint(done.checkpoint))
        case "diverge":
            return Ending(kind=kind, step=message.diverge.step, values=dict(message.diverge.values))
        case "fail":
            said = printable(message.fail.message)
            return Ending(kind=kind, retryable=message.fail.retryable, message=said[:65536])
        case "release":
            given = message.release
            checkpoint = from_checkpoint(given.checkpoint)
            return Ending(kind=kind, checkpoint=checkpoint, message=given.reason, lost=given.lost)
        case None:
            raise InvalidSpec("endings has one without an outcome; accepted is complete, diverge, fail or release.")


def printable(text: str) -> str:
    """A trainer's own words, as Postgres keeps them: without NUL."""
    return text.replace("\0", "\N{REPLACEMENT CHARACTER}")


def decode_json(text: str, field: str) -> dict[str, Any]:
    """The object of a JSON field; ``InvalidSpec`` names the field otherwise."""
    if NUL.search(text):
        raise InvalidSpec(f"{field} holds the character NUL (\\u0000); accepted is text without it.")
    try:
        return msgspec.json.decode(text, type=dict[str, Any])
    except msgspec.DecodeError as error:
        raise InvalidSpec(f"{field} is no JSON object: {error}.") from None
