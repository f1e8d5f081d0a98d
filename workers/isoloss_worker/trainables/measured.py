"""What a user's trainer measured and saved so far: last values in our names, last step, what ends the run early."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, SupportsFloat

from isoloss.client.current import DONE, stated_step
from isoloss.errors import TrainableFailed
from isoloss_worker.job import Diverged, Job, Reporter, Values

TELLING: Final = 64  # bytes


class Measured:
    """The reports of one job on their way to the agent."""

    def __init__(self, job: Job, reporter: Reporter) -> None:
        self.last: Values = {}
        self.step: int | None = None
        self.lost: Diverged | TrainableFailed | None = None  # raise it: nothing that follows counts
        self._job = job
        self._report = reporter.metrics
        self._ours = {theirs: ours for ours, theirs in (job.run.get("metrics") or {}).items()}

    def take(self, step: int, values: Mapping[str, Any]) -> None:
        """Report the metrics at a step; a non-finite one that is owed, or a step past the budget, loses the run."""
        if self.lost is None and step > self._job.budget_to:
            self.lost = TrainableFailed(
                f"The trainer reported step {step}, and its budget_to is {self._job.budget_to}; accepted are steps up to "
                "budget_to, counted in the unit of the study's budget from the trial's first step."
            )
        if self.lost is not None:
            return
        named = self.named(values)
        self.last |= named
        self.step = step
        if any(not math.isfinite(named.get(name, 0.0)) for name in self._job.metrics):
            self.lost = Diverged(step, self.last)
        self._report(step, named)

    def final(self, returned: Any) -> Values:
        """The final metrics: what a function returned over what it last reported. Raises what lost the run."""
        values = dict(self.last)
        if isinstance(returned, Mapping):
            values |= self.named(returned)
        elif isinstance(returned, SupportsFloat) and len(self._job.metrics) == 1:
            values[self._job.metrics[0]] = float(returned)
        if isinstance(self.lost, Diverged):
            raise Diverged(self.lost.step, values)
        if self.lost is not None:
            raise self.lost
        return values

    def named(self, values: Mapping[str, Any]) -> Values:
        """Numbers under our names; a metric that ``run.metrics`` does not rename keeps its own."""
        return {self._ours.get(name, name): float(value) for name, value in values.items()}


class MetricsFile:
    """The file a trainer appends JSON lines to, read as it grows; ``step`` counts in the study's budget unit.

    A file that was written anew instead is read anew, and of its lines those past the last step count.
    """

    def __init__(self, file: Path, measured: Measured) -> None:
        self._file = file
        self._measured = measured
        self._read = 0
        self._count = 0
        self._complained: set[str] = set()
        self._before = b""  # the last bytes read: they stand where they stood, or the file was written anew
        self._past: int | None = None

    def take_new(self, *, last: bool = False) -> None:
        """Report the lines that are new; one without its newline waits, unless nothing can follow it."""
        if not self._file.exists():
            return
        with self._file.open("rb") as handle:
            handle.seek(self._read - len(self._before))
            if handle.read(len(self._before)) != self._before:
                self._complain("was written anew: append to it, or what was written in between is lost")
                self._read, self._count, self._past = 0, 0, self._measured.step
            handle.seek(self._read)
            text = handle.read()
        end = len(text) if last else text.rfind(b"\n") + 1
        self._read += end
        self._before = text[:end][-TELLING:] if end else self._before if self._read else b""
        for line in filter(None, map(bytes.strip, text[:end].split(b"\n"))):
            self._take(line)

    def _take(self, line: bytes) -> None:
        self._count += 1
        try:
            row = json.loads(line)
            step = row.pop("step", None)
            step = int(row.get("tokens", self._count) if step is None else step)
            numbers = {name: value for name, value in row.items() if isinstance(value, int | float)}
        except (ValueError, TypeError, AttributeError):
            self._complain("holds a line that is no JSON object of numbers", repr(line[:80]))
            return
        if self._past is None or step > self._past:
            self._measured.take(step, numbers)

    def _complain(self, what: str, example: str = "") -> None:
        if what not in self._complained:
            self._complained.add(what)
            print(f"isoloss: {self._file.name} {what}{example and ': '}{example}", flush=True)


class Saves:
    """Registers what a trainer saves in mid-run: whenever ``DONE`` in ``save_to`` says another step."""

    def __init__(self, job: Job, measured: Measured, reporter: Reporter) -> None:
        self._job, self._measured, self._reporter = job, measured, reporter
        self._done = Path(job.save_to) / DONE
        self._registered: int | None = None

    def look(self) -> None:
        """Register the step if it is new."""
        if self._done.exists() and (step := saved_step(self._job, self._measured)) != self._registered:
            self._registered = step
            self._reporter.checkpoint(step)


def saved_step(job: Job, measured: Measured, *, early: bool = False) -> int:
    """The budget reached by the state in ``save_to``: as ``DONE`` says, else the fork (or, when early, the last report)."""
    if (stated := stated_step(Path(job.save_to))) is not None:
        return min(stated, job.decay_from)
    if not early:
        return job.decay_from
    return min(job.budget_from if measured.step is None else measured.step, job.decay_from)
