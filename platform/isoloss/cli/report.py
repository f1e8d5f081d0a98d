"""A campaign's report: one HTML file with everything in it, to be kept, mailed and opened without a network.

The charts are those of the built-in page, put inline with the data as JSON; the laws are fitted again from the
observations, so the report needs nothing but what `isoloss campaign export` would give. Without numpy it has no basin.
"""

from __future__ import annotations

import datetime as dt
import importlib.util
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from isoloss.cli.output import dumps, number, span
from isoloss.domain.quantity import format_count
from isoloss.errors import FitFailed, InvalidSpec

if TYPE_CHECKING:
    from isoloss.laws.campaign import CampaignFit

STATIC: Final = Path(__file__).parents[1] / "dash" / "static"
SCRIPTS: Final = ("vendor/echarts-6.1.0.min.js", "format.js", "charts.js", "basin.js", "blocks.js", "report.js")
STYLES: Final = ("app.css", "report.css")


def write_report(out: Path, info: dict[str, Any], observations: list[dict[str, Any]]) -> None:
    """Write the report of a campaign (``Campaign.info()``) and its observations (rows of `isoloss law`) to ``out``.

    Raises ``InvalidSpec`` when ``out`` cannot be written.
    """
    data = report_data(info, observations)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(render(data), encoding="utf-8")
    except OSError as error:
        raise InvalidSpec(
            f"--out is {str(out)!r}, which cannot be written ({error.strerror}); accepted is a file path."
        ) from None


def render(data: Mapping[str, Any]) -> str:
    """The page with styles, scripts and data inside it."""
    title = str(data["name"]).replace("&", "&amp;").replace("<", "&lt;")
    inside = {
        "TITLE": title,
        "STYLES": "\n".join((STATIC / name).read_text(encoding="utf-8") for name in STYLES),
        "DATA": dumps(data).replace("<", "\\u003c"),
        "SCRIPTS": "\n".join(f"<script>{(STATIC / name).read_text(encoding='utf-8')}</script>" for name in SCRIPTS),
    }
    parts = (STATIC / "report.html").read_text(encoding="utf-8").split("%%")
    return "".join(inside.get(part, part) for part in parts)


