"""``isoloss law profile``: how far each constant of a law could move before the runs object."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from isoloss.cli.law_files import Columns, Pool, Where, observations
from isoloss.cli.output import Output, Table, number, show

if TYPE_CHECKING:
    from isoloss.laws.evidence import Fit
    from isoloss.laws.profile import Profile

NO_LINE = "no profile: the constant is not linear in what is fitted"


def profile(
    data: Path,
    *,
    form: Annotated[str, Parameter(help="A loss law of law catalogue.")],
    loss: Annotated[str, Parameter(help="Robust loss of log residuals: huber:DELTA, lad or squared.")] = "huber:1e-3",
    level: Annotated[float, Parameter(help="Level of the intervals.")] = 0.9,
    where: Where = "",
    columns: Columns = (),
    pool: Pool = False,
    output: Output = Output(),  # noqa: B008 - frozen
) -> None:
    """Profile every constant of a law: hold it, fit the rest again, and see how far it may move.

    A side is open where the runs never object: the constant has no bound there. With --json each constant has its
    curve: the values held and the likelihood-ratio statistic of each.
    """
    from isoloss.laws.fit import profile as profile_of

    made, found = profile_of(form, observations(data, columns, where), loss=loss, level=level, pool=pool)
    constants = [_constant(made, name, found.get(name)) for name in made.estimates]
    rows = [
        (one["constant"], number(one["value"]), _side(one, "low"), _side(one, "high"), one["verdict"])
        for one in constants
    ]
    title = f"{made.form}: {made.equation} ({made.n_observations} points)"
    table = Table(("constant", "value", f"{level:.0%} from", "to", "verdict"), rows, title)
    show(output, {"form": made.form, "level": level, "constants": constants}, table)


def _constant(made: Fit, name: str, found: Profile | None) -> dict[str, Any]:
    """One constant as in the JSON; coefficients as themselves, not as the logarithms that are fitted."""
    from math import exp

    from isoloss.laws.lossforms import LOSS_FORMS

    value = made.estimates[name].value
    if found is None:
        return {"constant": name, "value": value, "low": None, "high": None, "verdict": NO_LINE, "curve": []}
    logarithm = name in LOSS_FORMS[made.form].logarithms

    def plain(x: float | None) -> float | None:
        return None if x is None else exp(min(x, 700.0)) if logarithm else x

    curve = [{"value": plain(x), "statistic": y} for x, y in zip(found.values, found.statistics, strict=True)]
    low, high = plain(found.low), plain(found.high)
    return {"constant": name, "value": value, "low": low, "high": high, "verdict": found.verdict, "curve": curve}


def _side(one: dict[str, Any], side: str) -> str:
    if one[side] is not None:
        return number(one[side])
    return "open" if one["curve"] else ""
