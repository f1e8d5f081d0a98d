"""The compute-optimal frontier: which N and D spend C = 6 N D best, for any loss law of the catalogue.

A grid along the line of constant C finds the valley and a bounded search its floor; Chinchilla's closed form
(``chinchilla.py``) is its test.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np

from isoloss.errors import FitFailed
from isoloss.laws.evidence import Fit
from isoloss.laws.lossform import NOTHING, LossForm, predict, target
from isoloss.laws.lossforms import LOSS_FORMS
from isoloss.laws.mixture import leanings

GRID: Final = 400


def frontier(form: LossForm, fit: Fit, C: float, given: Mapping[str, float] = NOTHING) -> tuple[float, float]:
    """N (parameters) and D (tokens) of least loss at ``C`` FLOP; ``FitFailed`` when the law has no optimum inside.

    ``given`` are the further columns of the form.
    """
    from scipy.optimize import minimize_scalar

    theta, ln_c = np.array(fit.theta), float(np.log(C / 6))

    def loss(ln_n: float) -> float:
        x = target(form, float(np.exp(ln_n)), float(np.exp(ln_c - ln_n)), given)
        return float(predict(form, theta, x)[0, 0])

    places = np.linspace(0.0, max(ln_c, 1e-6), GRID)
    lowest = int(np.argmin([loss(float(place)) for place in places]))
    around = (float(places[max(lowest - 1, 0)]), float(places[min(lowest + 1, GRID - 1)]))
    ln_n = float(minimize_scalar(loss, bounds=around, method="bounded", options={"xatol": 1e-9}).x)
    if not 1e-3 < ln_n < ln_c - 1e-3:
        raise FitFailed(f"{fit.form} has no optimum at {C:.3g} FLOP: one of its terms does not fall with its variable.")
    return float(np.exp(ln_n)), float(np.exp(ln_c - ln_n))


def mixed_frontier(laws: Sequence[Fit], C: float, given: Mapping[str, float] = NOTHING) -> tuple[float, float]:
    """The frontier of several loss laws: the mean ln N of their own optima, by ``mixture.leanings``.

    Where a loss is flat, laws that agree on it to a tenth of a percent disagree on its optimum by a factor; so here no
    law speaks alone. ``FitFailed`` when none has an optimum.
    """
    optima, shares, problem = [], [], FitFailed("there is no loss law to ask for an optimum.")
    for law, share in zip(laws, leanings(laws), strict=True):
        try:
            optima.append(np.log(frontier(LOSS_FORMS[law.form], law, C, given)[0]))
            shares.append(share)
        except FitFailed as error:
            problem = error
    if not optima:
        raise problem
    N = float(np.exp(np.average(optima, weights=shares)))
    return N, C / (6 * N)
