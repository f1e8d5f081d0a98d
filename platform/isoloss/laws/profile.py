"""Profile likelihood: how much worse the best fit gets when one constant is held elsewhere.

For each constant a row of values is held, all other constants are fitted again, and the rise of the objective is
scaled to a likelihood-ratio statistic, 2 ΔQ · mean ψ′ / mean ψ² (for an M-estimate that is χ² with one degree of
freedom; Huber 1981, §7.6). The interval ends where the statistic passes its quantile. A profile that stays under it to
the end of what was tried is open: the data would take any value on that side, and the constant is not identified,
however narrow a bootstrap around one optimum may look.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from isoloss.laws.inference import NOT_IDENTIFIED, judge, moments
from isoloss.laws.lossform import Problem
from isoloss.laws.solve import Floats, solve

STEPS: Final = 10  # values tried on either side
NEAREST, FARTHEST = 0.25, 12.0  # in asymptotic standard errors


@dataclass(frozen=True, slots=True)
class Profile:
    """One constant: the values tried (ascending, as θ holds them), their statistics, the interval and the verdict.

    ``low`` or ``high`` is ``None`` where the profile is open.
    """

    constant: str
    values: tuple[float, ...]
    statistics: tuple[float, ...]
    low: float | None
    high: float | None
    verdict: str


def profiles(problem: Problem, theta: Floats, covariance: Floats, level: float) -> dict[str, Profile]:
    """The profile of every constant of a form at its optimum ``theta`` (p,) about the centre.

    ``covariance`` (p, p) of θ says how far to look; ``level`` is that of the intervals. A constant that is not linear
    in θ (what Farseer's curves are written with) has none: there is no line to hold it on.
    """
    rows, elsewhere = _gradients(problem, theta), _gradients(problem, theta * 1.01 + 0.01)
    straight = np.all(np.isclose(rows, elsewhere, rtol=1e-4, atol=1e-6), axis=1)
    return {
        name: _profile(problem, theta, covariance, level, index, rows[index])
        for index, name in enumerate(problem.form.names)
        if straight[index]
    }


def _profile(problem: Problem, theta: Floats, covariance: Floats, level: float, index: int, row: Floats) -> Profile:
    from scipy.special import ndtri

    held = _held(problem, theta, covariance, row, index)
    values, objective = _refit(problem, theta, covariance, row, held, index)
    residuals, _ = problem.residuals(theta[None])
    squared, slope = moments(residuals[0], len(theta), problem.robust)
    least = float(problem.robust.total(residuals, np.ones(residuals.shape[1]))[0])
    statistics = 2 * np.maximum(objective - least, 0.0) * slope / max(squared, 1e-300)
    best = float(problem.form.constants(problem.finished(theta))[index])
    limit = np.square(ndtri((1 + level) / 2)).item()
    low = _crossing(best, values[values < best][::-1], statistics[values < best][::-1], limit)
    high = _crossing(best, values[values > best], statistics[values > best], limit)
    log = problem.form.names[index] in problem.form.logarithms
    verdict = NOT_IDENTIFIED if low is None or high is None else judge(best, (high - low) / 2, log=log)
    return Profile(
        problem.form.names[index],
        tuple(float(x) for x in values),
        tuple(float(x) for x in statistics),
        low,
        high,
        verdict,
    )


def _gradients(problem: Problem, theta: Floats) -> Floats:
    """The derivatives (p, p) of the named constants by θ about the centre: coefficients absorb exponents' offsets."""
    step = 1e-6 * np.eye(len(theta))
    above, below = (problem.form.constants(problem.finished(theta + sign * step)) for sign in (1, -1))
    return np.asarray((above - below).T / 2e-6)


def _held(problem: Problem, theta: Floats, covariance: Floats, row: Floats, index: int) -> Floats:
    """The values of row · θ to hold: on both sides of the optimum, not beyond the bounds of a bare constant."""
    low, high = (bound[index] for bound in problem.bounds())
    sd = float(np.clip(np.sqrt(np.abs(row @ covariance @ row)), 1e-9, (high - low) / 4))
    offsets = sd * np.geomspace(NEAREST, FARTHEST, STEPS)
    held = row @ theta + np.concatenate([-offsets[::-1], offsets])
    if np.count_nonzero(np.abs(row) > 1e-9) == 1:
        held = np.clip(held, *sorted((row[index] * low, row[index] * high)))
    return np.asarray(held)


def _refit(
    problem: Problem, theta: Floats, covariance: Floats, row: Floats, held: Floats, index: int
) -> tuple[Floats, Floats]:
    """The constant's values and least objectives with row · θ held: θ's own place carries the value held."""
    others = np.where(np.arange(len(theta)) == index, 0.0, row) / row[index]

    def whole(reduced: Floats) -> Floats:
        full = reduced.copy()
        full[:, index] = reduced[:, index] / row[index] - reduced @ others
        return full

    def residuals(reduced: Floats) -> tuple[Floats, Floats]:
        with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
            value, jacobian = problem.residuals(whole(reduced))  # outside its own bounds, too: refused when not finite
        slopes = jacobian - jacobian[:, :, [index]] * others
        slopes[:, :, index] = 0.0
        return value, slopes

    along = covariance @ row / max(float(row @ covariance @ row), 1e-300)
    starts = np.concatenate([theta + np.outer(held - row @ theta, along), np.tile(theta, (len(held), 1))])
    starts[:, index] = np.tile(held, 2)
    low, high = (bound.copy() for bound in problem.bounds())
    low[index], high[index] = -np.inf, np.inf
    ends = solve(residuals, starts, loss=problem.robust, bounds=(low, high), tolerance=1e-7)
    objective = ends.objective.reshape(2, -1)
    chosen = np.argmin(objective, axis=0)
    best = ends.theta.reshape(2, len(held), -1)[chosen, np.arange(len(held))]
    values = problem.form.constants(problem.finished(whole(best)))[:, index]
    order = np.argsort(values, kind="stable")
    return values[order], objective.min(axis=0)[order]


def _crossing(best: float, values: Floats, statistics: Floats, limit: float) -> float | None:
    """Where the root of the statistic, going outwards, passes the root of ``limit``; ``None`` when it never does."""
    roots = np.sqrt(np.concatenate([[0.0], statistics]))
    places = np.concatenate([[best], values])
    beyond = np.flatnonzero(roots > np.sqrt(limit))
    if not len(beyond):
        return None
    at = int(beyond[0])
    share = (np.sqrt(limit) - roots[at - 1]) / (roots[at] - roots[at - 1])
    return float(places[at - 1] + share * (places[at] - places[at - 1]))
