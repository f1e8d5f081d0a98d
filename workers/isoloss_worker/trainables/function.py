"""``run: {function: "module:name"}``: a Python function of the user's, called with the trial.

It may report through the trial or through ``isoloss.current_trial()``, and may return nothing, a mapping of metrics, or
the one objective as a number. Its module is found in ``run.cwd`` (else where the worker was started) or on the path.
"""

from __future__ import annotations

import asyncio
import importlib
import inspect
import os
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from isoloss.client.current import PREEMPTED
from isoloss.errors import InvalidSpec
from isoloss_worker.job import Failed, Job, Preempted, Reporter, Values
from isoloss_worker.trainables.environment import METRICS_FILE, variables, write_params
from isoloss_worker.trainables.measured import Measured, MetricsFile, Saves, saved_step

LOOK_SECONDS: Final = 0.2


class Trial:
    """What a function is given; the same names as the SDK's trial."""

    def __init__(self, job: Job, measured: Measured) -> None:
        self.number = job.trial
        self.level = job.level
        self.params = dict(job.params)
        self.budget_from = job.budget_from
        self.decay_from = job.decay_from
        self.budget_to = job.budget_to
        self.resume_from = job.resume_folder
        self.seed = job.seed
        self.metrics = job.metrics
        self.save_to = Path(job.save_to)  # a folder of this attempt's own: what it holds at the end is the checkpoint
        self._measured = measured

    def steps(self) -> Iterator[int]:
        """The steps this rung still has to run: ``budget_from + 1`` to ``budget_to``."""
        yield from range(self.budget_from + 1, self.budget_to + 1)

    def report(self, step: int, **metrics: float) -> None:
        """Report metrics at a step; a non-finite objective and a step past the budget end the run here."""
        self._measured.take(step, metrics)
        if self._measured.lost is not None:
            raise self._measured.lost


def run_function(job: Job, reporter: Reporter) -> Values:
    """Run one task; returns the final metrics. Raises ``Diverged``, ``Preempted``, ``InvalidSpec`` or the user's own."""
    with tempfile.TemporaryDirectory(prefix="isoloss-") as scratch, _inside(job, Path(scratch)):
        function = load(job.run["function"])
        Path(job.save_to).mkdir(parents=True, exist_ok=True)
        measured = Measured(job, reporter)
        file = MetricsFile(Path(scratch) / METRICS_FILE, measured)
        with reporter.stop.then(_raise_preempted), _following(file, Saves(job, measured, reporter)):
            try:
                returned = _call(function, Trial(job, measured))
            except SystemExit as ended:
                _judge_exit(ended, job, measured)
                returned = None
        return measured.final(returned)


def load(name: str) -> Callable[..., Any]:
    """The function ``module:name``; ``InvalidSpec`` says what is missing."""
    where, _, attribute = name.partition(":")
    try:
        found: Any = importlib.import_module(where)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{where}.".startswith(f"{error.name}."):
            raise
        raise InvalidSpec(
            f"run.function is {name!r}, and this worker finds no module {error.name!r} in {Path.cwd()} or on its path; "
            "accepted is module:function.",
            hint="Set run.cwd to the folder of the module.",
        ) from None
    for part in attribute.split("."):
        found = getattr(found, part, None)
    if not callable(found):
        names = ", ".join(n for n, v in vars(sys.modules[where]).items() if inspect.isfunction(v)) or "none"
        raise InvalidSpec(f"run.function is {name!r}; accepted are the functions of module {where}: {names}.")
    return found  # type: ignore[no-any-return]


def _call(function: Callable[..., Any], trial: Trial) -> Any:
    returned = function(trial) if inspect.signature(function).parameters else function()
    return asyncio.run(returned) if inspect.iscoroutine(returned) else returned


def _judge_exit(ended: SystemExit, job: Job, measured: Measured) -> None:
    """A function may end as a command does: 0 is done, 75 preempted and saved, anything else failed."""
    if ended.code == PREEMPTED:
        raise Preempted(saved=saved_step(job, measured, early=True))
    if ended.code not in (0, None):
        raise Failed(f"The function called sys.exit({ended.code!r}).", retryable=True)


def _raise_preempted() -> None:
    raise Preempted


@contextmanager
def _inside(job: Job, scratch: Path) -> Iterator[None]:
    """The folder, the path and the environment of the run, for as long as it lasts."""
    before, folder = dict(os.environ), job.run.get("cwd") or "."
    here = Path.cwd()
    if not Path(folder).is_dir():
        raise InvalidSpec(f"run.cwd is {folder!r}, which is no folder on this worker; accepted is a folder.")
    os.chdir(folder)
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    write_params(scratch, job.params)
    os.environ.update(variables(job, scratch))
    try:
        yield
    finally:
        os.chdir(here)
        os.environ.clear()
        os.environ.update(before)


@contextmanager
def _following(file: MetricsFile, saves: Saves) -> Iterator[None]:
    """Report what the function writes and saves, while it runs, and what it wrote once more at its end."""
    done = threading.Event()

    def follow() -> None:
        while not done.wait(LOOK_SECONDS):
            file.take_new()
            saves.look()

    thread = threading.Thread(target=follow, name="isoloss-metrics", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        file.take_new(last=True)
