"""A trial that this process holds: what to run, where to save, and the reports on their way."""

from __future__ import annotations

import contextlib
import functools
import math
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, SupportsFloat

import msgspec
from google.protobuf import json_format

from isoloss.client.locate import home
from isoloss.client.pulse import Pulse
from isoloss.domain.lease import Checkpoint, Ending, LeaseKey
from isoloss.domain.space import Scalar
from isoloss.errors import InvalidSpec, LeaseLost
from isoloss.v1 import common_pb2 as pb
from isoloss.wire.values import from_key, from_values


class Trial:
    """One leased task. Budgets are in the study's unit, from step 0 of the trial."""

    def __init__(self, lease: pb.Lease, pulse: Pulse) -> None:
        self.key: LeaseKey = from_key(lease.key)
        self.number = lease.trial
        self.level = lease.level
        self.budget_from = int(lease.budget_from)
        self.decay_from = int(lease.decay_from)
        self.budget_to = int(lease.budget_to)
        self.params: dict[str, Any] = from_values(lease.params)
        self.seed = int(lease.seed)
        self.metrics = tuple(lease.metrics)
        self.ttl_seconds = lease.ttl_seconds
        self.resume_from = Path(lease.resume_from) if lease.resume_from else None
        self._lease = lease
        self._pulse = pulse
        self._lost = ""
        self._reported = 0
        self.last: dict[str, float] = {}
        self.diverged_at: int | None = None

    @functools.cached_property
    def _folder(self) -> Path:
        return checkpoint_folder(home().absolute(), self._lease)

    @property
    def saved(self) -> str:
        """The lease as JSON, by which another process takes it over; it holds the lease's secret."""
        return json_format.MessageToJson(self._lease, indent=None)

    @property
    def lost(self) -> str:
        """Why this trial is not this process's any more: what was done to it; empty while it is."""
        return self._lost

    @property
    def reported(self) -> int:
        """The last step reported."""
        return self._reported

    @property
    def save_to(self) -> Path:
        """A folder of this attempt's own; what it holds at the end is the checkpoint later rungs resume from."""
        self._folder.mkdir(parents=True, exist_ok=True)
        return self._folder

    def steps(self) -> Iterator[int]:
        """The steps this rung still has to run: ``budget_from + 1`` to ``budget_to``."""
        yield from range(self.budget_from + 1, self.budget_to + 1)

    def report(self, step: int, **metrics: Scalar) -> None:
        """Report metrics at a step, in the study's unit.

        Raises ``LeaseLost`` when somebody else has the trial now, or it was cancelled, and ``InvalidSpec`` for a step
        before the last one reported or past the budget.
        """
        if self._lost:
            shutil.rmtree(self._folder, ignore_errors=True)
            raise LeaseLost(f"Trial {self.number} at level {self.level} was {self._lost}.", hint="Drop it.")
        if not self._reported <= step <= self.budget_to:
            raise InvalidSpec(
                f"report.step is {step}; accepted are {self._reported} (the last one reported) to {self.budget_to} (the budget)."
            )
        self._reported = step
        values = numbers(metrics)
        self.last |= values
        if self.diverged_at is None and any(not math.isfinite(values.get(metric, 0.0)) for metric in self.metrics):
            self.diverged_at = step
        self._pulse.report(self.key, [(step, values)])

    def lose(self, why: str) -> None:
        """The pulse heard that the lease is gone."""
        self._lost = {"stale": "leased to somebody else", "cancelling": "cancelled"}.get(why, why)

    @property
    def checkpoint(self) -> Checkpoint | None:
        """What the trainer saved, if it did."""
        found = manifest(self._folder)
        step = self.decay_from
        return Checkpoint(step=step, path=str(self._folder), manifest=found) if found else None


def checkpoint_folder(root: Path, lease: pb.Lease) -> Path:
    """Where an attempt saves: one folder an attempt, so that no two ever write the same."""
    name = f"{lease.level}-{lease.key.task_id}-{lease.key.epoch}"
    return checkpoint_root(root) / lease.project / lease.study / str(lease.trial) / name


def checkpoint_root(root: Path) -> Path:
    """Below it are the folders of all attempts."""
    return root / "checkpoints"


def manifest(folder: Path, *, until: int | None = None) -> dict[str, int]:
    """Names and sizes of the files in a folder, of those last written ``until`` then (ns) when it says so; empty for none."""
    found: dict[str, int] = {}
    for file in sorted(folder.rglob("*")) if folder.is_dir() else ():
        with contextlib.suppress(FileNotFoundError):  # a trainer goes on, and tidies up
            if file.is_file() and (until is None or file.stat().st_mtime_ns <= until):
                found[str(file.relative_to(folder))] = file.stat().st_size
    return found


def ending_of(trial: Trial, returned: Any) -> Ending:
    """The ending of a trial that ran to its end: what it returned over what it last reported."""
    values = dict(trial.last)
    if isinstance(returned, Mapping):
        values |= numbers(returned)
    elif isinstance(returned, SupportsFloat) and len(trial.metrics) == 1:
        values[trial.metrics[0]] = float(returned)
    if trial.diverged_at is not None:
        finite = {name: value for name, value in values.items() if math.isfinite(value)}
        return Ending(kind="diverge", step=trial.diverged_at, values=finite)
    return Ending(kind="complete", values=values, checkpoint=trial.checkpoint)


def numbers(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Metrics as floats, whichever library they come from; ``InvalidSpec`` names one that is no number."""
    found: dict[str, float] = {}
    for name, value in metrics.items():
        try:
            found[name] = float(value)
        except (TypeError, ValueError):
            raise InvalidSpec(f"metric {name} is {value!r}; accepted is a number.") from None
    return found


def describe(lease: pb.Lease) -> dict[str, Any]:
    """The run section of a lease; empty for a study that is run through the SDK."""
    return msgspec.json.decode(lease.run_json, type=dict[str, Any]) if lease.run_json else {}
