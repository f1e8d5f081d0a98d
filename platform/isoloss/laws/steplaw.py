"""The step law: best learning rate and batch size as power laws of N and D (Li et al. 2025, arXiv 2503.04715, eq. 1).

    lr*(N, D) = c N^a D^b        batch*(N, D) = d D^e      (tokens; optionally d N^f D^e)

Two protocols. The default regresses the interior optima of qualifying cells (``cells.py``), one row a cell. ``near``
is the paper's: every run within that fraction of its cell's least loss is a row, pooled. Either way the regression is
ordinary least squares in logarithms by statsmodels, with HC3 covariance when there are rows enough for it, and the
bootstrap resamples whole cells, because runs of one cell share its optimum.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from isoloss.errors import FitFailed
from isoloss.laws.cells import CONFIGURATIONS, Cell, cell_index, cells
from isoloss.laws.checklist import checklist
from isoloss.laws.evidence import Backtest, Fit, pack, support
from isoloss.laws.inference import estimate, multinomial_weights
from isoloss.laws.losslaw import HELD_OUT
from isoloss.laws.observation import Observations
from isoloss.laws.solve import Floats

EQUATION: Final = "lr = c N^a D^b; batch_tokens = d D^e"
EQUATION_ON_N: Final = "lr = c N^a D^b; batch_tokens = d N^f D^e"
LEAST_CELLS: Final = 4
ROBUST_ROWS: Final = (
    12  # HC3 divides by 1 − leverage: with fewer rows it says more about the design than about the noise
)


@dataclass(frozen=True, slots=True)
class Rows:
    """Regression rows: N, D, optimum lr and batch (NaN where the row says nothing), and the row's cell; each (n,)."""

    n_params: Floats
    n_tokens: Floats
    lr: Floats
    batch_tokens: Floats
    cell: NDArray[np.int64]


def optima(observations: Observations) -> Rows:
    """One row for every qualifying cell, at its optimum."""
    return _rows([cell for cell in cells(observations) if cell.qualifies])


def _rows(found: list[Cell]) -> Rows:
    table = np.array([(c.n_params, c.n_tokens, c.lr, c.batch_tokens if c.batch_varied else np.nan) for c in found])
    table = table.reshape(-1, 4)
    return Rows(table[:, 0], table[:, 1], table[:, 2], table[:, 3], np.arange(len(table)))


def near_optimal(observations: Observations, near: float) -> Rows:
    """One row for every finished run within ``near`` (a fraction) of its cell's least loss."""
    known = observations.ok & ~np.isnan(observations.lr)
    index = cell_index(observations)
    least = np.full(index.max(initial=0) + 1, np.inf)
    np.minimum.at(least, index[known], observations.loss[known])
    keep = known & (observations.loss <= (1 + near) * least[index])
    kept = observations.select(keep)
    return Rows(kept.n_params, kept.n_tokens, kept.lr, kept.batch_tokens, index[keep])


def spans(rows: Rows) -> bool:
    """Whether rows determine both exponents: enough cells, and N and D not in lockstep."""
    if len(np.unique(rows.cell)) < LEAST_CELLS:
        return False
    design = np.column_stack([np.ones_like(rows.lr), np.log(rows.n_params), np.log(rows.n_tokens)])
    design -= design.mean(axis=0) * [0, 1, 1]
    return bool(np.linalg.cond(design / np.maximum(np.abs(design).max(axis=0), 1e-9)) < 50)


def fit_step_law(
    observations: Observations,
    *,
    near: float | None = None,
    batch_on_n: bool = False,
    bootstrap: int = 200,
    seed: int = 0,
    level: float = 0.9,
    test: bool = True,
) -> Fit:
    """Fit both laws; parameters ln c, a, b, ln d, e (and f with ``batch_on_n``).

    Raises ``FitFailed`` when fewer than four cells qualify, or when they do not span N and D independently. Without
    a batch law (batch never varied inside a qualifying cell) the batch parameters are absent and a warning says so.
    """
    rows = optima(observations) if near is None else near_optimal(observations, near)
    if not spans(rows):
        raise FitFailed(
            f"steplaw has {len(np.unique(rows.cell))} qualifying cells; it needs at least {LEAST_CELLS} that vary N "
            f"and D independently, each with {CONFIGURATIONS} configurations and an interior optimum.",
            hint="The form lr-batch uses every run and needs no interior optimum.",
        )
    parts = _regress(rows, batch_on_n=batch_on_n)
    names = tuple(name for part in parts for name in part.names)
    theta = np.concatenate([part.theta for part in parts])
    cov = _block_diagonal([part.covariance for part in parts])
    weights = np.empty((0, len(rows.lr)))
    if bootstrap > 1:
        weights = multinomial_weights(np.random.default_rng(seed), bootstrap, rows.cell)
    draws = np.hstack([part.resample(weights) for part in parts])
    draws = draws[np.isfinite(draws).all(axis=1)]
    residuals = np.concatenate([part.residuals for part in parts])
    tested, note = _backtest(observations, near=near, batch_on_n=batch_on_n) if test else (None, "not asked for")
    choice = "interior optimum of each cell" if near is None else f"runs within {near:.2%} of their cell's least loss"
    return Fit(
        form="steplaw",
        equation=EQUATION_ON_N if batch_on_n else EQUATION,
        observation_hash=observations.hash(),
        n_observations=len(rows.lr),
        estimates={
            name: estimate(float(theta[i]), draws[:, i], float(np.sqrt(cov[i, i])), level, log=name in "cd")
            for i, name in enumerate(names)
        },
        level=level,
        objective=float(residuals @ residuals),
        loss="squared",
        verdict="Ordinary least squares in logarithms has one solution.",
        starts=1,
        agreeing=1.0,
        parameters=names,
        theta=tuple(theta.tolist()),
        covariance=tuple(tuple(row) for row in cov.tolist()),
        draws=pack(draws),
        residual_rms=float(np.sqrt(np.mean(residuals**2))),
        noise=float(np.sqrt(np.mean(residuals**2))),
        support=support(rows.n_params, rows.n_tokens),
        seed=seed,
        backtest=tested,
        backtest_note=note,
        warnings=() if len(parts) > 1 else ("no batch law: fewer than four qualifying cells vary the batch size",),
        checklist=_checklist(observations, parts, choice, f"{level:.0%} intervals by {len(draws)} bootstrap draws"),
    )


