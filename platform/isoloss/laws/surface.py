"""The joint surface over every run: one basin in (log2 lr, log2 batch) whose centre moves with N and D.

    ln L = a(cell) + f(log2 lr − u*(N, D), log2 batch − v*(N, D)),      u*, v* linear in log2 N, log2 D

No cell needs an interior optimum, or five runs, to count: each run says where the shared basin must lie. It therefore
answers when the step law cannot, and leans on beliefs where the data are silent (exponents near the Step Law's,
widths ``widen`` times as in the study they come from). A cell's level a(cell) is free, drawn weakly towards a smooth
law of N and D, so that cells of one or two runs help too. Runs far above their cell's best, and diverged ones, say
only that the basin is at least that high there. Every draw reweights cells and runs and redraws the beliefs' means:
an exponent that nothing determines keeps the whole width of its belief.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from isoloss.errors import FitFailed
from isoloss.laws.basin import BELIEFS, SHAPE, Basin
from isoloss.laws.cells import cell_index
from isoloss.laws.checklist import checklist
from isoloss.laws.evidence import Backtest, Estimate, Fit, pack, support
from isoloss.laws.inference import estimate, exponential_weights
from isoloss.laws.losslaw import HELD_OUT
from isoloss.laws.observation import Observations
from isoloss.laws.solve import Floats, Prior, RobustLoss, Solution, best, solve

EQUATION: Final = (
    "ln L = a(cell) + f(log2 lr - u*, log2 batch - v*); u* = u + a x + b y; v* = v + p x + q y; x, y = log2 N, log2 D"
)
CENTRE: Final = ("u", "a", "b", "v", "p", "q")
EXPONENTS: Final = {"a": (-0.65, 0.15), "b": (0.27, 0.12), "p": (-0.05, 0.08), "q": (0.57, 0.12)}
WIDEN: Final = 1.5
LEVEL: Final = 6  # parameters of the smooth law of the cells' levels: 1, x, y, x², y², xy
LEVEL_SD: Final = np.array([3.0, 0.5, 0.5, 0.02, 0.02, 0.02])
CELL_SD: Final = 0.01  # how far (ln loss) a cell's level may lie from that smooth law
NOISE: Final = (0.005, 4.0)  # prior of a run's noise in ln loss: its sd, and how many observations it is worth
HUBER: Final = 1.5  # noises beyond which a residual counts linearly
NARROW, WIDE, PER_CELL = 0.04, 0.30, 6  # the cap: at least 4 % above a cell's best, wider until six runs a cell are in
FLOOR: Final = (
    0.2  # octaves added to every draw's optimum: what the shape's misfit costs, from coverage on the Step Law table
)
AROUND: Final = 1.5  # octaves the centre may lie from the median of the cells' best runs: people search around a guess
VARIED: Final = 1e-6  # octaves: a batch size that spans less was not varied
FIRST: Final = len(CENTRE) + len(SHAPE)


@dataclass(frozen=True, slots=True)
class Runs:
    """The runs as the surface sees them, each (n,): octaves, coordinates about the centre, ln loss, cell, weights."""

    u: Floats
    v: Floats
    x: Floats
    y: Floats
    ln_loss: Floats
    cell: NDArray[np.int64]
    weight: Floats
    censored: NDArray[np.bool_]
    origin: tuple[float, float]
    cap: float

    @property
    def n_cells(self) -> int:
        """How many cells there are."""
        return int(self.cell.max()) + 1


def gather(observations: Observations) -> Runs:
    """Runs with known lr and batch in cells that have a finished run; ``FitFailed`` when there are fewer than four."""
    known = (
        ~np.isnan(observations.lr) & ~np.isnan(observations.batch_tokens) & (observations.ok | observations.diverged)
    )
    finished = observations.ok & known
    index = cell_index(observations)
    known &= np.isin(index, index[finished])
    if finished.sum() < 4:
        raise FitFailed(
            f"lr-batch has {int(finished.sum())} finished runs with lr and batch_tokens; it needs at least 4."
        )
    seen = observations.select(known)
    cell = np.unique(index[known], return_inverse=True)[1].astype(np.int64)
    ln_loss = np.where(seen.ok, np.log(np.where(seen.ok, seen.loss, 1.0)), np.inf)
    least = np.full(cell.max() + 1, np.inf)
    np.minimum.at(least, cell, ln_loss)
    excess = ln_loss - least[cell]
    sixth = [np.sort(excess[cell == c])[:PER_CELL][-1] for c in range(len(least))]
    finite = [value for value in sixth if np.isfinite(value)]
    cap = float(np.clip(np.median(finite) if finite else NARROW, NARROW, WIDE))
    x, y = np.log2(seen.n_params), np.log2(seen.n_tokens)
    corners = np.unique(np.column_stack([x, y]), axis=0)
    origin = (float(corners[:, 0].mean()), float(corners[:, 1].mean()))
    censored = excess > cap
    weight = np.where(censored, 1.0, np.exp(-0.5 * (np.minimum(excess, cap) / (0.5 * cap)) ** 2))
    u, v = np.log2(seen.lr), np.log2(seen.batch_tokens)
    level = np.where(censored, least[cell], ln_loss)
    return Runs(u, v, x - origin[0], y - origin[1], level, cell, weight, censored, origin, cap)


def residuals(runs: Runs, theta: Floats) -> tuple[Floats, Floats]:
    """Predicted − observed ln loss (S, n), one-sided for censored runs, and its Jacobian (S, n, p)."""
    u, a, b, v, p, q = (theta[:, i, None] for i in range(len(CENTRE)))
    du, dv = runs.u - (u + a * runs.x + b * runs.y), runs.v - (v + p * runs.x + q * runs.y)
    f, by_shape, by_place = Basin.of(theta[:, len(CENTRE) : FIRST]).gradient(du, dv)
    levels = np.column_stack([_smooth(runs), np.eye(runs.n_cells)[runs.cell]])
    coordinates = np.column_stack([np.ones_like(runs.x), runs.x, runs.y])
    r = np.where(runs.censored, np.minimum(0.0, f - runs.cap), theta[:, FIRST:] @ levels.T + f - runs.ln_loss)
    place = [-by_place[:, :, i, None] * coordinates for i in (0, 1)]
    spread = np.broadcast_to(levels * ~runs.censored[:, None], (*f.shape, levels.shape[1]))
    J = np.concatenate([*place, by_shape, spread], axis=2)
    J[np.broadcast_to(runs.censored & (r == 0.0), r.shape)] = 0.0
    return r, J


def _smooth(runs: Runs) -> Floats:
    x, y = runs.x, runs.y
    return np.column_stack([np.ones_like(x), x, y, x**2, y**2, x * y])


def _beliefs(runs: Runs, widen: float) -> tuple[Floats, Floats]:
    """Mean and sd of every parameter's belief (p,)."""
    best_rows = [rows[np.argmin(runs.ln_loss[rows] + 1e3 * runs.censored[rows])] for rows in _by_cell(runs)]
    exponents = {name: (mean, sd * widen) for name, (mean, sd) in EXPONENTS.items()}
    around = {"u": (float(np.median(runs.u[best_rows])), AROUND), "v": (float(np.median(runs.v[best_rows])), AROUND)}
    if np.ptp(runs.v) < VARIED:  # one batch size is a constant of the campaign, not an axis to optimise
        around["v"], exponents["p"], exponents["q"] = (float(runs.v[0]), 1e-3), (0.0, 1e-3), (0.0, 1e-3)
    centre = [(exponents | around)[name] for name in CENTRE]
    mean, sd = (np.array(column) for column in zip(*centre, *BELIEFS, strict=True))
    level = np.zeros(LEVEL)
    level[0] = float(np.mean(runs.ln_loss[best_rows]))
    return (
        np.concatenate([mean, level, np.zeros(runs.n_cells)]),
        np.concatenate([sd, LEVEL_SD, np.full(runs.n_cells, CELL_SD)]),
    )


