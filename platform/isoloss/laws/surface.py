"""The joint surface over every run: one basin in (log2 lr, log2 batch) whose centre moves with N and D.

    ln L = a(cell) + f(log2 lr − u*(N, D), log2 batch − v*(N, D))

No cell needs an interior optimum, or five runs, to count: each run says where the shared basin must lie. It therefore
answers when the step law cannot. It is fitted in two steps.

1. *The basin.* Shape, and u*, v* linear in log2 N and log2 D, from all runs at once, with beliefs where the data are
   silent. A cell's level a(cell) is free, drawn weakly towards a smooth law of N and D, so that cells of one or two
   runs help too. Runs far above their cell's best, and diverged ones, say only that the basin is at least that high.
2. *The centres.* No shape is right far from the optimum, and a shape that is wrong there moves the centre by a third
   of an octave. So each cell's own optimum is found again by its best runs alone (Gaussian weights on their excess),
   with the shape held, and its covariance says how much those runs know. The field (``field.py``) joins these nodes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from isoloss.errors import FitFailed, InvalidSpec
from isoloss.laws.basin import BELIEFS, SHAPE, Basin
from isoloss.laws.cells import cell_index
from isoloss.laws.checklist import checklist
from isoloss.laws.evidence import Backtest, Estimate, Fit, pack, support
from isoloss.laws.field import Field
from isoloss.laws.inference import estimate
from isoloss.laws.losslaw import HELD_OUT
from isoloss.laws.observation import Observations
from isoloss.laws.runs import Runs, by_cell, gather
from isoloss.laws.solve import Floats, Prior, RobustLoss, Solution, best, solve

EQUATION: Final = (
    "ln L = a(cell) + f(log2 lr - u*, log2 batch - v*); u* = u + a x + b y; v* = v + p x + q y; x, y = log2 N, log2 D"
)
CENTRE: Final = ("u", "a", "b", "v", "p", "q")
# What is believed of the exponents before any run, (mean, sd). ``sp``: near the Step Law's, 1.5 times as wide as its
# table needs. ``mup``: a maximal-update parameterisation takes N out of the learning rate. ``other``: only what was
# published elsewhere (Porian et al. 2024; DeepSeek 2024; Bjorck et al. 2024; Bergsma et al. 2025), for tests on that table.
EXPONENTS: Final[dict[str, dict[str, tuple[float, float]]]] = {
    "sp": {"a": (-0.65, 0.22), "b": (0.27, 0.18), "p": (-0.05, 0.12), "q": (0.57, 0.18)},
    "mup": {"a": (0.0, 0.2), "b": (0.0, 0.25), "p": (-0.05, 0.12), "q": (0.5, 0.2)},
    "other": {"a": (-0.4, 0.25), "b": (0.1, 0.2), "p": (0.0, 0.12), "q": (0.45, 0.15)},
}
LEVEL: Final = 6  # parameters of the smooth law of the cells' levels: 1, x, y, x², y², xy
LEVEL_SD: Final = np.array([3.0, 0.5, 0.5, 0.02, 0.02, 0.02])
CELL_SD: Final = 0.01  # how far (ln loss) a cell's level may lie from that smooth law
HUBER: Final = 1.5  # noises beyond which a residual counts linearly
AROUND: Final = 1.5  # octaves the centre may lie from the median of the cells' best runs: people search around a guess
FIRST: Final = len(CENTRE) + len(SHAPE)
BEST, SIXTH = 0.0075, 6  # a node listens to runs this close (ln loss) to their cell's best, and to six runs at least
NODE_SD: Final = 1.0  # octaves a node may lie from step 1's centre, while it is solved; taken out again afterwards
UNSEEN: Final = 1e-4  # information (1/octave²) of a direction in which a cell knows nothing
DRAWS: Final = 400
LEARNED: Final = ("lr", "batch_tokens")


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


def _beliefs(runs: Runs, believed: str) -> tuple[Floats, Floats]:
    """Mean and sd of every parameter's belief (p,)."""
    best_rows = [rows[np.argmin(runs.ln_loss[rows] + 1e3 * runs.censored[rows])] for rows in by_cell(runs)]
    exponents = dict(EXPONENTS[believed])
    around = {"u": (float(np.median(runs.u[best_rows])), AROUND), "v": (float(np.median(runs.v[best_rows])), AROUND)}
    if not runs.batch_varied:  # one batch size is a constant of the campaign, not an axis to optimise
        around["v"], exponents["p"], exponents["q"] = (float(runs.v[0]), 1e-3), (0.0, 1e-3), (0.0, 1e-3)
    centre = [(exponents | around)[name] for name in CENTRE]
    mean, sd = (np.array(column) for column in zip(*centre, *BELIEFS, strict=True))
    level = np.zeros(LEVEL)
    level[0] = float(np.mean(runs.ln_loss[best_rows]))
    return (
        np.concatenate([mean, level, np.zeros(runs.n_cells)]),
        np.concatenate([sd, LEVEL_SD, np.full(runs.n_cells, CELL_SD)]),
    )


