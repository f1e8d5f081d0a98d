"""What a campaign's laws look like, as rows a chart can draw: (series, x, y, low, high, line).

Rows of one ``line`` are joined in their order; ``low`` and ``high`` are the ends of an error bar; either may be
``None``. The dashboard, the report and any other page draw the same rows.

- ``plane``: iso-loss contours over (N, D) by the mixture of loss laws, their compute-optimal frontier, the cells that
  were run and the target.
- ``optima``: every cell's own best learning rate and batch as an ellipse that holds 90 %, and the forecast's.
- ``residuals``: the loss of every cell's best run over the mixture's, in percent, against D, by size.
- ``rollouts``: each law's error on runs it had not seen, in percent, against their compute.
- ``profiles``: the likelihood-ratio statistic of the heaviest law's constants, in standard errors from their optimum.
- ``spend``: the target's expected regret, in percent, against the FLOP that the planner would spend.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

from isoloss.laws import mixture, surface
from isoloss.laws.design import Outlook, affordable, plan
from isoloss.laws.evidence import Fit
from isoloss.laws.lines import best_of_cells
from isoloss.laws.lossform import Problem, columns_of
from isoloss.laws.lossforms import LOSS_FORMS
from isoloss.laws.observation import Observation, Observations
from isoloss.laws.profile import FARTHEST, profiles
from isoloss.laws.solve import Floats, parse_loss

Row = tuple[str, float, float, float | None, float | None, str | None]
GRID: Final = 48
CONTOURS: Final = 9
ANGLES: Final = 40
CHI_SQUARE: Final = 4.605  # of two degrees of freedom at 90 %
SHOWN_ERRORS, HIGHEST = 6.0, 12.0  # what of a profile is drawn: standard errors, and the statistic
LONGEST: Final = 12  # purchases shown


def pictures(fits: Sequence[Fit], observations: Observations, target: tuple[float, float]) -> dict[str, list[Row]]:
    """Every picture that ``fits`` to ``observations`` allow, for a target (N, D); absent ones are empty."""
    seen = observations.select(observations.ok)
    best = best_of_cells(seen)
    losses = mixture.components([fit for fit in fits if fit.form in LOSS_FORMS or fit.components])
    plain = [law for law in losses if set(LOSS_FORMS[law.form].columns) <= {"n_params", "n_tokens"}]
    place = next((fit for fit in fits if fit.form == "lr-batch"), None)
    return {
        "plane": _plane(plain, seen, target) if plain else [],
        "residuals": _residuals(plain, best) if plain else [],
        "rollouts": _rollouts(losses),
        "profiles": _profiles(plain, best) if plain else [],
        "optima": _optima(place, target) if place else [],
        "spend": _spend(place, target) if place else [],
    }


def _log_loss(laws: Sequence[Fit], N: Floats, D: Floats) -> Floats:
    points = Observations(tuple(Observation(n_params=n, n_tokens=d, loss=1.0) for n, d in zip(N, D, strict=True)))
    return mixture.mean_log_loss(laws, {law.form: columns_of(LOSS_FORMS[law.form], points) for law in laws})


def _plane(laws: Sequence[Fit], seen: Observations, target: tuple[float, float]) -> list[Row]:
    ends = [
        (values.min() / 2, max(values.max(), at) * 2)
        for values, at in zip((seen.n_params, seen.n_tokens), target, strict=True)
    ]
    N, D = (np.geomspace(low, high, GRID) for low, high in ends)
    height = _log_loss(laws, np.repeat(N, GRID), np.tile(D, GRID)).reshape(GRID, GRID)
    rows: list[Row] = []
    for level in np.linspace(height.min(), height.max(), CONTOURS + 2)[1:-1]:
        line = f"loss {np.exp(level):.4g}"
        for n, column in zip(N, height[:, ::-1], strict=True):
            if column[0] <= level <= column[-1]:
                d = float(np.exp(np.interp(level, column, np.log(D[::-1]))))
                rows.append(("iso-loss", float(n), d, None, None, line))
    for C in np.geomspace(6 * N[0] * D[0] * 4, 6 * N[-1] * D[-1] / 4, 24):
        sizes = N[(D[0] <= C / (6 * N)) & (D[-1] >= C / (6 * N))]
        if len(sizes) < 5:
            continue
        along = _log_loss(laws, sizes, C / (6 * sizes))
        best = int(np.argmin(along))
        if 0 < best < len(sizes) - 1:
            rows.append(("frontier", float(sizes[best]), float(C / (6 * sizes[best])), None, None, "frontier"))
    cells = np.unique(np.column_stack([seen.n_params, seen.n_tokens]), axis=0)
    rows += [("cells", float(n), float(d), None, None, None) for n, d in cells]
    return [*rows, ("forecast", *target, None, None, None)]


def _residuals(laws: Sequence[Fit], best: Observations) -> list[Row]:
    excess = 100 * np.expm1(np.log(best.loss) - _log_loss(laws, best.n_params, best.n_tokens))
    return [
        (f"N {row.n_params:.3g}", row.n_tokens, float(r), None, None, None) for row, r in zip(best, excess, strict=True)
    ]


def _rollouts(laws: Sequence[Fit]) -> list[Row]:
    rows: list[Row] = []
    for law in laws:
        tests = sorted(law.rollouts or [test for test in (law.backtest,) if test], key=lambda test: test.held_out_flops)
        rows += [
            (law.form, test.held_out_flops or 2 * test.largest_trained_flops, 100 * test.error, None, None, law.form)
            for test in tests
        ]
    return rows


def _profiles(laws: Sequence[Fit], best: Observations) -> list[Row]:
    heaviest = laws[int(np.argmax(mixture.weights(laws)))]
    form = LOSS_FORMS[heaviest.form]
    problem = Problem(form, columns_of(form, best), best.loss, parse_loss(heaviest.loss))
    theta = form.shift(np.array(heaviest.theta), np.array(form.origin) - problem.centre)
    _, solution = problem.solve(np.vstack([theta, problem.starts()]))
    r, J = problem.residuals(solution.theta[None])
    covariance = max(float(np.mean(r**2)), 1e-12) * np.linalg.pinv(J[0].T @ J[0], hermitian=True)
    rows: list[Row] = []
    for name, one in profiles(problem, solution.theta, covariance, heaviest.level).items():
        values, statistics = np.array(one.values), np.array(one.statistics)
        centre, error = values[np.argmin(statistics)], np.ptp(values) / (2 * FARTHEST) or 1.0
        shown = np.abs(values - centre) < SHOWN_ERRORS * error
        rows += [
            (f"{name}, {one.verdict}", float((v - centre) / error), float(min(s, HIGHEST)), None, None, name)
            for v, s in zip(values[shown], statistics[shown], strict=True)
        ]
    return rows


def _optima(place: Fit, target: tuple[float, float]) -> list[Row]:
    rows: list[Row] = []
    cells = surface.cells_of(place)
    for (n, d), node in zip(cells, np.array(place.nodes), strict=True):
        cov = np.array([[node[4], node[5]], [node[5], node[6]]])
        if (
            np.sqrt(np.diag(cov)).max() < 1.0
        ):  # a cell that knows nothing of its own has an ellipse as wide as the picture
            rows += _ellipse(f"N {n:.3g}", node[2:4], cov, f"{n:.4g}/{d:.4g}")
    mean, cov = surface.field_of(place).at(surface.coordinates(place, *target))
    return [*rows, ("forecast", float(2.0 ** mean[0, 0]), float(2.0 ** mean[0, 1]), None, None, None),
            *_ellipse("target", mean[0], cov, "target")]  # fmt: skip


def _ellipse(series: str, centre: Floats, cov: Floats, line: str) -> list[Row]:
    root = np.linalg.cholesky(cov + 1e-12 * np.eye(2)) * np.sqrt(CHI_SQUARE)
    turns = np.linspace(0.0, 2 * np.pi, ANGLES + 1)
    points = centre + np.column_stack([np.cos(turns), np.sin(turns)]) @ root.T
    return [(series, float(2.0**u), float(2.0**v), None, None, line) for u, v in points]


def _spend(place: Fit, target: tuple[float, float]) -> list[Row]:
    cells = affordable(surface.cells_of(place), target)
    if not len(cells):
        return []
    outlook = Outlook.by(place, cells, target)
    spent = 0.0
    rows: list[Row] = []
    bought = plan(outlook, float(outlook.flops[-1]), thrifty=False, most=LONGEST)
    for purchase in bought:
        spent += purchase.flops
        series = "worth its price" if purchase.worth else "dearer than it saves"
        rows.append((series, spent / float(outlook.flops[-1]) * 100, 100 * purchase.regret_after, None, None, None))
    return rows
