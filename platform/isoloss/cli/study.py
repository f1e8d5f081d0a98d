"""``isoloss study``: one question asked of a space."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import App, Parameter

from isoloss.cli.connection import Address, Project, Set, client, launched
from isoloss.cli.output import Output, Table, dumps, number, say, show, warn
from isoloss.cli.study_changes import confirm, cost, deepen, enqueue, pause, prefer, resume, retry, space, stop, widen
from isoloss.cli.study_curves import curves, forward
from isoloss.domain.quantity import format_count, format_duration, parse_count
from isoloss.errors import IsolossError, NotFound

if TYPE_CHECKING:
    from isoloss.client.answers import StudyInfo
    from isoloss.client.blocking import Study
    from isoloss.search.search import Search

LOOK_SECONDS = 1.0
app = App(name="study", help="Studies: preview, launch, watch, deepen and read them.")
TOTALS = ("tasks", "total_budget", "resumed_budget", "billed_budget")
NEAR = 10  # lines of what is about as good
ALIKE = 0.9  # rank correlation from which a larger budget hardly tells more
Spec = Annotated[Path, Parameter(help="The study spec, YAML or JSON.")]

for change in (deepen, widen, prefer, confirm, space, enqueue, retry, pause, resume, stop, curves, forward):
    app.command(change)


@app.command
def preview(
    spec: Spec,
    *,
    deepen: Annotated[tuple[str, ...], Parameter(help="Then deepen to this; in order.", consume_multiple=False)] = (),
    against: Annotated[Path | None, Parameter(help="Another spec, whose plan is set beside this one.")] = None,
    workers: Annotated[int, Parameter(help="Simulate how long it takes on so many workers.")] = 0,
    seconds_per_unit: Annotated[float, Parameter(help="What a unit of budget takes, for --workers.")] = 1.0,
    set_: Set = (),
    output: Output = Output(),  # noqa: B008 - frozen
) -> None:
    """Show what a study will run and what that costs, before anything runs; needs no service."""
    from isoloss.domain.spec import decode_study
    from isoloss.files.spec import load_spec
    from isoloss.search.cautions import cautions
    from isoloss.search.preview import preview as plan

    study = decode_study(load_spec(spec, set_))
    value = plan(study, [parse_count(text, "--deepen") for text in deepen])
    value["warnings"] = cautions(study)
    rows = [
        (b["bracket"], r["level"], format_count(r["budget"]), r["configurations"], r.get("new", r["configurations"]))
        for b in value["brackets"]
        for r in b["rungs"]
    ]
    unit = study.budget.unit
    lines = [
        f"{value['tasks']} tasks; {cost(value['total_budget'])} {unit} from scratch, "
        f"{cost(value['resumed_budget'])} resumed, {cost(value['billed_budget'])} as {study.fidelity.mode}."
    ]
    if deepen:
        lines.append(
            f"The last step adds {value['added_tasks']} tasks, {cost(value['added_resumed_budget'])} {unit} resumed; "
            f"starting again each time would cost {cost(value['restart_resumed_budget'])} in all."
        )
        lines.append(
            f"Expect {cost(value['expected_added_resumed_budget'])} where levels rank alike, at most "
            f"{cost(value['most_added_resumed_budget'])}."
        )
    if workers:
        from isoloss.search.simulate import wall_time

        budgets = [parse_count(text, "--deepen") for text in deepen]
        value["wall"] = found = wall_time(
            study, workers=workers, tasks=value["tasks"], seconds_per_unit=seconds_per_unit, deepen=budgets
        )
        low, high = (format_duration(end) for end in found["interval"])
        lines.append(
            f"On {workers} workers {format_duration(found['seconds'])} [{low}, {high}] at {seconds_per_unit:g} s a unit, "
            f"{found['utilization']:.0%} busy."
        )
    if against:
        other = plan(decode_study(load_spec(against)))
        value["against"] = {key: other[key] for key in TOTALS}
        lines.append(f"Against {against}: " + ", ".join(_difference(key, value[key], other[key]) for key in TOTALS))
    warn(value["warnings"])
    show(output, value, Table(("bracket", "level", unit, "configurations", "new"), rows), *lines)


@app.command(name="try")
def try_(
    spec: Spec,
    *,
    set_: Set = (),
    patience: Annotated[str, Parameter(help="How long a run may say nothing before it counts as stuck.")] = "5m",
    output: Output = Output(),  # noqa: B008 - frozen
) -> None:
    """Run one configuration at the first two rungs without any service, kill it, resume it, and say what works."""
    import json
    import subprocess
    import sys

    from isoloss.files.spec import beside, load_spec

    body = beside(load_spec(spec, set_), spec.parent)
    value: dict[str, Any] = {"checks": [], "price": None}
    command = [sys.executable, "-m", "isoloss_worker", "try", "--patience", patience]
    with subprocess.Popen(command, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as trying:
        assert trying.stdin is not None and trying.stdout is not None  # noqa: S101, PT018 - PIPE
        trying.stdin.write(dumps(body))
        trying.stdin.close()
        for check in map(json.loads, trying.stdout):
            if "price" in check:
                value |= check
                continue
            value["checks"].append(check)
            if not output.json:
                show(output, check, *_check_lines(check))
    if trying.returncode not in (0, 1):
        raise SystemExit(trying.returncode)
    show(output, value)
    if trying.returncode:
        raise IsolossError("The trainer does not keep the contract yet; the ✗ above say where, and what to change.")


def _check_lines(check: Mapping[str, Any]) -> list[str]:
    """A check as lines."""
    first, *rest = check["detail"].splitlines() or [""]
    change = [f"  → {check['change']}"] if check["change"] else []
    return [f"{'✓' if check['ok'] else '✗'} {check['what']}: {first}", *(f"    {line}" for line in rest), *change]


@app.command
def launch(
    spec: Spec,
    *,
    set_: Set = (),
    watch: bool = False,
    load_if_exists: bool = False,
    address: Address = None,
    output: Output = Output(),  # noqa: B008 - frozen
) -> None:
    """Create the study; workers begin at once."""
    with client(address) as connection:
        study = connection.launch_study(launched(connection, spec, set_), load_if_exists=load_if_exists)
        if watch:
            _follow(study, Output(), until_idle=True)
        info = study.info()
        show(output, _info(info), f"{info.name}: {info.state}, {info.trials} trials")


@app.command(name="ls")
def list_(*, project: str = "", address: Address = None, output: Output = Output()) -> None:  # noqa: B008 - frozen
    """List studies."""
    with client(address) as connection:
        found = connection.studies(project=project)
    rows = [
        (s.name, s.state, s.trials, s.tasks.get("done", 0), format_count(s.max_budget), format_count(s.spent))
        for s in found
    ]
    show(
        output,
        {"studies": [_info(s) for s in found]},
        Table(("study", "state", "trials", "done", "max", "spent"), rows),
    )


@app.command(name="show")
def show_(name: str, *, project: Project = "default", address: Address = None, output: Output = Output()) -> None:  # noqa: B008
    """Show a study: its rungs, its best trial, and the next sensible command with its price."""
    from isoloss.search.geometry import ENDLESS

    with client(address) as connection:
        study = connection.study(name, project=project)
        info = study.info()
        value = _info(info) | {"best": _best(study)}
    unit = info.spec["budget"]["unit"]
    rows = [
        (
            r["bracket"],
            r["level"],
            format_count(r["budget"]),
            "no bound" if r["quota"] >= ENDLESS else r["quota"],
            r["results"],
            r["promoted"],
            "✓" if r["settled"] else "",
        )
        for r in info.rungs
    ]
    lines = [f"{info.name}: {info.state}; {format_count(info.spent)} {unit} spent, {info.trials} trials"]
    if best := value["best"]:
        lines.append(
            f"best {number(best['value'])} (trial {best['number']} at level {best['level']}): {best['params']}"
        )
    lines += [info.preference["sentence"]] if info.preference and info.preference["sentence"] else []
    lines += _checkpoints(info.checkpoints) + _codes(info.codes)
    if agreement := info.agreement:
        lines.append(
            f"the two top budgets rank {agreement['trials']} trials with Spearman {agreement['spearman']:.2f}: "
            + (
                "deepening will hardly change the answer"
                if agreement["spearman"] > ALIKE
                else "a larger budget ranks them anew"
            )
        )
    if deeper := info.next_deepening:
        lines.append(
            f"next: isoloss study deepen {name} --max-budget {deeper['max_budget']:.0f}   "
            f"+{cost(deeper['added_budget'])} {unit} instead of {cost(deeper['restart_budget'])} from scratch"
        )
    table = Table(("bracket", "level", unit, "quota", "results", "promoted", "settled"), rows)
    show(output, value, table, *lines)


@app.command
def watch(
    name: str,
    *,
    after: int = 0,
    until_idle: bool = False,
    project: Project = "default",
    address: Address = None,
    output: Output = Output(),  # noqa: B008 - frozen
) -> None:
    """Follow a study's events, one line each (with --json, one object a line)."""
    with client(address) as connection:
        _follow(connection.study(name, project=project), output, after=after, until_idle=until_idle)


