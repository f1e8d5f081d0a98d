"""``isoloss study logs``, ``replay`` and ``export``: what a study has kept."""

from __future__ import annotations

import textwrap
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from isoloss.cli.connection import Address, Project, Set, client
from isoloss.cli.output import Output, dumps, number, show
from isoloss.cli.study_changes import cost
from isoloss.errors import IsolossError, NotFound

if TYPE_CHECKING:
    from isoloss.client.answers import StudyInfo
    from isoloss.client.blocking import Study
    from isoloss.search.search import Search

LOOK_SECONDS = 1.0


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
