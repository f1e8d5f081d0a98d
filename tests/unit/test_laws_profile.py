from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from isoloss.laws.chinchilla import CHINCHILLA
from isoloss.laws.dataconstrained import DATA_CONSTRAINED
from isoloss.laws.fit import fit
from isoloss.laws.lossform import LossForm, columns_of, predict
from isoloss.laws.losslaw import Settings, profile_law
from isoloss.laws.observation import Observation, Observations
from isoloss.laws.solve import Floats, RobustLoss

THETA = np.array([np.log(1.8), np.log(480), np.log(2100), 0.35, 0.37])


def noisy(form: LossForm, theta: Floats, runs: Observations, noise: float, seed: int = 0) -> Observations:
    rng = np.random.default_rng(seed)
    losses = predict(form, theta, columns_of(form, runs))[0] * np.exp(noise * rng.standard_normal(len(runs)))
    return Observations(tuple(replace(row, loss=float(loss)) for row, loss in zip(runs, losses, strict=True)))


def grid(repeats: tuple[float, ...] = (1.0,)) -> Observations:
    return Observations(
        tuple(
            Observation(n_params=N, n_tokens=D, loss=1.0, extras={"unique_tokens": D / times})
            for N in np.geomspace(5e7, 5e9, 6)
            for D in np.geomspace(1e9, 1e11, 6)
            for times in repeats
        )
    )


def test_a_profile_of_least_squares_is_the_normal_interval_where_the_law_is_nearly_linear() -> None:
    seen = noisy(CHINCHILLA, THETA, grid(), 1e-3)
    made = fit("chinchilla", seen, loss="squared", bootstrap=0, level=0.9)
    found = profile_law(CHINCHILLA, seen, Settings(robust=RobustLoss("squared"), level=0.9))
    for name in ("E", "alpha", "beta"):
        profile, one = found[name], made.estimates[name]
        assert profile.low is not None and profile.high is not None and one.low is not None and one.high is not None
        low, high = np.exp([profile.low, profile.high]) if name == "E" else (profile.low, profile.high)
        width = one.high - one.low
        assert (low, high) == pytest.approx((one.low, one.high), abs=0.05 * width), name
        assert profile.verdict == "identified"


def test_a_profile_rises_on_both_sides_of_the_optimum() -> None:
    seen = noisy(CHINCHILLA, THETA, grid(), 0.01)
    for name, profile in profile_law(CHINCHILLA, seen, Settings()).items():
        lowest = int(np.argmin(profile.statistics))
        assert (np.diff(profile.statistics[: lowest + 1]) < 1e-6).all(), name
        assert (np.diff(profile.statistics[lowest:]) > -1e-6).all(), name


def test_a_profile_open_on_one_side_is_not_identified_though_the_other_side_is_known() -> None:
    # repeats are nearly worth fresh tokens: a larger R_D* changes nothing, a small one would show
    runs = grid(repeats=(1.0, 1.5, 3.0))
    seen = noisy(DATA_CONSTRAINED, np.log([3000.0, 5.0]), runs, 0.01)
    profile = profile_law(DATA_CONSTRAINED, seen, Settings(level=0.95))["R_D*"]
    assert profile.low is not None and profile.high is None
    assert np.exp(profile.low) < 3000
    assert profile.verdict == "not identified"
    made = fit("data-constrained", seen, bootstrap=50, level=0.95)
    assert made.estimates["R_D*"].verdict == "not identified"


@pytest.mark.long
def test_the_interval_covers_the_planted_exponent_about_as_often_as_it_says() -> None:
    hits = 0
    for seed in range(14):
        seen = noisy(CHINCHILLA, THETA, grid(), 0.01, seed)
        profile = profile_law(CHINCHILLA, seen, Settings(robust=RobustLoss("squared")))["beta"]
        hits += (profile.low or -np.inf) <= THETA[4] <= (profile.high or np.inf)
    assert hits >= 10