@dataclass(frozen=True, slots=True)
class _Point:
    solution: Solution
    noise: float
    mean: Floats
    sd: Floats


def _solve(runs: Runs, believed: str) -> _Point:
    """The point estimate, its noise found with it, from starts around the best runs."""
    mean, sd = _beliefs(runs, believed)
    starts = np.tile(mean, (6, 1))
    starts[:, 0] += [0, -1.5, 1.5, 0, 0, 0.7]
    starts[:, 3] += [0, 0, 0, -1.5, 1.5, -0.7]
    noise, (prior_noise, worth) = 2 * runs.noise[0], runs.noise
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


def _nodes(runs: Runs, point: _Point) -> Floats:
    """Every cell's own optimum (C, 7; columns as in ``field.py``)."""
    return np.array([_node(runs, point, rows) for rows in by_cell(runs)])


def _node(runs: Runs, point: _Point, rows: NDArray[np.int64]) -> list[float]:
    """One cell: Gauss-Newton on (level, offset from step 1's centre), the level then eliminated."""
    theta, at = point.solution.theta, np.array([1.0, runs.x[rows[0]], runs.y[rows[0]]])
    centre, shape = np.array([theta[:3] @ at, theta[3:6] @ at]), Basin.of(theta[len(CENTRE) : FIRST])
    kept = rows[~runs.censored[rows]]
    places, ln_loss = np.column_stack([runs.u[kept], runs.v[kept]]) - centre, runs.ln_loss[kept]
    excess = ln_loss - ln_loss.min()
    weight = np.exp(-0.5 * (excess / max(BEST, np.sort(excess)[:SIXTH][-1])) ** 2)
    held = np.diag([0.0, 1.0, 1.0]) * (point.noise / NODE_SD) ** 2
    offset = np.zeros(2)
    for _ in range(8):
        f, _, slope = shape.gradient(*(places - offset).T)
        level = np.sum(weight * (ln_loss - f)) / weight.sum()
        J = np.column_stack([np.ones_like(f), -slope])
        normal = (J.T * weight) @ J
        right = (J.T * weight) @ (ln_loss - f - level) - held @ np.array([0.0, *offset])
        offset = offset + np.clip(np.linalg.solve(normal + held + 1e-12 * np.eye(3), right)[1:], -0.5, 0.5)
    seen = (normal[1:, 1:] - np.outer(normal[1:, 0], normal[0, 1:]) / normal[0, 0]) / point.noise**2
    cov = np.linalg.inv(seen + UNSEEN * np.eye(2))
    u, v = centre + cov @ (seen + np.eye(2) / NODE_SD**2) @ offset
    return [float(at[1]), float(at[2]), float(u), float(v), cov[0, 0], cov[0, 1], cov[1, 1]]


def believed_of(observations: Observations) -> str:
    """Which of ``EXPONENTS`` fits the recipe: ``mup`` where it says a maximal-update parameterisation, else ``sp``."""
    recipes = "".join({row.recipe.lower() for row in observations})
    return "mup" if "mup" in recipes or "completep" in recipes else "sp"


