"""How sure a fit is: bootstrap weights, asymptotic covariance, intervals, and a verdict per constant.

A bootstrap draw is a vector of weights over the same rows, not a resampled table: one matrix serves all draws, each
draw starts at the optimum, and they are solved together.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from isoloss.errors import InvalidSpec
from isoloss.laws.evidence import Estimate
from isoloss.laws.observation import Observations, Status
from isoloss.laws.solve import Floats, RobustLoss

WEAK: Final = {"ratio": 0.5, "factor": np.log(4.0)}  # half-widths beyond which a constant is weak …
LOST: Final = {"ratio": 1.0, "factor": np.log(30.0)}  # … and beyond which it is not identified
IDENTIFIED, WEAKLY, NOT_IDENTIFIED = "identified", "weak", "not identified"
EDGE_SHARE: Final = 0.1  # as many draws at an edge of the allowed range mean the data do not hold the constant


def multinomial_weights(rng: np.random.Generator, draws: int, groups: NDArray[np.int64]) -> Floats:
    """Row weights (draws, n) of a bootstrap that resamples whole groups (a run's checkpoints, a cell's runs)."""
    labels, index = np.unique(groups, return_inverse=True)
    counts = rng.multinomial(len(labels), np.full(len(labels), 1 / len(labels)), size=draws)
    return np.asarray(counts[:, index], dtype=np.float64)


def exponential_weights(rng: np.random.Generator, draws: int, groups: NDArray[np.int64]) -> Floats:
    """Row weights (draws, n) of a Bayesian bootstrap over groups: as spread as the multinomial, but never zero.

    For few groups, where a multinomial draw would leave whole sizes or columns out.
    """
    labels, index = np.unique(groups, return_inverse=True)
    weights = rng.exponential(size=(draws, len(labels)))
    return np.asarray((weights / weights.mean(axis=1, keepdims=True))[:, index])


def rerun_noise(observations: Observations) -> tuple[float, int]:
    """The sd of ln loss between finished runs that differ in their seed alone, and its degrees of freedom (0: no reruns)."""
    groups: dict[tuple[object, ...], list[tuple[int, float]]] = {}
    for row in observations:
        if row.status is Status.OK:
            alike = (row.n_params, row.n_tokens, row.lr, row.batch_tokens, row.recipe, *sorted(row.extras.items()))
            groups.setdefault(alike, []).append((row.seed, float(np.log(row.loss))))
    reruns = [[loss for _, loss in runs] for runs in groups.values() if len({seed for seed, _ in runs}) > 1]
    freedom = sum(len(losses) - 1 for losses in reruns)
    square = sum(float(np.sum((np.array(losses) - np.mean(losses)) ** 2)) for losses in reruns)
    return (float(np.sqrt(square / freedom)) if freedom else 0.0), freedom


RESAMPLE: Final = ("", "rows", "runs", "cells")


def check_resample(by: str, form: str, allowed: Sequence[str]) -> None:
    """Raise ``InvalidSpec`` for a way of resampling that is none, or is not the form's."""
    if by not in RESAMPLE:
        raise InvalidSpec(f"resample is {by!r}; accepted is one of rows, runs, cells.")
    if by and by not in allowed:
        said = f"{form} draws {allowed[0]}" if allowed else f"{form} draws points of its own"
        raise InvalidSpec(f"resample is {by!r} and {said}; accepted is it for laws of the loss.")


def groups_of(observations: Observations, by: str) -> NDArray[np.int64]:
    """What a bootstrap draws together, as labels (n,): a row, a named run's rows (the default), or a cell's.

    Raises ``InvalidSpec`` when runs are asked for by name and none has one.
    """
    if by == "rows":
        return np.arange(len(observations), dtype=np.int64)
    if by == "cells":
        cells = np.column_stack([observations.n_params, observations.n_tokens])
        return np.unique(cells, axis=0, return_inverse=True)[1].astype(np.int64).ravel()
    if by == "runs" and not any(row.run for row in observations):
        raise InvalidSpec("resample is 'runs' and no row has a run; accepted is rows, cells, or a column run.")
    return run_groups([row.run for row in observations])


