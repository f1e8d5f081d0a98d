"""``isoloss study preview`` and ``study try``: what a spec costs and whether its trainer keeps the contract, before anything runs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from isoloss.cli.connection import Set
from isoloss.cli.output import Output, Table, dumps, show, warn
from isoloss.cli.study_changes import cost
from isoloss.domain.quantity import format_count, format_duration, parse_count
from isoloss.errors import IsolossError

TOTALS = ("tasks", "total_budget", "resumed_budget", "billed_budget")
Spec = Annotated[Path, Parameter(help="The study spec, YAML or JSON.")]


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


def _difference(key: str, mine: float | None, theirs: float | None) -> str:
    more = "endless" if mine is None or theirs is None else f"{mine - theirs:+.4g}"
    return f"{key.replace('_', ' ')} {more}"