def fit_surface(
    observations: Observations, *, beliefs: str = "", seed: int = 0, level: float = 0.9, test: bool = True
) -> Fit:
    """Fit the surface to every run with known lr and batch size.

    ``beliefs`` names one of ``EXPONENTS``; by default the recipe chooses. Estimates: the optimum at the centre of the
    data (``lr``, ``batch_tokens``), its exponents a, b (lr over N, D) and p, q (batch), and the basin's shape; their
    intervals are of the posterior, in closed form. Raises ``FitFailed`` when fewer than four finished runs have both.
    """
    believed = beliefs or believed_of(observations)
    runs = gather(observations)
    point = _solve(runs, believed)
    nodes = _nodes(runs, point)
    about = Prior(point.mean[: len(CENTRE)], point.sd[: len(CENTRE)] ** -2)
    field = Field.given(nodes, about, varied=runs.batch_varied)
    theta = np.concatenate([field.trend, point.solution.theta[len(CENTRE) : FIRST]])
    r, J = residuals(runs, point.solution.theta[None])
    cov = _covariance(runs, point, J[0], field)
    tested, note = _backtest(observations, believed) if test else (None, "not asked for")
    error = f"; back-test error {tested.error:.2%} of loss inside held-out cells" if tested else ""
    validity = f"{level:.0%} intervals of the posterior: trend, field and shape{error}"
    return Fit(
        form="lr-batch",
        equation=EQUATION,
        observation_hash=observations.hash(),
        n_observations=len(runs.u),
        estimates=_estimates(theta, cov, level),
        level=level,
        objective=point.solution.objective,
        loss=f"huber:{HUBER * point.noise:.2g}",
        verdict=point.solution.verdict,
        starts=point.solution.starts,
        agreeing=point.solution.agreeing,
        parameters=(*CENTRE, *SHAPE),
        theta=tuple(theta.tolist()),
        covariance=tuple(tuple(row) for row in cov.tolist()),
        draws=(),
        nodes=pack(nodes, most=len(nodes)),
        residual_rms=float(np.sqrt(np.average(r[0] ** 2, weights=runs.weight))),
        noise=point.noise,
        support=support(observations.n_params, observations.n_tokens),
        seed=seed,
        backtest=tested,
        backtest_note=note,
        warnings=_warnings(runs, point, field),
        checklist=_checklist(observations, runs, point, validity),
        extra={
            "log2_n": runs.origin[0],
            "log2_d": runs.origin[1],
            "cap": runs.cap,
            "batch_varied": float(runs.batch_varied),
        },
    )


def _covariance(runs: Runs, point: _Point, jacobian: Floats, field: Field) -> Floats:
    """Covariance of trend (the field's) and shape (the inverse information of runs and beliefs)."""
    information = (jacobian * runs.weight[:, None]).T @ jacobian / point.noise**2 + np.diag(1 / point.sd**2)
    cov = np.linalg.inv(information)[:FIRST, :FIRST]
    k = len(CENTRE)
    cov[:k, k:] = cov[k:, :k] = 0.0
    cov[:k, :k] = field.trend_covariance
    return np.asarray(cov)


def _estimates(theta: Floats, cov: Floats, level: float) -> dict[str, Estimate]:
    """Octaves and logarithms become what people read: the centre's lr and batch, and the basin's curvatures."""
    named = {"u": "lr", "v": "batch_tokens", "ln_q1": "q1", "ln_q2": "q2"}
    found = {}
    for i, name in enumerate((*CENTRE, *SHAPE)):
        scale = np.log(2.0) if name in ("u", "v") else 1.0
        se = float(np.sqrt(cov[i, i])) * scale
        found[named.get(name, name)] = estimate(float(theta[i] * scale), np.empty(0), se, level, log=name in named)
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


def field_of(fit: Fit) -> Field:
    """The fitted field."""
    if not fit.nodes:
        raise InvalidSpec(
            "this fit of lr-batch was made by an earlier version, without its cells.",
            hint="Fit the observations again.",
        )
    k = len(CENTRE)
    nodes, trend, cov = np.array(fit.nodes), np.array(fit.theta[:k]), np.array(fit.covariance)[:k, :k]
    return Field.restored(nodes, trend, cov, varied=bool(fit.extra["batch_varied"]))


def cells_of(fit: Fit) -> Floats:
    """N and D of the cells the fit has seen, (C, 2)."""
    origin = np.array([fit.extra["log2_n"], fit.extra["log2_d"]])
    return np.asarray(2.0 ** (np.array(fit.nodes)[:, :2] + origin))