@app.command
def trials(name: str, *, project: Project = "default", address: Address = None, output: Output = Output()) -> None:  # noqa: B008
    """List trials with what they measured at each level."""
    with client(address) as connection:
        found = connection.study(name, project=project).trials()
    rows = [
        (t.number, t.bracket, t.source, _params(t.params), level.level, level.state, _params(level.values))
        for t in found
        for level in t.levels
    ]
    columns = ("trial", "bracket", "source", "params", "level", "state", "values")
    show(output, {"trials": [asdict(t) for t in found]}, Table(columns, rows))


@app.command
def best(
    name: str,
    *,
    settled: Annotated[bool, Parameter(help="Of the highest settled rung, not of all levels.")] = False,
    project: Project = "default",
    address: Address = None,
    output: Output = Output(),  # noqa: B008 - frozen
) -> None:
    """Show the best trial; with desirabilities each d, the one that limits and what is about as good; or the front."""
    with client(address) as connection:
        study = connection.study(name, project=project)
        value, preference = _best(study, settled=settled), study.info().preference
    if value is None:
        raise NotFound(f"Study {name!r} has no result yet.", hint="`isoloss study why` says what it waits for.")
    rows = [
        (key, item if not isinstance(item, float) else number(item, 6))
        for key, item in value.items()
        if item and key not in ("near", "confirmation")
    ]
    lines = [f"near: trial {one['number']} {_near(one)}  {_params(one['params'])}" for one in value["near"][:NEAR]]
    lines += _spread(value["near"]) + _confirmed(value["confirmation"])
    if preference:
        value["preference"] = dict(preference)
        lines += _said_of(preference)
    show(output, value, Table(("", ""), rows), *lines)


