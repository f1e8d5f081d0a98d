"""What a child says to its agent: JSON lines on a pipe of their own, which a trainer's prints never reach.

Every number here is finite: the child turns a non-finite objective into a divergence before anything is written.
"""

from __future__ import annotations

from typing import Final, Literal

import msgspec

STDERR_END: Final = b"\x1e"  # a line of its own on stderr, after everything one job printed


class Ready(msgspec.Struct, frozen=True, tag="ready"):
    """The child waits for a job."""


class Measured(msgspec.Struct, frozen=True, tag="measured"):
    """Metrics at one step."""

    step: int
    values: dict[str, float]


class Saved(msgspec.Struct, frozen=True, tag="saved"):
    """The folder ``save_to`` holds the complete state at this step."""

    step: int


class Ended(msgspec.Struct, frozen=True, kw_only=True, tag="ended"):
    """How the job ended; ``saved`` is the step of the state in ``save_to``, where there is one."""

    kind: Literal["complete", "diverge", "fail", "release"]
    values: dict[str, float] = {}
    step: int | None = None
    saved: int | None = None
    retryable: bool = True
    message: str = ""


Message = Ready | Measured | Saved | Ended
ENCODER: Final = msgspec.json.Encoder()
DECODER: Final = msgspec.json.Decoder(Message)


def line(message: Message) -> bytes:
    """The message as one line."""
    return ENCODER.encode(message) + b"\n"
