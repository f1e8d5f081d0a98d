"""What a user's trainer measured so far, in our names: last values, last step, and whether the objective is lost."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, SupportsFloat

from isoloss_worker.job import Diverged, Job, Reporter, Values


class Measured:
    """The reports of one job on their way to the agent."""

    def __init__(self, job: Job, reporter: Reporter) -> None:
        self.last: Values = {}
        self.step: int | None = None
        self.diverged: Diverged | None = None
        self._job = job
        self._report = reporter.metrics
        self._ours = {theirs: ours for ours, theirs in (job.run.get("metrics") or {}).items()}

    def take(self, step: int, values: Mapping[str, Any]) -> None:
        """Report the metrics at a step; the first non-finite one that is owed makes the run diverged."""
        named = self.named(values)
        self.last |= named
        self.step = step
        if self.diverged is None and any(not math.isfinite(named.get(name, 0.0)) for name in self._job.metrics):
            self.diverged = Diverged(step, self.last)
        self._report(step, named)

    def final(self, returned: Any) -> Values:
        """The final metrics: what a function returned over what it last reported. Raises ``Diverged``."""
        values = dict(self.last)
        if isinstance(returned, Mapping):
            values |= self.named(returned)
        elif isinstance(returned, SupportsFloat) and len(self._job.metrics) == 1:
            values[self._job.metrics[0]] = float(returned)
        if self.diverged is not None:
            raise Diverged(self.diverged.step, values)
        return values

    def named(self, values: Mapping[str, Any]) -> Values:
        """Numbers under our names; a metric that ``run.metrics`` does not rename keeps its own."""
        return {self._ours.get(name, name): float(value) for name, value in values.items()}


class MetricsFile:
    """The file a trainer appends JSON lines to, read as it grows; ``step`` counts in the study's budget unit."""

    def __init__(self, file: Path, measured: Measured) -> None:
        self._file = file
        self._measured = measured
        self._read = 0
        self._count = 0
        self._complained = False

    def take_new(self, *, last: bool = False) -> None:
        """Report the lines that are new; one without its newline waits, unless nothing can follow it."""
        if not self._file.exists():
            return
        with self._file.open("rb") as handle:
            handle.seek(self._read)
            text = handle.read()
        end = len(text) if last else text.rfind(b"\n") + 1
        self._read += end
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
            if not self._complained:
                print(f"isoloss: {self._file.name} holds a line that is no JSON object of numbers: {line[:80]!r}")
            self._complained = True
            return
        self._measured.take(step, numbers)
