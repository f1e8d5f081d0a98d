"""Fitting a loss law to runs, or, with weak beliefs, to the few cell minima of a campaign.

Both ways end in the same record. The plain way is approach 3 of Hoffmann et al. (2022) with the corrections of
Besiroglu et al. (2024): a summed robust loss of log residuals, a grid of starts, a bootstrap of whole runs. The
campaign way (``believe``) adds wide normal beliefs about exponents and about how much loss each term holds: nine
cells cannot carry five constants alone. There the noise scale is estimated with the fit, and every draw reweights the
cells and redraws the beliefs' means, so that a constant the data do not hold keeps the whole width of its belief.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np

from isoloss.errors import FitFailed
from isoloss.laws.checklist import checklist
from isoloss.laws.evidence import Backtest, Estimate, Fit, pack, support
from isoloss.laws.inference import covariance, estimate, exponential_weights, multinomial_weights, run_groups
from isoloss.laws.observation import Observations
from isoloss.laws.powersum import PowerSum, Problem, at_edge
from isoloss.laws.solve import Floats, Prior, RobustLoss, Solution

NOISE: Final = (0.005, 4.0)  # prior of a run's noise in ln loss: its sd, and how many observations it is worth
SHARE: Final = {
    "irreducible": (np.log(0.6), 0.6),
    "term": (np.log(0.2), 1.2),
}  # ln(term / loss at the centre): mean, sd
DRAW_TOLERANCE: Final = 1e-6  # of a draw's objective: far within the spread between draws
HELD_OUT: Final = 0.2  # the back-test holds out this share of points, the largest by FLOP


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How to fit: ρ, bootstrap draws, seed, interval level, and whether to lean on weak beliefs (campaigns)."""

    robust: RobustLoss = field(default_factory=RobustLoss)
    bootstrap: int = 200
    seed: int = 0
    level: float = 0.9
    believe: bool = False


@dataclass(frozen=True, slots=True)
class _Point:
    problem: Problem
    solution: Solution
    prior: Prior | None
    noise: float


def fit_loss_law(form: PowerSum, observations: Observations, settings: Settings, *, observation_hash: str = "") -> Fit:
    """Fit ``form`` to the finished runs of ``observations``.

    Raises ``FitFailed`` when there are fewer points than constants, or fewer than three sizes or token counts (without
    ``believe``), because then no such law is determined.
    """
    used = observations.select(observations.ok)
    _enough(form, used, settings)
    point = _solve(form, used, settings)
    theta = form.shift(point.solution.theta, *point.problem.centre)
    value, jacobian = point.problem.residuals(point.solution.theta[None], point.problem.design())
    cov = covariance(value[0], jacobian[0], point.problem.robust)
    if point.prior is not None:
        information = jacobian[0].T @ jacobian[0] / point.noise**2
        cov = np.linalg.inv(information + np.diag(point.prior.precision) / point.noise**2)
    draws = _bootstrap(point, used, settings)
    edge = at_edge(draws if len(draws) else point.solution.theta[None], point.problem.bounds()).mean(axis=0)
    move = form.shift(np.eye(len(theta)), *point.problem.centre).T
    cov = move @ cov @ move.T
    natural = form.shift(draws, *point.problem.centre) if len(draws) else np.empty((0, len(theta)))
    estimates = _estimates(form, theta, natural, cov=cov, edge=edge, level=settings.level)
    tested, note = backtest(form, used, settings)
    return Fit(
        form=form.name,
        equation=form.equation,
        observation_hash=observation_hash or observations.hash(),
        n_observations=len(used),
        estimates=estimates,
        level=settings.level,
        objective=point.solution.objective,
        loss=str(point.problem.robust),
        verdict=point.solution.verdict,
        starts=point.solution.starts,
        agreeing=point.solution.agreeing,
        parameters=form.names,
        theta=tuple(float(x) for x in theta),
        covariance=tuple(tuple(float(x) for x in row) for row in cov),
        draws=pack(natural),
        residual_rms=float(np.sqrt(np.mean(value**2))),
        noise=point.noise,
        support=support(used.n_params, used.n_tokens),
        seed=settings.seed,
        backtest=tested,
        backtest_note=note,
        warnings=_warnings(estimates, point.solution, settings),
        checklist=_checklist(point, observations, used, settings, tested),
    )


def predict(form: PowerSum, fit: Fit, n_params: float, n_tokens: float) -> tuple[float, Floats]:
    """The loss at (N, D) by the point estimate, and by every draw (B,)."""
    N, D = np.array([n_params]), np.array([n_tokens])
    return float(form.predict(np.array(fit.theta), N, D)[0, 0]), form.predict(fit.sample(), N, D)[:, 0]


def backtest(form: PowerSum, used: Observations, settings: Settings) -> tuple[Backtest | None, str]:
    """Refit without the largest fifth of the points (by FLOP) and predict them; or ``None`` and why not."""
    order = np.argsort(used.flops, kind="stable")
    count = max(1, round(HELD_OUT * len(used)))
    train, test = used.select(np.isin(np.arange(len(used)), order[:-count])), order[-count:]
    if settings.believe and len(train) < 4:
        return None, f"too few points: {len(train)} would be left to fit; a back-test needs 4."
    try:
        _enough(form, train, settings)
    except FitFailed as error:
        return None, f"too few points without the largest {count}: {error.message}"
    return held_out_error(form, train, used.select(np.isin(np.arange(len(used)), test)), settings), ""


