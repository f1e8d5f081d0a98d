"""``isoloss law``: laws on files alone, without any service.

A FIT file is the JSON of ``law fit``; it holds the evidence and all that a forecast needs.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import App, Parameter

from isoloss.cli.law_catalogue import catalogue
from isoloss.cli.law_files import (
    Columns,
    Flops,
    Given,
    Params,
    Pool,
    Recipe,
    Tokens,
    Where,
    count,
    further,
    is_campaign,
    load,
    load_laws,
    observations,
    recipe,
    target,
)
from isoloss.cli.law_import import import_
from isoloss.cli.law_plan import plan
from isoloss.cli.law_profile import profile
from isoloss.cli.output import Output, Table, dumps, number, say, show, span, warn
from isoloss.errors import InvalidSpec

if TYPE_CHECKING:
    from isoloss.laws.evidence import Fit

app = App(name="law", help="Scaling laws on files: fit, forecast, plan, profile, compare, back-test, report.")
app.command(plan)
app.command(catalogue)
app.command(profile)
Loss = Annotated[str, Parameter(help="Robust loss of log residuals: huber:DELTA, lad or squared.")]
Bootstrap = Annotated[int, Parameter(help="Draws of the bootstrap; 0 takes intervals from the covariance.")]
Level = Annotated[float, Parameter(help="Level of the intervals.")]
Near = Annotated[
    float | None, Parameter(help="steplaw: pool runs within this fraction of their cell's best (paper: .0025).")
]
Out = Annotated[Path | None, Parameter(help="Write the fit to this file, for law forecast and law report.")]
Form = Annotated[str, Parameter(help="A form of law catalogue, or campaign: optimum and loss together.")]
Resample = Annotated[
    Literal["rows", "runs", "cells"] | None,
    Parameter(help="What a bootstrap draws of a loss law's data; without it, named runs whole and other rows singly."),
]
HoldOut = Annotated[str, Parameter(help="Which runs to hold out, such as 'flops > 1e21'.")]
FitFiles = Annotated[tuple[Path, ...], Parameter(name="FIT", negative="", help="FIT files, foretelling together.")]
CAMPAIGN = "campaign"
app.command(import_, name="import")


@app.command
def fit(
    data: Path,
    *,
    form: Form,
    loss: Loss = "huber:1e-3",
    bootstrap: Bootstrap = 200,
    resample: Resample = None,
    seed: int = 0,
    level: Level = 0.9,
    near: Near = None,
    where: Where = "",
    columns: Columns = (),
    pool: Pool = False,
    out: Out = None,
    output: Output = Output(),  # noqa: B008 - frozen
) -> None:
    """Fit a law to the runs in DATA (CSV, JSONL or parquet)."""
    from isoloss.laws.campaign import fit_campaign
    from isoloss.laws.fit import fit as fit_law

    seen = observations(data, columns, where)
    if form == CAMPAIGN:
        joint = fit_campaign(seen, seed=seed, bootstrap=bootstrap, level=level, pool=pool)
        _write(out, joint.to_mapping())
        warn(joint.warnings)
        parts = [_constants(part) for part in joint.fits]
        show(output, {**joint.to_mapping(), "form": CAMPAIGN}, *parts)
        return
    made = fit_law(
        form,
        seen,
        loss=loss,
        bootstrap=bootstrap,
        seed=seed,
        level=level,
        near=near,
        pool=pool,
        resample=resample or "",
    )
    mapping = made.to_mapping()
    _write(out, mapping)
    warn(made.warnings)
    brief = {name: value for name, value in mapping.items() if name not in ("draws", "covariance", "theta")}
    show(output, brief, _constants(made), made.verdict)


@app.command
def forecast(
    fits: FitFiles,
    /,
    *,
    n_params: Params = None,
    n_tokens: Tokens = None,
    flops: Flops = None,
    given: Given = (),
    stated: Recipe = (),
    level: Level = 0.9,
    output: Output = Output(),  # noqa: B008 - frozen
) -> None:
    """Foretell loss, learning rate and batch size of a run, from one FIT file or several together."""
    from isoloss.laws.forecast import OF_LINES
    from isoloss.laws.forecast import forecast as foretell

    if not fits:
        raise InvalidSpec("no FIT file was given; accepted is one or more.")
    laws, warnings = load_laws(*fits)
    N, D = target(laws, n_params, n_tokens, flops)
    found = foretell(laws, N, D, level, further(laws, given), recipe(stated))
    mapping = found.to_mapping()
    mapping["warnings"] = list(dict.fromkeys([*warnings, *mapping["warnings"]]))
    warn(mapping["warnings"])
    rows = [
        ("loss", number(found.loss, 5), span(found.loss_interval, 5), ""),
        ("lr", number(found.lr), span(found.lr_interval), span(found.lr_range)),
        ("batch_tokens", number(found.batch_tokens), span(found.batch_tokens_interval), span(found.batch_range)),
        *(
            (name, number(getattr(found, name)), span(getattr(found, f"{name}_interval")), "")
            for name in OF_LINES
            if getattr(found, name) is not None
        ),
    ]
    title = f"N {number(N)}, D {number(D)}"
    beyond = ", ".join(f"{name} ×{number(times, 3)}" for name, times in found.extrapolation.items())
    show(
        output,
        mapping,
        Table(("", "forecast", f"{level:.0%} interval", "within 0.25 %"), rows, title),
        f"beyond the data: {beyond}",
    )


@app.command
def compare(
    data: Path,
    *,
    loss: Loss = "huber:1e-3",
    where: Where = "",
    columns: Columns = (),
    pool: Pool = False,
    output: Output = Output(),  # noqa: B008 - frozen
) -> None:
    """Fit every loss law to DATA and rank them by their error on the largest runs, held out."""
    from isoloss.laws.fit import compare as compare_laws

    fits = compare_laws(observations(data, columns, where), loss=loss, pool=pool)
    warn(list(dict.fromkeys(f"{made.form}: {note}" for made in fits for note in made.warnings)))
    rows = [
        (
            made.form,
            f"{made.residual_rms:.3%}",
            f"{made.backtest.error:.3%}" if made.backtest else "–",
            f"{made.backtest.bias:+.3%}" if made.backtest else made.backtest_note,
            number(made.objective, 6),
        )
        for made in fits
    ]
    value = {
        "laws": [
            {
                "form": made.form,
                "residual_rms": made.residual_rms,
                "objective": made.objective,
                "backtest": made.to_mapping()["backtest"],
                "note": made.backtest_note,
                "warnings": list(made.warnings),
            }
            for made in fits
        ]
    }
    show(output, value, Table(("form", "rms in sample", "held-out error", "held-out bias", "objective"), rows))


@app.command
def backtest(
    data: Path,
    *,
    hold_out: HoldOut,
    loss: Loss = "huber:1e-3",
    where: Where = "",
    columns: Columns = (),
    pool: Pool = False,
    output: Output = Output(),  # noqa: B008 - frozen
) -> None:
    """Fit every loss law without some runs and ask it for them."""
    from isoloss.laws.caveats import loss_caveats
    from isoloss.laws.fit import backtest as backtest_laws

    seen = observations(data, columns, where)
    tested = backtest_laws(seen, hold_out, loss=loss, pool=pool)
    caveats = loss_caveats(seen.select(seen.ok))
    warn(caveats)
    ranked = sorted(tested.items(), key=lambda item: item[1].error)
    rows = [(name, f"{test.error:.3%}", f"{test.bias:+.3%}", test.held_out) for name, test in ranked]
    value = {"laws": [{"form": name, "error": t.error, "bias": t.bias, "held_out": t.held_out} for name, t in ranked],
             "warnings": caveats}  # fmt: skip
    show(output, value, Table(("form", "mean error", "bias", "runs held out"), rows))


@app.command
def sensitivity(
    data: Path,
    *,
    flops: Annotated[str, Parameter(help="The compute at which N* and D* are asked for (1e24).")],
    form: Annotated[str, Parameter(help="A form that gives N and D.")] = "chinchilla",
    loss: Loss = "huber:1e-3",
    where: Where = "",
    columns: Columns = (),
    pool: Pool = False,
    output: Output = Output(),  # noqa: B008 - frozen
) -> None:
    """Show how N*, D* and their exponent hang on choices: FLOP counting, robust loss, outliers, which runs are used."""
    from isoloss.laws.fit import optimum
    from isoloss.laws.flops import sensitivity as vary

    C = count(flops, "--flops")
    found = vary(observations(data, columns, where).one_recipe(pool=pool), C, partial(optimum, form), loss=loss)
    rows = [
        (
            one.choice,
            number(one.a, 3),
            number(one.n_params, 3),
            number(one.n_tokens, 3),
            number(one.tokens_per_param, 3),
            one.why,
        )
        for one in found
    ]
    table = Table(("choice", "a", "N*", "D*", "D*/N*", ""), rows, f"{form} at {number(C)} FLOP")
    kept = ("choice", "a", "n_params", "n_tokens", "tokens_per_param", "why")
    show(output, {"flops": C, "conclusions": [{name: getattr(one, name) for name in kept} for one in found]}, table)


@app.command
def report(fit_file: Annotated[Path, Parameter(name="FIT")], /, *, output: Output = Output()) -> None:  # noqa: B008 - frozen
    """Print the reporting checklist of a FIT as Markdown."""
    loaded = load(fit_file)
    fits = loaded.fits if is_campaign(loaded) else (loaded,)
    lines = []
    for made in fits:
        lines += [f"# {made.form}", "", *(f"- **{item}**: {answer}" for item, answer in made.checklist.items()), ""]
    value = {"laws": [{"form": made.form, "checklist": made.checklist} for made in fits]}
    show(output, value, "\n".join(lines).rstrip())


def _constants(made: Fit) -> Table:
    rows = [
        (name, number(e.value), number(e.se, 3), span((e.low or 0.0, e.high or float("inf"))), e.verdict)
        for name, e in made.estimates.items()
    ]
    title = f"{made.form}: {made.equation} ({made.n_observations} points)"
    return Table(("constant", "value", "se", f"{made.level:.0%} interval", "verdict"), rows, title)


def _write(out: Path | None, mapping: dict[str, Any]) -> None:
    if out is not None:
        out.write_text(dumps(mapping) + "\n", encoding="utf-8")
        say(f"wrote {out}")
