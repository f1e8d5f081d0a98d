"""The verbs of ``isoloss study`` that change a study: everything that ran stays, and each says what it would add."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from isoloss.cli.connection import Address, Project, Set, client
from isoloss.cli.output import Output, Table, show
from isoloss.domain.quantity import format_count, parse_count
from isoloss.errors import InvalidSpec

if TYPE_CHECKING:
    from isoloss.client.answers import StudyInfo

DryRun = Annotated[bool, Parameter(help="Only say what it would add.")]


def deepen(
    name: str,
    *,
    max_budget: Annotated[str, Parameter(help="The new maximum: eta times the present one, or a power of it.")],
    dry_run: DryRun = False,
    project: Project = "default",
    address: Address = None,
    output: Output = Output(),  # noqa: B008 - frozen
) -> None:
    """Raise the maximum budget of a study; everything that ran is reused."""
    with client(address) as connection:
        study, budget = connection.study(name, project=project), parse_count(max_budget, "--max-budget")
        if dry_run:
            _outlook(study.info(), study.preview_change(max_budget=budget), output)
            return
        study.deepen(budget)
        info = study.info()
    show(output, asdict(info), f"{info.name}: maximum is {format_count(info.max_budget)} {info.spec['budget']['unit']}")


def widen(
    name: str,
    *,
    width: Annotated[int | None, Parameter(help="Iterations pooled; one more than now when it is not said.")] = None,
    dry_run: DryRun = False,
    project: Project = "default",
    address: Address = None,
    output: Output = Output(),  # noqa: B008 - frozen
) -> None:
    """Give a study more configurations under the same maximum budget; everything that ran is reused."""
    with client(address) as connection:
        study = connection.study(name, project=project)
        info = study.info()
        wanted = info.width + 1 if width is None else width
        if dry_run:
            _outlook(info, study.preview_change(width=wanted), output)
            return
        info = study.widen(wanted).info()
    show(output, asdict(info), f"{info.name}: {info.width} iterations are pooled")


def space(
    name: str,
    spec: Annotated[Path, Parameter(help="A spec with the whole new space; every configuration there is must fit it.")],
    *,
    set_: Set = (),
    project: Project = "default",
    address: Address = None,
    output: Output = Output(),  # noqa: B008 - frozen
) -> None:
    """Search a larger space from now on: a range may grow, a choice may be added."""
    from isoloss.files.spec import load_spec

    with client(address) as connection:
        study = connection.study(name, project=project)
        info = study.change_space(load_spec(spec, set_).get("space", {})).info()
    show(output, asdict(info), f"{info.name}: the space is {', '.join(info.spec['space'])}")


def prefer(
    name: str,
    spec: Annotated[Path, Parameter(help="A spec with the whole new desirability; the rest of it is not read.")],
    *,
    set_: Set = (),
    project: Project = "default",
    address: Address = None,
    output: Output = Output(),  # noqa: B008 - frozen
) -> None:
    """Change limits, weights and shapes of a running or finished study: what ran is scored anew, nothing runs again."""
    from isoloss.files.spec import load_spec

    wanted = load_spec(spec, set_).get("desirability")
    if not wanted:
        raise InvalidSpec(f"{spec} has no desirability; accepted is a spec with one.")
    with client(address) as connection:
        info = connection.study(name, project=project).prefer(wanted).info()
    found = info.preference or {}
    said = f"{info.name}: preference {found['version']}, {found['measured']} trials scored anew"
    show(output, asdict(info), *filter(None, (said, found["sentence"])))


def confirm(
    name: str,
    *,
    finalists: Annotated[int, Parameter(help="How many of the best run again.")] = 4,
    delta: Annotated[float, Parameter(help="The probability of naming the wrong one.")] = 0.05,
    runs: Annotated[int, Parameter(help="The most runs in all.")] = 40,
    project: Project = "default",
    address: Address = None,
    output: Output = Output(),  # noqa: B008 - frozen
) -> None:
    """Run the best trials again with other seeds, until one is separated from the others; `study best` says who."""
    with client(address) as connection:
        study = connection.study(name, project=project).confirm(finalists=finalists, delta=delta, runs=runs)
        info = study.info()
    show(output, asdict(info), f"{info.name}: {finalists} finalists run again, at most {runs} times")


def enqueue(
    name: str,
    data: Annotated[Path, Parameter(help="CSV, JSONL or parquet with a column a parameter and a row a configuration.")],
    *,
    project: Project = "default",
    address: Address = None,
    output: Output = Output(),  # noqa: B008 - frozen
) -> None:
    """Put known configurations in line: they are started next, inside the brackets."""
    from isoloss.domain.spec import decode_study
    from isoloss.files.tables import read_configurations

    with client(address) as connection:
        study = connection.study(name, project=project)
        rows = read_configurations(data, decode_study(study.info().spec).space)
        info = study.enqueue(rows).info()
    show(output, asdict(info), f"{info.name}: {len(rows)} configurations are next")


def retry(
    name: str,
    trials: tuple[int, ...] = (),
    *,
    failed: Annotated[bool, Parameter(help="All trials with a failed task.")] = False,
    project: Project = "default",
    address: Address = None,
    output: Output = Output(),  # noqa: B008 - frozen
) -> None:
    """Run failed tasks again, of these trials or with --failed of all; until they end their failure stands."""
    if bool(trials) == failed:
        raise InvalidSpec("retry names both or neither of TRIALS and --failed; accepted is one of the two.")
    with client(address) as connection:
        info = connection.study(name, project=project).retry_failed(trials).info()
    show(output, asdict(info), f"{info.name}: {info.state}, {info.tasks.get('ready', 0)} tasks wait")


def pause(name: str, *, project: Project = "default", address: Address = None, output: Output = Output()) -> None:  # noqa: B008
    """Lease nothing more; what runs goes on."""
    with client(address) as connection:
        info = connection.study(name, project=project).pause()
    show(output, asdict(info), f"{info.name}: {info.state}")


def resume(name: str, *, project: Project = "default", address: Address = None, output: Output = Output()) -> None:  # noqa: B008
    """Go on after pause."""
    with client(address) as connection:
        info = connection.study(name, project=project).resume()
    show(output, asdict(info), f"{info.name}: {info.state}")


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
    show(output, asdict(info), f"{info.name}: {info.state}")


def cost(value: float | None) -> str:
    """A budget for a sentence."""
    return "endless" if value is None else format_count(value)


def _outlook(info: StudyInfo, value: dict[str, Any], output: Output) -> None:
    unit = info.spec["budget"]["unit"]
    rows = [
        (r["bracket"], r["level"], format_count(r["budget"]), r["configurations"], r["new"]) for r in value["rungs"]
    ]
    said = (
        f"adds at least {value['added_tasks']} tasks, {cost(value['added_budget'])} {unit}, instead of "
        f"{cost(value['restart_budget'])} from scratch{_retrained(value, unit)}; nothing was changed"
    )
    show(output, value, Table(("bracket", "level", unit, "configurations", "new"), rows), said)


def _retrained(value: dict[str, Any], unit: str) -> str:
    """What checkpoints that were dropped may cost on top."""
    most = value["retrained_budget"]
    return f" (and up to {cost(most)} {unit} because checkpoints were dropped)" if most else ""
