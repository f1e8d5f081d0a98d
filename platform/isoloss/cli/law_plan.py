"""``isoloss law plan``: the next runs worth buying for a target, from a fit alone.

With a joint surface they are bought for the target's regret, with loss laws alone for the forecast of its loss.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from isoloss.cli.law_files import Given, Params, Tokens, count, further, load_laws
from isoloss.cli.output import Output, Table, number, show
from isoloss.errors import InvalidSpec

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from isoloss.laws.evidence import Fit
    from isoloss.laws.lossdesign import LossOutlook

Budget = Annotated[str, Parameter(help="FLOP that may be spent (1e20).")]
Sizes = Annotated[
    str, Parameter(help="Sizes that may be run (60M,250M); by default those observed, for loss laws doublings.")
]
Columns = Annotated[str, Parameter(help="Token counts that may be run (1B,4B); by default likewise.")]
Batches = Annotated[str, Parameter(help="Batch sizes in tokens that may be run; runs take the nearest.")]
Everything = Annotated[
    bool, Parameter(negative="", help="Spend the whole budget, also where it saves less than it costs.")
]


def plan(
    fit_file: Annotated[Path, Parameter(name="FIT")],
    /,
    *,
    budget: Budget,
    n_params: Params = None,
    n_tokens: Tokens = None,
    sizes: Sizes = "",
    tokens: Columns = "",
    batches: Batches = "",
    given: Given = (),
    spend_all: Everything = False,
    output: Output = Output(),  # noqa: B008 - frozen
) -> None:
    """Say which runs to buy next for a target: cells, learning rates and batch sizes, most regret saved per FLOP first.

    Buying stops where a purchase would cost more compute than it saves at the target. A FIT of loss laws alone gives
    the runs that take most error off the forecast of the loss, as far as any takes something. Run the first,
    fit again, plan again: what runs say moves the next ones.
    """
    if not (n_params and n_tokens):
        raise InvalidSpec("the target is not complete; accepted are --n-params with --n-tokens.")
    N, D = count(n_params, "--n-params"), count(n_tokens, "--n-tokens")
    laws = load_laws(fit_file)[0]
    place = next((law for law in laws if law.form == "lr-batch"), None)
    if place is None:
        show_loss_plan(output, laws, (N, D), further(laws, given), sizes, tokens, budget, spend_all=spend_all)
        return
    choices = _counts(batches, "--batches")
    show_plan(output, place, (N, D), _cells(place, (N, D), sizes, tokens), budget, choices=choices, spend_all=spend_all)


def show_plan(
    output: Output,
    place: Fit,
    target: tuple[float, float],
    cells: NDArray[np.float64],
    budget: str,
    *,
    choices: Sequence[float],
    spend_all: bool,
) -> None:
    """Plan for ``target`` (N, D) in ``cells`` (m, 2) and print it; batches are snapped to ``choices`` when there are any."""
    from isoloss.laws.design import RING, Outlook, purchases
    from isoloss.laws.design import plan as plan_runs
    from isoloss.laws.plan import nearest

    outlook, money = Outlook.by(place, cells, target), count(budget, "--budget")
    bought = [purchase.to_mapping() for purchase in plan_runs(outlook, money, thrifty=not spend_all)]
    for run in (run for purchase in bought if choices for run in purchase["runs"]):
        run["batch_tokens"] = nearest(run["batch_tokens"], choices)
    spent = sum(purchase["flops"] for purchase in bought)
    after = bought[-1]["regret_after"] if bought else outlook.regret
    value = {
        "target": {"n_params": target[0], "n_tokens": target[1], "flops": float(outlook.flops[-1])},
        "budget": money,
        "spent": spent,
        "regret_now": outlook.regret,
        "regret_after": after,
        "purchases": bought,
    }
    end = f"spends {number(spent, 3)} of {number(money, 3)} FLOP; expected regret {outlook.regret:.3%} → {after:.3%}"
    if not purchases(outlook, money - spent):
        end += "" if bought else f"; {RING} runs of the cheapest cell cost more"
    elif not spend_all:
        end += "; more would cost more compute than it saves (--spend-all buys it)"
    show(output, value, _table(bought, f"target N {number(target[0])}, D {number(target[1])}"), end)


def show_loss_plan(
    output: Output,
    laws: list[Fit],
    target: tuple[float, float],
    given: dict[str, float],
    sizes: str,
    tokens: str,
    budget: str,
    *,
    spend_all: bool,
) -> None:
    """Plan for the loss of ``target`` (N, D) and print it; every run has the columns ``given``."""
    from isoloss.laws.lossdesign import LITTLE
    from isoloss.laws.lossdesign import plan as plan_runs
    from isoloss.laws.mixture import components

    losses, money = components(laws), count(budget, "--budget")
    if not losses:
        raise InvalidSpec(
            "the FIT holds neither a joint surface nor a loss law; accepted is a FIT of lr-batch, campaign or a loss law.",
            hint="isoloss law fit DATA --form auto --out FIT",
        )
    cells = _doublings(losses, target, sizes, tokens)
    outlook = _outlook(losses, cells, target, given)
    chosen = plan_runs(outlook, money, least=0.0 if spend_all else LITTLE)
    bought = [
        {
            "n_params": float(cells[one.candidate, 0]),
            "n_tokens": float(cells[one.candidate, 1]),
            "flops": one.flops,
            "error_before": one.error_before,
            "error_after": one.error_after,
            "worth": one.error_after**2 <= (1 - LITTLE) * one.error_before**2,
            "runs": [given],
        }
        for one in chosen
    ]
    spent = sum(one.flops for one in chosen)
    after = chosen[-1].error_after if chosen else outlook.error
    value = {
        "target": {"n_params": target[0], "n_tokens": target[1], "flops": 6 * target[0] * target[1]},
        "budget": money,
        "spent": spent,
        "error_now": outlook.error,
        "error_after": after,
        "purchases": bought,
    }
    rows = [
        (*(number(x) for x in cells[one.candidate]), number(one.flops, 3), f"{one.error_after:.3%}") for one in chosen
    ]
    end = f"spends {number(spent, 3)} of {number(money, 3)} FLOP; expected error of the forecast {outlook.error:.3%} → {after:.3%}"
    if not spend_all and spent < 0.5 * money:
        end += f"; no other run takes {LITTLE:.0%} off its variance (--spend-all buys on)"
    title = f"target N {number(target[0])}, D {number(target[1])}"
    show(output, value, Table(("N", "D", "FLOP", "expected error after"), rows, title), end)


def _outlook(
    losses: list[Fit], cells: NDArray[np.float64], target: tuple[float, float], given: dict[str, float]
) -> LossOutlook:
    import numpy as np

    from isoloss.laws.lossdesign import LossOutlook
    from isoloss.laws.lossform import target as inputs
    from isoloss.laws.lossforms import LOSS_FORMS

    places = [*map(tuple, cells.tolist()), target]
    x = {law.form: np.hstack([inputs(LOSS_FORMS[law.form], N, D, given) for N, D in places]) for law in losses}
    return LossOutlook.by(losses, x, 6 * cells[:, 0] * cells[:, 1], np.array([6 * target[0] * target[1]]))


def _doublings(losses: list[Fit], target: tuple[float, float], sizes: str, tokens: str) -> NDArray[np.float64]:
    """The cells that may be run: every size with every token count, given or doublings from the least observed."""
    ends = [(min(spans), goal) for spans, goal in zip(_least(losses), target, strict=True)]
    return _affordable(
        [
            _counts(given, name) or [least * 2**k for k in range(64) if least * 2**k <= goal]
            for given, name, (least, goal) in zip((sizes, tokens), ("--sizes", "--tokens"), ends, strict=True)
        ],
        target,
    )


def _least(losses: list[Fit]) -> tuple[list[float], list[float]]:
    return [law.support.n_params[0] for law in losses], [law.support.n_tokens[0] for law in losses]


def _counts(text: str, name: str) -> list[float]:
    return [count(part, name) for part in text.split(",") if part]


def _affordable(lists: list[list[float]], target: tuple[float, float]) -> NDArray[np.float64]:
    from isoloss.laws.design import candidates

    cells = candidates(lists[0], lists[1], target)
    if not len(cells):
        raise InvalidSpec("no cell is cheaper than the target; accepted are smaller --sizes or --tokens.")
    return cells


def _table(bought: list[dict[str, Any]], title: str) -> Table:
    rows = [
        (
            number(item["n_params"]),
            number(item["n_tokens"]),
            ", ".join(f"{run['lr']:.3g} × {number(run['batch_tokens'], 3)}" for run in item["runs"]),
            number(item["flops"], 3),
            f"{item['regret_after']:.3%}",
        )
        for item in bought
    ]
    return Table(("N", "D", "lr × batch tokens", "FLOP", "regret after"), rows, title)


def _cells(place: Fit, target: tuple[float, float], sizes: str, tokens: str) -> NDArray[np.float64]:
    """The cells that may be run: every size with every token count, given or observed, cheaper than the target."""
    from isoloss.laws.surface import cells_of

    seen = cells_of(place)
    lists = [
        _counts(given, name) or sorted({float(f"{x:.6g}") for x in seen[:, k]})
        for k, (given, name) in enumerate(((sizes, "--sizes"), (tokens, "--tokens")))
    ]
    return _affordable(lists, target)
