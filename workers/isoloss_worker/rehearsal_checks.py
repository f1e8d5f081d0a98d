"""What the runs of a rehearsal show of the contract: every check has what was seen, and every ✗ what to change."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from isoloss.domain.lease import Checkpoint
from isoloss.domain.quantity import format_count, format_duration
from isoloss.domain.spec import Run, StudySpec
from isoloss.search.driver import Ask
from isoloss.search.preview import preview
from isoloss_worker.messages import Ended
from isoloss_worker.slots import Stopped

COMPLAINT = "isoloss: "  # how the worker's own words begin among a trainer's


@dataclass(frozen=True, slots=True)
class Check:
    """One thing a study relies on, what was seen of it, and what to change where it is not so."""

    what: str
    ok: bool
    detail: str
    change: str = ""


@dataclass(slots=True)
class Seen:
    """What one run did: its points with their time, its checkpoint, how it ended, what it took, its last words."""

    ask: Ask
    begun_at: int = 0
    points: list[tuple[int, dict[str, float]]] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    saved: Checkpoint | None = None
    ended: Ended | Stopped | None = None
    seconds: float = 0.0
    words: list[str] = field(default_factory=list)

    @property
    def complete(self) -> bool:
        """Whether it ran to its end."""
        return isinstance(self.ended, Ended) and self.ended.kind == "complete"

    @property
    def values(self) -> dict[str, float]:
        """The final metrics; none unless it completed."""
        return self.ended.values if isinstance(self.ended, Ended) and self.complete else {}

    @property
    def left(self) -> Checkpoint | None:
        """What the next attempt of the same task resumes from; nothing where there is none to come."""
        return None if self.complete else self.saved

    @property
    def reached(self) -> int:
        """The last step reported."""
        return self.points[-1][0] if self.points else self.begun_at


def ended(what: str, seen: Seen) -> Check:
    """Whether it ran to its end; what it said on the way out where it did not."""
    match seen.ended:
        case Ended(kind="complete"):
            return Check(what, True, f"in {format_duration(seen.seconds)}")
        case Ended(kind="diverge", step=step):
            said = f"the objective was no finite number at step {step}"
            change = "Find out why (a rate too high, a division by zero): a study ranks such a trial last and runs it no further."
        case Ended(kind="release"):
            said = "it exited with 75, which says that it was preempted, and nobody had asked it to leave"
            change = "Exit with 0 at budget_to; 75 is the answer to SIGTERM."
        case Ended(message=message):
            said, change = message, _mended(message)
        case _:
            said = f"it said nothing for {format_duration(seen.seconds)} after step {seen.reached} and was killed"
            change = "End the program at budget_to, or report more often; --patience says how long to wait for a word."
    return Check(what, False, said, change)


def _mended(message: str) -> str:
    if "budget_to is" in message:
        return (
            "Stop at budget_to ({budget_to} in the command, or ISOLOSS_BUDGET_TO), and count steps in the study's unit."
        )
    if message.startswith("run."):
        return "Change the spec as the sentence says."
    return "Mend what its last words name; the same happens in a study, which tries twice more and gives the trial up."


def killed(seen: Seen) -> Check:
    """What was left of a run that was killed in its middle."""
    what = "it survives a kill in mid-run"
    if seen.complete:
        return Check(
            what, True, "it ended before it could be killed: report more often than once a rung to have this tried"
        )
    return Check(what, True, f"killed at {seen.reached}, {_again(seen)}")


def asked(seen: Seen) -> Check:
    """What became of a run that was asked to leave (SIGTERM), as a preempted machine asks."""
    what = "it leaves when asked to"
    if seen.complete:
        return Check(what, True, "it ended before it could be asked")
    if isinstance(seen.ended, Stopped):
        how = "SIGTERM at {} and no answer in the grace: killed; {}"
    elif seen.saved is not None:
        how = "SIGTERM at {}: it saved and exited with 75; {}"
    else:
        how = "SIGTERM at {}; {}. Saving then, and exiting with 75, would spare what is lost"
    return Check(what, True, how.format(seen.reached, _again(seen)))


def _again(seen: Seen) -> str:
    return (
        f"begins again at {seen.saved.step}"
        if seen.saved
        else f"begins again at {seen.begun_at}: nothing was saved by then"
    )


def metrics(spec: StudySpec, seen: Seen) -> Check:
    """Whether the metrics that the study owes came."""
    missing = [metric for metric in spec.metrics if metric not in seen.values]
    reports = f"{len(seen.points)} report{'' if len(seen.points) == 1 else 's'}"
    said = "; ".join([f"{reports}, at the end {spoken(seen.values) or 'no metric'}", *complaints(seen)])
    if not missing:
        return Check("metrics come", True, said)
    change = (
        f'Append lines such as {{"step": {seen.ask.budget_to}, "{missing[0]}": 1.5}} to the file ISOLOSS_METRICS names'
    )
    if seen.values:
        change += f", or say which of yours it is: run.metrics: {{{missing[0]}: {next(iter(seen.values))}}}"
    return Check("metrics come", False, f"{missing[0]} is missing; {said}", change + ".")


def complaints(seen: Seen) -> list[str]:
    """What the worker said of the metrics file."""
    return [word.removeprefix(COMPLAINT) for word in seen.words if word.startswith(COMPLAINT)]


def shows_parameters(spec: StudySpec, run: Run) -> bool:
    """Whether the spec itself shows that the parameters arrive; else two configurations have to differ."""
    words = " ".join(run.command or ())
    return run.gpt is not None or "{params_file" in words or all(f"{{{name}}}" in words for name in spec.space)


def parameters(run: Run, seen: Seen, other: Seen | None) -> Check:
    """Whether the parameters reach the trainer: two configurations do not measure the same."""
    what = "parameters arrive"
    if other is None:
        return Check(what, True, "run.command names them" if run.command else "the built-in GPT reads them")
    pair = f"{spoken(seen.ask.params)} and {spoken(other.ask.params)}"
    for name, value in seen.values.items():
        if other.values.get(name) != value:
            second = other.values.get(name, float("nan"))
            return Check(what, True, f"{name} is {value:.6g} and {second:.6g} with {pair}")
    change = "Pass them as {name} or {params_file} in the command, or read ISOLOSS_PARAMS (a function: trial.params)."
    return Check(what, False, f"{pair} gave equal metrics", change)


def save_to(seen: Seen, *, resumes: bool) -> Check:
    """Whether there is something to resume from at the second rung."""
    files = seen.saved.manifest if seen.saved else {}
    if not files and resumes:
        change = "Save the state at decay_from (budget_to without a decay) in save_to, or say fidelity: {mode: fresh}."
        return Check("save_to is complete", False, "nothing was saved", change)
    said = f"{len(files)} file{'' if len(files) == 1 else 's'}, {format_count(sum(files.values()))} bytes"
    return Check("save_to is complete", True, said if files else "nothing was saved, and no rung resumes")


def continues(what: str, spec: StudySpec, earlier: Seen, later: Seen) -> Check:
    """Steps go on from where they were, and the first value after is no worse than the very first before."""
    steps = [step for step, _ in later.points]
    if not steps:
        return Check(what, True, "nothing was reported on the way")
    first, last = later.begun_at + 1, later.ask.budget_to
    if outside := [step for step in steps if not first <= step <= last]:
        change = "Load the state in resume_from and count on from budget_from."
        return Check(what, False, f"it resumed at {first - 1} and reported step {outside[0]}", change)
    for metric in spec.metrics:
        before = [values[metric] for _, values in earlier.points if metric in values]
        after = [values[metric] for _, values in later.points if metric in values]
        if spec.objective and len(before) > 1 and after:
            sign = 1 if spec.objective.goal == "minimize" else -1
            said = f"{metric} {before[0]:.6g} … {before[-1]:.6g} | {after[0]:.6g} … {after[-1]:.6g}"
            change = "Load all that makes the state from resume_from: weights, optimizer, schedule, data position."
            good = sign * after[0] <= sign * before[0]
            return Check(what, good, said, "" if good else change)
    return Check(what, True, f"steps {steps[0]} to {steps[-1]}")


def price(spec: StudySpec, run: Run, seen: Seen) -> tuple[list[Check], dict[str, Any]]:
    """What a unit takes and a start, and from them what the whole plan takes on one slot."""
    pace, start = _pace(seen)
    plan, unit = preview(spec), spec.budget.unit
    value: dict[str, Any] = {
        "unit": unit, "seconds_per_unit": pace, "start_seconds": start, "tasks": plan["tasks"], "budget": plan["billed_budget"],
        "seconds": None, "gpu_hours": None,
    }  # fmt: skip
    said = f"{pace:.3g} s per {unit.removesuffix('s')}, {start:.2g} s to begin and end"
    checks = [Check("seconds per unit", True, said)]
    if plan["tasks"] is None:
        return [*checks, Check("price of the plan", True, "endless: the study has no limits.trials")], value
    value["seconds"] = seconds = pace * plan["billed_budget"] + start * plan["tasks"]
    value["gpu_hours"] = hours = seconds / 3600 * spec.devices
    said = f"{plan['tasks']} tasks, {format_count(plan['billed_budget'])} {unit}: about {format_duration(seconds)} on one slot"
    said += f", {hours:.2g} {'GPU' if run.gpus else 'slot'}-hours"
    return [*checks, Check("price of the plan", True, said)], value


def _pace(seen: Seen) -> tuple[float, float]:
    """Seconds a unit between the first report and the last, and the rest; all is pace where one report was seen."""
    steps = [step for step, _ in seen.points]
    if len(steps) > 1 and steps[-1] > steps[0]:
        pace = (seen.times[-1] - seen.times[0]) / (steps[-1] - steps[0])
        return pace, max(0.0, seen.seconds - pace * (seen.ask.budget_to - seen.begun_at))
    return seen.seconds / max(1, seen.ask.budget_to - seen.begun_at), 0.0


def spoken(values: Mapping[str, Any]) -> str:
    """Names with their values."""
    return ", ".join(
        f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}" for name, value in values.items()
    )
