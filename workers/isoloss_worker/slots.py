"""A slot: one warm child process, and one task at a time in it.

The child is replaced when it died, was killed, ran into an exception, or is warm for another module or environment than
the next task's. Killing takes everything it started with it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import time
from asyncio.subprocess import PIPE, Process
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec
import structlog

from isoloss_worker.gpus import GpuIds
from isoloss_worker.job import Job
from isoloss_worker.messages import DECODER, STDERR_END, Ended, Measured, Ready, Saved
from isoloss_worker.processes import kill_tree
from isoloss_worker.trainables.environment import gpu_environment

log = structlog.get_logger()
TAIL_LINES: Final = 50
TAIL_BYTES: Final = 8192
LINE_LIMIT: Final = 4 << 20
GRACE_SECONDS: Final = 30.0  # to save in, when a worker is told to leave
LAST_WORDS_SECONDS: Final = 1.0
LOOK_SECONDS: Final = 0.5
CREDENTIALS: Final = frozenset(("ISOLOSS_JOIN", "ISOLOSS_TOKEN", "ISOLOSS_TOKEN_FILE", "ISOLOSS_KEY", "ISOLOSS_DSN"))
FRESH: Final = ""  # a child that has run nothing yet is warm for any task


@dataclass(frozen=True, slots=True)
class Stopped:
    """The run was ended from outside: ``stale``, ``cancelling`` or ``drain``."""

    why: str


@dataclass(slots=True)
class Child:
    """One process: what it is warm for, the last lines of its stderr, and whether they are all of its job's."""

    process: Process
    warm_for: str
    environment: dict[str, str]  # what it has beyond its worker's
    tail: deque[str] = field(default_factory=lambda: deque(maxlen=TAIL_LINES))
    all_said: asyncio.Event = field(default_factory=asyncio.Event)
    reader: asyncio.Task[None] | None = None


class Slot:
    """Runs jobs in a child process that it keeps warm."""

    def __init__(self, number: int, gpu_ids: GpuIds = (), grace_seconds: float = GRACE_SECONDS) -> None:
        self.number = number
        self.grace_seconds = grace_seconds
        self.gpu_ids = gpu_ids
        self.busy = False
        self._child: Child | None = None

    async def warm(self) -> None:
        """Start the child before there is a job, so that the first one finds it."""
        await self._child_for(FRESH, gpu_environment(self.gpu_ids))

    async def run(
        self,
        job: Job,
        listen: Callable[[Measured | Saved], None],
        stop: asyncio.Future[str],
        limit: float | None = None,
    ) -> Ended | Stopped:
        """Run one job to its end, or until ``stop`` or the time limit; raises ``OSError`` when no child can start."""
        child = await self._child_for(warmth(job), own_environment(job, self.gpu_ids))
        child.tail.clear()
        child.all_said.clear()
        talk = asyncio.create_task(self._talk(child, job, listen))
        either: tuple[asyncio.Future[Any], ...] = (talk, stop)
        try:
            await asyncio.wait(either, timeout=limit, return_when=asyncio.FIRST_COMPLETED)
            asked = not talk.done() and stop.done() and stop.result() == "drain"
            if asked:
                child.process.send_signal(signal.SIGTERM)
                await asyncio.wait({talk}, timeout=self.grace_seconds)
            if talk.done():
                ended = await self._ended(child, talk.result())
                if asked:  # its run may have ended just before it heard: the next one would take the signal for its own
                    await self.close()
                return ended
        finally:
            talk.cancel()
        await self.close()
        if stop.done():
            return Stopped(stop.result())
        return Ended(kind="fail", message=f"The run took longer than run.timeout, {limit:g} s.{_quote(child)}")

    def said(self) -> str:
        """The last lines of stderr until now, as many as fit into a beat."""
        tail = self._child.tail.copy() if self._child else ()
        return "\n".join(tail).encode(errors="replace")[-TAIL_BYTES:].decode(errors="ignore")

    async def words(self) -> list[str]:
        """The last lines of stderr of the job that ran; none once its child is gone."""
        if (child := self._child) is None:
            return []
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(child.all_said.wait(), LAST_WORDS_SECONDS)
        return list(child.tail)

    async def close(self) -> None:
        """Kill the child and all it started."""
        child, self._child = self._child, None
        if child is not None:
            kill_tree(child.process.pid)
            await _gone(child)
            if child.reader is not None:
                child.reader.cancel()

    async def _child_for(self, warm_for: str, environment: dict[str, str]) -> Child:
        child = self._child
        usable = child is not None and child.process.returncode is None
        if usable and child is not None and child.warm_for in (warm_for, FRESH) and child.environment == environment:
            child.warm_for = warm_for
            return child
        await self.close()
        self._child = await self._spawn(warm_for, environment)
        return self._child

    async def _spawn(self, warm_for: str, environment: dict[str, str]) -> Child:
        begun = time.monotonic()
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "isoloss_worker.child", stdin=PIPE, stdout=PIPE, stderr=PIPE,
            env={**inherited(os.environ), **environment}, limit=LINE_LIMIT, start_new_session=True,
        )  # fmt: skip
        child = Child(process=process, warm_for=warm_for, environment=environment)
        child.reader = asyncio.create_task(_read_stderr(child), name=f"stderr of slot {self.number}")
        assert process.stdout is not None  # noqa: S101 - PIPE
        first = await process.stdout.readline()
        if not first or not isinstance(DECODER.decode(first), Ready):
            await _gone(child)
            raise OSError(f"The child process did not start.{_quote(child)}")
        log.debug("child.started", slot=self.number, pid=process.pid, seconds=time.monotonic() - begun)
        return child

    async def _talk(self, child: Child, job: Job, listen: Callable[[Measured | Saved], None]) -> Ended | None:
        """Give the job and hear the child out; ``None`` when it died."""
        stdin, stdout = child.process.stdin, child.process.stdout
        assert stdin is not None and stdout is not None  # noqa: S101, PT018 - PIPE
        stdin.write(msgspec.json.encode(job) + b"\n")
        with contextlib.suppress(ConnectionError):
            await stdin.drain()
        while line := await self._line(child, stdout):
            try:
                message = DECODER.decode(line)
            except msgspec.DecodeError:
                return None
            if isinstance(message, Ended):
                return message
            if not isinstance(message, Ready):
                listen(message)
        return None

    async def _line(self, child: Child, stdout: asyncio.StreamReader) -> bytes:
        """The next line; nothing once the child is gone, though something it started may still hold the pipe."""
        reading = asyncio.ensure_future(stdout.readline())
        try:
            while True:
                gone = child.process.returncode is not None
                await asyncio.wait({reading}, timeout=LOOK_SECONDS)
                if reading.done():
                    return reading.result()
                if gone:
                    return b""
        finally:
            reading.cancel()

    async def _ended(self, child: Child, ended: Ended | None) -> Ended:
        """What the child said, with the last lines of stderr where it failed; a child that said nothing has died."""
        if ended is None:
            await self.close()
            return Ended(kind="fail", message=f"The child process {_how(child.process.returncode)}.{_quote(child)}")
        if ended.kind != "fail":
            return ended
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(child.all_said.wait(), LAST_WORDS_SECONDS)
        if ended.retryable and runs_inside(child.warm_for):
            await self.close()
        return msgspec.structs.replace(ended, message=ended.message + _quote(child))


