"""The compute-optimal frontier: which N and D spend C = 6 N D best, for any loss law of the catalogue.

Along a line of constant C every law here is a monotone function of a sum of exponentials in ln N, hence has one
minimum; Chinchilla's closed form (``chinchilla.py``) is its test.
"""

from __future__ import annotations

import numpy as np

from isoloss.errors import FitFailed
from isoloss.laws.evidence import Fit
from isoloss.laws.powersum import PowerSum


def frontier(form: PowerSum, fit: Fit, C: float) -> tuple[float, float]:
    """N (parameters) and D (tokens) of least loss at ``C`` FLOP; ``FitFailed`` when the law has no optimum inside."""
    from scipy.optimize import minimize_scalar

    theta = np.array(fit.theta)
    ln_c = float(np.log(C / 6))

    def loss(ln_n: float) -> float:
        Z = form.design(np.array([ln_n]), np.array([ln_c - ln_n]))
        return float(form.log_loss(theta[None], Z)[0][0, 0])

    found = minimize_scalar(loss, bounds=(0.0, max(ln_c, 1e-6)), method="bounded", options={"xatol": 1e-9})
    ln_n = float(found.x)
    if not 1e-3 < ln_n < ln_c - 1e-3:
        raise FitFailed(f"{fit.form} has no optimum at {C:.3g} FLOP: one of its terms does not fall with its variable.")
    return float(np.exp(ln_n)), float(np.exp(ln_c - ln_n))
