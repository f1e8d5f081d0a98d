from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from isoloss.errors import FitFailed, InvalidSpec
from isoloss.laws.chinchilla import CHINCHILLA, ChinchillaLaw
from isoloss.laws.evidence import Fit
from isoloss.laws.fit import backtest, fit
from isoloss.laws.forecast import forecast
from isoloss.laws.frontier import frontier
from isoloss.laws.lossform import Problem, columns_of
from isoloss.laws.lossforms import FAMILY
from isoloss.laws.mixture import leanings, weights
from isoloss.laws.observation import Observation, Observations
from isoloss.laws.solve import RobustLoss, parse_loss

SIZES, TOKENS = np.geomspace(5e7, 5e9, 6), np.geomspace(1e9, 1e11, 6)
LAW = ChinchillaLaw(E=1.8, A=480.0, B=2100.0, alpha=0.35, beta=0.37)


def planted(law: ChinchillaLaw, noise: float = 0.0, seed: int = 0) -> Observations:
    rng = np.random.default_rng(seed)
    return Observations(
        tuple(
            Observation(n_params=N, n_tokens=D, loss=law.loss(N, D) * float(np.exp(noise * rng.normal())))
            for N in SIZES
            for D in TOKENS
        )
    )


@settings(max_examples=8, deadline=None)
@given(alpha=st.floats(0.2, 0.6), beta=st.floats(0.2, 0.6), E=st.floats(0.5, 2.5), share=st.floats(0.2, 2.0))
def test_chinchilla_finds_a_planted_law_exactly(alpha: float, beta: float, E: float, share: float) -> None:
    law = ChinchillaLaw(E=E, A=share * SIZES[2] ** alpha, B=TOKENS[2] ** beta, alpha=alpha, beta=beta)
    made = fit("chinchilla", planted(law), bootstrap=0)
    for name in ("E", "A", "B", "alpha", "beta"):
        assert made.estimates[name].value == pytest.approx(getattr(law, name), rel=1e-3)


def test_huber_ignores_outliers_that_move_least_squares() -> None:
    seen = planted(LAW, noise=1e-4)
    rows = tuple(
        row if i % 12 else Observation(n_params=row.n_params, n_tokens=row.n_tokens, loss=1.5 * row.loss)
        for i, row in enumerate(seen)
    )
    robust, squared, lad = (
        fit("chinchilla", Observations(rows), loss=loss, bootstrap=0).estimates["alpha"].value
        for loss in ("huber:1e-3", "squared", "lad")
    )
    assert abs(robust - 0.35) < 0.01 > abs(lad - 0.35)
    assert abs(squared - 0.35) > 0.03


@pytest.mark.parametrize("loss", ["huber:1e-3", "lad"])
def test_no_small_step_improves_on_the_solution(loss: str) -> None:
    seen = planted(LAW, noise=0.01)
    problem = Problem(CHINCHILLA, columns_of(CHINCHILLA, seen), seen.loss, parse_loss(loss))
    _, solution = problem.solve(problem.starts())
    rng = np.random.default_rng(0)
    tries = solution.theta + rng.normal(size=(500, 5)) * np.geomspace(1e-6, 1e-2, 500)[:, None]
    residuals = problem.residuals(tries)[0]
    assert (problem.robust.total(residuals, np.ones(len(seen))) >= solution.objective * (1 - 1e-7)).all()


def test_units_do_not_matter() -> None:
    seen = planted(LAW, noise=0.005)
    scaled = Observations(
        tuple(Observation(n_params=1e3 * r.n_params, n_tokens=r.n_tokens / 1e4, loss=r.loss) for r in seen)
    )
    ours, theirs = fit("chinchilla", seen, bootstrap=0), fit("chinchilla", scaled, bootstrap=0)
    assert theirs.estimates["alpha"].value == pytest.approx(ours.estimates["alpha"].value, rel=1e-5)
    assert theirs.estimates["A"].value == pytest.approx(
        ours.estimates["A"].value * 1e3 ** theirs.estimates["alpha"].value, rel=1e-4
    )


@pytest.mark.long
def test_the_bootstrap_interval_covers_the_planted_constants_about_as_often_as_it_says() -> None:
    hits = [
        (low := made.estimates["beta"].low) is not None
        and (high := made.estimates["beta"].high) is not None
        and low <= LAW.beta <= high
        for seed in range(9)
        for made in [fit("chinchilla", planted(LAW, 0.01, seed), loss="squared", bootstrap=60, seed=seed)]
    ]
    assert 0.7 <= np.mean(hits) <= 1.0


def test_bootstrap_and_covariance_agree_on_the_standard_error() -> None:
    seen = planted(LAW, noise=0.01)
    drawn = fit("chinchilla", seen, loss="squared", bootstrap=200).estimates["alpha"].se
    derived = fit("chinchilla", seen, loss="squared", bootstrap=0).estimates["alpha"].se
    assert drawn == pytest.approx(derived, rel=0.35)


