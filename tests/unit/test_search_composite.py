"""Composite search: the model it stands on, the points it measures distances between, and what it proposes."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from isoloss.domain.space import check_configuration, configuration_at
from isoloss.domain.spec import StudySpec, decode_study
from isoloss.errors import InvalidSpec
from isoloss.search.composite import CompositeProposer, _unwarped, _warped
from isoloss.search.desirability import overall
from isoloss.search.driver import Driver
from isoloss.search.encoding import Encoding
from isoloss.search.events import Asked, Proposed, TaskDone
from isoloss.search.gp import GaussianProcess, _distances, _minus_log_posterior
from isoloss.search.proposals import check_sampler
from isoloss.search.scoring import score
from isoloss.search.search import Search
from isoloss.search.worth import believing, ranking

SQUARE: dict[str, Any] = {"a": {"type": "float", "low": 0, "high": 1}, "b": {"type": "float", "low": 0, "high": 1}}
MIXED: dict[str, Any] = {
    "lr": {"type": "float", "low": 1e-4, "high": 1e-1, "log": True},
    "layers": {"type": "int", "low": 1, "high": 4},
    "kind": {"type": "categorical", "choices": ["x", "y", "z"]},
    "size": {"type": "ordinal", "choices": [8, 16, 32]},
    "rate": {"type": "float", "low": 0, "high": 0.5, "when": {"kind": {"eq": "y"}}},
}
LEFT = {"shape": "smaller", "target": 0.0, "limit": 0.3}


def study(space: dict[str, Any], **desirability: Any) -> StudySpec:
    method = {"name": "fixed", "budget": 1, "sampler": "composite"}
    return decode_study({"name": "c", "space": space, "desirability": desirability, "method": method})


def test_a_process_passes_through_what_it_saw_and_doubts_the_rest() -> None:
    x = np.linspace(0, 1, 9)[:, None]
    y = np.sin(4 * x[:, 0])
    model = GaussianProcess(x, y, [[0]])
    mean, deviation = model.predict(x)
    assert mean == pytest.approx(y, abs=0.01) and deviation.max() < 0.05
    between = np.array([[0.43], [0.81]])
    assert model.predict(between)[0] == pytest.approx(np.sin(4 * between[:, 0]), abs=0.02)
    assert model.predict(np.array([[3.0]]))[1][0] > 5 * deviation.max()
    assert model.believing(np.array([[3.0]]), np.zeros(1)).predict(np.array([[3.0]]))[1][0] < 0.1


def test_noise_is_learned_and_not_followed() -> None:
    rng = np.random.default_rng(0)
    x = rng.random((60, 1))
    model = GaussianProcess(x, 2 * x[:, 0] + 0.3 * rng.normal(size=60), [[0]])
    mean, _ = model.predict(x)
    assert np.abs(mean - 2 * x[:, 0]).mean() < 0.15


def test_the_gradient_of_the_posterior_is_its_slope() -> None:
    rng = np.random.default_rng(1)
    x, z = rng.random((12, 3)), rng.normal(size=12)
    squares, theta = _distances(x, x, [[0], [1, 2]]), np.array([0.1, -0.4, 0.3, -2.0])
    given_ = (squares, z, np.zeros(4), np.ones(4))
    _, gradient = _minus_log_posterior(theta, *given_)
    for place in range(4):
        step = np.eye(4)[place] * 1e-5
        slope = _minus_log_posterior(theta + step, *given_)[0] - _minus_log_posterior(theta - step, *given_)[0]
        assert gradient[place] == pytest.approx(slope / 2e-5, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("rows", [0, 1, 2])
def test_a_process_of_hardly_any_points_is_a_prior(rows: int) -> None:
    model = GaussianProcess(np.full((rows, 1), 0.5), np.full(rows, 0.7), [[0]])
    mean, deviation = model.predict(np.array([[0.1]]))
    assert np.isfinite(mean).all() and (deviation >= 0).all()


@given(st.lists(st.lists(st.floats(0, 0.999), min_size=5, max_size=5), min_size=1, max_size=5))
def test_a_snapped_point_is_the_point_of_its_configuration(points: list[list[float]]) -> None:
    space = study(MIXED, loss=LEFT).space
    encoding = Encoding(space)
    snapped = encoding.snapped(np.array(points))
    configurations = [configuration_at(space, point) for point in points]
    assert encoding.points(configurations) == pytest.approx(snapped, abs=1e-9)
    assert [encoding.configuration(point) for point in snapped] == [pytest.approx(one) for one in configurations]
    columns = encoding.columns(snapped)
    assert columns.shape == (len(points), 7)
    kinds = next(block for block, name in zip(encoding.blocks, space, strict=True) if name == "kind")
    assert np.count_nonzero(columns[:, kinds], axis=1).tolist() == [1] * len(points)


@given(st.floats(-1e6, 1e6))
def test_a_warped_value_is_linear_between_the_limits_and_comes_back(value: float) -> None:
    shape = study(SQUARE, loss={"shape": "larger", "limit": 80, "target": 97}).desirability["loss"]
    u = _warped(shape, value)  # type: ignore[arg-type]
    assert float(_unwarped(shape, np.array(u))) == pytest.approx(value, rel=1e-6, abs=1e-6)  # type: ignore[arg-type]
    if 80 <= value <= 97:
        assert u == pytest.approx((value - 80) / 17)


def outcomes(params: Any) -> dict[str, float]:
    return {"near": abs(params["a"] - 0.8) + abs(params["b"] - 0.3), "cheap": params["a"] ** 2}


WISH = {
    "near": {"shape": "smaller", "target": 0, "limit": 0.25},
    "cheap": {"shape": "smaller", "target": 0.4, "limit": 0.8},
}


def history(n: int, seed: int = 0) -> list[tuple[dict[str, Any], dict[str, float]]]:
    points = np.random.default_rng(seed).random((n, 2))
    return [(params, outcomes(params)) for params in ({"a": float(a), "b": float(b)} for a, b in points)]


@pytest.mark.long
def test_proposals_leave_the_plateau_of_zero_and_find_the_optimum() -> None:
    spec = study(SQUARE, **WISH)
    seen = [one for one in history(20) if overall(spec, one[1]).overall == 0][:6]
    assert len(seen) == 6
    for number in range(14):
        params = CompositeProposer(spec).propose(history=seen, pending=(), n=1, seed=number)[0]
        seen.append((params, outcomes(params)))
    best = max(overall(spec, values).overall or 0 for _, values in seen)
    assert best > 0.6  # 0.68 is the best there is


def test_a_batch_spreads_and_what_runs_is_not_proposed_again() -> None:
    proposer = CompositeProposer(study(SQUARE, **WISH))
    first = proposer.propose(history=history(8), pending=(), n=4, seed=1)
    assert first == proposer.propose(history=history(8), pending=(), n=4, seed=1)
    points = np.array([[c["a"], c["b"]] for c in first], float)
    assert min(np.abs(p - q).max() for k, p in enumerate(points) for q in points[:k]) > 1e-3
    again = proposer.propose(history=history(8), pending=first[:1], n=1, seed=1)
    assert np.abs(np.array([again[0]["a"], again[0]["b"]], float) - points[0]).max() > 1e-3


def test_outcomes_may_be_measured_in_part_and_a_diverged_run_is_avoided() -> None:
    spec = study(SQUARE, near=WISH["near"] | {"missing": "neutral"}, cheap=WISH["cheap"])
    partly: list[Any] = [(c, v if k % 2 else {"cheap": v["cheap"]}) for k, (c, v) in enumerate(history(12))]
    assert CompositeProposer(spec).propose(history=partly, pending=(), n=1, seed=0)
    lost = dict.fromkeys(WISH, math.nan)
    right: list[Any] = [({"a": 0.5 + a / 10, "b": b / 4}, lost) for a in range(6) for b in range(5)]
    left = [one for one in history(30) if one[0]["a"] < 0.5]
    tried = CompositeProposer(study(SQUARE, **WISH)).propose(history=[*right, *left], pending=(), n=3, seed=0)
    assert any(float(c["a"]) < 0.55 for c in tried)


@pytest.mark.long
@settings(max_examples=10, deadline=None)
@given(st.integers(0, 1000), st.integers(0, 12))
def test_a_mixed_space_gets_configurations_of_its_own(seed: int, n: int) -> None:
    spec = study(MIXED, loss={"shape": "smaller", "target": 0, "limit": 1})
    rng = np.random.default_rng(seed)
    known = [configuration_at(spec.space, rng.random(5).tolist()) for _ in range(n)]
    seen = [(c, {"loss": float(c["layers"]) / 4 + (c["kind"] == "y")}) for c in known]
    for configuration in CompositeProposer(spec).propose(history=seen, pending=(), n=2, seed=seed):
        check_configuration(spec.space, configuration)


def test_a_formula_is_known_exactly_and_needs_no_model() -> None:
    size = {"shape": "smaller", "target": 0.1, "limit": 0.5, "kind": "static", "formula": "a"}
    spec = study(SQUARE, near=WISH["near"] | {"limit": 1.5}, size=size)
    seen = [(c, {"near": v["near"]}) for c, v in history(8)]
    assert all(c["a"] < 0.5 for c in CompositeProposer(spec).propose(history=seen, pending=(), n=3, seed=0))  # type: ignore[operator]


def test_many_results_and_mostly_conditional_spaces_go_to_tpe() -> None:
    many = history(501)[:501]
    assert len(CompositeProposer(study(SQUARE, **WISH)).propose(history=many, pending=(), n=2, seed=0)) == 2
    space = {"kind": MIXED["kind"], "rate": MIXED["rate"], "depth": MIXED["rate"]}
    proposer = CompositeProposer(study(space, loss=LEFT))
    assert proposer._hands_over(0) and not CompositeProposer(study(SQUARE, **WISH))._hands_over(500)
    assert proposer.propose(history=[({"kind": "x"}, {"loss": 1.0})], pending=(), n=1, seed=0)


@pytest.mark.long
def test_a_driver_searches_by_what_its_trials_measured() -> None:
    driver = Driver(study(SQUARE, **WISH))
    for _ in range(16):
        ask = driver.ask()
        assert ask is not None
        driver.tell(ask.trial, 1, outcomes(ask.params))
    sources = [driver.search.trial(number).source for number in range(16)]
    assert sources[:3] == ["random"] * 3 and set(sources[3:]) == {"composite"}
    best = driver.best()
    assert best is not None and best.value > 0.5
    with pytest.raises(InvalidSpec, match="composite without a desirability"):
        check_sampler(
            decode_study({
                "name": "c", "space": SQUARE, "objective": {"metric": "loss"},
                "method": {"name": "fixed", "budget": 1, "sampler": "composite"},
            })
        )  # fmt: skip


def recommended(seed: int) -> tuple[float, float]:
    """The true D of who measured best among noisy results, and of who is believed to be the best."""
    rng, spec = np.random.default_rng(seed), study(SQUARE, **WISH)
    points = history(30, seed=seed)
    search, known = Search(spec), {}
    search.apply(Proposed(configurations=tuple(params for params, _ in points), source="enqueued"))
    search.apply(Asked(n=len(points)))
    for place, (_, values) in enumerate(points):
        known[place, 0] = {metric: value + rng.normal(0, 0.08) for metric, value in values.items()}
        search.apply(TaskDone(trial=place, level=0, score=score(spec, known[place, 0])))
    measured = ranking(search, known)
    believed = believing(measured, search, known)()
    assert {worth.incumbent.trial for worth in believed} == {worth.incumbent.trial for worth in measured}
    assert believed[0].expected == max(worth.expected for worth in believed) != believed[0].value
    first, second = (overall(spec, points[w[0].incumbent.trial][1]).overall or 0.0 for w in (measured, believed))
    return first, second


def test_the_best_is_who_is_believed_in_and_not_who_was_lucky_once() -> None:
    measured, believed = np.mean([recommended(seed) for seed in range(10)], axis=0)
    assert believed > measured + 0.02


def test_few_results_are_believed_as_they_were_measured() -> None:
    spec = study(SQUARE, **WISH)
    search = Search(spec)
    search.apply(Proposed(configurations=({"a": 0.8, "b": 0.3},), source="enqueued"))
    search.apply(Asked(n=1))
    known = {(0, 0): outcomes({"a": 0.8, "b": 0.3})}
    search.apply(TaskDone(trial=0, level=0, score=score(spec, known[0, 0])))
    measured = ranking(search, known)
    assert measured and measured[0].believed is None and believing(measured, search, known)() == measured
