"""The joint fit of a campaign: which learning rate, batch size and loss its observations foretell, all rooms together.

The optimum comes from the joint surface over all runs, the loss from every loss law over the cells' levels. The step
law is fitted beside them as soon as four cells qualify, to be compared with.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

import msgspec
import numpy as np

from isoloss.errors import FitFailed
from isoloss.laws import steplaw, surface
from isoloss.laws.cells import CONFIGURATIONS, Cell, cells
from isoloss.laws.evidence import Fit, decode
from isoloss.laws.forecast import Forecast, forecast
from isoloss.laws.lossforms import BELIEVED
from isoloss.laws.losslaw import Settings, fit_loss_law
from isoloss.laws.observation import Observations

RUNS: Final = 60  # in simulation at the demo's noise, 30 runs gave loss intervals 31 % wide, 84 runs 13 %
TOO_LITTLE: Final = "too little data: "


@dataclass(frozen=True, slots=True, kw_only=True)
class CampaignFit:
    """Every fit of a campaign: the joint surface, the step law where there is one, then loss laws by back-test error.

    ``warnings`` begin with "too little data: " when the campaign
    is too small to be believed.
    """

    fits: tuple[Fit, ...]
    observation_hash: str
    n_observations: int
    cells: int
    qualifying_cells: int
    warnings: tuple[str, ...] = ()

    def forecast(self, n_params: float, n_tokens: float, level: float = 0.9) -> Forecast:
        """The forecast of all fits together, with this campaign's warnings first."""
        found = forecast(self.fits, n_params, n_tokens, level)
        return replace(found, warnings=tuple(dict.fromkeys((*self.warnings, *found.warnings))))

    def to_mapping(self) -> dict[str, Any]:
        """A JSON-able mapping, draws included."""
        mapping: dict[str, Any] = msgspec.to_builtins(self)
        return mapping

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Any]) -> CampaignFit:
        """The campaign's fit again; ``InvalidSpec`` when the mapping is none."""
        fit: CampaignFit = decode(mapping, cls)
        return fit


def fit_campaign(
    observations: Observations, *, seed: int = 0, bootstrap: int = 200, level: float = 0.9, pool: bool = False
) -> CampaignFit:
    """Fit everything the observations allow.

    Raises ``FitFailed`` when neither the optimum nor the loss can be fitted (fewer than four finished runs with lr and
    batch), ``InvalidSpec`` when recipes are mixed without ``pool``.
    """
    observations.one_recipe(pool=pool)
    found = cells(observations)
    place = surface.fit_surface(observations, seed=seed, level=level)
    step: list[Fit] = []
    rows = steplaw.optima(observations)
    if steplaw.spans(rows):
        step = [steplaw.fit_step_law(observations, bootstrap=bootstrap, seed=seed, level=level)]
    losses, problem = _losses(observations, Settings(bootstrap=bootstrap, seed=seed, level=level, believe=True))
    return CampaignFit(
        fits=(place, *step, *losses),
        observation_hash=observations.hash(),
        n_observations=len(observations),
        cells=len(found),
        qualifying_cells=len(rows.lr),
        warnings=(*_too_little(found, observations), *problem),
    )


def _losses(observations: Observations, settings: Settings) -> tuple[list[Fit], tuple[str, ...]]:
    """The loss laws over the cells' levels, best back-test first, or none and why."""
    levels, noise = surface.levels(observations)
    fits = []
    for form in BELIEVED.values():
        try:
            fit = fit_loss_law(form, levels, settings, observation_hash=observations.hash())
        except FitFailed as error:
            return [], (f"{TOO_LITTLE}no loss law: {error.message}",)
        fits.append(replace(fit, noise=max(fit.noise, noise)))
    return sorted(fits, key=lambda fit: fit.backtest.error if fit.backtest else np.inf), ()


def _too_little(found: tuple[Cell, ...], observations: Observations) -> tuple[str, ...]:
    """One sentence for each way in which the campaign is too small."""
    finished = observations.select(observations.ok)
    sizes, columns = len(np.unique(finished.n_params)), len(np.unique(finished.n_tokens))
    full = sum(cell.configurations >= CONFIGURATIONS for cell in found)
    checks = (
        (sizes < 3, f"{sizes} sizes; 3 show an exponent of N"),
        (columns < 3, f"{columns} token counts; 3 show an exponent of D"),
        (len(finished) < RUNS, f"{len(finished)} finished runs; from {RUNS} on an interval is worth reading"),
        (full < 4, f"{full} of {len(found)} cells have {CONFIGURATIONS} configurations; 4 determine the step law"),
    )
    return tuple(f"{TOO_LITTLE}{text}" for small, text in checks if small)
