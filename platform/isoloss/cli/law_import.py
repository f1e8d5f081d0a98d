"""``isoloss law import``: runs that a user already owns, wherever they are, become a table of observations."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from isoloss.cli.output import Output, Table, say, show, warn

if TYPE_CHECKING:
    from isoloss.files.imports import Imported
    from isoloss.laws.observation import Observations

SHOWN = 12  # further columns that are named


def import_(
    source: Annotated[
        str,
        Parameter(
            help="A CSV, JSONL or parquet file, a TensorBoard folder, sqlite:///runs.db or wandb://ENTITY/PROJECT."
        ),
    ],
    *,
    out: Annotated[Path, Parameter(help="Write the observations to this CSV, JSONL or parquet file.")],
    columns: Annotated[tuple[str, ...], Parameter(help="Their names: theirs=ours,…", consume_multiple=False)] = (),
    set_: Annotated[
        tuple[str, ...],
        Parameter(name="--set", help="What the runs do not say: ours=value,…", consume_multiple=False),
    ] = (),
    curve: Annotated[
        str,
        Parameter(help="Which point of a loss curve is the loss: last, min or mean:K; joins a table's rows by run."),
    ] = "",
    study: Annotated[str, Parameter(help="Only this study of an Optuna storage.")] = "",
    output: Output = Output(),  # noqa: B008 - frozen
) -> None:
    """Bring runs you own into a table that `law fit` and a campaign's `observations` read.

    A column with our name, or one that ends in it (config.lr), is understood without --columns; the loss is only taken
    by name. Everything else is kept beside it. Failed, unfinished and incomplete runs are left out and counted.
    """
    from isoloss.files.imports import LastOf, import_runs, said
    from isoloss.files.sources import read_source
    from isoloss.files.tables import pairs, write_rows
    from isoloss.laws.observation import Observations

    chosen = LastOf.parse(curve) if curve else None
    names, constants = pairs(columns, "--columns", "theirs=ours"), pairs(set_, "--set", "ours=value")
    runs = read_source(source, study=study, histories=chosen is not None and chosen.how != "last")
    found = import_runs(runs, columns=names, constants=constants, curve=chosen)
    observations = Observations.from_rows(found.rows)
    write_rows(out, found.rows)
    lacking = _lacking(found)
    warnings = [*found.notes, *observations.cautions(), *_curve_cautions(chosen), *_recipes(observations)]
    dropped = f"; {sum(found.dropped.values())} left out: {said(found.dropped)}" if found.dropped else ""
    say(f"{found.runs} runs, {len(found.rows)} observations{dropped}")
    say(f"enough for {', '.join(form for form, missing in lacking.items() if not missing) or 'no law'}")
    for missing, forms in _grouped(lacking).items():
        say(f"{', '.join(forms)} would need {missing}")
    warn(warnings)
    value = {
        "source": source, "out": str(out), "runs": found.runs, "observations": len(found.rows), "dropped": found.dropped,
        "columns": found.columns, "extras": found.extras, "lacking": lacking, "warnings": warnings,
    }  # fmt: skip
    rows = [(ours, theirs, _filled(found, ours)) for ours, theirs in found.columns.items()]
    further = f"{len(found.extras)} further columns are kept: {', '.join(found.extras[:SHOWN])}" + (
        ", …" if len(found.extras) > SHOWN else ""
    )
    table = Table(("ours", "theirs", "rows"), rows, title=f"wrote {out}")
    show(output, value, table, *([further] if found.extras else []))


def _filled(found: Imported, ours: str) -> int:
    return sum(row[ours] not in (None, "") for row in found.rows)


def _lacking(found: Imported) -> dict[str, list[str]]:
    """For every law the columns it needs and no run has."""
    from isoloss.laws.fit import CATALOGUE

    there = {*found.columns, *found.extras}
    return {
        form.name: [name for name in form.needs.partition(";")[0].split(", ") if name not in there]
        for form in CATALOGUE.values()
    }


def _grouped(lacking: dict[str, list[str]]) -> dict[str, list[str]]:
    groups: dict[str, list[str]] = {}
    for form, missing in lacking.items():
        if missing:
            groups.setdefault(", ".join(missing), []).append(form)
    return groups


def _curve_cautions(chosen: Any) -> list[str]:
    if chosen is None or chosen.how != "min":
        return []
    return ["the smallest point of a noisy curve is lucky, the more so the more points it has; mean:K is not."]


def _recipes(observations: Observations) -> list[str]:
    found = sorted({(row.recipe, row.n_params_count) for row in observations})
    if len(found) < 2:
        return []
    return [f"the runs have {len(found)} recipes: a law is fitted to one of them with --where, or to all with --pool."]
