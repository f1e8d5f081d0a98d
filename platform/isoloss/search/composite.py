"""Composite search: a model of every outcome, and the desirability composed on what the models foretell.

D is a known function of outcomes that are not. Modelling D itself throws that away, and where D = 0 there is nothing to
model; a Gaussian process per outcome keeps it (Astudillo & Frazier 2019). Each sees its outcome *warped at the user's own
limits*: linear from limit to target, where differences count, and logarithmic outside, where they hardly do, so that heavy
tails do not use up the model's range. A proposal maximises the expected improvement of the hard D over the best posterior
mean so far, by quasi Monte Carlo; where no sample improves, the expected soft D decides, which is flat nowhere. What is on
its way counts as measured near its expected value. Every model uses the rows that have its outcome; a diverged run counts as
the worst value seen; what a formula says of a configuration is known exactly.

Above ``MOST`` results, and where most parameters are conditional, the multivariate TPE on the soft D takes over.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri
from scipy.stats import qmc

from isoloss.domain.formula import evaluate
from isoloss.domain.objective import Category, Larger, Leaf, Shape, leaves
from isoloss.domain.space import Configuration, Scalar
from isoloss.domain.spec import StudySpec
from isoloss.search.desirability import LOG_FLOOR, category, expected, hard, log_soft, missing, span
from isoloss.search.encoding import Encoding
from isoloss.search.gp import GaussianProcess
from isoloss.search.optuna_samplers import tpe
from isoloss.search.scoring import score

Array = NDArray[np.float64]
MOST: Final = 500  # results up to which outcomes are modelled
KEPT: Final = 250  # results a model sees: the best half, and the latest
SAMPLES: Final = 128
CANDIDATES: Final = 2048
ROUNDS: Final = (0.2, 0.1, 0.05, 0.02, 0.01)  # how far candidates are moved in each round of refinement
LEADERS: Final = 8
EACH: Final = 64  # moved candidates a leader
OFF: Final = 0.5  # deviations by which what is on its way is imagined off its mean: exact means make models too sure
LEAST: Final = 1e-9  # an improvement of the hard D below this is none
FARTHEST: Final = 40.0  # warped distance from a limit beyond which values are the same

Outcomes = Mapping[str, float]


class CompositeProposer:
    """Expected improvement of the overall desirability under a Gaussian process an outcome."""

    def __init__(self, spec: StudySpec) -> None:
        self._spec, self._leaves = spec, leaves(spec.desirability)
        self._encoding = Encoding(spec.space)

    def propose(
        self,
        *,
        history: Sequence[tuple[Configuration, Outcomes]],
        pending: Sequence[Configuration],
        n: int,
        seed: int,
    ) -> tuple[dict[str, Scalar], ...]:
        """``n`` configurations in the order they should be tried; a run that diverged has NaN for its outcomes."""
        if self._hands_over(len(history)):
            return self._by_tpe(history, pending, n, seed)
        rng = np.random.default_rng(seed)
        kept = self._kept(history)
        models = self._models(kept)
        taken = self._encoding.points(configuration for configuration, _ in kept)
        best = float(np.max(self._plug_in(models, taken), initial=0.0))
        if pending:
            coming = self._encoding.points(pending)
            models, best = self._believing(models, coming, best, rng)
            taken = np.vstack([taken, coming])
        normals = _normals(len(models), rng)
        proposed = []
        for number in range(n):
            point = self._best_point(models, best, taken, normals, rng)
            proposed.append(self._encoding.configuration(point))
            if number + 1 < n:
                models, best = self._believing(models, point[None], best, rng)
                taken = np.vstack([taken, point])
        return tuple(proposed)

    def believed(self, history: Sequence[tuple[Configuration, Outcomes]], asked: Sequence[Configuration]) -> Array:
        """The D that each configuration is expected to have in another run: noise is not mistaken for worth."""
        models, points = self._models(self._kept(history)), self._encoding.points(asked)
        columns, total = self._encoding.columns(points), np.ones(len(points))
        for metric, leaf in self._leaves.items():
            if metric in models:
                mean, deviation = models[metric].predict(columns)
                low, high = span(leaf.shape)
                shape = Larger(limit=0, target=1) if isinstance(leaf.shape, Category) else leaf.shape
                total *= expected(shape, low + (high - low) * mean, (high - low) * deviation, leaf.weight)
            elif leaf.shape.known_before:
                total *= np.exp(leaf.weight * self._known(leaf, points, _log_hard))
        return total

    # ---- models ------------------------------------------------------------------------------------------------

    def _hands_over(self, results: int) -> bool:
        conditional = sum(bool(parameter.conditions) for parameter in self._spec.space.values())
        return results > MOST or 2 * conditional > len(self._spec.space)

    def _by_tpe(
        self, history: Sequence[tuple[Configuration, Outcomes]], pending: Sequence[Configuration], n: int, seed: int
    ) -> tuple[dict[str, Scalar], ...]:
        scored = [(c, value) for c, v in history if (value := score(self._spec, v, c)) is not None]
        return tpe(self._spec.space).propose(history=scored, pending=pending, n=n, seed=seed)

    def _kept(self, history: Sequence[tuple[Configuration, Outcomes]]) -> list[tuple[Configuration, Outcomes]]:
        if len(history) <= KEPT:
            return list(history)
        older = history[: -KEPT // 2]
        worst = [(math.inf if (s := score(self._spec, v, c)) is None else s) for c, v in older]
        best = sorted(np.argsort(worst, kind="stable")[: KEPT // 2].tolist())
        return [*(older[place] for place in best), *history[-KEPT // 2 :]]

    def _models(self, history: Sequence[tuple[Configuration, Outcomes]]) -> dict[str, GaussianProcess]:
        """A process for every metric that is measured and has values."""
        columns = self._encoding.columns(self._encoding.points(configuration for configuration, _ in history))
        models = {}
        for metric, leaf in self._leaves.items():
            if leaf.shape.known_before:
                continue
            found = np.array(
                [_warped(leaf.shape, values[metric]) if metric in values else math.nan for _, values in history]
            )
            diverged = np.array([any(not math.isfinite(v) for v in values.values()) for _, values in history], bool)
            known = np.isfinite(found) & ~diverged
            if known.any():
                worst = int(np.argmin(np.where(known, log_soft_of(leaf.shape, found), math.inf)))
                found = np.where(diverged, found[worst], found)
                known |= diverged
            models[metric] = GaussianProcess(columns[known], found[known], self._encoding.blocks)
        return models

    def _believing(
        self, models: dict[str, GaussianProcess], points: Array, best: float, rng: np.random.Generator
    ) -> tuple[dict[str, GaussianProcess], float]:
        columns, promised = self._encoding.columns(points), float(np.max(self._plug_in(models, points)))
        seen = {
            metric: model.believing(columns, OFF * rng.normal(size=len(points))) for metric, model in models.items()
        }
        return seen, max(best, promised)

    # ---- what a point is worth ---------------------------------------------------------------------------------

    def _best_point(
        self, models: dict[str, GaussianProcess], best: float, taken: Array, normals: Array, rng: np.random.Generator
    ) -> Array:
        """The point of the largest acquisition: from a Sobol sample and around what is good, refined by small moves."""
        dimensions = len(self._spec.space)
        sobol = qmc.Sobol(dimensions, scramble=True, rng=rng).random(CANDIDATES)
        worth = self._log_soft_plug_in(models, taken) if len(taken) else np.zeros(0)
        leaders = taken[np.argsort(-worth, kind="stable")[:LEADERS]]
        points = np.vstack([sobol, *(moved(leaders, step, rng) for step in (0.2, 0.05))])
        values = np.zeros(0)
        for step in (*ROUNDS, None):
            points = self._free(points, taken, rng)
            values = self._acquisition(models, points, best, normals)
            if step is not None:
                top = points[np.argsort(-values, kind="stable")[:LEADERS]]
                points = np.vstack([top, moved(top, step, rng)])
        return np.asarray(points[int(np.argmax(values))])

    def _free(self, points: Array, taken: Array, rng: np.random.Generator) -> Array:
        """The points as they will run, without those that did; fresh random ones when all did."""
        snapped = np.unique(self._encoding.snapped(points), axis=0)
        ran = set(_keys(taken))
        snapped = snapped[[key not in ran for key in _keys(snapped)]]
        return snapped if len(snapped) else self._encoding.snapped(rng.random((EACH, points.shape[1])))

    def _acquisition(self, models: dict[str, GaussianProcess], points: Array, best: float, normals: Array) -> Array:
        """Expected improvement of the hard D; where it is nowhere anything, the log of the expected soft D (minus ∞ < 0)."""
        samples = self._sampled(models, points, normals)
        logs = self._together(points, samples, _log_hard)
        gains = np.maximum(0.0, np.exp(logs) - best).mean(axis=1)
        if gains.max(initial=0.0) > LEAST:
            return np.asarray(gains)
        softs = self._together(points, samples, log_soft)
        top = softs.max(axis=1, keepdims=True)
        return np.asarray(top[:, 0] + np.log(np.exp(softs - top).mean(axis=1)))

    def _sampled(self, models: dict[str, GaussianProcess], points: Array, normals: Array) -> dict[str, Array]:
        """Warped outcomes, (points, samples) each."""
        columns = self._encoding.columns(points)
        predicted = {metric: model.predict(columns) for metric, model in models.items()}
        return {
            metric: mean[:, None] + deviation[:, None] * normals[place]
            for place, (metric, (mean, deviation)) in enumerate(predicted.items())
        }

    def _plug_in(self, models: dict[str, GaussianProcess], points: Array) -> Array:
        """The hard D of the models' means."""
        return np.exp(self._of_means(models, points, _log_hard))

    def _log_soft_plug_in(self, models: dict[str, GaussianProcess], points: Array) -> Array:
        return self._of_means(models, points, log_soft)

    def _of_means(self, models: dict[str, GaussianProcess], points: Array, log_d: Any) -> Array:
        columns = self._encoding.columns(points)
        means = {metric: model.predict(columns)[0][:, None] for metric, model in models.items()}
        return np.asarray(self._together(points, means, log_d)[:, 0])

    def _together(self, points: Array, warped: Mapping[str, Array], log_d: Any) -> Array:
        """The log of D over samples of the warped outcomes: (points, samples)."""
        samples = max((values.shape[1] for values in warped.values()), default=1)
        total = np.zeros((len(points), samples))
        for metric, leaf in self._leaves.items():
            if metric in warped:
                total += leaf.weight * _log_of_warped(leaf.shape, warped[metric], log_d)
            elif leaf.shape.known_before:
                total += leaf.weight * self._known(leaf, points, log_d)[:, None]
        return total

    def _known(self, leaf: Leaf, points: Array, log_d: Any) -> Array:
        """The log d of what a formula says of each point's configuration."""
        found = np.empty(len(points))
        for place, point in enumerate(points):
            value = evaluate(str(leaf.shape.formula), self._spec.fixed | self._encoding.configuration(point))
            if value is None:
                counted = missing(leaf.shape)
                found[place] = 0.0 if counted is None else math.log(counted) if counted > 0 else LOG_FLOOR
            else:
                found[place] = log_d(leaf.shape, value)
        return found


