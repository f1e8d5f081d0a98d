"""``isoloss law plan``: the next runs worth buying for a target, from a fit alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from isoloss.cli.law_files import Params, Tokens, count, load_laws
from isoloss.cli.output import Output, Table, number, show
from isoloss.errors import InvalidSpec

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from isoloss.laws.evidence import Fit

Budget = Annotated[str, Parameter(help="FLOP that may be spent (1e20).")]
Sizes = Annotated[str, Parameter(help="Sizes that may be run (60M,250M); by default those observed.")]
Columns = Annotated[str, Parameter(help="Token counts that may be run (1B,4B); by default those observed.")]
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
    spend_all: Everything = False,
    output: Output = Output(),  # noqa: B008 - frozen
) -> None:
    """Say which runs to buy next for a target: cells, learning rates and batch sizes, most regret saved per FLOP first.

    Buying stops where a purchase would cost more compute than it saves at the target. Run the first, fit again, plan
    again: what runs say moves the next ones.
    """
    if not (n_params and n_tokens):
        raise InvalidSpec("the target is not complete; accepted are --n-params with --n-tokens.")
    N, D = count(n_params, "--n-params"), count(n_tokens, "--n-tokens")
    place = next((law for law in load_laws(fit_file)[0] if law.form == "lr-batch"), None)
    if place is None:
        raise InvalidSpec(
            f"{fit_file} holds no joint surface; accepted is a FIT of the form lr-batch or campaign.",
            hint="isoloss law fit DATA --form lr-batch --out FIT",
        )
    choices = [count(text, "--batches") for text in batches.split(",") if text]
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
    from isoloss.laws.design import Outlook
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
    if not spend_all and spent < 0.5 * money:
        end += "; more would cost more compute than it saves (--spend-all buys it)"
    show(output, value, _table(bought, f"target N {number(target[0])}, D {number(target[1])}"), end)


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
    from isoloss.laws.design import candidates
    from isoloss.laws.surface import cells_of

    seen = cells_of(place)
    lists = [
        [count(text, name) for text in given.split(",") if text] or sorted({float(f"{x:.6g}") for x in seen[:, k]})
        for k, (given, name) in enumerate(((sizes, "--sizes"), (tokens, "--tokens")))
    ]
    cells = candidates(lists[0], lists[1], target)
    if not len(cells):
        raise InvalidSpec("no cell is cheaper than the target; accepted are smaller --sizes or --tokens.")
    return cells
