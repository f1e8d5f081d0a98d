"""Desirabilities: what a value is worth between 0 and 1, and what several are worth together.

The ramps are those of Derringer & Suich (1980), the smooth forms Harrington's (1965); together they are the geometric
mean weighted by importance. People read the hard d, which is 0 beyond the limit. Rungs rank the *soft* one, because
nearly every configuration is beyond the limit at a low budget and zeros cannot be ranked: the linear ramp x, 0 at the
limit and 1 at the target, becomes

    g(x) = softplus(x / T) / softplus(1 / T),   T = 0.05,   capped at 1,

which stays within 0.035 of x, is strictly increasing below the target, and falls off like exp(x / T) beyond the limit,
so that its logarithm keeps a slope however far away a value is. Both are monotone in x: they order any two values of
one metric in the same way, wherever the hard d tells them apart. Boxes and tables go on falling with the distance from
where they are worth something; Harrington's forms are soft as they are.

``hard`` and ``log_soft`` take a number, or an array of any shape, and give the same.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from isoloss.domain.formula import evaluate
from isoloss.domain.objective import (
    Box,
    Category,
    Harrington,
    HarringtonTwoSided,
    Larger,
    Leaf,
    Shape,
    Smaller,
    Table,
    Target,
    leaves,
)
from isoloss.domain.space import Scalar
from isoloss.domain.spec import StudySpec
from isoloss.search.foresight import LARGEST, Forecast

Array = NDArray[np.float64]
SOFTNESS: Final = 0.05
LOG_FLOOR: Final = -1e9  # keeps sums finite; far beyond any value a metric takes
VETOED: Final = -1e10  # behind everything that is not
NODES: Final = 9  # of the quadrature over a forecast
REACH: Final = 9.0  # deviations from the mean beyond which a normal value does not come
FURTHEST: Final = 1e300
ROOT_TAU: Final = math.sqrt(2 * math.pi)
GRID: Final = 100  # values over which a missing one is averaged
_nodes, _weights = np.polynomial.legendre.leggauss(64)
LEGENDRE: Final = ((_nodes + 1) / 2, _weights / 2)  # nodes and weights on [0, 1]


@dataclass(frozen=True, slots=True, kw_only=True)
class OverallDesirability:
    """The overall desirability with its parts; ``None`` where a metric is not known yet.

    ``limiting`` is the metric that costs most, that is of the smallest w ln d; ``None`` when nothing does.
    """

    overall: float | None
    parts: Mapping[str, float | None]
    limiting: str | None


def hard(shape: Shape, value: Any) -> Any:
    """The d of a value: 0 at and beyond the limit, 1 at the target and past it, never below ``floor``.

    NaN is a run that diverged, and a name that a category does not list is unwanted: both are 0.
    """
    if isinstance(shape, Category):
        return _each(lambda name: max(shape.floor, category(shape, name)), value)
    y = np.asarray(value, float)
    with np.errstate(all="ignore"):
        d = np.exp(_harrington(shape, y)) if isinstance(shape, Harrington | HarringtonTwoSided) else _ramped(shape, y)
    found = np.where(np.isnan(y), 0.0, np.maximum(d, shape.floor))
    return found if np.ndim(value) else float(found)


def log_soft(shape: Shape, value: Any) -> Any:
    """The natural logarithm of the soft d of a finite value: 0 at the target, finite and with a slope elsewhere."""
    if isinstance(shape, Category):
        return _each(lambda name: _softened(category(shape, name)), value)
    y = np.asarray(value, float)
    with np.errstate(all="ignore"):
        if isinstance(shape, Harrington | HarringtonTwoSided):
            found = np.maximum(LOG_FLOOR, _harrington(shape, y))
        else:
            x, scale = _coordinate(shape, y)
            found = np.maximum(LOG_FLOOR, scale * _softened(x))
    return found if np.ndim(value) else float(found)


def soft(shape: Shape, value: Any) -> Any:
    """The soft d of a finite value, in (0, 1] as far as a float can say it."""
    found = np.exp(log_soft(shape, value))
    return found if np.ndim(value) else float(found)


def category(shape: Category, value: Scalar) -> float:
    """The d a category gives a name, or a code that was reported as a number; 0 for one it does not list."""
    name = f"{value:g}" if isinstance(value, float) else str(value)
    return shape.values.get(name, 0.0)


def span(shape: Shape) -> tuple[float, float]:
    """The values between which d says something, lower first; 0 to 1 for a category, whose d is its own scale."""
    match shape:
        case Larger() | Smaller():
            return min(shape.limit, shape.target), max(shape.limit, shape.target)
        case Target() | Box() | HarringtonTwoSided():
            return shape.low, shape.high
        case Table():
            return shape.points[0][0], shape.points[-1][0]
        case Harrington():
            return min(shape.at[0][0], shape.at[1][0]), max(shape.at[0][0], shape.at[1][0])
        case Category():
            return 0.0, 1.0


def neutral(shape: Shape) -> float:
    """The mean of d over its span: what a value is worth of which nothing is known (Kuhn 2016)."""
    if isinstance(shape, Category):
        return sum(shape.values.values()) / len(shape.values)
    return float(np.mean(hard(shape, np.linspace(*span(shape), GRID))))


def known_values(
    spec: StudySpec, values: Mapping[str, float], configuration: Mapping[str, Scalar]
) -> dict[str, Scalar | None]:
    """Every metric's value: as a formula says it, else as it was reported, else ``None``."""
    whole = spec.fixed | dict(configuration)
    return {
        metric: evaluate(leaf.shape.formula, whole) if isinstance(leaf.shape.formula, str) else values.get(metric)
        for metric, leaf in leaves(spec.desirability).items()
    }