@app.command
def why(
    name: str,
    trial: int | None = None,
    *,
    project: Project = "default",
    address: Address = None,
    output: Output = Output(),  # noqa: B008 - frozen
) -> None:
    """Say what keeps a study from running, and why each trial that is not running is not."""
    with client(address) as connection:
        study = connection.study(name, project=project)
        sentences, found = study.why(), study.reasons()
    if trial is not None:
        found = [reason for reason in found if reason["trial"] == trial]
        sentences = [] if found else [f"Trial {trial} runs, waits for a slot, or does not exist."]
    rows = [(reason["trial"], reason["level"], reason["code"], reason["sentence"]) for reason in found]
    table = Table(("trial", "level", "reason", ""), rows)
    show(output, {"sentences": sentences, "trials": found}, table, *sentences)


@app.command
def logs(
    name: str,
    trial: int | None = None,
    *,
    follow: Annotated[
        bool, Parameter(negative="", help="Go on until the study is idle or stopped (with --json, one object a line).")
    ] = False,
    project: Project = "default",
    address: Address = None,
    output: Output = Output(),  # noqa: B008 - frozen
) -> None:
    """Show what trainers printed last, and why trials failed: of each attempt, as far as it is kept."""
    with client(address) as connection:
        study = connection.study(name, project=project)
        if follow:
            _follow_logs(study, trial, output)
            return
        said = study.logs(trial)
    show(output, {"logs": said}, *map(_log_line, said))