def coordinates(fit: Fit, n_params: Floats | float, n_tokens: Floats | float) -> Floats:
    """Where (N, D) lie in the field, (m, 2)."""
    x, y = np.log2(n_params) - fit.extra["log2_n"], np.log2(n_tokens) - fit.extra["log2_d"]
    return np.column_stack([np.atleast_1d(x), np.atleast_1d(y)])


def predict(fit: Fit, n_params: float, n_tokens: float) -> tuple[Floats, Floats]:
    """(log2 lr*, log2 batch*): the mean (2,) and draws of the posterior (B, 2), the same draws at every place."""
    mean, cov = field_of(fit).at(coordinates(fit, n_params, n_tokens))
    draws = np.random.default_rng(fit.seed).standard_normal((DRAWS, 2)) @ np.linalg.cholesky(cov + 1e-12 * np.eye(2)).T
    return mean[0], mean[0] + draws


def prior_at(fit: Fit, n_params: float, n_tokens: float) -> dict[str, tuple[float, float]]:
    """The optimum of (N, D) as a belief: parameter → (centre, factor of one standard deviation, above 1)."""
    mean, cov = field_of(fit).at(coordinates(fit, n_params, n_tokens))
    names = LEARNED if fit.extra["batch_varied"] else LEARNED[:1]
    return {
        name: (float(2.0 ** mean[0, i]), float(max(2.0 ** np.sqrt(cov[i, i]), 1.05))) for i, name in enumerate(names)
    }


def basin(fit: Fit) -> Basin:
    """The fitted basin, by the point estimate."""
    return Basin.of(np.array(fit.theta[len(CENTRE) : FIRST]))


def levels(observations: Observations, *, beliefs: str = "") -> tuple[Observations, float]:
    """One observation a cell, its loss the bottom of the fitted basin instead of the luckiest run's, and the run noise.

    A bottom further under the best run than two noises, or above it, is not believed and cut there.
    """
    runs = gather(observations)
    point = _solve(runs, beliefs or believed_of(observations))
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


def _warnings(runs: Runs, point: _Point, field: Field) -> tuple[str, ...]:
    theta, found = field.trend, []
    if not runs.batch_varied:
        found.append("the batch size was never varied: the optimum of lr is the one at that batch size")
    for i, name in enumerate(CENTRE):
        if name in EXPONENTS["sp"] and abs(theta[i] - point.mean[i]) > 2 * point.sd[i]:
            found.append(f"the exponent {name} is {theta[i]:.2f}, more than two sd from the belief {point.mean[i]:.2f}")
    if not point.solution.converged:
        found.append("the solver stopped at its limit of iterations")
    return tuple(found)


def _backtest(observations: Observations, believed: str) -> tuple[Backtest | None, str]:
    """Refit without the largest cells; inside each of them compare runs with the basin, its level fitted to them."""
    scale = observations.n_params * observations.n_tokens
    sizes = np.unique(scale[observations.ok])
    count = max(1, round(HELD_OUT * len(sizes)))
    if len(sizes) - count < 3:
        return None, f"too few cells: {len(sizes)}; a back-test needs 4."
    train, test = observations.select(scale < sizes[-count]), observations.select(scale >= sizes[-count])
    try:
        fit, held = fit_surface(train, test=False, beliefs=believed), gather(test)
    except FitFailed as error:
        return None, error.message
    errors = []
    for members in by_cell(held):
        rows = members[~held.censored[members]]
        N, D = 2 ** (held.x[rows[0]] + held.origin[0]), 2 ** (held.y[rows[0]] + held.origin[1])
        u, v = predict(fit, N, D)[0]
        gap = held.ln_loss[rows] - basin(fit).excess(held.u[rows] - u, held.v[rows] - v)
        errors.append(gap - np.median(gap))
    ratio = np.expm1(np.concatenate(errors))
    size, bias, flops = float(np.mean(np.abs(ratio))), float(np.mean(ratio)), float(train.flops.max())
    return Backtest(held_out=len(ratio), error=size, bias=bias, largest_trained_flops=flops), ""
