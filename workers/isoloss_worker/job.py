"""One leased task as a trainable sees it: the same words as the contract with a user's own trainer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec

Values = dict[str, float]


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """What to run. Budgets are in the study's unit, from step 0 of the trial.

    ``decay_from`` equals ``budget_to`` unless the fidelity is ``branch``: then the undecayed state at ``decay_from`` is
    what ``save_to`` must hold. ``resume_from`` is empty when the trial begins.
    """

    study: str
    trial: int
    level: int
    params: dict[str, Any]
    budget_from: int
    decay_from: int
    budget_to: int
    save_to: str
    run: dict[str, Any]
    resume_from: str = ""
    seed: int = 0
    metrics: tuple[str, ...] = ()
    gpu_ids: tuple[int, ...] = ()

    @property
    def resume_folder(self) -> Path | None:
        """Where to resume from, if anywhere."""
        return Path(self.resume_from) if self.resume_from else None


class Diverged(Exception):  # noqa: N818 - a result, not an error
    """Training left the finite world at ``step``; what was last measured is knowledge."""

    def __init__(self, step: int, values: Mapping[str, float]) -> None:
        super().__init__(f"diverged at step {step}")
        self.step = step
        self.values = dict(values)


class Reporter:
    """Where a trainable's news goes: metrics at a step, and a folder it has completed."""

    def __init__(self, metrics: Callable[[int, Values], None], checkpoint: Callable[[int], None]) -> None:
        self.metrics = metrics
        self.checkpoint = checkpoint