def warmth(job: Job) -> str:
    """What a child that runs this job is warm for: the GPT, one study's function as it is now, or any command."""
    run = job.run
    if run.get("function") is not None:
        return f"{job.study} {run['function']} {run.get('cwd')} {job.code}"
    return "gpt" if run.get("gpt") is not None else "command"


def inherited(environment: Mapping[str, str]) -> dict[str, str]:
    """What a child may see of the worker's environment: all but the worker's own credentials."""
    return {name: value for name, value in environment.items() if name not in CREDENTIALS}


def own_environment(job: Job, gpu_ids: GpuIds) -> dict[str, str]:
    """What a child has beyond its worker's environment: its slot's GPUs, and the job's with ``run.env`` if it runs inside."""
    if job.run.get("command") is not None:
        return gpu_environment(gpu_ids)
    return gpu_environment(job.gpu_ids) | (job.run.get("env") or {})


def runs_inside(warm_for: str) -> bool:
    """Whether the job ran inside the child, whose state an exception may have spoilt; a command is its own process."""
    return warm_for != "command"


async def _read_stderr(child: Child) -> None:
    stderr = child.process.stderr
    assert stderr is not None  # noqa: S101 - PIPE
    while True:
        try:
            line = await stderr.readline()
        except ValueError:
            continue  # longer than the limit: dropped
        if not line:
            break
        if line.rstrip() == STDERR_END:
            child.all_said.set()
        else:
            child.tail.append(line.decode(errors="replace").rstrip())
    child.all_said.set()


async def _gone(child: Child) -> None:
    """Wait until the process was reaped and its last lines were read."""
    deadline = time.monotonic() + 5
    while child.process.returncode is None and time.monotonic() < deadline:  # noqa: ASYNC110 - wait() waits for the pipes too
        await asyncio.sleep(0.005)
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(child.all_said.wait(), LAST_WORDS_SECONDS)


def _how(code: int | None) -> str:
    if code is not None and code < 0:
        return f"was killed by {signal.Signals(-code).name}"
    return f"ended with exit code {code}"


def _quote(child: Child) -> str:
    return "\n" + "\n".join(child.tail) if child.tail else ""