def _by_cell(runs: Runs) -> list[NDArray[np.int64]]:
    return [np.flatnonzero(runs.cell == cell) for cell in range(runs.n_cells)]


@dataclass(frozen=True, slots=True)
class _Point:
    solution: Solution
    noise: float
    mean: Floats
    sd: Floats


def _solve(runs: Runs, widen: float) -> _Point:
    """The point estimate, its noise found with it, from starts around the best runs."""
    mean, sd = _beliefs(runs, widen)
    starts = np.tile(mean, (6, 1))
    starts[:, 0] += [0, -1.5, 1.5, 0, 0, 0.7]
    starts[:, 3] += [0, 0, 0, -1.5, 1.5, -0.7]
    noise, (prior_noise, worth) = 2 * NOISE[0], NOISE
    tries, agreeing = len(starts), 1.0
    for attempt in range(5):
        loss = RobustLoss("huber", HUBER * noise)
        prior = Prior(mean, noise**2 / sd**2)
        ends = solve(lambda t: residuals(runs, t), starts, loss=loss, weights=runs.weight, prior=prior, tolerance=1e-7)
        solution = best(ends)
        agreeing = agreeing if attempt else solution.agreeing
        starts = solution.theta[None]
        r = residuals(runs, solution.theta[None])[0][0]
        kept = runs.weight * ~runs.censored
        spent = min(FIRST / 2 + runs.n_cells, 0.8 * kept.sum())
        square = float(np.sum(kept * np.minimum(np.abs(r), 3 * noise) ** 2))
        noise = float(np.sqrt((worth * prior_noise**2 + square) / (worth + kept.sum() - spent)))
    return _Point(replace(solution, starts=tries, agreeing=agreeing), noise, mean, sd)


