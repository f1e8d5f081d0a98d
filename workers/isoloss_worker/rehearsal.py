"""``isoloss study try``: whether a trainer keeps the contract, found out in seconds and without any service.

One configuration runs at the first rung and is killed in mid-run, runs again to its end, and goes on to the second rung.
What is asked of a trainer is exactly what a study will ask of it later, at two in the morning and on rented machines.
"""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from isoloss.domain.lease import Checkpoint
from isoloss.domain.quantity import format_count
from isoloss.domain.spec import Run, StudySpec, decode_study, encode
from isoloss.errors import InvalidSpec
from isoloss.search.driver import Ask, Driver
from isoloss.search.geometry import Ladder, plan_of
from isoloss.search.preview import preview
from isoloss_worker import checkpoint, gpus
from isoloss_worker.job import Job
from isoloss_worker.messages import Ended, Measured, Saved
from isoloss_worker.slots import Slot, Stopped


@dataclass(frozen=True, slots=True)
class Check:
    """One thing a study relies on."""

    what: str
    ok: bool
    detail: str


@dataclass(slots=True)
class Seen:
    """What one run did: its points, its checkpoint, how it ended and how long it took."""

    points: list[tuple[int, dict[str, float]]] = field(default_factory=list)
    saved: Checkpoint | None = None
    ended: Ended | Stopped | None = None
    seconds: float = 0.0

    @property
    def values(self) -> dict[str, float]:
        """The final metrics; none unless it completed."""
        return self.ended.values if isinstance(self.ended, Ended) and self.ended.kind == "complete" else {}


def rehearse_stdin() -> int:
    """Try the spec on stdin (JSON); the checks go to stdout. 0 when all are well, 1 otherwise."""
    try:
        mapping = json.loads(sys.stdin.read())
    except json.JSONDecodeError as error:
        raise InvalidSpec(f"stdin is no JSON ({error}); accepted is a study spec.") from None
    with tempfile.TemporaryDirectory(prefix="isoloss-try-") as folder:
        checks = asyncio.run(rehearse(decode_study(mapping), Path(folder)))
    print(json.dumps({"checks": [asdict(check) for check in checks]}))
    return 0 if all(check.ok for check in checks) else 1


async def rehearse(spec: StudySpec, folder: Path) -> list[Check]:
    """Every check of one spec, in order; they stop at a run that does not end well."""
    if spec.run is None:
        raise InvalidSpec("The spec has no run; accepted is one with a command, a function or gpt to try.")
    driver, ladder = Driver(spec), plan_of(spec).ladder
    first = driver.ask()
    if first is None:
        raise InvalidSpec("The study has nothing to run; accepted is a plan with at least one trial.")
    slot = Slot(0, gpus.visible()[: max(1, spec.run.gpus)])
    stage = Stage(spec, spec.run, slot, folder)
    try:
        checks = [await stage.killed(first)]
        whole = await stage.run(first, "whole", resume=stage.left_behind)
        checks += [_ended("it runs to its end", whole)]
        if checks[-1].ok:
            other = driver.ask() if not _shows_parameters(spec, spec.run) else None
            second = await stage.run(other, "other") if other is not None else None
            checks += [_parameters(spec.run, first, whole, other, second), _metrics(spec, whole)]
            checks += await _second_rung(stage, first, ladder, whole)
    finally:
        await slot.close()
    return checks


class Stage:
    """Where the runs happen: one slot and a folder for each run."""

    def __init__(self, spec: StudySpec, run: Run, slot: Slot, folder: Path) -> None:
        self.spec = spec
        self.left_behind: Checkpoint | None = None
        self._mapping = encode(run) | {"cwd": str(Path(run.cwd or ".").absolute())}
        self._run, self._slot, self._folder = run, slot, folder

    async def run(self, ask: Ask, name: str, *, resume: Checkpoint | None = None, kill: bool = False) -> Seen:
        """One run, in a folder of its own; with ``kill`` it is killed at its first report."""
        folder, seen, stop = self._folder / name, Seen(), asyncio.get_running_loop().create_future()
        job = Job(
            study=self.spec.name, trial=ask.trial, level=ask.level, params=ask.params, decay_from=ask.decay_from,
            budget_from=resume.step if resume else 0, budget_to=ask.budget_to, save_to=str(folder), run=self._mapping,
            resume_from=resume.path if resume else "", seed=self.spec.seed, metrics=self.spec.metrics,
        )  # fmt: skip

        def listen(message: Measured | Saved) -> None:
            if isinstance(message, Saved):
                seen.saved = checkpoint.seal(folder, message.step)
            else:
                seen.points.append((message.step, message.values))
                if kill and message.step < ask.budget_to and not stop.done():
                    stop.set_result("kill")

        begun = time.monotonic()
        seen.ended = await self._slot.run(job, listen, stop, self._run.timeout)
        seen.seconds = time.monotonic() - begun
        if isinstance(seen.ended, Ended) and seen.ended.saved is not None:
            seen.saved = checkpoint.seal(folder, seen.ended.saved)
        return seen

    async def killed(self, ask: Ask) -> Check:
        """Run and kill in mid-run; what it had completed by then is what the next attempt resumes from."""
        seen, what = await self.run(ask, "killed", kill=True), "it survives a kill in mid-run"
        if isinstance(seen.ended, Ended):
            said = "it ended before it could be killed: report more often than once a rung to have this tried"
            return Check(what, True, said)
        self.left_behind = seen.saved
        where = f"at {seen.saved.step}" if seen.saved else "at 0: nothing was saved by then"
        return Check(what, True, f"killed at {seen.points[-1][0]}, begins again {where}")


