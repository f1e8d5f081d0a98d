"""From other tools' runs to rows of observations, in one mapping language for every source.

``theirs=ours`` renames, a constant fills what the source does not say, and a stated choice turns a curve into a loss. A
name that is ours already, or ours at the end of a dotted one (``config.lr``), is understood without being said; a loss
never is, because a run has several. What is no observation is left out and counted by its reason, never guessed.
"""

from __future__ import annotations

import difflib
import math
from collections import Counter
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from isoloss.domain.quantity import parse_count
from isoloss.errors import InvalidSpec
from isoloss.files.sources import Curve, Run
from isoloss.laws.observation import NUMBERS, RECIPE, WORDS, Observation, with_batch_tokens

Row = dict[str, Any]
OURS: Final = (
    *NUMBERS, *WORDS, "seed", *RECIPE, "batch_seqs", "seq_len", "steps", "step", "weight_decay", "warmup_tokens",
    "unique_tokens", "n_experts", "n_active",
)  # fmt: skip
MADE: Final = {
    "batch_tokens": "batch_seqs × seq_len", "n_tokens": "steps × batch_tokens", "status": "how the run ended",
    "run": "the run's name", "step": "the curve's last step",
}  # fmt: skip
BY_THEIR_END: Final = (
    "n_params", "n_tokens", "lr", "batch_tokens", "batch_seqs", "seq_len", "flops", "seed", "weight_decay",
    "warmup_tokens", "unique_tokens", "n_experts", "n_active",
)  # fmt: skip
STATES: Final = {
    **dict.fromkeys(("", "ok", "finished", "complete", "completed", "done", "success"), "ok"),
    **dict.fromkeys(("diverged", "nan"), "diverged"),
    **dict.fromkeys(("truncated", "pruned", "crashed", "killed", "preempted", "preempting", "stopped"), "truncated"),
    **dict.fromkeys(("fail", "failed", "error"), "failed"),
    **dict.fromkeys(("running", "waiting", "pending"), "unfinished"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class LastOf:
    """Which number of a curve is the loss: the last, the smallest, or the mean of the last ``points``."""

    how: str = "last"
    points: int = 1

    @classmethod
    def parse(cls, text: str) -> LastOf:
        """``last``, ``min`` or ``mean:K``; ``InvalidSpec`` otherwise."""
        how, _, count = text.partition(":")
        if text in ("last", "min"):
            return cls(how=text)
        if how == "mean" and count.isdecimal() and int(count) > 0:
            return cls(how="mean", points=int(count))
        raise InvalidSpec(f"--curve is {text!r}; accepted is last, min or mean:K (the mean of the last K points).")

    def of(self, curve: Curve) -> float:
        """The loss of the curve, not finite as soon as its end is not."""
        values = [value for _, value in curve]
        if self.how == "min" and math.isfinite(values[-1]):
            return min(value for value in values if not math.isnan(value))
        last = values[-self.points :]
        return sum(last) / len(last)


@dataclass(frozen=True, slots=True, kw_only=True)
class Imported:
    """Rows of observations and how they came about: ours → theirs, further columns, and what was left out and why."""

    rows: list[Row]
    runs: int
    columns: Mapping[str, str]
    extras: Sequence[str]
    dropped: Mapping[str, int] = field(default_factory=dict)
    notes: Sequence[str] = ()


def import_runs(
    runs: Sequence[Run], *, columns: Mapping[str, str], constants: Mapping[str, str], curve: LastOf | None = None
) -> Imported:
    """The observations in ``runs``; ``columns`` maps theirs to ours, ``constants`` fill what the runs do not say.

    With a ``curve``, rows of a table that share a run are the points of its curve. Raises ``InvalidSpec`` when a name
    is none of theirs, or when not one run can be used.
    """
    _check(runs, columns, constants)
    names, notes = _understood(runs, columns)
    if curve is not None:
        runs = _joined(runs, names)
    rows, dropped = [], Counter[str]()
    for number, run in enumerate(runs, start=1):
        row, why = _observed(_row(run, names, constants, curve or LastOf()), run, number)
        if why:
            dropped[why] += 1
        else:
            rows.append(row)
    if not rows:
        raise InvalidSpec(
            f"none of the {len(runs)} runs can be used: {said(dropped) or 'there is none'}.",
            hint=f"Say --columns theirs=ours or --set ours=value; theirs are {', '.join(sorted(_theirs(runs))[:40])}.",
        )
    theirs, there = _theirs(runs), dict.fromkeys(name for row in rows for name in row)
    ours: dict[str, str] = {name: _origin(name, names, constants, theirs) for name in OURS if name in there}
    extras = sorted(name for name in there if name not in OURS)
    ordered = [{name: row.get(name) for name in (*ours, *extras)} for row in rows]
    return Imported(rows=ordered, runs=len(runs), columns=ours, extras=extras, dropped=dict(dropped), notes=notes)


def said(dropped: Mapping[str, int]) -> str:
    """Reasons with their counts, the most frequent first."""
    return ", ".join(f"{count} × {why}" for why, count in sorted(dropped.items(), key=lambda item: -item[1]))


def _theirs(runs: Sequence[Run]) -> dict[str, None]:
    return dict.fromkeys(name for run in runs for name in (*run.columns, *run.curves))


def _check(runs: Sequence[Run], columns: Mapping[str, str], constants: Mapping[str, str]) -> None:
    theirs = _theirs(runs)
    for name in columns:
        if theirs and name not in theirs:
            near = difflib.get_close_matches(name, theirs, 5, 0.4) or sorted(theirs)[:20]
            raise InvalidSpec(f"--columns names {name!r}, which no run has; near it are {', '.join(near)}.")
    if twice := [ours for ours, count in Counter(columns.values()).items() if count > 1]:
        raise InvalidSpec(f"--columns names {twice[0]} twice; accepted is one of theirs for each of ours.")
    if unknown := [name for name in constants if name not in OURS]:
        raise InvalidSpec(f"--set names {unknown[0]!r}; accepted are {', '.join(OURS)}.")


def _understood(runs: Sequence[Run], columns: Mapping[str, str]) -> tuple[dict[str, str], list[str]]:
    """Theirs → ours, with what needs no saying; and what was not understood because it could be several."""
    theirs, names, notes = _theirs(runs), dict(columns), []
    taken = set(names.values())
    if "loss" not in taken and "loss" not in theirs and (objective := next((r.loss for r in runs if r.loss), "")):
        names[objective] = "loss"
    for ours in BY_THEIR_END:
        if ours in taken or ours in theirs:
            continue
        ends = [name for name in theirs if name.rpartition(".")[2] == ours and name not in names]
        if len(ends) == 1:
            names[ends[0]] = ours
        elif ends:
            notes.append(f"{ours} could be {' or '.join(ends)}: say which with --columns.")
    return names, notes


def _joined(runs: Sequence[Run], names: Mapping[str, str]) -> list[Run]:
    """Rows that share a run as one run: its last values, and its numbers as curves over the rows."""
    if any(run.curves for run in runs) or not all(run.name for run in runs):
        return list(runs)
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(run.name, []).append(run)
    loss = next((theirs for theirs, ours in names.items() if ours == "loss"), "loss")
    return [_one(group, loss) for group in groups.values()]


def _one(group: Sequence[Run], loss: str) -> Run:
    columns: dict[str, Any] = {}
    points = []
    for step, run in sorted(((_step(run, place), run) for place, run in enumerate(group)), key=lambda pair: pair[0]):
        given = {name: value for name, value in run.columns.items() if value not in (None, "")}
        columns |= given
        if (value := _loss(given.get(loss))) is not None:
            points.append((step, value))
    return replace(group[-1], columns=columns, curves={loss: points} if points else {})


def _step(run: Run, place: int) -> float:
    """Where a row is on its run's curve: what it says, else its place in the table."""
    found = (_loss(run.columns.get(name)) for name in ("step", "_step", "Step"))
    return next((step for step in found if step is not None), float(place))


def _row(run: Run, names: Mapping[str, str], constants: Mapping[str, str], curve: LastOf) -> Row:
    row: Row = {}
    for theirs in dict.fromkeys((*run.columns, *run.curves)):
        ours = names.get(theirs, theirs)
        if theirs not in names and ours in names.values():
            continue  # ours by name, and another of theirs was said to be it
        points = run.curves.get(theirs)
        if points and (ours == "loss" and (curve.how != "last" or theirs not in run.columns)):
            row[ours] = curve.of(points)
            row.setdefault("step", points[-1][0])
        elif theirs in run.columns:
            row[ours] = run.columns[theirs]
        elif points:
            row[ours] = points[-1][1]
    row = {name: value for name, value in row.items() if value not in (None, "")}
    if run.name:
        row.setdefault("run", run.name)
    return dict(constants) | row


def _observed(row: Row, run: Run, number: int) -> tuple[Row, str]:
    """The row as an observation is written, or why it is none."""
    state = str(row.pop("status", run.state)).lower()
    status, loss = STATES.get(state), _loss(row.get("loss"))
    if status is None:
        return row, f"status {state!r}"
    if status == "unfinished":
        return row, "not finished"
    if loss is not None and not math.isfinite(loss):
        status = "diverged"
    if status == "diverged":
        row.pop("loss", None)
    elif loss is None:
        return row, "failed without a loss" if status == "failed" else "no loss"
    row["status"] = "truncated" if status == "failed" else status
    try:
        row = _with_tokens(row, number)
        if missing := [name for name in ("n_params", "n_tokens") if name not in row]:
            return row, f"no {missing[0]}"
        seen = Observation.from_row(row, number=number)
    except InvalidSpec as error:
        return row, error.message.removeprefix(f"row {number}: ").partition(";")[0]
    numbers = {name: getattr(seen, name) for name in NUMBERS}
    return row | {name: value for name, value in numbers.items() if not math.isnan(value)}, ""


def _loss(value: Any) -> float | None:
    try:
        return float(value)
    except (TypeError, ValueError):
        return None


def _with_tokens(row: Row, number: int) -> Row:
    """Tokens from sequences, and D from the steps a run took."""
    row = with_batch_tokens(row, number)
    if "n_tokens" not in row and "steps" in row and "batch_tokens" in row:
        steps, batch = (parse_count(row[name], f"row {number}: {name}") for name in ("steps", "batch_tokens"))
        row |= {"n_tokens": steps * batch}
    return row


def _origin(ours: str, names: Mapping[str, str], constants: Mapping[str, str], theirs: Container[str]) -> str:
    """Where a column comes from, in words."""
    if said := next((name for name, wanted in names.items() if wanted == ours), ""):
        return said
    if ours in theirs:
        return ours
    if ours in constants:
        return f"--set {ours}={constants[ours]}"
    return MADE.get(ours, ours)
