"""The trial a trainer runs in, read from its environment: the contract with a user's own script, in Python.

A command is given everything as ``ISOLOSS_*`` variables; this is the convenience over them. Outside a trial it is a
no-op that says so once, so that the same script still runs by hand; on ranks other than 0 it reads and never reports.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

PREEMPTED: Final = 75  # exit code of a program that saved and left because it was told to: sysexits' EX_TEMPFAIL
DONE: Final = "DONE"  # the file in save_to that says the folder is complete, at the step written in it


def stated_step(folder: Path) -> int | None:
    """The step that a trainer wrote into ``DONE``, if it did."""
    try:
        return int((folder / DONE).read_text())
    except (OSError, ValueError):
        return None


class CurrentTrial:
    """What a running trial knows. Budgets are in the study's unit, from step 0 of the trial."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._metrics = environment.get("ISOLOSS_METRICS", "")
        self.active = bool(self._metrics)
        self.params: dict[str, Any] = json.loads(environment.get("ISOLOSS_PARAMS", "{}"))
        self.budget_from = int(environment.get("ISOLOSS_BUDGET_FROM", "0"))
        self.budget_to = int(environment.get("ISOLOSS_BUDGET_TO", "0"))
        self.decay_from = int(environment.get("ISOLOSS_DECAY_FROM", str(self.budget_to)))
        self.seed = int(environment.get("ISOLOSS_SEED", "0"))
        self.gpus = int(environment.get("ISOLOSS_GPUS", "0"))
        self.nodes = int(environment.get("ISOLOSS_NODES", "1"))
        self.resume_from = _folder(environment.get("ISOLOSS_RESUME_FROM"))
        self.save_to = _folder(environment.get("ISOLOSS_SAVE_TO"))
        self.rank = int(environment.get("RANK", "0"))

    def __enter__(self) -> Self:
        if not self.active:
            print("isoloss: not inside a trial; reports go nowhere.", file=sys.stderr)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    def steps(self) -> Iterator[int]:
        """The steps this rung still has to run: ``budget_from + 1`` to ``budget_to``."""
        yield from range(self.budget_from + 1, self.budget_to + 1)

    def report(self, step: int, **metrics: float) -> None:
        """Append the metrics at a step; nothing happens outside a trial or on a rank other than 0."""
        if self.active and self.rank == 0:
            with Path(self._metrics).open("a") as handle:
                handle.write(
                    json.dumps({"step": step, **{name: float(value) for name, value in metrics.items()}}) + "\n"
                )


def current_trial() -> CurrentTrial:
    """The trial this process runs in; a no-op outside one."""
    return CurrentTrial(os.environ)


def report(step: int, **metrics: float) -> None:
    """Report the metrics of the current trial at a step."""
    current_trial().report(step, **metrics)


def _folder(text: str | None) -> Path | None:
    return Path(text) if text else None
