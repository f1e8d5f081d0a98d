from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from isoloss.errors import FitFailed
from isoloss.laws import steplaw, surface
from isoloss.laws.basin import Basin, bowl, bowl_skew, bowl_slope
from isoloss.laws.campaign import CampaignFit, fit_campaign
from isoloss.laws.cells import cells
from isoloss.laws.forecast import forecast
from isoloss.laws.observation import Observation, Observations, Status
from isoloss.laws.runs import gather

BASIN = Basin.of(np.array([np.log(0.012), -0.3, 0.3, np.log(0.008), 0.05]))
SIZES, TOKENS = (2e4, 8e4, 3.2e5), (6e4, 1.8e5, 5.4e5, 1.6e6)


def optimum(N: float, D: float) -> tuple[float, float]:
    x, y = np.log2(N / 8e4), np.log2(D / 3e5)
    return -7.0 - 0.6 * x + 0.25 * y, 9.0 - 0.05 * x + 0.5 * y


def level(N: float, D: float) -> float:
    return float(1.0 + 0.8 * (N / 8e4) ** -0.3 + 0.9 * (D / 3e5) ** -0.35)


def run(N: float, D: float, u: float, v: float, noise: float = 0.0) -> Observation:
    at = optimum(N, D)
    excess = float(BASIN.excess(np.array(u - at[0]), np.array(v - at[1])))
    return Observation(
        n_params=N, n_tokens=D, lr=2.0**u, batch_tokens=2.0**v, loss=level(N, D) * float(np.exp(excess + noise))
    )


def campaign(noise: float = 0.005, seed: int = 0, runs: tuple[int, ...] = (10, 8, 6, 5)) -> Observations:
    """Random configurations in every cell, as the brackets of a search give them."""
    rng = np.random.default_rng(seed)
    return Observations(
        tuple(
            run(N, D, rng.uniform(-10, -4.5), float(rng.integers(7, 12)), noise * float(rng.normal()))
            for N in SIZES
            for D, n in zip(TOKENS, runs, strict=True)
            for _ in range(n)
        )
    )


def grid(noise: float = 0.0) -> Observations:
    """A full grid of half octaves around every optimum."""
    rng = np.random.default_rng(0)
    places = [(round(u0), round(v0), N, D) for N in SIZES for D in TOKENS for u0, v0 in [optimum(N, D)]]
    return Observations(
        tuple(
            run(N, D, u0 + i / 2, v0 + j, noise * float(rng.normal()))
            for u0, v0, N, D in places
            for i in range(-3, 4)
            for j in (-2, -1, 0, 1, 2)
        )
    )


def test_a_cell_qualifies_with_five_configurations_and_an_interior_optimum() -> None:
    (cell,) = cells(Observations(tuple(row for row in grid() if (row.n_params, row.n_tokens) == (SIZES[0], TOKENS[0]))))
    u, v = optimum(SIZES[0], TOKENS[0])
    assert cell.qualifies
    assert np.log2(cell.lr) == pytest.approx(u, abs=0.15)
    assert np.log2(cell.batch_tokens) == pytest.approx(v, abs=0.3)


def test_an_optimum_at_the_edge_of_what_was_tried_does_not_qualify() -> None:
    u, v = optimum(2e4, 6e4)
    high = [run(2e4, 6e4, u + i, v + j) for i in (0.5, 1.0, 1.5, 2.0) for j in (-1, 0, 1)]
    two_batches = [run(2e4, 6e4, u + i, v + j) for i in (-1.0, 0.0, 1.0, 2.0) for j in (0, 1)]
    four = [run(2e4, 6e4, u + i, v) for i in (-1.0, -0.5, 0.2, 1.0)]
    one_batch = [*four, run(2e4, 6e4, u + 1.5, v)]
    verdicts = [cells(Observations(tuple(rows)))[0].qualifies for rows in (high, two_batches, four, one_batch)]
    assert verdicts == [False, False, False, True]


def test_the_step_law_finds_planted_exponents() -> None:
    made = steplaw.fit_step_law(grid(), bootstrap=100)
    planted = {"a": -0.6, "b": 0.25, "e": 0.5}
    for name, value in planted.items():
        assert made.estimates[name].value == pytest.approx(value, abs=0.06)
    assert made.backtest is not None


def test_the_step_laws_regression_is_least_squares_with_hc3_covariance() -> None:
    rng = np.random.default_rng(0)
    n = 40
    N, D = np.exp(rng.uniform(10, 14, n)), np.exp(rng.uniform(10, 14, n))
    lr = np.exp(1.0 - 0.5 * np.log(N) + 0.2 * np.log(D) + 0.1 * rng.normal(size=n))
    fitted = steplaw._Regression.over(steplaw.Rows(N, D, lr, lr, np.arange(n)), lr, ("c", "a", "b"))
    X = np.column_stack([np.ones(n), np.log(N), np.log(D)])
    bread = np.linalg.inv(X.T @ X)
    theta = bread @ X.T @ np.log(lr)
    e = (np.log(lr) - X @ theta) / (1 - np.einsum("np,pq,nq->n", X, bread, X))
    assert fitted.theta == pytest.approx(theta, rel=1e-9)
    assert np.allclose(fitted.covariance, bread @ (X.T * e**2) @ X @ bread, rtol=1e-8)


def test_cells_in_lockstep_cannot_carry_a_step_law() -> None:
    rows = [
        run(N, 3 * N, *np.add(optimum(N, 3 * N), (i, j)))
        for N in (1e4, 4e4, 1.6e5, 6.4e5)
        for i in (-1, 0, 1)
        for j in (-1, 0, 1)
    ]
    with pytest.raises(FitFailed, match="independently"):
        steplaw.fit_step_law(Observations(tuple(rows)))


