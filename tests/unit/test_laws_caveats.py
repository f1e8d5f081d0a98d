from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from isoloss.laws.campaign import fit_campaign
from isoloss.laws.cells import bounds
from isoloss.laws.fit import fit
from isoloss.laws.forecast import forecast
from isoloss.laws.observation import Observation, Observations

RECIPE = '{"schedule":"cosine"}'


def grid(shift: float = 0.0, recipe: str = "", n_params_count: str = "total") -> Observations:
    """Three sizes at three D, a grid of lr and batch whose best lr lies ``shift`` octaves under the middle."""
    rng = np.random.default_rng(0)
    return Observations(
        tuple(
            Observation(
                n_params=N,
                n_tokens=D,
                lr=2.0**u,
                batch_tokens=2.0**v,
                loss=loss(N, D)
                * float(np.exp(0.01 * (u + 9 + shift) ** 2 + 0.008 * (v - 18) ** 2 + 1e-3 * rng.normal())),
                recipe=recipe,
                n_params_count=n_params_count,
            )
            for N in (6e7, 1.2e8, 2.4e8)
            for D in (2e9, 4e9, 8e9)
            for u in (-11.0, -10.0, -9.0, -8.0, -7.0)
            for v in (16.0, 17.0, 18.0, 19.0, 20.0)
        )
    )


def loss(N: float, D: float) -> float:
    return float(1.8 + 480 / N**0.35 + 2100 / D**0.37)


def test_an_optimum_at_the_edge_of_every_grid_is_a_bound_and_not_identified() -> None:
    assert bounds(grid()) == {}
    low, high = fit("lr-batch", grid(8)), fit("lr-batch", grid(-8))
    assert "the best lr is the least tried in 9 of 9 cells" in low.warnings[0]
    assert "search above it" in high.warnings[0]
    assert low.estimates["lr"].verdict == high.estimates["lr"].verdict == "not identified"
    assert fit("lr-batch", grid()).estimates["lr"].verdict == "identified"
    joint = fit_campaign(grid(8), bootstrap=5)
    assert any("the least tried" in text for text in joint.forecast(1e9, 1e10).warnings)


def test_active_parameters_are_no_total_ones() -> None:
    for form in ("lr-batch", "steplaw"):
        made = fit(form, grid(n_params_count="active"), bootstrap=5)
        assert any("active parameters" in text for text in made.warnings)
        assert not any("active" in text for text in fit(form, grid(), bootstrap=5).warnings)


def test_one_budget_is_said() -> None:
    sizes = np.geomspace(5e7, 5e9, 9)
    rows = [{"n_params": N, "n_tokens": 1e20 / 6 / N, "loss": loss(N, 1e20 / 6 / N)} for N in sizes]
    assert "one compute" in fit("chinchilla", Observations.from_rows(rows), bootstrap=0).warnings[0]
    assert "one compute" in fit("auto", Observations.from_rows(rows), bootstrap=0).warnings[0]


def test_a_forecast_across_recipes_warns_and_widens() -> None:
    place, law = (fit(form, grid(recipe=RECIPE), bootstrap=20) for form in ("lr-batch", "chinchilla"))
    assert law.recipe == RECIPE
    same = forecast([place, law], 5e8, 1e10, recipe={"schedule": "cosine"})
    assert same == forecast([place, law], 5e8, 1e10)
    assert not any("widened" in text for text in same.warnings)
    mixed = forecast([place, replace(law, recipe='{"schedule":"wsd"}')], 5e8, 1e10)
    stated = forecast([place, law], 5e8, 1e10, recipe={"schedule": "wsd"})
    unknown = forecast([place, law], 5e8, 1e10, recipe={"tokenizer": "bpe"})
    for found, said in ((mixed, "of different recipes"), (stated, "cosine"), (unknown, "not recorded")):
        assert said in found.warnings[0]
        assert (found.loss, found.lr) == (same.loss, same.lr)
        for name in ("loss_interval", "lr_interval", "batch_tokens_interval"):
            wide, narrow = getattr(found, name), getattr(same, name)
            assert wide[1] / wide[0] > 1.02 * narrow[1] / narrow[0]


@pytest.mark.parametrize("form", ["lr-batch", "chinchilla"])
def test_a_fit_keeps_its_recipe_through_a_file(form: str) -> None:
    made = fit(form, grid(recipe=RECIPE), bootstrap=5)
    assert type(made).from_mapping(made.to_mapping()) == made