def test_a_constant_that_nothing_determines_is_called_not_identified() -> None:
    flat = ChinchillaLaw(E=2.0, A=1e-3, B=2100.0, alpha=0.35, beta=0.37)  # the N term is invisible under the noise
    made = fit("chinchilla", planted(flat, noise=0.01), bootstrap=100)
    assert made.estimates["A"].verdict == "not identified"
    assert any("not identified" in warning for warning in made.warnings)


def test_the_frontier_is_chinchillas_closed_form() -> None:
    made = fit("chinchilla", planted(LAW), bootstrap=0)
    N, D = frontier(CHINCHILLA, made, 1e21)
    assert pytest.approx(LAW.optimal(1e21), rel=1e-3) == (N, D)
    assert pytest.approx(1e21) == 6 * N * D


def test_the_same_seed_gives_the_same_fit_and_order_does_not_matter() -> None:
    seen = planted(LAW, noise=0.01)
    turned = Observations(tuple(reversed(seen.rows)))
    assert fit("chinchilla", seen, bootstrap=20) == fit("chinchilla", seen, bootstrap=20)
    assert fit("chinchilla", turned, bootstrap=0).theta == pytest.approx(
        fit("chinchilla", seen, bootstrap=0).theta, rel=1e-5
    )


def test_a_fit_survives_json_and_forecasts_the_same() -> None:
    made = fit("interaction", planted(LAW, noise=0.005), bootstrap=50)
    again = Fit.from_mapping(made.to_mapping())
    assert again == made
    assert forecast([again], 7e9, 2e11).to_mapping() == forecast([made], 7e9, 2e11).to_mapping()
    with pytest.raises(InvalidSpec, match="this is no fit"):
        Fit.from_mapping({"form": "chinchilla"})


def test_auto_mixes_by_rollouts_and_answers_with_the_heaviest_laws_constants() -> None:
    made = fit("auto", planted(LAW, noise=0.003), bootstrap=0)
    shares = weights(made.components)
    heaviest = made.components[int(np.argmax(shares))]
    assert made.form == "auto"
    assert sum(shares) == pytest.approx(1)
    assert {part.form for part in made.components} == set(FAMILY)
    assert made.estimates == heaviest.estimates
    assert "auto mixes" in made.warnings[0] and heaviest.form in made.warnings[0]
    assert forecast([made], 7e9, 2e11).loss == pytest.approx(forecast(made.components, 7e9, 2e11).loss)


def test_a_law_that_foretold_every_rollout_best_gets_nearly_everything() -> None:
    seen = planted(LAW, noise=1e-3)
    made = fit("auto", seen, bootstrap=0)
    shares = dict(zip((part.form for part in made.components), weights(made.components), strict=True))
    assert shares["kaplan"] < 0.02
    assert shares["chinchilla"] + shares["interaction"] > 0.5


def test_one_backtest_may_only_lean_where_six_rollouts_decide() -> None:
    made = fit("auto", planted(LAW, noise=1e-3), bootstrap=0)
    bare = [replace(part, rollouts=()) for part in made.components]
    assert weights(bare) == pytest.approx(leanings(bare))
    assert max(weights(bare)) < max(weights(made.components))


def test_a_mixtures_interval_widens_with_the_distance_to_the_runs() -> None:
    made = fit("auto", planted(LAW, noise=0.003), bootstrap=20)
    widths = []
    for factor in (1, 10, 100):
        low, high = forecast([made], 5e9 * factor, 1e11 * factor).loss_interval or (0, 0)
        widths.append(np.log(high / low))
    assert widths[0] < widths[1] < widths[2]


def test_a_backtest_holds_out_what_it_is_told() -> None:
    tested = backtest(planted(LAW), "flops > 1e20")
    assert set(tested) == {*FAMILY, "auto"}
    assert tested["chinchilla"].error < 1e-6 < tested["kaplan"].error
    assert tested["auto"].error < tested["kaplan"].error
    with pytest.raises(InvalidSpec, match="hold-out"):
        backtest(planted(LAW), "flops > 1e30")


@pytest.mark.parametrize("form", [*FAMILY, "farseer", "overtraining", "steplaw", "auto"])
def test_too_few_runs_are_an_error_not_a_number(form: str) -> None:
    with pytest.raises(FitFailed, match="needs"):
        fit(form, Observations(planted(LAW).rows[:4]))


def test_bad_settings_name_what_is_accepted() -> None:
    seen = planted(LAW)
    for wrong in (
        {"form": "hoffmann"},
        {"loss": "huber:-1"},
        {"loss": "l2"},
        {"level": 1.5},
        {"bootstrap": -1},
        {"near": 2.0},
    ):
        with pytest.raises(InvalidSpec, match="accepted"):
            fit(**({"form": "chinchilla", "observations": seen} | wrong))  # type: ignore[arg-type]


def test_robust_losses_agree_where_they_should() -> None:
    r = np.array([[1e-4, -0.5]])
    assert RobustLoss("huber", 1e-3).total(r, np.ones(2))[0] == pytest.approx(0.5e-8 + 1e-3 * (0.5 - 0.5e-3))
    assert RobustLoss("lad").total(r, np.ones(2))[0] == pytest.approx(0.5001, abs=1e-6)
    assert RobustLoss("squared").total(r, np.ones(2))[0] == pytest.approx(0.5 * (1e-8 + 0.25))