def _log_hard(shape: Shape, value: Any) -> Any:
    with np.errstate(divide="ignore"):
        return np.log(hard(shape, value))


def _log_of_warped(shape: Shape, u: Array, log_d: Any) -> Array:
    if isinstance(shape, Category):  # the model is of d itself
        with np.errstate(divide="ignore"):
            return np.asarray(np.log(np.clip(u, 0.0 if log_d is _log_hard else 1e-6, 1.0)))
    return np.asarray(log_d(shape, _unwarped(shape, u)))


def log_soft_of(shape: Shape, u: Array) -> Array:
    """The log soft d of warped values; NaN stays NaN."""
    return np.where(np.isnan(u), math.nan, _log_of_warped(shape, np.nan_to_num(u), log_soft))


def _warped(shape: Shape, value: float) -> float:
    """Where a value lies between the user's limits (0 to 1), its distance outside them on a log scale; NaN stays NaN."""
    if isinstance(shape, Category):
        return float(category(shape, value))
    low, high = span(shape)
    u = (value - low) / (high - low)
    if u > 1:
        return 1 + math.log1p(u - 1)
    return -math.log1p(-u) if u < 0 else float(u)


def _unwarped(shape: Shape, u: Array) -> Array:
    low, high = span(shape)
    above, below = np.expm1(np.clip(u - 1, 0, FARTHEST)), np.expm1(np.clip(-u, 0, FARTHEST))
    return np.asarray(low + (high - low) * (np.clip(u, 0, 1) + above - below))


def _normals(outcomes: int, rng: np.random.Generator) -> Array:
    """Standard normal samples of every outcome, independent of each other and spread evenly: (outcomes, SAMPLES)."""
    if not outcomes:
        return np.zeros((0, SAMPLES))
    uniform = qmc.Sobol(outcomes, scramble=True, rng=rng).random(SAMPLES)
    return np.asarray(ndtri(np.clip(uniform.T, 1e-9, 1 - 1e-9)))


def moved(points: Array, step: float, rng: np.random.Generator) -> Array:
    """``EACH`` neighbours of every point: about a third of its coordinates moved, never past the border."""
    many = np.repeat(points, EACH, axis=0)
    chosen = rng.random(many.shape) < max(1 / 3, 1 / max(1, many.shape[1]))
    return np.asarray(np.clip(many + chosen * rng.normal(0.0, step, many.shape), 0.0, 1.0))


def _keys(points: Array) -> list[bytes]:
    """A key of every point, equal for points that are one configuration."""
    return [row.tobytes() for row in np.round(points, 9) + 0.0]
