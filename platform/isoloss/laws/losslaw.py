"""Fitting a loss law to runs, or, with weak beliefs, to the few cell minima of a campaign.

Both ways end in the same record. The plain way is approach 3 of Hoffmann et al. (2022) with the corrections of
Besiroglu et al. (2024): a summed robust loss of log residuals, a grid of starts, a bootstrap of whole runs. The
campaign way (``believe``) adds wide normal beliefs about exponents and about how much loss each term holds: nine
cells cannot carry five constants alone. There the noise scale is estimated with the fit, and every draw reweights the
cells and redraws the beliefs' means, so that a constant the data do not hold keeps the whole width of its belief.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np

from isoloss.errors import FitFailed
from isoloss.laws.checklist import checklist
from isoloss.laws.evidence import Backtest, Estimate, Fit, pack, support
from isoloss.laws.inference import covariance, estimate, exponential_weights, groups_of, multinomial_weights, worse
from isoloss.laws.lossform import LossForm, Problem, at_edge, columns_of, predict
from isoloss.laws.observation import Observations
from isoloss.laws.powersum import PowerSum
from isoloss.laws.profile import Profile, profiles
from isoloss.laws.solve import Floats, Prior, RobustLoss, Solution

NOISE: Final = (0.005, 4.0)  # prior of a run's noise in ln loss: its sd, and how many observations it is worth
DRAW_TOLERANCE: Final = 1e-6  # of a draw's objective: far within the spread between draws
WORDS: Final = {"n_params": "sizes", "n_tokens": "token counts", "6 N^2": "sizes", "6 D^2": "token counts"}
HELD_OUT: Final = 0.2  # the back-test holds out this share of points, the largest by FLOP
SHARES: Final = (0.3, 0.25, 0.2, 0.15, 0.1, 0.05)  # and the roll-outs these


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How to fit: ρ, bootstrap draws, seed, interval level, and whether to lean on weak beliefs (campaigns).

    Without ``test`` there are no back-test and no roll-outs: they take most of the time, and a plan needs neither.
    """

    robust: RobustLoss = field(default_factory=RobustLoss)
    bootstrap: int = 200
    seed: int = 0
    level: float = 0.9
    believe: bool = False
    test: bool = True
    resample: str = ""


@dataclass(frozen=True, slots=True)
class _Point:
    problem: Problem
    solution: Solution
    prior: Prior | None
    noise: float


def fit_loss_law(form: LossForm, observations: Observations, settings: Settings, *, observation_hash: str = "") -> Fit:
    """Fit ``form`` to the finished runs of ``observations``.

    Raises ``FitFailed`` when there are fewer points than constants, or fewer than three sizes or token counts (without
    ``believe``), because then no such law is determined; ``InvalidSpec`` when a column of the form is missing.
    """
    used = observations.select(observations.ok)
    _enough(form, used, settings)
    point = _solve(form, used, settings)
    theta = point.problem.finished(point.solution.theta)
    residuals = point.problem.residuals(point.solution.theta[None])[0]
    draws = _bootstrap(point, used, settings)
    finished = point.problem.finished(draws)
    cov = _moved(point.problem.finished, point.solution.theta, _covariance(point))
    estimates = _estimates(point, theta, finished, cov=cov, level=settings.level, edges=draws)
    if len(draws) and not settings.believe:
        estimates = _doubted(estimates, _profiles(point, settings.level))
    tested, note = backtest(form, used, settings) if settings.test else (None, "not asked for")
    rolled = () if settings.believe or not settings.test else rollouts(form, used, settings)
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
        draws=pack(finished),
        residual_rms=float(np.sqrt(np.mean(residuals**2))),
        noise=point.noise,
        support=support(used.n_params, used.n_tokens),
        seed=settings.seed,
        backtest=tested,
        backtest_note=note,
        rollouts=rolled,
        warnings=_warnings(estimates, point.solution, settings),
        checklist=_checklist(point, observations, used, settings, tested),
    )


def profile_law(form: LossForm, observations: Observations, settings: Settings) -> dict[str, Profile]:
    """The profile likelihood of each constant of ``form`` (``profile.py``), for the finished runs.

    Raises as ``fit_loss_law`` does.
    """
    used = observations.select(observations.ok)
    _enough(form, used, settings)
    return _profiles(_solve(form, used, settings), settings.level)


def backtest(
    form: LossForm, used: Observations, settings: Settings, share: float = HELD_OUT
) -> tuple[Backtest | None, str]:
    """Refit without the largest ``share`` of the points (by FLOP) and predict them; or ``None`` and why not."""
    order = np.argsort(used.flops, kind="stable")
    count = max(1, round(share * len(used)))
    train, test = used.select(np.isin(np.arange(len(used)), order[:-count])), order[-count:]
    if settings.believe and len(train) < 4:
        return None, f"too few points: {len(train)} would be left to fit; a back-test needs 4."
    try:
        _enough(form, train, settings)
    except FitFailed as error:
        return None, f"too few points without the largest {count}: {error.message}"
    return held_out_error(form, train, used.select(np.isin(np.arange(len(used)), test)), settings), ""


def rollouts(form: LossForm, used: Observations, settings: Settings) -> tuple[Backtest, ...]:
    """The back-tests at every share of ``SHARES`` that leaves enough to fit, the least training first."""
    tested = (backtest(form, used, settings, share)[0] for share in SHARES)
    return tuple(found for found in tested if found is not None)


def held_out_error(form: LossForm, train: Observations, test: Observations, settings: Settings) -> Backtest:
    """How well the law fitted to ``train`` predicts the losses of ``test``."""
    point = _solve(form, train, settings)
    theta = point.problem.finished(point.solution.theta)
    ratio = predict(form, theta, columns_of(form, test))[0] / test.loss - 1
    return report(ratio, train, test)