def report_data(info: Mapping[str, Any], observations: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What the report shows, as JSON-able data."""
    forecast = info["forecast"] or {}
    fit, problem = _fit(info, observations)
    warnings = [*forecast.get("warnings", ()), *((problem,) if problem else ())]
    return {
        "name": info["name"], "state": info["state"], "written": dt.datetime.now(dt.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "lines": headline(info), "forecast": forecast or None, "basin": _basin_rows(info, observations),
        "picture": _picture(fit, forecast, _searched(info, observations)), "box": _box(forecast),
        "loss": _loss_rows(info, observations), "lr": _lr_rows(info, observations), "outcomes": _outcomes(info),
        "studies": [
            [s["size"], s["n_params"], s["trials"], s["tasks_done"], s["max_budget"], s["best"]] for s in info["studies"]
        ],
        "pictures": _pictures(fit, info, observations),
        "evidence": evidence(info, observations),
        "estimates": [
            [law.form, name, e.value, e.low, e.high, e.verdict]
            for law in (fit.fits if fit else ())
            for name, e in law.estimates.items()
        ],
        "fits": [
            [law.form, law.equation, law.n_observations, 100 * law.residual_rms,
             100 * law.backtest.error if law.backtest else None, law.verdict]
            for law in (fit.fits if fit else ())
        ],
        "checklists": {law.form: law.checklist for law in (fit.fits if fit else ()) if law.checklist},
        "observations": [
            [o["run"], o["n_params"], o["n_tokens"], o["lr"], o["batch_tokens"], o["loss"], o["status"]]
            for o in sorted(observations, key=lambda o: (o["n_params"], o["n_tokens"], o["loss"] or math.inf))
        ],
        "warnings": list(dict.fromkeys(warnings)),
    }  # fmt: skip


def headline(info: Mapping[str, Any]) -> list[list[str]]:
    """The campaign in pairs of a word and a sentence: searched, deepened, forecast, outcome, neighbours, cost."""
    sizes = [s for s in info["studies"] if s["size"] != "target"]
    trials, own = sum(s["trials"] for s in sizes), info["own_observations"]
    lines = [
        ["searched", f"{len(sizes)} sizes, {_parameters(sizes)}; {trials} configurations, {info['observations'] - own} finished "
                     f"runs, D to {_count(info['max_tokens'])} tokens"]
    ]  # fmt: skip
    if own:
        lines.append(["owned", f"{own} runs of your own, from {', '.join(info['spec']['observations'])}"])
    if info["deepened"]:
        lines.append(["deepened", f"{len(sizes)} studies: +{_count(info['deepened_tokens'])} tokens; starting again "
                                  f"would have cost {_count(info['restart_tokens'])}"])  # fmt: skip
    if (found := info["forecast"]) is not None:
        lines.append(["forecast", _forecast(found)])
    outcomes = _outcomes(info)
    if outcomes and outcomes[0]["loss"] is not None:
        first, *others = outcomes
        inside = "yes" if first["inside"] else "no" if first["inside"] is not None else "unknown"
        lines.append(["outcome", f"{_where(info)}loss {number(first['loss'])}; inside the interval: {inside}"])
        beside = [f"{o['above']:+.2f} % at lr {number(o['lr'], 3)}" for o in others if o["above"] is not None]
        if beside:
            lines.append(["neighbours", ", ".join(beside)])
    if info["verdict"]:
        lines.append(["verdict", f"{info['verdict']}: {info['verdict_reason']}"])
    if trials and info["target_flops"]:
        share = info["searched_flops"] / info["target_flops"]
        lines.append(["cost", f"{number(100 * share / trials, 3)} % of the same sweep at the target's size; "
                              f"{number(100 * share, 3)} % of one target run"])  # fmt: skip
    return lines


def _where(info: Mapping[str, Any]) -> str:
    """The cell that was confirmed, when it is not the target's."""
    cell, target = info["confirmed"], info["forecast"]
    if not cell or not target or (cell["n_params"], cell["n_tokens"]) == (target["n_params"], target["n_tokens"]):
        return ""
    return f"N = {format_count(cell['n_params'])}, D = {format_count(cell['n_tokens'])}, the largest affordable cell: "


def _forecast(found: Mapping[str, Any]) -> str:
    percent = f"{100 * found['level']:.0f} %"
    said = [f"N = {format_count(found['n_params'])}, D = {format_count(found['n_tokens'])} [{percent}]:"]
    if found["lr"] is not None:
        said.append(f"lr {number(found['lr'], 3)} [{span(found['lr_interval'], 3)}],")
    if found["batch_tokens"] is not None:
        batch, low, high = (_count(x) for x in (found["batch_tokens"], *found["batch_tokens_interval"]))
        said.append(f"batch {batch} [{low} … {high}],")
    said.append(f"loss {number(found['loss'])} [{span(found['loss_interval'])}]")
    return " ".join(said)


def _count(value: float) -> str:
    """A count at three digits."""
    return format_count(float(f"{value:.3g}"))


def _parameters(sizes: Iterable[Mapping[str, Any]]) -> str:
    counts = sorted(s["n_params"] for s in sizes)
    return f"N {_count(counts[0])} to {_count(counts[-1])}" if counts else "none launched yet"


def _outcomes(info: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The runs of the target's cell, the first at the forecast, each with its excess over the first in percent."""
    interval = (info["confirmed"] or info["forecast"] or {}).get("loss_interval")
    found: list[dict[str, Any]] = []
    for outcome in info["outcomes"]:
        loss = outcome["loss"] if outcome["status"] == "ok" else None
        first = found[0]["loss"] if found else loss
        found.append(
            {
                "run": outcome["index"], "lr": outcome.get("lr"), "batch_tokens": outcome.get("batch_tokens"), "loss": loss,
                "status": outcome["status"], "above": 100 * (loss / first - 1) if loss and first else None,
                "inside": interval[0] <= loss <= interval[1] if interval and loss is not None else None,
            }
        )  # fmt: skip
    return found


def _fit(info: Mapping[str, Any], observations: Sequence[Mapping[str, Any]]) -> tuple[CampaignFit | None, str]:
    """The campaign's laws, or why there are none."""
    if importlib.util.find_spec("numpy") is None:
        return None, "the laws were not fitted here: install isoloss[laws] for basin and estimates"
    from isoloss.laws.campaign import fit_campaign
    from isoloss.laws.observation import Observations

    try:
        return fit_campaign(Observations.from_rows(observations), seed=info["spec"].get("seed", 0)), ""
    except FitFailed as error:
        return None, error.message


def _picture(
    fit: CampaignFit | None, forecast: Mapping[str, Any], observations: Sequence[Mapping[str, Any]]
) -> dict[str, Any] | None:
    surface = next((law for law in fit.fits if law.form == "lr-batch"), None) if fit else None
    if surface is None or not forecast:
        return None
    from isoloss.dash.basin import picture

    largest = max((o["n_tokens"] for o in observations), default=0)
    cells = [(n, largest) for n in sorted({o["n_params"] for o in observations})]
    return picture(surface.to_mapping(), forecast["n_params"], forecast["n_tokens"], cells)


def _pictures(
    fit: CampaignFit | None, info: Mapping[str, Any], observations: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """The pictures of the laws, by name."""
    if fit is None or not info["forecast"]:
        return {}
    from isoloss.laws.observation import Observations
    from isoloss.laws.pictures import pictures

    found = info["forecast"]
    return dict(pictures(fit.fits, Observations.from_rows(observations), (found["n_params"], found["n_tokens"])))


def evidence(info: Mapping[str, Any], observations: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """What a reader needs to redo the fit: the data's hash, versions, seed, and the commands."""
    found = {
        **versions(),
        "seed": str(info["spec"].get("seed", 0)),
        "get the data": f"isoloss campaign export {info['name']} --out runs.csv",
        "refit": "isoloss law fit runs.csv --form campaign --out fit.json",
    }
    if importlib.util.find_spec("numpy") is not None:
        from isoloss.laws.observation import Observations

        found["observations, sha256"] = Observations.from_rows(observations).hash()
    return found


def versions() -> dict[str, str]:
    """The versions a fit depends on."""
    from importlib.metadata import PackageNotFoundError, version

    found = {}
    for package in ("isoloss", "numpy", "scipy", "statsmodels"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def _box(forecast: Mapping[str, Any]) -> list[Any] | None:
    box = [forecast.get("lr_interval"), forecast.get("batch_tokens_interval")]
    return box if all(box) else None


def _names(info: Mapping[str, Any]) -> dict[float, str]:
    return {s["n_params"]: s["size"] for s in info["studies"] if s["size"] != "target"}


def _searched(info: Mapping[str, Any], observations: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
    """Those at a size of the campaign: the user's own runs may be of any other."""
    names = _names(info)
    return [o for o in observations if o["n_params"] in names]


def _finished(observations: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return sorted((o for o in observations if o["loss"] is not None), key=lambda o: (o["n_params"], o["n_tokens"]))


def _best(observations: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The best run of every cell, by ascending N, then D."""
    found: dict[tuple[float, float], Mapping[str, Any]] = {}
    for o in _finished(observations):
        cell = (o["n_params"], o["n_tokens"])
        if cell not in found or o["loss"] < found[cell]["loss"]:
            found[cell] = o
    return list(found.values())


def _basin_rows(info: Mapping[str, Any], observations: Sequence[Mapping[str, Any]]) -> list[list[Any]]:
    """The largest column's runs, the forecast and the outcomes as (series, lr, batch, loss)."""
    runs = [o for o in _finished(_searched(info, observations)) if o["lr"] and o["batch_tokens"]]
    largest, names = max((o["n_tokens"] for o in runs), default=0), _names(info)
    rows = [
        [names.get(o["n_params"], ""), o["lr"], o["batch_tokens"], o["loss"]] for o in runs if o["n_tokens"] == largest
    ]
    found = info["forecast"]
    if found and found["lr"] and found["batch_tokens"]:
        rows.append(["forecast", found["lr"], found["batch_tokens"], found["loss"]])
    here = not _where(info)  # the basin is the target's
    done = [o for o in _outcomes(info) if here and o["loss"] is not None and o["lr"] and o["batch_tokens"]]
    return rows + [["outcome", o["lr"], o["batch_tokens"], o["loss"]] for o in done]


def _loss_rows(info: Mapping[str, Any], observations: Sequence[Mapping[str, Any]]) -> list[list[Any]]:
    """Best loss by D, a line a size, with forecast and outcome: (series, x, y, low, high, line)."""
    names, found = _names(info), info["forecast"]
    rows: list[list[Any]] = [
        [size := names.get(n := o["n_params"], f"N {_count(n)}"), o["n_tokens"], o["loss"], None, None, size]
        for o in _best(observations)
    ]
    if found and found["loss"]:
        rows.append(["forecast", found["n_tokens"], found["loss"], *found["loss_interval"], None])
        at = (info["confirmed"] or found)["n_tokens"]
        rows += [["outcome", at, o["loss"], None, None, None] for o in _outcomes(info)[:1] if o["loss"]]
    return rows


def _lr_rows(info: Mapping[str, Any], observations: Sequence[Mapping[str, Any]]) -> list[list[Any]]:
    """The best learning rate by N, a line a column of D, with the forecast."""
    found = info["forecast"]
    cells = sorted((o for o in _best(observations) if o["lr"]), key=lambda o: (o["n_tokens"], o["n_params"]))
    rows: list[list[Any]] = [
        [column := f"D {_count(o['n_tokens'])}", o["n_params"], o["lr"], None, None, column] for o in cells
    ]
    if found and found["lr"]:
        rows.append(["forecast", found["n_params"], found["lr"], *found["lr_interval"], None])
    return rows