def overall(
    spec: StudySpec, values: Mapping[str, float], configuration: Mapping[str, Scalar] | None = None
) -> OverallDesirability:
    """The hard overall desirability of a task's values: Π d_i^w_i with Σ w_i = 1, in log space.

    A value that is not finite belongs to a run that diverged and vetoes; a metric that is missing is unknown, unless the
    spec says what it counts as, and so is the whole, unless another vetoes already. A study with a plain objective has
    no overall desirability. ``configuration`` is needed where a formula is.
    """
    parts_of, known = leaves(spec.desirability), known_values(spec, values, configuration or {})
    parts = {metric: _worth(leaf.shape, known[metric]) for metric, leaf in parts_of.items()}
    logs = {m: parts_of[m].weight * (math.log(d) if d > 0 else -math.inf) for m, d in parts.items() if d is not None}
    worst = min(logs, key=lambda metric: logs[metric], default=None)
    limiting = worst if worst is not None and logs[worst] < 0 else None
    if not parts or (len(logs) < len(parts) and min(logs.values(), default=0.0) > -math.inf):
        return OverallDesirability(overall=None, parts=parts, limiting=limiting)
    return OverallDesirability(overall=math.exp(sum(logs.values())), parts=parts, limiting=limiting)


def _worth(shape: Shape, value: Scalar | None) -> float | None:
    """The d of a value as people read it; ``None`` while it is unknown."""
    if value is None:
        return missing(shape)
    if isinstance(shape, Category):
        return float(hard(shape, value))
    number = float(value)
    return float(hard(shape, number)) if math.isfinite(number) else 0.0


def missing(shape: Shape) -> float | None:
    """What a metric counts as that was not reported; ``None`` for unknown."""
    match shape.missing:
        case "unknown":
            return None
        case "veto":
            return 0.0
        case "neutral":
            return neutral(shape)
        case number:
            return float(number)