def _checklist(
    observations: Observations, parts: tuple[_Regression, ...], choice: str, validity: str
) -> dict[str, str]:
    return checklist(
        observations,
        len(parts[0].target),
        equation=EQUATION,
        objective="sum of squares of ln lr and of ln batch",
        algorithm=f"statsmodels OLS, {parts[0].kind} covariance, bootstrap of cells",
        starts=1,
        validity=validity,
        choice=choice,
    )


def _regress(rows: Rows, *, batch_on_n: bool) -> tuple[_Regression, ...]:
    """The lr law, and the batch law where four cells vary the batch."""
    lr = _Regression.over(rows, rows.lr, ("c", "a", "b"))
    if len(np.unique(rows.cell[np.isfinite(rows.batch_tokens)])) < LEAST_CELLS:
        return (lr,)
    return lr, _Regression.over(rows, rows.batch_tokens, ("d", "f", "e") if batch_on_n else ("d", "e"))


def _block_diagonal(blocks: list[Floats]) -> Floats:
    ends = np.cumsum([0, *(len(block) for block in blocks)])
    whole = np.zeros((ends[-1], ends[-1]))
    for block, begin, end in zip(blocks, ends[:-1], ends[1:], strict=True):
        whole[begin:end, begin:end] = block
    return whole


def predict(fit: Fit, n_params: float, n_tokens: float) -> tuple[Floats, Floats]:
    """(log2 lr, log2 batch tokens) by the point, shape (2,), and by every draw, (B, 2); NaN without a batch law."""
    ln_n, ln_d = np.log(n_params), np.log(n_tokens)
    weights = {"c": (1, 0), "a": (ln_n, 0), "b": (ln_d, 0), "d": (0, 1), "f": (0, ln_n), "e": (0, ln_d)}
    matrix = np.array([weights[name] for name in fit.parameters]) / np.log(2)
    if "d" not in fit.parameters:
        matrix[:, 1] = np.nan
    return np.array(fit.theta) @ matrix, fit.sample() @ matrix


@dataclass(frozen=True, slots=True)
class _Regression:
    names: tuple[str, ...]
    theta: Floats
    covariance: Floats
    residuals: Floats
    design: Floats
    target: Floats
    use: NDArray[np.bool_]
    kind: str

    @classmethod
    def over(cls, rows: Rows, values: Floats, names: tuple[str, ...]) -> _Regression:
        """OLS of ln ``values`` on 1, ln N (with three names) and ln D over the rows that have a value."""
        import statsmodels.api as sm

        use = np.isfinite(values)
        columns = [np.ones_like(values), *([np.log(rows.n_params)] if len(names) > 2 else []), np.log(rows.n_tokens)]
        design, target = np.column_stack(columns)[use], np.log(values[use])
        kind = "HC3" if len(target) >= ROBUST_ROWS else "nonrobust"
        result = sm.OLS(target, design).fit(cov_type=kind)
        cov = np.asarray(result.cov_params(), dtype=np.float64)
        theta = np.asarray(result.params, dtype=np.float64)
        return cls(names, theta, cov, np.asarray(result.resid), design, target, use, kind)

    def resample(self, weights: Floats) -> Floats:
        """Weighted least squares per row of ``weights`` (B, all rows) → (B, p); NaN where a draw is degenerate."""
        centre = self.design.mean(axis=0) * (np.arange(self.design.shape[1]) > 0)
        X, w = self.design - centre, weights[:, self.use]
        normal = np.einsum("bn,np,nq->bpq", w, X, X, optimize=True)
        right = np.einsum("bn,np,n->bp", w, X, self.target, optimize=True)
        sound = np.linalg.cond(normal) < 1e10 if len(normal) else np.empty(0, dtype=bool)
        theta = np.full(right.shape, np.nan)
        theta[sound] = np.linalg.solve(normal[sound], right[sound][:, :, None])[:, :, 0]
        theta[:, 0] -= theta @ centre
        return theta


def _backtest(observations: Observations, *, near: float | None, batch_on_n: bool) -> tuple[Backtest | None, str]:
    """Refit without the largest cells (by N D) and compare the lr law with their optima."""
    rows = optima(observations) if near is None else near_optimal(observations, near)
    scale = observations.n_params * observations.n_tokens
    sizes = np.unique(rows.n_params * rows.n_tokens)
    count = max(1, round(HELD_OUT * len(sizes)))
    edge = float(sizes[-count])
    train = observations.select(scale < edge)
    try:
        fit = fit_step_law(train, near=near, batch_on_n=batch_on_n, bootstrap=0, test=False)
    except FitFailed as error:
        return None, f"too few cells without the largest {count}: {error.message}"
    test = np.flatnonzero(rows.n_params * rows.n_tokens >= edge)
    predicted = [2.0 ** predict(fit, rows.n_params[i], rows.n_tokens[i])[0][0] for i in test]
    ratio = np.array(predicted) / rows.lr[test] - 1
    size, bias = float(np.mean(np.abs(ratio))), float(np.mean(ratio))
    flops = float(train.flops.max())
    return Backtest(held_out=len(test), error=size, bias=bias, largest_trained_flops=flops), ""