def report(ratio: Floats, train: Observations, test: Observations) -> Backtest:
    """The back-test whose predicted / observed − 1 for ``test`` are ``ratio`` (n,)."""
    return Backtest(
        held_out=len(test),
        error=float(np.mean(np.abs(ratio))),
        bias=float(np.mean(ratio)),
        largest_trained_flops=float(train.flops.max()),
        held_out_flops=float(np.exp(np.mean(np.log(6 * test.n_params * test.n_tokens)))),
    )


def _enough(form: LossForm, used: Observations, settings: Settings) -> None:
    """Two values of a column at least (three with nothing to lean on), and more runs than constants."""
    words = {name: WORDS.get(name, f"values of {name}") for name in form.columns}
    have = [len(np.unique(values)) for values in columns_of(form, used)] + [len(used)]
    needed = [2 if settings.believe or name not in WORDS else 3 for name in words]
    needed += [4 if settings.believe else len(form.names) + 1]
    if any(found < need for found, need in zip(have, needed, strict=True)):
        said, wanted = (
            " and ".join(f"{n} {word}" for n, word in zip(numbers, (*words.values(), "finished runs"), strict=True))
            for numbers in (have, needed)
        )
        raise FitFailed(f"{form.name} cannot be fitted to {said}; it needs at least {wanted}.")


def _solve(form: LossForm, used: Observations, settings: Settings) -> _Point:
    problem = Problem(form, columns_of(form, used), used.loss, settings.robust)
    if settings.believe:
        if not isinstance(form, PowerSum):
            raise FitFailed(f"{form.name} has no beliefs to lean on; it needs more runs than a campaign's cells.")
        return _solve_believing(form, problem)
    _, solution = problem.solve(problem.starts())
    residuals = problem.residuals(solution.theta[None])[0][0]
    return _Point(problem, solution, None, float(1.4826 * np.median(np.abs(residuals))))


def _solve_believing(form: PowerSum, problem: Problem) -> _Point:
    noise, (sd, worth) = NOISE[0], NOISE
    starts, level, rows = problem.starts(), float(np.log(np.median(problem.loss))), len(problem.loss)
    for _ in range(4):
        problem = replace(problem, robust=RobustLoss("huber", 2 * noise))
        mean, spread = form.beliefs(level)
        prior = Prior(mean, noise**2 / spread**2)
        _, solution = problem.solve(np.vstack([starts, prior.mean]), prior=prior)
        residuals = problem.residuals(solution.theta[None])[0][0]
        spare = max(rows - len(form.names), 1)
        noise = float(
            np.sqrt((worth * sd**2 + np.sum(np.minimum(np.abs(residuals), 4 * noise) ** 2)) / (worth + spare))
        )
    return _Point(problem, solution, prior, noise)


def _covariance(point: _Point) -> Floats:
    """Asymptotic covariance (p, p) of θ about the centre."""
    value, jacobian = point.problem.residuals(point.solution.theta[None])
    if point.prior is None:
        return covariance(value[0], jacobian[0], point.problem.robust)
    information = jacobian[0].T @ jacobian[0] + np.diag(point.prior.precision)
    return np.asarray(np.linalg.inv(information / point.noise**2))


def _moved(move: Callable[[Floats], Floats], theta: Floats, cov: Floats) -> Floats:
    """The covariance of ``move(θ)`` to first order."""
    step = 1e-6 * np.diag(np.maximum(1.0, np.abs(theta)))
    slopes = (move(theta + step) - move(theta - step)) / (2 * np.diag(step)[:, None])
    return np.asarray(slopes.T @ cov @ slopes)


def _bootstrap(point: _Point, used: Observations, settings: Settings) -> Floats:
    rng = np.random.default_rng(settings.seed)
    count = settings.bootstrap
    if count < 2:
        return np.empty((0, len(point.solution.theta)))
    groups = groups_of(used, settings.resample)
    if point.prior is None:
        weights, prior = multinomial_weights(rng, count, groups), None
    else:
        weights = exponential_weights(rng, count, groups)
        spread = point.noise / np.sqrt(point.prior.precision)
        prior = Prior(point.prior.mean + spread * rng.standard_normal((count, len(spread))), point.prior.precision)
    starts = np.tile(point.solution.theta, (count, 1))
    return point.problem.solve(starts, weights=weights, prior=prior, tolerance=DRAW_TOLERANCE)[0]


def _estimates(
    point: _Point, theta: Floats, draws: Floats, *, cov: Floats, level: float, edges: Floats
) -> dict[str, Estimate]:
    """The named constants; ``edges`` are the draws (or none) about the centre, where the bounds are."""
    form = point.problem.form
    where = edges if len(edges) else point.solution.theta[None]
    edge = at_edge(where, point.problem.bounds()).mean(axis=0)
    value, sample = form.constants(theta), form.constants(draws)
    deviations = np.sqrt(np.maximum(np.diag(_moved(form.constants, theta, cov)), 0.0))
    return {
        name: estimate(
            float(value[i]),
            sample[:, i],
            float(deviations[i]),
            level,
            log=name in form.logarithms,
            edge_share=float(edge[i]),
        )
        for i, name in enumerate(form.names)
    }


def _profiles(point: _Point, level: float) -> dict[str, Profile]:
    return profiles(point.problem, point.solution.theta, _covariance(point), level)


def _doubted(estimates: dict[str, Estimate], found: Mapping[str, Profile]) -> dict[str, Estimate]:
    """The estimates with the worse of the bootstrap's verdict and the profile's."""
    return {
        name: replace(one, verdict=worse(one.verdict, found[name].verdict)) if name in found else one
        for name, one in estimates.items()
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
