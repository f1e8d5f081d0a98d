"""``run: {command: […]}``: any program, which needs to know nothing of isoloss but its arguments and environment.

``{name}`` of every parameter, ``{params_file}`` (JSON; ``{params_file:yaml}`` for YAML), ``{budget_from} {budget_to}
{decay_from} {resume_from} {save_to} {seed} {gpus} {nodes}`` are replaced in each argument, ``{{`` and ``}}`` are braces, and the
same stands in ``ISOLOSS_*``. It appends JSON lines to ``$ISOLOSS_METRICS``. Exit 0 is done, 75 is preempted and saved, all
else failed. A file ``DONE`` in ``save_to`` says that the folder is complete before the program ends: at ``decay_from``, or
at the step written in it, and again whenever that step is another; the files of the step before have to stay until then. ``python`` is the worker's own unless the path says otherwise.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from isoloss.client.current import PREEMPTED
from isoloss.errors import InvalidSpec
from isoloss_worker.job import Failed, Job, Preempted, Reporter, Values
from isoloss_worker.processes import die_with_parent, kill_group, kill_tree
from isoloss_worker.trainables.environment import (
    METRICS_FILE,
    across_nodes,
    facts,
    gpu_environment,
    rendezvous,
    text,
    variables,
    write_params,
)
from isoloss_worker.trainables.measured import Measured, MetricsFile, Saves, saved_step

LOOK_SECONDS: Final = 0.2
GRACE_SECONDS: Final = 3.0
PLACEHOLDER: Final = re.compile(r"\{\{|\}\}|\{([A-Za-z_][\w.-]*)(?::(\w+))?\}")


def run_command(job: Job, reporter: Reporter) -> Values:
    """Run one task; returns the last metrics. Raises ``Diverged``, ``Preempted``, ``Failed`` or ``InvalidSpec``."""
    shared = Path(job.save_to).parent if (job.run.get("nodes") or 1) > 1 else None  # which every node sees
    if shared is not None:
        shared.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="isoloss-", dir=shared) as scratch:
        folder = Path(scratch)
        write_params(folder, job.params)
        Path(job.save_to).mkdir(parents=True, exist_ok=True)
        argv = across_nodes(fill(job.run["command"], job, folder), job.run)
        process = _start(argv, job, folder)
        measured = Measured(job, reporter)
        file = MetricsFile(folder / METRICS_FILE, measured)
        try:
            with reporter.stop.then(lambda: process.send_signal(signal.SIGTERM)):
                _watch(process, file, measured, job, reporter)
        finally:
            (kill_tree if process.poll() is None else kill_group)(process.pid)
            process.wait()
        return judge_exit(process.returncode, job, measured, asked=reporter.stop.asked)


def fill(command: list[str], job: Job, folder: Path) -> list[str]:
    """The arguments with every placeholder replaced; ``InvalidSpec`` names the ones there are."""
    known = {name: text(value) for name, value in job.params.items()} | facts(job, folder)

    def replace(match: re.Match[str]) -> str:
        whole, name, suffix = match.group(0), match.group(1), match.group(2)
        if name is None:
            return whole[0]
        if name == "params_file" and suffix in (None, "json", "yaml"):
            return str(folder / f"params.{suffix or 'json'}")
        if name not in known or suffix is not None:
            accepted = ", ".join([*sorted(known), "params_file:yaml"])
            raise InvalidSpec(f"run.command has {whole}; accepted are {accepted} (braces are written {{{{ and }}}}).")
        return known[name]

    return [PLACEHOLDER.sub(replace, word) for word in command]


def environment(job: Job, folder: Path, base: Mapping[str, str]) -> dict[str, str]:
    """The program's environment: the worker's, then ours, then ``run.env``; our Python's folder ends the path."""
    own = gpu_environment(job.gpu_ids) | rendezvous(job) | variables(job, folder)
    path = os.pathsep.join(filter(None, (base.get("PATH", os.defpath), str(Path(sys.executable).parent))))
    return {**base, "PATH": path, "PYTHONUNBUFFERED": "1", **own, **(job.run.get("env") or {})}


def _start(argv: list[str], job: Job, folder: Path) -> subprocess.Popen[bytes]:
    cwd, variables_ = job.run.get("cwd") or ".", environment(job, folder, os.environ)
    if not Path(cwd).is_dir():
        raise InvalidSpec(f"run.cwd is {cwd!r}, which is no folder on this worker; accepted is a folder.")
    program = shutil.which(argv[0], path=variables_["PATH"]) or argv[0]
    try:
        return subprocess.Popen(
            [program, *argv[1:]], cwd=cwd, env=variables_, stdin=subprocess.DEVNULL, stdout=2,
            start_new_session=True, preexec_fn=die_with_parent,  # noqa: PLW1509 - one prctl, its library loaded before
        )  # fmt: skip
    except OSError as error:
        raise InvalidSpec(
            f"run.command starts {argv[0]!r}, which this worker cannot run ({error.strerror}); accepted is a program."
        ) from None


def _watch(
    process: subprocess.Popen[bytes], file: MetricsFile, measured: Measured, job: Job, reporter: Reporter
) -> None:
    """Until the program ends: report its metrics and its checkpoint as they come; what loses the run ends it."""
    saves = Saves(job, measured, reporter)
    while True:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(LOOK_SECONDS)
        file.take_new(last=process.returncode is not None)
        saves.look()
        if measured.lost is not None:
            _end(process)
            raise measured.lost
        if process.returncode is not None:
            return


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(GRACE_SECONDS)


def judge_exit(code: int, job: Job, measured: Measured, *, asked: bool) -> Values:
    """What an exit code means: the last metrics for 0, ``Preempted`` for 75 and when it was asked to end, ``Failed`` for all else."""
    unfinished = asked and (code != 0 or (measured.step or 0) < job.budget_to)
    saved = any(path.is_file() for path in Path(job.save_to).rglob("*"))
    if code == 0 and not unfinished:
        return measured.final(None)
    if code == PREEMPTED and saved:
        raise Preempted(saved=saved_step(job, measured, early=True))
    if unfinished:
        raise Preempted
    if code == PREEMPTED:
        raise Failed(
            f"The command exited with 75 (preempted and saved), and saved nothing in {job.save_to}.", retryable=True
        )
    how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"exited with {code}"
    raise Failed(f"The command {how}.", retryable=True)
