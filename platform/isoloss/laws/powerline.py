"""A straight line in logarithms, y = c x^p, by ordinary least squares: what the small laws of batch and decay share."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from isoloss.errors import FitFailed, InvalidSpec
from isoloss.laws.evidence import Estimate
from isoloss.laws.inference import judge
from isoloss.laws.solve import Floats


@dataclass(frozen=True, slots=True, kw_only=True)
class PowerLine:
    """y = c x^p with intervals at ``level``; ``rms`` is that of the residuals in ln y.

    ``spread`` (2 × 2) is the covariance of (ln c, p) and ``freedom`` the degrees of freedom it was estimated with.
    """

    c: Estimate
    p: Estimate
    level: float
    rms: float
    points: int
    spread: tuple[tuple[float, ...], ...]
    freedom: int

    def at(self, x: float) -> float:
        """Y at ``x``."""
        return float(self.c.value * x**self.p.value)

    def interval(self, x: float) -> tuple[float, float]:
        """Where one new observation at ``x`` lies at the line's level."""
        from scipy.special import stdtrit

        row = np.array([1.0, np.log(x)])
        variance = row @ np.array(self.spread) @ row + self.rms**2 * self.points / self.freedom
        half = float(stdtrit(self.freedom, (1 + self.level) / 2) * np.sqrt(variance))
        return float(self.at(x) * np.exp(-half)), float(self.at(x) * np.exp(half))


def fit_power_line(x: Floats, y: Floats, *, level: float = 0.9) -> PowerLine:
    """The line through ln x and ln y (each (n,)).

    Raises ``InvalidSpec`` when a value is not above 0 and finite, ``FitFailed`` with fewer than three points or one x.
    """
    if x.shape != y.shape or not (np.all(np.isfinite([x, y])) and x.min(initial=1) > 0 < y.min(initial=1)):
        raise InvalidSpec("a power law was given values that are not above 0; accepted are finite numbers above 0.")
    if len(x) < 3 or np.ptp(x) == 0:
        raise FitFailed(
            f"a power law cannot be fitted to {len(x)} points at {len(np.unique(x))} places; it needs 3 at 2."
        )
    from statsmodels.api import OLS

    found = OLS(np.log(y), np.column_stack([np.ones(len(x)), np.log(x)])).fit()
    (c_low, c_high), (p_low, p_high) = found.conf_int(1 - level)
    c, p = (float(value) for value in found.params)
    c_se, p_se = (float(value) for value in found.bse)
    return PowerLine(
        c=Estimate(
            value=float(np.exp(c)),
            se=float(np.exp(c) * c_se),
            low=float(np.exp(c_low)),
            high=float(np.exp(c_high)),
            verdict=judge(c, (c_high - c_low) / 2, log=True),
        ),
        p=Estimate(
            value=p, se=p_se, low=float(p_low), high=float(p_high), verdict=judge(p, (p_high - p_low) / 2, log=False)
        ),
        level=level,
        rms=float(np.sqrt(np.mean(np.square(found.resid)))),
        points=len(x),
        spread=tuple(tuple(float(value) for value in row) for row in found.cov_params()),
        freedom=len(x) - 2,
    )