def held_out_error(form: PowerSum, train: Observations, test: Observations, settings: Settings) -> Backtest:
    """How well the law fitted to ``train`` predicts the losses of ``test``."""
    point = _solve(form, train, settings)
    theta = form.shift(point.solution.theta, *point.problem.centre)
    ratio = form.predict(theta, test.n_params, test.n_tokens)[0] / test.loss - 1
    return Backtest(
        held_out=len(test),
        error=float(np.mean(np.abs(ratio))),
        bias=float(np.mean(ratio)),
        largest_trained_flops=float(train.flops.max()),
    )


def _enough(form: PowerSum, used: Observations, settings: Settings) -> None:
    span = (len(np.unique(used.n_params)), len(np.unique(used.n_tokens)), len(used))
    needed = (2, 2, 4) if settings.believe else (3, 3, len(form.names) + 1)
    if any(have < need for have, need in zip(span, needed, strict=True)):
        have, need = (f"{n} sizes, {d} token counts and {rows} finished runs" for n, d, rows in (span, needed))
        raise FitFailed(f"{form.name} cannot be fitted to {have}; it needs at least {need}.")


def _solve(form: PowerSum, used: Observations, settings: Settings) -> _Point:
    problem = Problem(form, used.n_params, used.n_tokens, used.loss, settings.robust)
    if not settings.believe:
        _, solution = problem.solve(problem.starts())
        residuals = problem.residuals(solution.theta[None], problem.design())[0][0]
        return _Point(problem, solution, None, float(1.4826 * np.median(np.abs(residuals))))
    noise, (sd, worth) = NOISE[0], NOISE
    starts = problem.starts()
    for _ in range(4):
        problem = replace(problem, robust=RobustLoss("huber", 2 * noise))
        prior = _beliefs(problem, noise)
        _, solution = problem.solve(np.vstack([starts, prior.mean]), prior=prior)
        residuals = problem.residuals(solution.theta[None], problem.design())[0][0]
        spare = max(len(used) - len(form.names), 1)
        noise = float(
            np.sqrt((worth * sd**2 + np.sum(np.minimum(np.abs(residuals), 4 * noise) ** 2)) / (worth + spare))
        )
    return _Point(problem, solution, prior, noise)


def _beliefs(problem: Problem, noise: float) -> Prior:
    """The beliefs about θ about the centre, in units of the squared noise."""
    form, level = problem.form, float(np.log(np.median(problem.loss)))
    mean, sd = np.zeros(len(form.names)), np.ones(len(form.names))
    for k, name in enumerate(form.coefficients):
        shift, sd[k] = SHARE["irreducible" if name == "E" else "term"]
        mean[k] = level + shift
    for index, name in enumerate(form.names[len(form.terms) :], start=len(form.terms)):
        mean[index], sd[index] = form.prior[name]
    if form.outer is not None:
        mean[: len(form.terms)], sd[: len(form.terms)] = (level - 0.7) / mean[-1], 1.2 / mean[-1]
    return Prior(mean, noise**2 / sd**2)


def _bootstrap(point: _Point, used: Observations, settings: Settings) -> Floats:
    rng = np.random.default_rng(settings.seed)
    count = settings.bootstrap
    if count < 2:
        return np.empty((0, len(point.solution.theta)))
    groups = run_groups([row.run for row in used])
    if point.prior is None:
        weights, prior = multinomial_weights(rng, count, groups), None
    else:
        weights = exponential_weights(rng, count, groups)
        spread = point.noise / np.sqrt(point.prior.precision)
        prior = Prior(point.prior.mean + spread * rng.standard_normal((count, len(spread))), point.prior.precision)
    starts = np.tile(point.solution.theta, (count, 1))
    return point.problem.solve(starts, weights=weights, prior=prior, tolerance=DRAW_TOLERANCE)[0]


def _estimates(
    form: PowerSum, theta: Floats, draws: Floats, *, cov: Floats, edge: Floats, level: float
) -> dict[str, Estimate]:
    k = len(form.terms)
    deviations = np.sqrt(np.maximum(np.diag(cov), 0.0))
    return {
        name: estimate(float(theta[i]), draws[:, i], float(deviations[i]), level, log=i < k, edge_share=float(edge[i]))
        for i, name in enumerate(form.names)
    }


def _warnings(estimates: dict[str, Estimate], solution: Solution, settings: Settings) -> tuple[str, ...]:
    found = []
    lost = [name for name, constant in estimates.items() if constant.verdict == "not identified"]
    if lost:
        found.append(f"not identified by these observations: {', '.join(lost)}")
    if not solution.converged:
        found.append("the solver stopped at its limit of iterations")
    if settings.bootstrap < 2:
        found.append("no bootstrap: intervals are from the asymptotic covariance")
    return tuple(found)


def _checklist(
    point: _Point, seen: Observations, used: Observations, settings: Settings, tested: Backtest | None
) -> dict[str, str]:
    form = point.problem.form
    how = f"{settings.bootstrap} bootstrap draws over whole runs" if settings.bootstrap > 1 else "asymptotic covariance"
    error = f"; back-test error {tested.error:.2%} on the {tested.held_out} largest" if tested else ""
    return checklist(
        seen,
        len(used),
        equation=f"{form.equation} ({form.source}); constants {', '.join(form.names)}",
        objective=f"Σ {point.problem.robust} of log residuals"
        + ("; weak beliefs about constants" if settings.believe else ""),
        algorithm="variable-projection grid, then damped Newton and reweighted least squares with exact Jacobian",
        starts=point.solution.starts,
        validity=f"{settings.level:.0%} intervals by {how}{error}",
        choice="the best run of each cell" if settings.believe else "as the runs were given",
    )
