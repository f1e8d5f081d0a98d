"""The compute-optimal frontier: which N and D spend C = 6 N D best, for any loss law of the catalogue.

A grid along the line of constant C finds the valley and a bounded search its floor; Chinchilla's closed form
(``chinchilla.py``) is its test.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final

import numpy as np

from isoloss.errors import FitFailed
from isoloss.laws.evidence import Fit
from isoloss.laws.lossform import NOTHING, LossForm, predict, target
from isoloss.laws.lossforms import LOSS_FORMS
from isoloss.laws.mixture import mean_log_loss

GRID: Final = 400


def frontier(form: LossForm, fit: Fit, C: float, given: Mapping[str, float] = NOTHING) -> tuple[float, float]:
    """N (parameters) and D (tokens) of least loss at ``C`` FLOP; ``FitFailed`` when the law has no optimum inside.

    ``given`` are the further columns of the form.
    """
    theta = np.array(fit.theta)
    return _least(lambda N, D: float(predict(form, theta, target(form, N, D, given))[0, 0]), C, fit.form)


def mixed_frontier(laws: Sequence[Fit], C: float, given: Mapping[str, float] = NOTHING) -> tuple[float, float]:
    """``frontier`` of the mixture of several loss laws: N and D where its point prediction is least."""

    def loss(N: float, D: float) -> float:
        x = {law.form: target(LOSS_FORMS[law.form], N, D, given) for law in laws}
        return float(mean_log_loss(laws, x)[0])

    return _least(loss, C, " with ".join(law.form for law in laws))


def _least(loss: Callable[[float, float], float], C: float, name: str) -> tuple[float, float]:
    from scipy.optimize import minimize_scalar

    ln_c = float(np.log(C / 6))

    def along(ln_n: float) -> float:
        return loss(float(np.exp(ln_n)), float(np.exp(ln_c - ln_n)))

    places = np.linspace(0.0, max(ln_c, 1e-6), GRID)
    lowest = int(np.argmin([along(float(place)) for place in places]))
    around = (float(places[max(lowest - 1, 0)]), float(places[min(lowest + 1, GRID - 1)]))
    ln_n = float(minimize_scalar(along, bounds=around, method="bounded", options={"xatol": 1e-9}).x)
    if not 1e-3 < ln_n < ln_c - 1e-3:
        raise FitFailed(f"{name} has no optimum at {C:.3g} FLOP: one of its terms does not fall with its variable.")
    return float(np.exp(ln_n)), float(np.exp(ln_c - ln_n))
