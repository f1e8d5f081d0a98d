"""``isoloss study``: one question asked of a space."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import App, Parameter

from isoloss.cli.connection import Address, Project, client
from isoloss.cli.output import Output, Table, dumps, number, say, show
from isoloss.domain.quantity import format_count, parse_count
from isoloss.errors import IsolossError, NotFound

if TYPE_CHECKING:
    from isoloss.client.answers import StudyInfo, TrialInfo
    from isoloss.client.blocking import Study

LOOK_SECONDS = 1.0
app = App(name="study", help="Studies: preview, launch, watch, deepen and read them.")
Set = Annotated[tuple[str, ...], Parameter(name="--set", help="Change the spec: path=value.", consume_multiple=False)]
Spec = Annotated[Path, Parameter(help="The study spec, YAML or JSON.")]


@app.command
def preview(
    spec: Spec,
    *,
    deepen: Annotated[tuple[str, ...], Parameter(help="Then deepen to this; in order.", consume_multiple=False)] = (),
    set_: Set = (),
    output: Output = Output(),  # noqa: B008 - frozen
) -> None:
    """Show what a study will run and what that costs, before anything runs; needs no service."""
    from isoloss.domain.spec import decode_study
    from isoloss.files.spec import load_spec
    from isoloss.search.preview import preview as plan

    study = decode_study(load_spec(spec, set_))
    value = plan(study, [parse_count(text, "--deepen") for text in deepen])
    rows = [
        (b["bracket"], r["level"], format_count(r["budget"]), r["configurations"], r.get("new", r["configurations"]))
        for b in value["brackets"]
        for r in b["rungs"]
    ]
    unit = study.budget.unit
    lines = [
        f"{value['tasks']} tasks; {_cost(value['total_budget'])} {unit} from scratch, "
        f"{_cost(value['resumed_budget'])} resumed, {_cost(value['billed_budget'])} as {study.fidelity.mode}."
    ]
    if deepen:
        lines.append(
            f"The last step adds {value['added_tasks']} tasks, {_cost(value['added_resumed_budget'])} {unit} resumed; "
            f"starting again each time would cost {_cost(value['restart_resumed_budget'])} in all."
        )
    show(output, value, Table(("bracket", "level", unit, "configurations", "new"), rows), *lines)


@app.command(name="try")
def try_(spec: Spec, *, set_: Set = (), output: Output = Output()) -> None:  # noqa: B008 - frozen
    """Run one configuration at the first two rungs without any service, kill it, resume it, and say what works."""
    import subprocess
    import sys

    from isoloss.files.spec import load_spec

    body = load_spec(spec, set_)
    command = [sys.executable, "-m", "isoloss_worker", "try"]
    done = subprocess.run(command, input=dumps(body), text=True, stdout=subprocess.PIPE, check=False)
    if done.returncode not in (0, 1):
        raise SystemExit(done.returncode)
    import json

    value = json.loads(done.stdout)
    marks = [("✓" if check["ok"] else "✗", check["what"], check["detail"]) for check in value["checks"]]
    show(output, value, Table(("", "", ""), marks))
    if done.returncode:
        raise IsolossError("The trainer does not keep the contract yet; the ✗ above say where.")


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
    from isoloss.files.spec import load_spec

    with client(address) as connection:
        study = connection.launch_study(load_spec(spec, set_), load_if_exists=load_if_exists)
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
            r["quota"],
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
    if deeper := info.next_deepening:
        lines.append(
            f"next: isoloss study deepen {name} --max-budget {deeper['max_budget']:.0f}   "
            f"+{_cost(deeper['added_budget'])} {unit} instead of {_cost(deeper['restart_budget'])} from scratch"
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
def best(name: str, *, project: Project = "default", address: Address = None, output: Output = Output()) -> None:  # noqa: B008
    """Show the best trial; with desirabilities, each d and the one that limits."""
    with client(address) as connection:
        study = connection.study(name, project=project)
        value = _best(study)
    if value is None:
        raise NotFound(f"Study {name!r} has no result yet.", hint="`isoloss study why` says what it waits for.")
    rows = [(key, item if not isinstance(item, float) else number(item, 6)) for key, item in value.items() if item]
    show(output, value, Table(("", ""), rows))


@app.command
def why(name: str, *, project: Project = "default", address: Address = None, output: Output = Output()) -> None:  # noqa: B008
    """Say what keeps a study from running."""
    with client(address) as connection:
        sentences = connection.study(name, project=project).why()
    show(output, {"sentences": sentences}, *sentences)


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
    """Show why trials failed: the reason and the last lines of stderr of the newest attempt."""
    with client(address) as connection:
        study = connection.study(name, project=project)
        if follow:
            _follow_logs(study, trial, output)
            return
        found = study.trials()
    if trial is not None and trial not in {t.number for t in found}:
        raise NotFound(f"Study {name!r} has no trial {trial}; it has {len(found)}.")
    said = _logs(found, trial)
    show(output, {"logs": said}, *map(_log_line, said))


@app.command
def deepen(
    name: str,
    *,
    max_budget: Annotated[str, Parameter(help="The new maximum: eta times the present one, or a power of it.")],
    project: Project = "default",
    address: Address = None,
    output: Output = Output(),  # noqa: B008 - frozen
) -> None:
    """Raise the maximum budget of a study; everything that ran is reused."""
    with client(address) as connection:
        study = connection.study(name, project=project)
        study.deepen(parse_count(max_budget, "--max-budget"))
        info = study.info()
    show(output, _info(info), f"{info.name}: maximum is {format_count(info.max_budget)} {info.spec['budget']['unit']}")


@app.command
def pause(name: str, *, project: Project = "default", address: Address = None, output: Output = Output()) -> None:  # noqa: B008
    """Lease nothing more; what runs goes on."""
    with client(address) as connection:
        info = connection.study(name, project=project).pause()
    show(output, _info(info), f"{info.name}: {info.state}")


@app.command
def resume(name: str, *, project: Project = "default", address: Address = None, output: Output = Output()) -> None:  # noqa: B008
    """Go on after pause."""
    with client(address) as connection:
        info = connection.study(name, project=project).resume()
    show(output, _info(info), f"{info.name}: {info.state}")


@app.command
def stop(
    name: str,
    *,
    reason: str = "stopped by hand",
    project: Project = "default",
    address: Address = None,
    output: Output = Output(),  # noqa: B008 - frozen
) -> None:
    """End a study for good; what runs is cancelled."""
    with client(address) as connection:
        info = connection.study(name, project=project).stop(reason)
    show(output, _info(info), f"{info.name}: {info.state}")


@app.command
def replay(name: str, *, project: Project = "default", address: Address = None, output: Output = Output()) -> None:  # noqa: B008
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
    show(output, {"events": found.events, "same": True}, f"{found.events} events, every decision the same")


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


def _info(info: StudyInfo) -> dict[str, Any]:
    return asdict(info)


def _best(study: Study) -> dict[str, Any] | None:
    try:
        return asdict(study.best_trial)
    except NotFound:
        return None


def _follow_logs(study: Study, trial: int | None, output: Output) -> None:
    """Print each new message once, until nothing more can come; a trial that is not there yet may come."""
    import time

    before: list[dict[str, Any]] = []
    while True:
        ended = study.info().state in ("idle", "stopped")  # asked first: what came before the end is still printed
        said = _logs(study.trials(), trial)
        for one in said:
            if one not in before:
                print(dumps(one) if output.json else _log_line(one), flush=True)
        if ended:
            return
        before = said
        time.sleep(LOOK_SECONDS)


def _log_line(said: dict[str, Any]) -> str:
    return f"trial {said['trial']} level {said['level']} ({said['state']}): {said['message']}"


def _logs(trials: list[TrialInfo], trial: int | None) -> list[dict[str, Any]]:
    return [
        {"trial": t.number, "level": level.level, "state": level.state, "message": level.message}
        for t in trials
        for level in t.levels
        if level.message and trial in (None, t.number)
    ]


def _params(values: Any, *, skip: str = "") -> str:
    return " ".join(f"{k}={number(v) if isinstance(v, float) else v}" for k, v in values.items() if k != skip)


def _cost(value: float | None) -> str:
    return "endless" if value is None else format_count(value)