@given(z=st.floats(-6, 6), k=st.floats(-1, 1))
def test_the_bowl_is_convex_and_its_derivatives_are_its_own(z: float, k: float) -> None:
    at, skew, h = np.array(z), np.array(k), 1e-5
    assert bowl(at, skew) >= 0.0
    assert float(bowl_slope(at, skew)) == pytest.approx(
        float(bowl(at + h, skew) - bowl(at - h, skew)) / (2 * h), rel=1e-4, abs=1e-6
    )
    assert float(bowl_skew(at, skew)) == pytest.approx(
        float(bowl(at, skew + h) - bowl(at, skew - h)) / (2 * h), rel=1e-3, abs=1e-5
    )


def test_the_surfaces_jacobian_is_the_derivative() -> None:
    runs = gather(campaign())
    rng = np.random.default_rng(0)
    theta = np.concatenate(
        [[-7.2, -0.5, 0.2, 9.2, 0.0, 0.6, -4.5, -0.2, 0.3, -5.0, 0.1], 0.1 * rng.normal(size=6 + runs.n_cells)]
    )
    jacobian = surface.residuals(runs, theta[None])[1][0]
    steps = 1e-6 * np.eye(len(theta))
    both = [(surface.residuals(runs, theta[None] + h)[0], surface.residuals(runs, theta[None] - h)[0]) for h in steps]
    numeric = np.stack([(plus - minus)[0] / 2e-6 for plus, minus in both], axis=-1)
    kinks = runs.censored & ~np.isclose(jacobian, numeric, atol=1e-5).all(axis=1)
    assert np.allclose(jacobian[~kinks], numeric[~kinks], atol=1e-5)
    assert kinks.sum() <= 1


@settings(max_examples=6, deadline=None)
@given(seed=st.integers(0, 1000))
def test_the_surface_finds_the_moving_optimum_from_scattered_runs(seed: int) -> None:
    made = surface.fit_surface(campaign(seed=seed), test=False)
    for N in SIZES:
        (u, v), _ = surface.predict(made, N, TOKENS[2])
        regret = BASIN.excess(*(np.array(a - b) for a, b in zip((u, v), optimum(N, TOKENS[2]), strict=True)))
        assert float(regret) < 0.02


def test_diverged_runs_push_the_optimum_down() -> None:
    low = Observations(tuple(row for row in campaign(runs=(3, 3, 3, 3)) if row.lr < 2.0**-7))
    cliff = [
        Observation(n_params=N, n_tokens=D, lr=2.0**-5.5, batch_tokens=2.0**9, status=Status.DIVERGED)
        for N in SIZES
        for D in TOKENS
    ]
    without = surface.fit_surface(low, test=False)
    with_cliff = surface.fit_surface(Observations((*low.rows, *cliff)), test=False)
    assert surface.predict(with_cliff, 8e4, 3e5)[0][0] < surface.predict(without, 8e4, 3e5)[0][0]


def test_a_batch_size_never_varied_is_kept_and_said() -> None:
    rows = [run(N, D, u, 9.0) for N in SIZES for D in TOKENS for u in (-9.0, -8.0, -7.0, -6.0, -5.0)]
    made = surface.fit_surface(Observations(tuple(rows)))
    assert forecast([made], 6e5, 4e6).batch_tokens == pytest.approx(512, rel=0.01)
    assert "never varied" in made.warnings[0]


def test_a_campaigns_forecast_has_every_key_and_holds_the_outcome() -> None:
    made = fit_campaign(campaign(), bootstrap=60)
    found = made.forecast(6e5, 4e6).to_mapping()
    assert set(found) == {
        "n_params", "n_tokens", "loss", "loss_interval", "lr", "lr_interval", "lr_range_0.25pct", "batch_tokens",
        "batch_tokens_interval", "batch_range_0.25pct", "level", "expected_regret", "extrapolation", "warnings",
    }  # fmt: skip
    outcome = run(6e5, 4e6, np.log2(found["lr"]), np.log2(found["batch_tokens"])).loss
    assert found["loss_interval"][0] <= outcome <= found["loss_interval"][1]
    assert found["lr_interval"][0] <= 2.0 ** optimum(6e5, 4e6)[0] <= found["lr_interval"][1]
    assert found["lr_range_0.25pct"][0] < found["lr"] < found["lr_range_0.25pct"][1]
    assert found["extrapolation"]["n_params"] == pytest.approx(6e5 / 3.2e5)
    assert not any(warning.startswith("too little data") for warning in found["warnings"])
    assert CampaignFit.from_mapping(made.to_mapping()) == made
    assert fit_campaign(campaign(), bootstrap=60) == made


def test_the_interval_widens_with_the_distance() -> None:
    made = fit_campaign(campaign(), bootstrap=60)
    near, far = (made.forecast(N, D) for N, D in ((6e5, 4e6), (6e7, 4e8)))
    for one in ("loss_interval", "lr_interval", "batch_tokens_interval"):
        (a, b), (c, d) = getattr(near, one), getattr(far, one)
        assert b / a < d / c
    assert any("times outside the observations" in warning for warning in far.warnings)


def test_a_tiny_campaign_answers_and_says_that_it_knows_too_little() -> None:
    few = Observations(tuple(row for row in campaign(runs=(3, 2, 1, 1)) if row.n_params < 1e5 and row.n_tokens < 5e5))
    found = fit_campaign(few, bootstrap=40).forecast(3e5, 1e6)
    assert all(np.isfinite([found.lr, found.batch_tokens, *found.lr_interval, *found.batch_tokens_interval]))  # type: ignore[misc]
    assert sum(warning.startswith("too little data: ") for warning in found.warnings) == 4
    with pytest.raises(FitFailed, match="needs at least 4"):
        fit_campaign(Observations(few.rows[:3]))
