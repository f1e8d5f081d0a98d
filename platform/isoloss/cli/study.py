"""``isoloss study``: one question asked of a space."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import App, Parameter

from isoloss.cli.connection import Address, Project, Set, client, launched
from isoloss.cli.output import Output, Table, dumps, number, say, show
from isoloss.cli.study_before import Spec, preview, try_
from isoloss.cli.study_changes import confirm, cost, deepen, enqueue, pause, prefer, resume, retry, space, stop, widen
from isoloss.cli.study_curves import curves, forward
from isoloss.cli.study_records import export, logs, replay
from isoloss.domain.quantity import format_count
from isoloss.errors import NotFound

if TYPE_CHECKING:
    from isoloss.client.answers import StudyInfo
    from isoloss.client.blocking import Study

app = App(name="study", help="Studies: preview, launch, watch, deepen and read them.")
NEAR = 10  # lines of what is about as good
ALIKE = 0.9  # rank correlation from which a larger budget hardly tells more

app.command(try_, name="try")
for command in (
    preview, deepen, widen, prefer, confirm, space, enqueue, retry, pause, resume, stop, curves, forward, logs, replay, export,
):  # fmt: skip
    app.command(command)


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


def _params(values: Any, *, skip: str = "") -> str:
    return " ".join(f"{k}={number(v) if isinstance(v, float) else v}" for k, v in values.items() if k != skip)