async def _second_rung(stage: Stage, first: Ask, ladder: Ladder, whole: Seen) -> list[Check]:
    """``save_to`` and the resume, where the study has a second rung that resumes; then the price."""
    pace = (whole, first.budget_to - (stage.left_behind.step if stage.left_behind else 0))
    checks: list[Check] = []
    if ladder.top > first.level:
        resumes = ladder.mode != "fresh"
        files = whole.saved.manifest if whole.saved else {}
        said = f"{len(files)} files, {format_count(sum(files.values()))} bytes" if files else "nothing was saved"
        checks.append(Check("save_to is complete", bool(files) or not resumes, said))
        start = whole.saved if resumes else None
        level = first.level + 1
        ask = Ask(
            trial=first.trial, level=level, params=first.params, budget_to=ladder.budget(level), decay_from=ladder.fork(level),
            budget_from=start.step if start else 0,
        )  # fmt: skip
        if start is not None or not resumes:
            deeper = await stage.run(ask, "deeper", resume=start)
            checks.append(_ended("it goes on to the second rung", deeper))
            if checks[-1].ok and resumes:
                checks.append(_continues(stage.spec, whole, deeper, ask))
            pace = (deeper, ask.budget_to - ask.budget_from)
    return [*checks, *_price(stage.spec, *pace)]


def _ended(what: str, seen: Seen) -> Check:
    ended = seen.ended
    if isinstance(ended, Ended) and ended.kind == "complete":
        return Check(what, True, f"in {seen.seconds:.2f} s")
    said = (
        ended.message
        if isinstance(ended, Ended) and ended.message
        else f"it ended with: {getattr(ended, 'kind', ended)}"
    )
    return Check(what, False, said)


def _shows_parameters(spec: StudySpec, run: Run) -> bool:
    """Whether the spec itself shows that the parameters arrive; else two configurations have to differ."""
    words = " ".join(run.command or ())
    return run.gpt is not None or "{params_file" in words or all(f"{{{name}}}" in words for name in spec.space)


def _parameters(run: Run, first: Ask, whole: Seen, other: Ask | None, second: Seen | None) -> Check:
    what = "parameters arrive"
    if other is None or second is None:
        return Check(what, True, "run.command names them" if run.command else "the built-in GPT reads them")
    differ = [name for name, value in whole.values.items() if second.values.get(name) != value]
    pair = f"{_said(first.params)} and {_said(other.params)}"
    if differ:
        name = differ[0]
        return Check(
            what,
            True,
            f"{name} is {whole.values[name]:.6g} and {second.values.get(name, float('nan')):.6g} with {pair}",
        )
    return Check(
        what, False, f"{pair} gave equal metrics; pass them as {{name}}, {{params_file}} or read ISOLOSS_PARAMS"
    )


def _metrics(spec: StudySpec, whole: Seen) -> Check:
    missing = [metric for metric in spec.metrics if metric not in whole.values]
    said = f"{len(whole.points)} reports; at the end {_said(whole.values) or 'no metric'}"
    return Check("metrics come", not missing, f"{missing[0]} is missing; {said}" if missing else said)


def _continues(spec: StudySpec, whole: Seen, deeper: Seen, ask: Ask) -> Check:
    """Steps go on from where they were, and the first value after is no worse than the very first before."""
    what, steps = "the curve continues over the resume", [step for step, _ in deeper.points]
    if not steps:
        return Check(what, True, "nothing was reported on the way")
    outside = [step for step in steps if not ask.budget_from < step <= ask.budget_to]
    if outside:
        said = (
            f"it reported step {outside[0]}, outside {ask.budget_from + 1} to {ask.budget_to}: count from budget_from"
        )
        return Check(what, False, said)
    for metric in spec.metrics:
        before = [values[metric] for _, values in whole.points if metric in values]
        after = [values[metric] for _, values in deeper.points if metric in values]
        if spec.objective and len(before) > 1 and len(after) > 1:
            sign = 1 if spec.objective.goal == "minimize" else -1
            said = f"{metric} {before[0]:.6g} … {before[-1]:.6g} | {after[0]:.6g} … {after[-1]:.6g}"
            return Check(what, sign * after[0] <= sign * before[0], said)
    return Check(what, True, f"steps {steps[0]} to {steps[-1]}")


def _price(spec: StudySpec, seen: Seen, units: int) -> list[Check]:
    plan, each = preview(spec), seen.seconds / max(1, units)
    unit = spec.budget.unit
    checks = [Check("seconds per unit", True, f"{each:.3g} s per {unit.removesuffix('s')}, start included")]
    if plan["tasks"] is None:
        return [*checks, Check("price of the plan", True, "endless: the study has no limits.trials")]
    said = f"{plan['tasks']} tasks, {format_count(plan['billed_budget'])} {unit}"
    return [
        *checks,
        Check("price of the plan", True, f"{said}: about {_long(each * plan['billed_budget'])} on one slot"),
    ]


def _long(seconds: float) -> str:
    """A duration as people say it."""
    for size, name in ((86400.0, "days"), (3600.0, "hours"), (60.0, "minutes")):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {name}"
    return f"{seconds:.2g} s"


def _said(values: dict[str, Any]) -> str:
    return ", ".join(
        f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}" for name, value in values.items()
    )