def run_groups(runs: list[str]) -> NDArray[np.int64]:
    """Group labels (n,): rows of one named run together, every nameless row alone."""
    names = [name or f"\0{row}" for row, name in enumerate(runs)]
    return np.unique(names, return_inverse=True)[1].astype(np.int64)


def covariance(residuals: Floats, jacobian: Floats, loss: RobustLoss) -> Floats:
    """Asymptotic covariance (p, p) of an M-estimate: τ² (JᵀJ)⁻¹ with τ² = mean ψ² / (mean ψ′)² (Huber 1981, §7.6).

    ψ′ of a narrow Huber or of the absolute loss is estimated from the residuals within a bandwidth.
    """
    squared, slope = moments(residuals, jacobian.shape[1], loss)
    return np.asarray(squared / slope**2 * np.linalg.pinv(jacobian.T @ jacobian, hermitian=True))


def moments(residuals: Floats, constants: int, loss: RobustLoss) -> tuple[float, float]:
    """Mean ψ² (with the degrees of freedom left by so many ``constants``) and mean ψ′ of an M-estimate."""
    n = len(residuals)
    size = np.abs(residuals)
    spread = 1.4826 * float(np.median(size)) + 1e-12
    if loss.kind == "squared":
        slope, psi = 1.0, residuals
    else:
        width = max(loss.width, 1.06 * spread * n ** (-0.2))
        slope = max(float(np.mean(size <= width)), 1 / n) * loss.width / width
        psi = np.clip(residuals, -loss.width, loss.width)
    return float(np.sum(psi**2)) / max(n - constants, 1), slope


def interval(values: Floats, level: float) -> tuple[float, float]:
    """The central interval of a sample at ``level``."""
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def judge(theta: float, half: float, *, log: bool) -> str:
    """The verdict on a constant whose interval is θ ± ``half``; with ``log`` the width is a factor."""
    kind, width = ("factor", half) if log else ("ratio", half / max(abs(theta), 1e-12))
    if not np.isfinite(width) or width > LOST[kind]:
        return NOT_IDENTIFIED
    return WEAKLY if width > WEAK[kind] else IDENTIFIED


def worse(one: str, other: str) -> str:
    """The less confident of two verdicts."""
    return max(one, other, key=(IDENTIFIED, WEAKLY, NOT_IDENTIFIED).index)


def estimate(theta: float, draws: Floats, se: float, level: float, *, log: bool, edge_share: float = 0.0) -> Estimate:
    """One constant from its point, its draws (B,) (or, without any, its asymptotic ``se``) and its scale.

    With ``log`` θ is the constant's logarithm and width is judged as a factor; otherwise as a ratio to the value.
    """
    if len(draws) > 1:
        low, high = interval(draws, level)
        se = float(draws.std(ddof=1))
    else:
        from scipy.special import ndtri

        half = float(ndtri((1 + level) / 2)) * se
        low, high = theta - half, theta + half
    half = (high - low) / 2
    verdict = judge(theta, half, log=log)
    if edge_share > EDGE_SHARE:
        verdict = NOT_IDENTIFIED
    with np.errstate(over="ignore"):
        numbers = [np.exp(theta), np.exp(theta) * se, np.exp(low), np.exp(high)] if log else [theta, se, low, high]
    if log and len(draws) > 1:
        with np.errstate(over="ignore"):
            numbers[1] = np.exp(np.clip(draws, None, 600.0)).std(ddof=1)
    value, *rest = (float(x) if np.isfinite(x) else None for x in numbers)
    return Estimate(
        value=value if value is not None else float("1e308"), se=rest[0], low=rest[1], high=rest[2], verdict=verdict
    )
