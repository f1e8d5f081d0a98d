"""One leased task as a trainable sees it: the same words as the contract with a user's own trainer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
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
    code: str = ""
    gpu_ids: tuple[str, ...] = ()
    own_gpus: bool = False  # no other slot has them: what they use is the run's

    @property
    def resume_folder(self) -> Path | None:
        """Where to resume from, if anywhere."""
        return Path(self.resume_from) if self.resume_from else None


class Diverged(Exception):
    """Training left the finite world at ``step``; what was last measured is knowledge."""

    def __init__(self, step: int, values: Mapping[str, float]) -> None:
        super().__init__(f"diverged at step {step}")
        self.step = step
        self.values = dict(values)


class Preempted(BaseException):
    """The run ended early because it was asked to; ``saved`` is the step of the state in ``save_to``, if there is one.

    Not an ``Exception``: a trainer's own ``except Exception`` must not swallow it.
    """

    def __init__(self, saved: int | None = None) -> None:
        super().__init__("preempted")
        self.saved = saved


class Failed(Exception):
    """The trainer failed, and ``retryable`` says whether trying again can help."""

    def __init__(self, message: str, *, retryable: bool) -> None:
        super().__init__(message)
        self.retryable = retryable


class Stop:
    """Whether the run was asked to end early (SIGTERM), and what to do at that moment."""

    def __init__(self) -> None:
        self.asked = False
        self._then: Callable[[], None] | None = None

    def ask(self) -> None:
        """Remember it, and do what the running trainable wants done now."""
        self.asked = True
        if self._then is not None:
            self._then()

    @contextmanager
    def then(self, action: Callable[[], None]) -> Iterator[None]:
        """Within the block, call ``action`` when the run is asked to end; at once if it was asked already."""
        self._then = action
        try:
            if self.asked:
                action()
            yield
        finally:
            self._then = None


class Reporter:
    """Where a trainable's news goes: metrics at a step, and a folder it has completed; ``stop`` is what it may hear."""

    def __init__(
        self, metrics: Callable[[int, Values], None], checkpoint: Callable[[int], None], stop: Stop | None = None
    ) -> None:
        self.metrics = metrics
        self.checkpoint = checkpoint
        self.stop = stop or Stop()
