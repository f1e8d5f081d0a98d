"""Desirabilities: what a value is worth between 0 and 1, and what several are worth together.

The ramps are those of Derringer & Suich (1980); together they are the geometric mean weighted by importance. People
read the hard d, which is 0 beyond the limit. Rungs rank the *soft* one, because nearly every configuration is beyond
the limit at a low budget and zeros cannot be ranked: the linear ramp x, 0 at the limit and 1 at the target, becomes

    g(x) = softplus(x / T) / softplus(1 / T),   T = 0.05,   capped at 1,

which stays within 0.035 of x, is strictly increasing below the target, and falls off like exp(x / T) beyond the limit,
so that its logarithm keeps a slope however far away a value is. Both are monotone in x: they order any two values of
one metric in the same way, wherever the hard d tells them apart.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from isoloss.domain.objective import AnyDesirability, Larger, Smaller, Target
from isoloss.domain.spec import StudySpec

SOFTNESS: Final = 0.05
LOG_FLOOR: Final = -1e9  # keeps sums finite; far beyond any value a metric takes


@dataclass(frozen=True, slots=True, kw_only=True)
class OverallDesirability:
    """The overall desirability with its parts; ``None`` where a metric is not known yet.

    ``limiting`` is the metric that costs most, that is of the smallest w ln d; ``None`` when nothing does.
    """

    overall: float | None
    parts: Mapping[str, float | None]
    limiting: str | None


def hard(desirability: AnyDesirability, value: float) -> float:
    """The d of a value: 0 at and beyond the limit, 1 at the target and past it (or only there, for ``Target``).

    NaN is a run that diverged: 0.
    """
    if math.isnan(value):
        return 0.0
    x, scale = _ramp(desirability, value)
    return float(min(1.0, max(0.0, x)) ** scale)


def log_soft(desirability: AnyDesirability, value: float) -> float:
    """The natural logarithm of the soft d of a finite value: 0 at the target, finite and with a slope elsewhere."""
    x, scale = _ramp(desirability, value)
    return max(LOG_FLOOR, scale * min(0.0, _log_softplus(x / SOFTNESS) - _log_softplus(1 / SOFTNESS)))


def soft(desirability: AnyDesirability, value: float) -> float:
    """The soft d of a finite value, in (0, 1] as far as a float can say it."""
    return math.exp(log_soft(desirability, value))


def log_soft_overall(spec: StudySpec, values: Mapping[str, float]) -> float:
    """The logarithm of the soft overall desirability; every metric must be there and finite."""
    parts = spec.desirability
    total = sum(part.importance for part in parts.values())
    return sum(part.importance * log_soft(part, values[metric]) for metric, part in parts.items()) / total


def overall(spec: StudySpec, values: Mapping[str, float]) -> OverallDesirability:
    """The hard overall desirability of a task's values: (Π d_i^w_i)^(1 / Σ w_i).

    A value that is not finite belongs to a run that diverged and vetoes; a metric that is missing is unknown, and so is
    the whole, unless another vetoes already. A study with a plain objective has no overall desirability.
    """
    parts: dict[str, float | None] = {}
    for metric, part in spec.desirability.items():
        value = values.get(metric)
        parts[metric] = None if value is None else hard(part, value) if math.isfinite(value) else 0.0
    known = {
        metric: spec.desirability[metric].importance * (math.log(d) if d > 0 else -math.inf)
        for metric, d in parts.items()
        if d is not None
    }
    worst = min(known, key=lambda metric: known[metric], default=None)
    limiting = worst if worst is not None and known[worst] < 0 else None
    if not parts or (len(known) < len(parts) and min(known.values(), default=0.0) > -math.inf):
        return OverallDesirability(overall=None, parts=parts, limiting=limiting)
    total = sum(part.importance for part in spec.desirability.values())
    return OverallDesirability(overall=math.exp(sum(known.values()) / total), parts=parts, limiting=limiting)


def _ramp(desirability: AnyDesirability, value: float) -> tuple[float, float]:
    """Where the value lies between limit (0) and target (1), not clipped, and the exponent there."""
    match desirability:
        case Larger() | Smaller():
            limit, target, scale = desirability.limit, desirability.target, desirability.scale
        case Target() if value <= desirability.target:
            limit, target, scale = desirability.low, desirability.target, desirability.scale_low
        case Target():
            limit, target, scale = desirability.high, desirability.target, desirability.scale_high
    return (value - limit) / (target - limit), scale


def _log_softplus(z: float) -> float:
    """log(log(1 + e^z)) without overflow; below -30 it is z to the last digit."""
    if z < -30:
        return z
    return math.log(max(z, 0.0) + math.log1p(math.exp(-abs(z))))
