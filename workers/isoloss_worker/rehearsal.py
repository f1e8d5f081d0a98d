"""``isoloss study try``: whether a trainer keeps the contract, found out in seconds and without any service.

One configuration runs at the first rung and is killed in mid-run; it runs again and is asked to leave, as a preempted
machine asks; it runs to its end and goes on to the second rung. What is asked of a trainer is exactly what a study will
ask of it later, at two in the morning and on rented machines.
"""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final, Literal

from isoloss.domain.lease import Checkpoint
from isoloss.domain.quantity import parse_duration
from isoloss.domain.spec import Run, StudySpec, decode_study, encode
from isoloss.errors import InvalidSpec
from isoloss.search.driver import Ask, Driver
from isoloss.search.geometry import Ladder, plan_of
from isoloss_worker import checkpoint, gpus
from isoloss_worker import rehearsal_checks as checks
from isoloss_worker.job import Job
from isoloss_worker.messages import Ended, Measured, Saved
from isoloss_worker.rehearsal_checks import Check, Seen
from isoloss_worker.slots import GRACE_SECONDS, Slot

PATIENCE: Final = "5m"
LOOK_SECONDS: Final = 0.2


def rehearse_stdin(patience: str) -> int:
    """Try the spec on stdin (JSON). Each check is a line on stdout as it is made, the last line is the price."""
    try:
        mapping = json.loads(sys.stdin.read())
    except json.JSONDecodeError as error:
        raise InvalidSpec(f"stdin is no JSON ({error}); accepted is a study spec.") from None
    return asyncio.run(_printed(decode_study(mapping), parse_duration(patience, "--patience")))


async def _printed(spec: StudySpec, patience: float) -> int:
    well = True
    with tempfile.TemporaryDirectory(prefix="isoloss-try-") as folder:
        async for found in rehearse(spec, Path(folder), patience):
            well &= not isinstance(found, Check) or found.ok
            print(json.dumps(asdict(found) if isinstance(found, Check) else {"price": found}), flush=True)
    return 0 if well else 1


async def rehearse(spec: StudySpec, folder: Path, patience: float) -> AsyncIterator[Check | dict[str, Any]]:
    """Every check of one spec, in order, then the price; they stop at a run that does not end well."""
    if spec.run is None:
        raise InvalidSpec("The spec has no run; accepted is one with a command, a function or gpt to try.")
    spec.run.check()
    driver, ladder = Driver(spec), plan_of(spec).ladder
    first = driver.ask()
    if first is None:
        raise InvalidSpec("The study has nothing to run; accepted is a plan with at least one trial.")
    stage = Stage(spec, spec.run, folder, patience)
    try:
        killed = await stage.run(first, end="kill")
        if _failed(killed):
            yield checks.ended("it runs to its end", killed)
            return
        yield checks.killed(killed)
        asked = await stage.run(first, resume=killed.left, end="drain")
        if not _failed(asked):
            yield checks.asked(asked)
        left = [one for one in (asked.left, killed.left) if one and one.step < first.budget_to]  # as a study resumes
        whole = await stage.run(first, resume=left[0] if left else None)
        yield checks.ended("it runs to its end", whole)
        if not whole.complete:
            return
        yield checks.metrics(spec, whole)
        if any(metric in whole.values for metric in spec.metrics):
            other = None if checks.shows_parameters(spec, spec.run) else driver.ask()
            yield checks.parameters(spec.run, whole, await stage.run(other) if other else None)
        if whole.begun_at:
            yield checks.continues("the curve continues in mid-run", spec, asked, whole)
        async for found in _onwards(stage, ladder, whole):
            yield found
    finally:
        await stage.slot.close()


async def _onwards(stage: Stage, ladder: Ladder, whole: Seen) -> AsyncIterator[Check | dict[str, Any]]:
    """``save_to`` and the second rung, where the study has one; then the price."""
    spec, last, resumes = stage.spec, whole, ladder.mode != "fresh"
    if ladder.top > whole.ask.level:
        yield checks.save_to(whole, resumes=resumes)
        if whole.saved is not None or not resumes:
            start = whole.saved if resumes else None
            deeper = await stage.run(_second(whole.ask, ladder, start), resume=start)
            yield checks.ended("it goes on to the second rung", deeper)
            if deeper.complete:
                last = deeper
                if resumes:
                    yield checks.continues("the curve continues over the resume", spec, whole, deeper)
    priced, value = checks.price(spec, stage.trainable, last)
    for check in priced:
        yield check
    yield value


def _failed(seen: Seen) -> bool:
    """Whether it ended by itself, and not well: then nothing else needs to be tried."""
    return isinstance(seen.ended, Ended) and seen.ended.kind in ("fail", "diverge")


def _second(first: Ask, ladder: Ladder, start: Checkpoint | None) -> Ask:
    level = first.level + 1
    return Ask(
        trial=first.trial, level=level, params=first.params, budget_to=ladder.budget(level), decay_from=ladder.fork(level),
        budget_from=start.step if start else 0,
    )  # fmt: skip


class Stage:
    """Where the runs happen: one slot and a folder for each run."""

    def __init__(self, spec: StudySpec, run: Run, folder: Path, patience: float) -> None:
        self.slot = Slot(0, gpus.visible()[: max(1, run.gpus)], min(patience, GRACE_SECONDS))
        self.spec, self.trainable = spec, run
        self._folder, self._patience = folder, patience
        self._mapping = encode(run) | {"cwd": str(Path(run.cwd or ".").absolute())}
        self._runs = 0

    async def run(
        self, ask: Ask, *, resume: Checkpoint | None = None, end: Literal["kill", "drain"] | None = None
    ) -> Seen:
        """One run, in a folder of its own; with ``end`` it is ended so at its first report from half-way on."""
        self._runs += 1
        folder, stop = self._folder / str(self._runs), asyncio.get_running_loop().create_future()
        seen = Seen(ask=ask, begun_at=resume.step if resume else 0)
        if resume is not None and resume.step == ask.decay_from:
            seen.saved = resume  # the trunk ends here: an attempt before this one has saved all there is to save
        half = (seen.begun_at + ask.budget_to) / 2
        job = Job(
            study=self.spec.name, trial=ask.trial, level=ask.level, params=ask.params, decay_from=ask.decay_from,
            budget_from=seen.begun_at, budget_to=ask.budget_to, save_to=str(folder), run=self._mapping,
            resume_from=resume.path if resume else "", seed=self.spec.seed, metrics=self.spec.metrics,
            gpu_ids=self.slot.gpu_ids,
        )  # fmt: skip
        begun = heard = time.monotonic()

        def listen(message: Measured | Saved) -> None:
            nonlocal heard
            heard = time.monotonic()
            if isinstance(message, Saved):
                seen.saved = checkpoint.seal(folder, message.step)
                return
            seen.points.append((message.step, message.values))
            seen.times.append(heard)
            if end is not None and half <= message.step < ask.budget_to and not stop.done():
                stop.set_result(end)

        async def watch() -> None:
            while time.monotonic() - heard < self._patience:  # noqa: ASYNC110 - silence is no event
                await asyncio.sleep(LOOK_SECONDS)
            if not stop.done():
                stop.set_result("silent")

        watching = asyncio.create_task(watch())
        try:
            seen.ended = await self.slot.run(job, listen, stop, self.trainable.timeout)
        finally:
            watching.cancel()
        seen.seconds = time.monotonic() - begun
        seen.words = await self.slot.words()
        if isinstance(seen.ended, Ended) and seen.ended.saved is not None:
            seen.saved = checkpoint.seal(folder, seen.ended.saved)
        return seen
