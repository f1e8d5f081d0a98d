"""Laws that are one straight line in logarithms: batch size over tokens, critical batch over loss, AdamW's timescale.

    batch-line      B* = c D^p              Bergsma et al. 2025 (Power Lines), arXiv 2505.13738; Bi et al. 2024
    critical-batch  B_crit = B* L^(−1/α)    Kaplan et al. 2020, arXiv 2001.08361, eq. 1.4 (criticalbatch.py)
    timescale       B / (η λ D) = c (D/N)^p Bergsma et al. 2025 (timescale.py)

The points of ``batch-line`` and ``timescale`` are the best finished runs of the cells (N, D); those of ``critical-batch``
are rows with a measured ``critical_batch_tokens``. A line through optima that lie on a grid of settings is no surer than
the grid is fine; what it says beyond its points is a new point's interval, and rests on the line going on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from isoloss.errors import InvalidSpec
from isoloss.laws.checklist import checklist
from isoloss.laws.criticalbatch import batch_by_tokens, critical_batch_by_loss
from isoloss.laws.evidence import Estimate, Fit, support
from isoloss.laws.inference import interval
from isoloss.laws.observation import Observations
from isoloss.laws.powerline import PowerLine
from isoloss.laws.solve import Floats
from isoloss.laws.timescale import timescale, timescale_by_ratio

BATCH_LINE, CRITICAL, TIMESCALE = "batch-line", "critical-batch", "timescale"
ASKED: Final = {CRITICAL: ("loss",), TIMESCALE: ("lr", "batch_tokens")}  # what a forecast may be given
DRAWS: Final = 400


@dataclass(frozen=True, slots=True)
class Line:
    """One of the laws: what it says, the columns it needs, and how it is made of rows that have them."""

    name: str
    equation: str
    gives: str
    columns: tuple[str, ...]
    source: str
    made: Callable[[Mapping[str, Floats], float], PowerLine]
    cells: bool = True  # made of the best run of every cell

    def fit(self, observations: Observations, *, level: float, seed: int) -> Fit:
        """The line; raises ``InvalidSpec`` for a column that no row has, ``FitFailed`` for fewer than three points."""
        used = self._points(observations)
        columns = {name: _column(used, name) for name in self.columns}
        line = self.made(columns, level)
        return _record(self, line, observations, used, seed=seed)

    def _points(self, observations: Observations) -> Observations:
        seen = observations.select(observations.ok)
        known = np.ones(len(seen), dtype=bool)
        for name in self.columns:
            has = np.isfinite(_column(seen, name))
            if not has.any():
                raise InvalidSpec(
                    f"no finished run has {name}; {self.name} needs the columns {', '.join(dict.fromkeys((*self.columns, 'loss')))}."
                )
            known &= has
        seen = seen.select(known)
        return best_of_cells(seen) if self.cells else seen


LINES: Final[dict[str, Line]] = {
    line.name: line
    for line in (
        Line(
            BATCH_LINE, "B* = c D^p", "best batch size", ("n_params", "n_tokens", "batch_tokens"),
            "Bergsma et al. 2025, arXiv 2505.13738; Bi et al. 2024, arXiv 2401.02954",
            lambda x, level: batch_by_tokens(x["n_tokens"], x["batch_tokens"], level=level),
        ),
        Line(
            CRITICAL, "B_crit = B* L^(-1/alpha)", "critical batch size at a loss", ("loss", "critical_batch_tokens"),
            "McCandlish et al. 2018, arXiv 1812.06162; Kaplan et al. 2020, arXiv 2001.08361, eq. 1.4",
            lambda x, level: critical_batch_by_loss(x["loss"], x["critical_batch_tokens"], level=level), cells=False,
        ),
        Line(
            TIMESCALE, "B / (lr weight_decay D) = c (D/N)^p", "best weight decay",
            ("n_params", "n_tokens", "lr", "batch_tokens", "weight_decay"),
            "Bergsma et al. 2025, arXiv 2505.13738",
            lambda x, level: timescale_by_ratio(
                timescale(x["batch_tokens"], x["lr"], x["weight_decay"], x["n_tokens"]), x["n_tokens"], x["n_params"],
                level=level,
            ),
        ),
    )
}  # fmt: skip


def best_of_cells(observations: Observations) -> Observations:
    """The finished run of least loss of every cell (N, D), in the order in which the cells first appear."""
    best: dict[tuple[float, float], int] = {}
    for place, row in enumerate(observations):
        cell = (row.n_params, row.n_tokens)
        if observations.ok[place] and (cell not in best or row.loss < observations.loss[best[cell]]):
            best[cell] = place
    return Observations(tuple(observations.rows[place] for place in best.values()))


def line_of(fit: Fit) -> PowerLine:
    """The line that a fit of one of ``LINES`` holds."""
    spread = np.array(fit.covariance)
    free = int(fit.extra["freedom"])
    unused = Estimate(value=0.0, se=None, low=None, high=None, verdict="")
    c, p = fit.theta
    return PowerLine(
        c=replace(unused, value=float(np.exp(c))), p=replace(unused, value=p), level=fit.level, rms=fit.residual_rms,
        points=free + 2, spread=tuple(tuple(row) for row in spread.tolist()), freedom=free,
    )  # fmt: skip


def foretold(
    fit: Fit, n_params: float, n_tokens: float, given: Mapping[str, float]
) -> dict[str, tuple[float, float, float]]:
    """What a line says of a run, as name → (value, low, high), each at the fit's level.

    ``timescale`` gives ``weight_decay`` where ``given`` has ``lr`` and ``batch_tokens``, and the timescale alone where not;
    ``critical-batch`` needs the ``loss`` at which it is asked, and says nothing without it.
    """
    line = line_of(fit)
    if fit.form == BATCH_LINE:
        return {"batch_tokens": (line.at(n_tokens), *line.interval(n_tokens))}
    if fit.form == CRITICAL:
        at = given.get("loss")
        return {} if at is None else {"critical_batch_tokens": (line.at(at), *line.interval(at))}
    ratio = n_tokens / n_params
    found = {"timescale": (line.at(ratio), *line.interval(ratio))}
    if "lr" in given and "batch_tokens" in given:
        scale = given["batch_tokens"] / (given["lr"] * n_tokens)
        tau, low, high = found["timescale"]
        found["weight_decay"] = (scale / tau, scale / high, scale / low)
    return found


def _column(observations: Observations, name: str) -> Floats:
    if name in ("n_params", "n_tokens", "lr", "batch_tokens", "loss"):
        return observations.column(name)
    values = [row.extras.get(name, np.nan) for row in observations]
    return np.array([value if isinstance(value, float | int) else np.nan for value in values], dtype=np.float64)


def _record(law: Line, line: PowerLine, observations: Observations, used: Observations, *, seed: int) -> Fit:
    theta = np.array([np.log(line.c.value), line.p.value])
    rng = np.random.default_rng(seed)
    scale = np.sqrt(line.freedom / rng.chisquare(line.freedom, DRAWS))[:, None]
    draws = theta + scale * rng.multivariate_normal(np.zeros(2), np.array(line.spread), DRAWS)
    estimates = {"c": line.c, "p": line.p}
    if law.name == CRITICAL:
        estimates = {"B": line.c, "alpha": _alpha(line, draws[:, 1])}
    return Fit(
        form=law.name, equation=law.equation, observation_hash=observations.hash(), n_observations=len(used),
        estimates=estimates, level=line.level, objective=float(line.points * line.rms**2), loss="squared",
        verdict="Ordinary least squares in logarithms has one solution.", starts=1, agreeing=1.0,
        parameters=("ln c", "p"), theta=tuple(theta.tolist()), covariance=line.spread,
        draws=tuple(tuple(float(f"{x:.7g}") for x in row) for row in draws), residual_rms=line.rms, noise=line.rms,
        support=support(used.n_params, used.n_tokens), seed=seed, backtest_note="a line of few points is not held out",
        warnings=_edges(law, observations, used), extra={"freedom": float(line.freedom)},
        checklist=checklist(
            observations, len(used), equation=law.equation, objective="sum of squares in logarithms",
            algorithm="statsmodels OLS", starts=1, validity=f"{line.level:.0%} intervals by Student's t",
            choice="the best run of each cell" if law.cells else "rows with a measured critical batch",
        ),
    )  # fmt: skip


def _alpha(line: PowerLine, slopes: Floats) -> Estimate:
    """−1/p with the interval that p's sample gives it; a slope that may be 0 leaves it unidentified."""
    low, high = interval(slopes, line.level)
    if low <= 0 <= high:
        return Estimate(value=-1 / line.p.value, se=None, low=None, high=None, verdict="not identified")
    ends = sorted((-1 / low, -1 / high))
    return Estimate(
        value=-1 / line.p.value, se=float(np.std(-1 / slopes)), low=ends[0], high=ends[1], verdict=line.p.verdict
    )


def _edges(law: Line, observations: Observations, used: Observations) -> tuple[str, ...]:
    """The settings of which most cells' best lies at an end of what the cell was tried with."""
    found = []
    for name in ("batch_tokens", "weight_decay") if law.name == TIMESCALE else ("batch_tokens",) if law.cells else ():
        seen = observations.select(observations.ok)
        tried, at_end = _column(seen, name), 0
        for row, value in zip(used, _column(used, name), strict=True):
            same = tried[(seen.n_params == row.n_params) & (seen.n_tokens == row.n_tokens)]
            at_end += bool(value in (np.nanmin(same), np.nanmax(same)))
        if 2 * at_end > len(used):
            found.append(
                f"in {at_end} of {len(used)} cells the best {name} is at an end of what was tried: the line may be "
                "that of the grid"
            )
    return tuple(found)