def _draws(runs: Runs, point: _Point, count: int, seed: int) -> Floats:
    """Draws (count, p): cells and runs reweighted, the beliefs' means redrawn, then the floor on the optimum."""
    rng = np.random.default_rng(seed)
    weights = exponential_weights(rng, count, runs.cell) ** 0.5 * exponential_weights(
        rng, count, np.arange(len(runs.u))
    )
    mean = point.mean + point.sd * rng.standard_normal((count, len(point.mean)))
    prior = Prior(mean, point.noise**2 / point.sd**2)
    loss = RobustLoss("huber", HUBER * point.noise)
    start = np.tile(point.solution.theta, (count, 1))
    weights *= runs.weight
    theta = solve(lambda t: residuals(runs, t), start, loss=loss, weights=weights, prior=prior, tolerance=1e-5).theta
    theta[:, [0, 3]] += FLOOR * rng.standard_normal((count, 2))
    return theta


def fit_surface(
    observations: Observations,
    *,
    bootstrap: int = 200,
    seed: int = 0,
    level: float = 0.9,
    widen: float = WIDEN,
    test: bool = True,
) -> Fit:
    """Fit the surface to every run with known lr and batch size; ``widen`` scales the beliefs about the exponents.

    Estimates: the optimum at the centre of the data (``lr``, ``batch_tokens``), its exponents a, b (lr over N, D) and
    p, q (batch), and the basin's shape. Raises ``FitFailed`` when fewer than four finished runs have both.
    """
    runs = gather(observations)
    point = _solve(runs, widen)
    theta = point.solution.theta[:FIRST]
    r, J = residuals(runs, point.solution.theta[None])
    cov = _covariance(runs, point, J[0])
    draws = _draws(runs, point, bootstrap, seed)[:, :FIRST] if bootstrap > 1 else np.empty((0, FIRST))
    tested, note = _backtest(observations, widen) if test else (None, "not asked for")
    error = f"; back-test error {tested.error:.2%} of loss inside held-out cells" if tested else ""
    validity = f"{level:.0%} intervals by {len(draws)} draws of runs, cells and beliefs{error}"
    return Fit(
        form="lr-batch",
        equation=EQUATION,
        observation_hash=observations.hash(),
        n_observations=len(runs.u),
        estimates=_estimates(theta, draws, cov, level),
        level=level,
        objective=point.solution.objective,
        loss=f"huber:{HUBER * point.noise:.2g}",
        verdict=point.solution.verdict,
        starts=point.solution.starts,
        agreeing=point.solution.agreeing,
        parameters=(*CENTRE, *SHAPE),
        theta=tuple(theta.tolist()),
        covariance=tuple(tuple(row) for row in cov.tolist()),
        draws=pack(draws),
        residual_rms=float(np.sqrt(np.average(r[0] ** 2, weights=runs.weight))),
        noise=point.noise,
        support=support(observations.n_params, observations.n_tokens),
        seed=seed,
        backtest=tested,
        backtest_note=note,
        warnings=_warnings(runs, point),
        checklist=_checklist(observations, runs, point, validity),
        extra={"log2_n": runs.origin[0], "log2_d": runs.origin[1], "cap": runs.cap, "widen": widen},
    )


def _covariance(runs: Runs, point: _Point, jacobian: Floats) -> Floats:
    """Covariance of centre and shape: the inverse information of runs and beliefs, and the floor."""
    information = (jacobian * runs.weight[:, None]).T @ jacobian / point.noise**2 + np.diag(1 / point.sd**2)
    cov = np.linalg.inv(information)[:FIRST, :FIRST]
    cov[[0, 3], [0, 3]] += FLOOR**2
    return np.asarray(cov)


def _estimates(theta: Floats, draws: Floats, cov: Floats, level: float) -> dict[str, Estimate]:
    """Octaves and logarithms become what people read: the centre's lr and batch, and the basin's curvatures."""
    named = {"u": "lr", "v": "batch_tokens", "ln_q1": "q1", "ln_q2": "q2"}
    found = {}
    for i, name in enumerate((*CENTRE, *SHAPE)):
        scale = np.log(2.0) if name in ("u", "v") else 1.0
        se = float(np.sqrt(cov[i, i])) * scale
        label = named.get(name, name)
        found[label] = estimate(float(theta[i] * scale), draws[:, i] * scale, se, level, log=name in named)
    return found


