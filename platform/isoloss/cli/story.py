"""How a campaign is told: the live panel while it runs, the summary as data, and the eight lines at the end."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from isoloss.cli.output import number
from isoloss.domain.campaign import TARGET, decode_campaign, deepenings, largest, n_params_of, study_of
from isoloss.domain.quantity import format_count
from isoloss.search.preview import preview

if TYPE_CHECKING:
    from isoloss.client.answers import BestTrial, StudyInfo

BAR = 24


def progress(info: dict[str, Any], trades: StudyInfo, seconds: float) -> tuple[Any, str]:
    """The live panel, and the same in one line for a terminal that is none."""
    from rich.table import Table

    planned = {
        size.name: preview(study_of(spec, size), deepenings(spec, size, info["max_tokens"]))["tasks"]
        for spec in [decode_campaign(info["spec"])]
        for size in spec.sizes
    }
    table = Table(box=None, padding=(0, 2, 0, 0), title_justify="left", title=f"{seconds:5.0f} s   {_phase(info)}")
    for column in ("study", "parameters", "", "runs", "best loss"):
        table.add_column(column)
    done = 0
    for study in info["studies"]:
        total = max(planned.get(study["size"], 3), study["tasks_done"] + study["tasks_open"])
        done += study["tasks_done"]
        share = study["tasks_done"] / total if total else 0.0
        bar = "━" * round(share * BAR) + "╌" * (BAR - round(share * BAR))
        table.add_row(
            study["name"], format_count(study["n_params"]), bar, f"{study['tasks_done']}/{total}", number(study["best"])
        )
    traded = trades.tasks.get("done", 0)
    table.add_row(trades.name, "", "", str(traded), "")
    if (found := info["forecast"]) and found["loss"] is not None:
        low, high = found["loss_interval"]
        table.caption = f"forecast: lr {number(found['lr'], 3)} · batch {number(found['batch_tokens'])} · loss {number(found['loss'])} [{number(low)}, {number(high)}]"
    return table, f"{_phase(info)} · {done + traded} runs done · {info['observations']} observations"


def _phase(info: dict[str, Any]) -> str:
    if info["state"] == "confirming":
        return "running the target's cell at the forecast and at two neighbours"
    deepened = f", deepened {info['deepened']}×" if info["deepened"] else ""
    return f"searching D up to {format_count(info['max_tokens'])} tokens{deepened}"


def summary(
    info: dict[str, Any], best: BestTrial, *, trials: int, seconds: float, dashboard: str, report: str
) -> dict[str, Any]:
    """What `demo --json` answers."""
    found, outcomes = info["forecast"], {outcome["index"]: outcome for outcome in info["outcomes"]}
    outcome, neighbours = outcomes[0], [outcomes[index] for index in sorted(outcomes) if index]
    low, high = found["loss_interval"]
    keys = (
        "n_params",
        "n_tokens",
        "lr",
        "batch_tokens",
        "loss",
        "loss_interval",
        "level",
        "lr_interval",
        "batch_tokens_interval",
        "warnings",
    )
    return {
        "trials": trials + sum(study["trials"] for study in info["studies"]),
        "deepened": info["deepened"], "seconds": round(seconds, 1),
        "searched_flops": info["searched_flops"], "target_flops": info["target_flops"],
        "added_budget": info["deepened_tokens"], "restart_budget": info["restart_tokens"],
        "sweep_flops": sweep_flops(info),
        "forecast": {key: found[key] for key in keys},
        "outcome": {"loss": outcome["loss"], "lr": outcome["lr"], "batch_tokens": outcome["batch_tokens"], "inside_interval": outcome["loss"] is not None and low <= outcome["loss"] <= high},
        "neighbours": [{"lr": n["lr"], "batch_tokens": n["batch_tokens"], "loss": n["loss"], "status": n["status"]} for n in neighbours],
        "desirability": {"overall": best.value, "limiting": best.limiting, "params": dict(best.params)},
        "dashboard": dashboard, "report": report,
    }  # fmt: skip


def sweep_flops(info: dict[str, Any]) -> float:
    """What one size's search would cost at the target's size, its top rung at the target's D (6ND)."""
    spec = decode_campaign(info["spec"])
    size = largest(spec)
    plan = preview(study_of(spec, size), deepenings(spec, size, info["max_tokens"]))
    stretch = float(spec.target.n_tokens) / info["max_tokens"]
    tokens: float = plan["billed_budget"] * stretch
    return 6 * n_params_of(spec, spec.target, TARGET) * tokens


def _compared(neighbour: dict[str, Any], outcome: float | None) -> str:
    """A neighbour's loss over the outcome's; in a word when one of the two did not finish."""
    if neighbour["loss"] is None or outcome is None:
        return str(neighbour["status"])
    return f"{100 * (neighbour['loss'] / outcome - 1):+.1f} %"


def story(result: dict[str, Any]) -> list[str]:
    """The demo in its last lines."""
    told, info = result["summary"], result["campaign"]
    found, outcome = told["forecast"], told["outcome"]
    low, high = found["loss_interval"]
    percent = f"{100 * found['level']:.0f} %"
    sizes = [study for study in info["studies"] if study["size"] != TARGET]
    worse = ", ".join(f"{_compared(n, outcome['loss'])} at lr {number(n['lr'], 3)}" for n in told["neighbours"])
    lines = [
        f"searched {len(sizes)} sizes ({', '.join(format_count(s['n_params']) for s in sizes)} parameters), {told['trials']} trials, {info['observations']} finished cells in {told['seconds']:.0f} s",
        f"deepened {len(sizes)} studies: +{format_count(told['added_budget'])} tokens; starting again would have cost {format_count(told['restart_budget'])}",
        f"forecast for {format_count(found['n_params'])} parameters on {format_count(found['n_tokens'])} tokens [{percent}]: lr {number(found['lr'], 3)} [{number(found['lr_interval'][0], 2)}, {number(found['lr_interval'][1], 2)}] · batch {number(found['batch_tokens'])} tokens [{number(found['batch_tokens_interval'][0], 3)}, {number(found['batch_tokens_interval'][1], 3)}]",
        f"forecast loss {number(found['loss'])} [{number(low)}, {number(high)}] · outcome {number(outcome['loss'])}, inside the interval: {'yes' if outcome['inside_interval'] else 'no'}",
        f"neighbours {worse}",
        f"searching cost {100 * told['searched_flops'] / told['sweep_flops']:.0f} % of the same sweep at the target's size, and {told['searched_flops'] / told['target_flops']:.1f} of its runs",
        f"loss against CPU time: overall desirability {number(told['desirability']['overall'], 3)} at width {told['desirability']['params'].get('width')}, limited by {told['desirability']['limiting']}",
        f"report {told['report']}",
    ]
    return [*lines, *(f"warning: {text}" for text in found["warnings"])]
