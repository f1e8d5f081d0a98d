"""What observations cannot tell a law, whatever its fit says, and what they mean otherwise than the law does."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

import numpy as np

from isoloss.laws.cells import bounds
from isoloss.laws.evidence import Fit
from isoloss.laws.inference import NOT_IDENTIFIED
from isoloss.laws.lossforms import LOSS_FORMS
from isoloss.laws.observation import Observations

PLACES: Final = ("steplaw", "lr-batch")
ONE_BUDGET: Final = 0.2  # runs whose compute spans less than this (in ln) are of one budget
ONE_COMPUTE: Final = (
    "all runs have one compute: N and D move against each other, and what more brings rests on the form"
)
TOTAL: Final = {
    **dict.fromkeys(PLACES, "with active ones the step law lost ten times more on mixtures of experts"),
    "moe-sparsity": "give n_params all parameters, and n_active the active ones",
}


def with_caveats(made: Fit, observations: Observations) -> Fit:
    """The fit with its observations' recipe, its caveats before its warnings, and no constant identified by a bound."""
    edges = bounds(observations) if made.form in PLACES else {}
    found = list(edges.values())
    if made.form in TOTAL and any(row.n_params_count == "active" for row in observations):
        found.append(f"n_params are active parameters, {made.form} means all of them: {TOTAL[made.form]}")
    used = observations.select(observations.ok)
    if made.form in LOSS_FORMS or made.components:
        found += loss_caveats(used)
    estimates = {
        name: replace(one, verdict=NOT_IDENTIFIED) if name in edges else one for name, one in made.estimates.items()
    }
    return replace(made, recipe=observations.recipe(), estimates=estimates, warnings=(*found, *made.warnings))


def loss_caveats(used: Observations) -> list[str]:
    """What finished runs cannot tell any law of the loss."""
    return [ONE_COMPUTE] if np.ptp(np.log(used.flops)) < ONE_BUDGET else []