def _checklist(observations: Observations, runs: Runs, point: _Point, validity: str) -> dict[str, str]:
    return checklist(
        observations,
        int(np.sum(~runs.censored)),
        equation=EQUATION,
        objective=f"Σ Huber of ln loss; runs over {runs.cap:.0%} above their cell's best, and diverged, one-sided",
        algorithm="damped Newton and reweighted least squares, exact Jacobian, beliefs about exponents and shape",
        starts=point.solution.starts,
        validity=validity,
        choice="every run of every cell",
    )


def predict(fit: Fit, n_params: float, n_tokens: float) -> tuple[Floats, Floats]:
    """(log2 lr*, log2 batch*) by the point, (2,), and by every draw, (B, 2)."""
    x, y = np.log2(n_params) - fit.extra["log2_n"], np.log2(n_tokens) - fit.extra["log2_d"]
    point, draws = (
        np.column_stack([theta[:, 3 * k] + theta[:, 3 * k + 1] * x + theta[:, 3 * k + 2] * y for k in (0, 1)])
        for theta in (np.array([fit.theta]), fit.sample())
    )
    return point[0], draws


def basin(fit: Fit) -> Basin:
    """The fitted basin, by the point estimate."""
    return Basin.of(np.array(fit.theta[len(CENTRE) : FIRST]))


def levels(observations: Observations, *, widen: float = WIDEN) -> tuple[Observations, float]:
    """One observation a cell, its loss the bottom of the fitted basin instead of the luckiest run's, and the run noise.

    A bottom further under the best run than two noises, or above it, is not believed and cut there.
    """
    runs = gather(observations)
    point = _solve(runs, widen)
    bottom = np.column_stack([_smooth(runs), np.eye(runs.n_cells)[runs.cell]]) @ point.solution.theta[FIRST:]
    rows = []
    index = cell_index(observations)
    known = ~np.isnan(observations.lr) & ~np.isnan(observations.batch_tokens)
    for place, cell in enumerate(np.unique(index[observations.ok & known])):
        members = np.flatnonzero((index == cell) & observations.ok)
        row = observations.rows[members[np.argmin(observations.loss[members])]]
        ln_best, ln_bottom = np.log(row.loss), bottom[np.flatnonzero(runs.cell == place)[0]]
        rows.append((row, float(np.exp(np.clip(ln_bottom, ln_best - 2 * point.noise, ln_best + 2 * point.noise)))))
    return Observations(tuple(replace(row, loss=loss, run="") for row, loss in rows)), point.noise


def _warnings(runs: Runs, point: _Point) -> tuple[str, ...]:
    theta, found = point.solution.theta, []
    if np.ptp(runs.v) < VARIED:
        found.append("the batch size was never varied: the optimum of lr is the one at that batch size")
    for i, name in enumerate(CENTRE):
        if name in EXPONENTS and abs(theta[i] - point.mean[i]) > 2 * point.sd[i]:
            found.append(f"the exponent {name} is {theta[i]:.2f}, more than two sd from the belief {point.mean[i]:.2f}")
    if not point.solution.converged:
        found.append("the solver stopped at its limit of iterations")
    return tuple(found)


def _backtest(observations: Observations, widen: float) -> tuple[Backtest | None, str]:
    """Refit without the largest cells; inside each of them compare runs with the basin, its level fitted to them."""
    scale = observations.n_params * observations.n_tokens
    sizes = np.unique(scale[observations.ok])
    count = max(1, round(HELD_OUT * len(sizes)))
    if len(sizes) - count < 3:
        return None, f"too few cells: {len(sizes)}; a back-test needs 4."
    train, test = observations.select(scale < sizes[-count]), observations.select(scale >= sizes[-count])
    try:
        fit, held = fit_surface(train, bootstrap=0, test=False, widen=widen), gather(test)
    except FitFailed as error:
        return None, error.message
    errors = []
    for members in _by_cell(held):
        rows = members[~held.censored[members]]
        N, D = 2 ** (held.x[rows[0]] + held.origin[0]), 2 ** (held.y[rows[0]] + held.origin[1])
        u, v = predict(fit, N, D)[0]
        gap = held.ln_loss[rows] - basin(fit).excess(held.u[rows] - u, held.v[rows] - v)
        errors.append(gap - np.median(gap))
    ratio = np.expm1(np.concatenate(errors))
    size, bias, flops = float(np.mean(np.abs(ratio))), float(np.mean(ratio)), float(train.flops.max())
    return Backtest(held_out=len(ratio), error=size, bias=bias, largest_trained_flops=flops), ""