@app.command
def replay(
    name: str,
    *,
    method: Annotated[str, Parameter(help="Instead say what this method would have done on the same results.")] = "",
    set_: Set = (),
    project: Project = "default",
    address: Address = None,
    output: Output = Output(),  # noqa: B008 - frozen
) -> None:
    """Fold a study's ledger again and compare every decision with the recorded one."""
    from isoloss.domain.spec import decode_study
    from isoloss.search.events import decision_from_mapping, event_from_mapping
    from isoloss.search.replay import replay as fold

    with client(address) as connection:
        study = connection.study(name, project=project)
        info, events = study.info(), []
        for event in study.watch() if info.seq else ():
            events.append(event)
            if event["seq"] >= info.seq:
                break
    found = fold(
        decode_study(info.spec),
        [event_from_mapping(e["body"]) for e in events],
        [tuple(decision_from_mapping(d) for d in e["decisions"]) for e in events],
    )
    if found.difference is not None:
        raise IsolossError(f"The ledger and the search differ at event {found.difference.number}: {found.difference}.")
    value: dict[str, Any] = {"events": found.events, "same": True}
    lines = [f"{found.events} events, every decision the same"]
    if method or set_:
        value["other"] = other = _other(info, found.search, method, set_)
        best = other["best"] or {}
        lines.append(
            f"{other['method']} would have spent {cost(other['budget'])} on {other['known']} tasks and ended at score "
            f"{number(best.get('score'))}; {other['unknown']} tasks it wanted were never measured"
        )
    show(output, value, *lines)


@app.command
def export(
    name: str,
    *,
    out: Annotated[Path, Parameter(help="Where to: .csv, .jsonl or .parquet.")],
    project: Project = "default",
    address: Address = None,
    output: Output = Output(),  # noqa: B008 - frozen
) -> None:
    """Write every trial at every level as a table."""
    from isoloss.files.tables import write_rows

    with client(address) as connection:
        found = connection.study(name, project=project).trials()
    rows = [
        {"trial": t.number, "bracket": t.bracket, "source": t.source, "level": level.level, "budget": level.budget,
         "state": level.state, **{f"param_{k}": v for k, v in t.params.items()}, **level.values}
        for t in found
        for level in t.levels
    ]  # fmt: skip
    write_rows(out, rows)
    show(output, {"rows": len(rows), "out": str(out)}, f"{len(rows)} rows in {out}")


def _follow(study: Study, output: Output, *, after: int = 0, until_idle: bool) -> None:
    for event in study.watch(after=after, until_idle=until_idle):
        text = (
            dumps(event)
            if output.json
            else f"{event['seq']:>6}  {event['kind']:<12} {_params(event['body'], skip='kind')}"
        )
        if output.json:
            print(text, flush=True)
        else:
            say(text)


def _difference(key: str, mine: float | None, theirs: float | None) -> str:
    more = "endless" if mine is None or theirs is None else f"{mine - theirs:+.4g}"
    return f"{key.replace('_', ' ')} {more}"


def _other(info: StudyInfo, search: Search, method: str, sets: tuple[str, ...]) -> dict[str, Any]:
    """What another method, with the present maximum budget, would have done on the study's results."""
    from isoloss.domain.spec import decode_study
    from isoloss.files.spec import apply_sets
    from isoloss.search.replay import replay_other

    recorded = info.spec["method"]
    kept = {key: recorded[key] for key in ("min_budget", "eta", "sampler") if recorded[key] is not None}
    chosen = (
        recorded | {"max_budget": info.max_budget}
        if not method
        else (kept | {"name": method, "max_budget": info.max_budget})
    )
    spec = decode_study(apply_sets({**info.spec, "method": chosen}, sets))
    return {"method": f"{spec.method.name} {spec.method.variant}", **asdict(replay_other(search, spec))}


def _info(info: StudyInfo) -> dict[str, Any]:
    return asdict(info)


def _checkpoints(found: Mapping[str, int]) -> list[str]:
    """What attempts saved, kept and dropped; nothing when nothing was saved."""
    if not found["kept"] + found["dropped"]:
        return []
    said = f"checkpoints: {found['kept']} kept ({format_count(found['kept_bytes'])} bytes)"
    if found["dropped"]:
        said += f", {found['dropped']} dropped ({format_count(found['dropped_bytes'])} bytes)"
    if found["to_remove"]:
        said += f", of which {found['to_remove']} wait for a worker of their host to remove them"
    if found["for_room"]:
        said += f"; {found['for_room']} went for the quota of a worker's disk, whatever fidelity.keep says"
    return [said]


