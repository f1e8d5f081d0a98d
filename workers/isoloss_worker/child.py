"""The warm child of one slot: waits for jobs on stdin, runs them one after the other, says what happens as JSON lines.

It stays alive between tasks, so that importing torch and building a CUDA context is paid once and not once a task. What a
trainer prints goes to stderr, whose last lines the agent keeps; the pipe of the messages is out of its reach.
"""

from __future__ import annotations

import math
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, Final

import msgspec

from isoloss.errors import InvalidSpec, NotAllowed, TrainableFailed
from isoloss_worker import sums
from isoloss_worker.job import Diverged, Failed, Job, Preempted, Reporter, Stop, Values
from isoloss_worker.messages import STDERR_END, Ended, Measured, Message, Ready, Saved, line
from isoloss_worker.processes import adopt_orphans, die_with_parent, kill_orphans

FRAMES: Final = 6  # of a traceback, the innermost


def main() -> None:
    """Serve jobs until stdin ends."""
    die_with_parent()
    adopt_orphans()
    jobs, news = _private_pipes()
    lock, stop = threading.Lock(), Stop()

    def say(message: Message) -> None:
        with lock:
            news.write(line(message))

    signal.signal(signal.SIGTERM, lambda *_: stop.ask())  # also before a job is read: then it ends as it begins
    say(Ready())
    for text in jobs:
        job = msgspec.json.decode(text, type=Job)
        ended = execute(job, _reporter(job, say, stop))
        if job.run.get("command") is not None:  # a function's own processes may serve its next trial
            kill_orphans()
        sys.stdout.flush()
        sys.stderr.flush()
        os.write(2, STDERR_END + b"\n")
        stop.asked = False
        say(ended)


def _private_pipes() -> tuple[BinaryIO, BinaryIO]:
    """The two pipes to the agent, out of reach of the trainer: its stdin is empty, its stdout is stderr."""
    jobs, news = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb", buffering=0)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]  # a TextIOWrapper at this point
    return jobs, news


def _reporter(job: Job, say: Callable[[Message], None], stop: Stop) -> Reporter:
    def saved(step: int) -> None:
        _sum(job)
        say(Saved(step))

    return Reporter(lambda step, values: say(Measured(step, finite(values))), saved, stop)


def _sum(job: Job) -> None:
    """Sum what was saved, here and not in the agent, which has other slots to listen to."""
    if job.run.get("checksum"):
        sums.write(Path(job.save_to))


def execute(job: Job, reporter: Reporter) -> Ended:
    """Run one job to its end, whatever that is."""
    try:
        values = run_trainable(job, reporter)
    except Diverged as error:
        return Ended(kind="diverge", step=error.step, values=finite(error.values))
    except Preempted as error:
        if error.saved is not None:
            _sum(job)
        return Ended(kind="release", saved=error.saved)
    except (InvalidSpec, NotAllowed, TrainableFailed) as error:
        return Ended(kind="fail", retryable=False, message=str(error))
    except Failed as error:
        return Ended(kind="fail", retryable=error.retryable, message=str(error))
    except BaseException as error:  # noqa: BLE001 - a trainer may raise anything, and the slot lives on
        return Ended(kind="fail", message=explain(error))
    if any(not math.isfinite(values.get(metric, 0.0)) for metric in job.metrics):
        return Ended(kind="diverge", step=job.budget_to, values=finite(values))
    saved = job.decay_from if holds_files(Path(job.save_to)) else None
    if saved is not None:
        _sum(job)
    return Ended(kind="complete", values=finite(values), saved=saved)


def run_trainable(job: Job, reporter: Reporter) -> Values:
    """Run the one trainable the job names; what it needs is imported when it is first used."""
    if job.run.get("gpt") is not None:
        from isoloss_worker.trainables.gpt.train import train

        return train(job, reporter)
    if job.run.get("function") is not None:
        from isoloss_worker.trainables.function import run_function

        return run_function(job, reporter)
    from isoloss_worker.trainables.command import run_command

    return run_command(job, reporter)


def explain(error: BaseException) -> str:
    """Type, message and the innermost frames."""
    frames = traceback.format_list(traceback.extract_tb(error.__traceback__)[-FRAMES:])
    return "".join([*traceback.format_exception_only(error), *frames]).strip()


def finite(values: Values) -> Values:
    """The finite ones; JSON has no others."""
    return {name: float(value) for name, value in values.items() if math.isfinite(value)}


def holds_files(folder: Path) -> bool:
    """Whether anything was saved in a folder."""
    return folder.is_dir() and any(path.is_file() for path in folder.rglob("*"))


if __name__ == "__main__":
    main()