def soft_score(
    spec: StudySpec,
    values: Mapping[str, float],
    configuration: Mapping[str, Scalar],
    share: float,
    foreseen: Mapping[str, Forecast],
) -> float | None:
    """Minus the log of the soft overall desirability of what the run is heading for; ``None`` for a run that diverged.

    ``share`` is the part of the maximum budget the values were reached with. Of what is ``foreseen`` the expectation
    counts: metrics are foreseen one by one, so that it is the product E[d_1^w_1] E[d_2^w_2] …
    """
    known = known_values(spec, values, configuration)
    if any(isinstance(value, float) and not math.isfinite(value) for value in known.values()):
        return None
    parts = leaves(spec.desirability)
    logs = {
        metric: expected_log(leaf, foreseen[metric]) if metric in foreseen else _log_part(leaf, known[metric], share)
        for metric, leaf in parts.items()
    }
    counted = {metric: log for metric, log in logs.items() if log is not None}
    if not counted:
        return 0.0
    weight = sum(parts[metric].weight for metric in counted)
    total = sum(parts[metric].weight * log for metric, log in counted.items()) / weight
    return -(total + (VETOED if any(_vetoes(leaf, known[metric], share) for metric, leaf in parts.items()) else 0.0))


def _log_part(leaf: Leaf, value: Scalar | None, share: float) -> float | None:
    """The log soft d of one metric; ``None`` for one that is unknown by right, which then counts for nothing."""
    if value is None:
        counted = missing(leaf.shape)
        return None if counted is None else math.log(counted) if counted > 0 else LOG_FLOOR
    return float(log_soft(leaf.shape, _carried_on(leaf, value, share)))


def log_softs(spec: StudySpec, values: Mapping[str, float], configuration: Mapping[str, Scalar]) -> tuple[float, ...]:
    """The log soft d of every metric in order; NaN for one that is unknown or diverged."""
    known = known_values(spec, values, configuration)
    found = []
    for metric, leaf in leaves(spec.desirability).items():
        value = known[metric]
        diverged = isinstance(value, float) and not math.isfinite(value)
        log = None if diverged else _log_part(leaf, value, 1.0)
        found.append(math.nan if log is None else log)
    return tuple(found)


def expected(shape: Shape, mean: Any, deviation: Any, weight: float = 1.0) -> Array:
    """E[d(Y)^weight] of the hard d of normal values Y, of which ``mean`` and ``deviation`` are arrays of one shape.

    Gauss and Legendre's quadrature between the knots of the shape, as far as Y reaches; beyond them d is what it is there.
    """
    mean, deviation = np.asarray(mean, float), np.maximum(np.asarray(deviation, float), 1e-12)
    knots = _knots(shape)
    first, last = hard(shape, np.array([np.nextafter(knots[0], -np.inf), np.nextafter(knots[-1], np.inf)])) ** weight
    from scipy.special import ndtr

    total = first * ndtr((knots[0] - mean) / deviation) + last * ndtr((mean - knots[-1]) / deviation)
    t, shares = LEGENDRE
    for a, b in itertools.pairwise(knots):
        low, high = (np.clip(end, mean - REACH * deviation, mean + REACH * deviation) for end in (a, b))
        y = low[..., None] + (high - low)[..., None] * t**2 * (3 - 2 * t)  # even a root has a slope of 0 at the ends
        density = np.exp(-0.5 * ((y - mean[..., None]) / deviation[..., None]) ** 2) / (deviation[..., None] * ROOT_TAU)
        total = total + (high - low) * ((hard(shape, np.clip(y, a, b)) ** weight * density * 6 * t * (1 - t)) @ shares)
    return np.asarray(total)


def _knots(shape: Shape) -> list[float]:
    """Where the d of a numeric shape bends: outside it is constant."""
    match shape:
        case Table():
            return [x for x, _ in shape.points]
        case Target():
            return [shape.low, shape.target, shape.high]
        case Harrington() | HarringtonTwoSided():
            return [-FURTHEST, *span(shape), FURTHEST]
        case _:
            return [float(end) for end in span(shape)]