def _codes(found: Mapping[str, int]) -> list[str]:
    """Which versions of the code ran; a warning where there are several."""
    said = ", ".join(f"{version} ({n} attempts)" for version, n in sorted(found.items(), key=lambda item: -item[1]))
    if len(found) > 1:
        return [f"warning: the code changed on the way, so losses may not compare: {said}"]
    return [f"code: {said}"] if found else []


def _best(study: Study, *, settled: bool = False) -> dict[str, Any] | None:
    try:
        return asdict(study.best_of(settled=settled))
    except NotFound:
        return None


def _spread(near: Sequence[Mapping[str, Any]]) -> list[str]:
    """How different the trials are that are about as good: what does not matter there has a wide range."""
    if len(near) < 2 or not near[0]["desirability"]:
        return []
    said = []
    for name in near[0]["params"]:
        values = {one["params"][name] for one in near if name in one["params"]}
        plain = any(isinstance(value, str | bool) for value in values)
        said.append(
            f"{name} {'/'.join(sorted(map(str, values)))}"
            if plain or len(values) == 1
            else f"{name} {number(float(min(values)))}-{number(float(max(values)))}"
        )
    return [f"about as good are {len(near)} trials: {', '.join(said)}"]


def _confirmed(confirmation: Mapping[str, Any] | None) -> list[str]:
    if not confirmation:
        return []
    finalists = [
        f"finalist: trial {one['trial']} mean {number(one['mean'])} over {one['runs']} runs"
        + (f", behind by {number(one['behind'])}, at least {number(one['behind_at_least'])}" if place else "")
        for place, one in enumerate(confirmation["finalists"])
    ]
    return [*finalists, confirmation["sentence"]]


def _near(one: Mapping[str, Any]) -> str:
    if not one["desirability"]:
        return _params(one["values"])
    expected = "" if one["expected"] is None else f", expected {number(one['expected'], 3)}"
    return f"D {number(one['value'], 3)}{expected}"


def _said_of(preference: Mapping[str, Any]) -> list[str]:
    if not preference["drawn"]:
        return list(filter(None, [preference["sentence"]]))
    said = [
        f"{preference['alive'] / preference['drawn']:.0%} of the space is worth something, by {preference['drawn']} blind trials"
    ]
    return [*said, *filter(None, [preference["sentence"]])]


def _follow_logs(study: Study, trial: int | None, output: Output) -> None:
    """Print what is new of each attempt, until nothing more can come; a trial that is not there yet may come."""
    import time

    before: dict[tuple[int, int, int], dict[str, Any]] = {}
    while True:
        ended = study.info().state in ("idle", "stopped")  # asked first: what came before the end is still printed
        for one in study.logs() if trial is None else _of(study, trial):
            place = one["trial"], one["level"], one["attempt"]
            if one != before.get(place):
                new = one | {"text": _beyond(before[place]["text"] if place in before else "", one["text"])}
                print(dumps(new) if output.json else _log_line(new), flush=True)
                before[place] = one
        if ended:
            return
        time.sleep(LOOK_SECONDS)


def _of(study: Study, trial: int) -> list[dict[str, Any]]:
    """One trial's, which may not be there yet."""
    try:
        return study.logs(trial)
    except NotFound:
        return []


def _beyond(before: str, now: str) -> str:
    """The lines that were not there before: both are the last lines of one stream, or a reason with them."""
    old, new = before.splitlines(), now.splitlines()
    overlap = next((n for n in range(min(len(old), len(new)), 0, -1) if old[-n:] == new[:n]), 0)
    return "\n".join(new[overlap:])


def _log_line(said: dict[str, Any]) -> str:
    text = said["text"] if "\n" not in said["text"] else "\n" + textwrap.indent(said["text"], "  ")
    return f"trial {said['trial']} level {said['level']} attempt {said['attempt']} ({said['state']}): {text}"


def _params(values: Any, *, skip: str = "") -> str:
    return " ".join(f"{k}={number(v) if isinstance(v, float) else v}" for k, v in values.items() if k != skip)
