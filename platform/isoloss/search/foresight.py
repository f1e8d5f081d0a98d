"""What a run's outcomes will be at the top, as far as the study's own history says: nothing is assumed of a curve's form.

Trials measured at two neighbouring levels tell how one level foretells the next: a straight line per metric, on a log
scale where all values are positive, with the spread of its residuals. Lines are chained up to the top. To rank by them
needs neither many of them nor a perfect one; raw values at a low rung would be held against limits that are meant for
the end. The lines change only when half as many pairs again are known, so that the scores of a rung stay comparable.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from isoloss.domain.objective import Category, leaves
from isoloss.domain.spec import StudySpec
from isoloss.search.geometry import Ladder

FEWEST: Final = 5  # pairs a line is drawn through
LARGEST: Final = 700.0  # the logarithm of a float
MORE: Final = 1.5  # the next line is drawn when so many times as many are known
Values = Mapping[tuple[int, int], Mapping[str, float]]  # by (trial, level), in the order of the ledger


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """A normal distribution of a metric at the top, of its logarithm when ``log``."""

    mean: float
    deviation: float
    log: bool

    @property
    def middle(self) -> float:
        """The median of the metric."""
        return math.exp(min(self.mean, LARGEST)) if self.log else self.mean


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """How a level foretells the next."""

    intercept: float
    slope: float
    deviation: float


class Foresight:
    """The lines of a study; ``stage`` changes whenever they do."""

    def __init__(self, spec: StudySpec, ladder: Ladder, known: Values) -> None:
        self._top = ladder.top
        self._lines: dict[tuple[str, int], Line] = {}
        self._log: dict[str, bool] = {}
        curves = [m for m, leaf in leaves(spec.desirability).items() if _is_curve(leaf.shape)] if ladder.top else []
        stage = []
        for metric, level in itertools.product(curves, range(ladder.top)):
            pairs = [
                (values[metric], known[trial, level + 1][metric])
                for (trial, j), values in known.items()
                if j == level and metric in values and metric in known.get((trial, level + 1), {})
            ]
            count = _stage(len(pairs))
            stage.append(count)
            if count:
                self._add(metric, level, pairs[:count])
        self.stage: tuple[int, ...] = tuple(stage)

    def _add(self, metric: str, level: int, pairs: Sequence[tuple[float, float]]) -> None:
        positive = all(x > 0 and y > 0 for x, y in pairs)
        if self._log.setdefault(metric, positive) and not positive:
            return
        scale = math.log if self._log[metric] else float
        self._lines[metric, level] = _line([(scale(x), scale(y)) for x, y in pairs])

    def forecast(self, metric: str, value: float, level: int) -> Forecast | None:
        """Where a metric ends that is at ``value`` at ``level``; ``None`` where nothing is known or nothing is left."""
        log = self._log.get(metric, False)
        if (metric, level) not in self._lines or (log and value <= 0):
            return None
        mean, variance = math.log(value) if log else value, 0.0
        for j in range(level, self._top):
            if (line := self._lines.get((metric, j))) is None:
                break
            mean, variance = line.intercept + line.slope * mean, line.slope**2 * variance + line.deviation**2
        return Forecast(mean=mean, deviation=math.sqrt(variance), log=log)


def _is_curve(shape: object) -> bool:
    return getattr(shape, "kind", "") == "curve" and not isinstance(shape, Category)


def _stage(pairs: int) -> int:
    """How many of the pairs are used: 5, 8, 12, 18, 27 and so on."""
    if pairs < FEWEST:
        return 0
    count = FEWEST
    while (more := math.ceil(MORE * count)) <= pairs:
        count = more
    return count


def _line(pairs: Sequence[tuple[float, float]]) -> Line:
    """Least squares; a level that says nothing, or the contrary, of the next foretells its mean."""
    n = len(pairs)
    mx, my = sum(x for x, _ in pairs) / n, sum(y for _, y in pairs) / n
    sxx, sxy = sum((x - mx) ** 2 for x, _ in pairs), sum((x - mx) * (y - my) for x, y in pairs)
    slope = max(0.0, sxy / sxx) if sxx > 0 else 0.0
    residual = sum((y - my - slope * (x - mx)) ** 2 for x, y in pairs) / max(1, n - 2)
    return Line(intercept=my - slope * mx, slope=slope, deviation=math.sqrt(residual))