def expected_log(leaf: Leaf, forecast: Forecast) -> float:
    """Log E[d^w] / w of the soft d of one metric, by Gauss and Hermite's quadrature."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(NODES)
    y = forecast.mean + forecast.deviation * nodes
    logs = leaf.weight * np.asarray(log_soft(leaf.shape, np.exp(np.minimum(y, LARGEST)) if forecast.log else y))
    top = float(logs.max())
    return (top + math.log(float(np.exp(logs - top) @ weights) / float(weights.sum()))) / leaf.weight


def _vetoes(leaf: Leaf, value: Scalar | None, share: float) -> bool:
    """Whether a veto stands; before the top only of what the budget does not change."""
    if not leaf.shape.veto or (share < 1 and leaf.shape.kind != "static"):
        return False
    return (missing(leaf.shape) if value is None else float(hard(leaf.shape, value))) == 0


def _carried_on(leaf: Leaf, value: Scalar, share: float) -> Scalar:
    if leaf.shape.kind != "cumulative" or isinstance(leaf.shape, Category):
        return value
    return float(value) / share


def _each(d: Any, value: Any) -> Any:
    """A function of one name, over an array of them too."""
    if not np.ndim(value):
        return float(d(value.item() if isinstance(value, np.generic) else value))
    return np.array([d(one) for one in np.ravel(value).tolist()], float).reshape(np.shape(value))


def _ramped(shape: Shape, y: Array) -> Array:
    if isinstance(shape, Box):
        return ((shape.low <= y) & (y <= shape.high)).astype(float)
    if isinstance(shape, Table):
        xs, ds = np.array(shape.points).T
        return np.asarray(np.interp(y, xs, ds))
    x, scale = _coordinate(shape, y)
    return np.asarray(np.clip(x, 0.0, 1.0) ** scale)


def _coordinate(shape: Shape, y: Array) -> tuple[Array, Array | float]:
    """Where the value lies between worthless (0) and perfect (1), not clipped below, and the exponent there."""
    match shape:
        case Larger() | Smaller():
            return (y - shape.limit) / (shape.target - shape.limit), shape.scale
        case Target():
            below = y <= shape.target
            far = np.where(below, shape.low, shape.high)
            return (y - far) / (shape.target - far), np.where(below, shape.scale_low, shape.scale_high)
        case Box():
            outside = np.maximum(shape.low - y, y - shape.high) / (shape.high - shape.low)
            return np.where(outside <= 0, 1.0, -outside), 1.0
        case Table():
            return _table_coordinate(shape, y), 1.0
    raise TypeError(shape)


def _table_coordinate(shape: Table, y: Array) -> Array:
    """The d of a table; where that is 0, minus the distance, in spans, from where it is not."""
    d = _ramped(shape, y)
    edges = [x if d1 == 0 else x2 for (x, d1), (x2, d2) in itertools.pairwise(shape.points) if (d1 == 0) != (d2 == 0)]
    if not edges:
        return d
    low, high = span(shape)
    away = np.min(np.abs(y[..., None] - np.array(edges)), axis=-1) / (high - low)
    return np.where(d > 0, d, -away)


def _harrington(shape: Harrington | HarringtonTwoSided, y: Array) -> Array:
    """The natural logarithm of d."""
    if isinstance(shape, HarringtonTwoSided):
        middle = (2 * y - (shape.high + shape.low)) / (shape.high - shape.low)
        return -(np.abs(middle) ** shape.power)
    (y1, z1), (y2, z2) = ((y, -math.log(-math.log(d))) for y, d in shape.at)
    slope = (z2 - z1) / (y2 - y1)
    return -np.exp(-(z1 + slope * (y - y1)))


def _softened(x: Any) -> Any:
    """Log g(x), at most 0; below -30 softplus is the exponential to the last digit, and its logarithm is x / T."""
    z = np.asarray(x, float) / SOFTNESS
    logs = np.where(z < -30, z, np.log(np.logaddexp(0.0, np.maximum(z, -30))))
    return np.minimum(0.0, logs - math.log(math.log1p(math.exp(1 / SOFTNESS))))
