"""Desirabilities: the published tables, and that the soft form orders as the hard one does and never goes flat."""

from __future__ import annotations

import math

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from isoloss.domain.objective import AnyDesirability, Larger, Smaller, Target
from isoloss.domain.spec import StudySpec, decode_study
from isoloss.search.desirability import hard, log_soft, overall, soft
from isoloss.search.scoring import score

VALUES = (-1, 80, 84.25, 88.5, 92.75, 97, 98, math.inf, -math.inf)
METHOD = {"min_budget": 1, "max_budget": 9}


def study(**desirability: dict[str, object]) -> StudySpec:
    return decode_study({"name": "d", "space": {}, "desirability": desirability, "method": METHOD})


@pytest.mark.parametrize(
    ("shape", "values", "expected"),
    [
        (Larger(limit=80, target=97), VALUES, (0, 0, 0.25, 0.5, 0.75, 1, 1, 1, 0)),
        (Larger(limit=80, target=97, scale=0.5), VALUES, (0, 0, 0.5, 0.7071067812, 0.8660254038, 1, 1, 1, 0)),
        (Larger(limit=80, target=97, scale=2), VALUES, (0, 0, 0.0625, 0.25, 0.5625, 1, 1, 1, 0)),
        (Larger(limit=80, target=97, scale=3), VALUES, (0, 0, 0.015625, 0.125, 0.421875, 1, 1, 1, 0)),
        (Smaller(target=80, limit=97), VALUES, (1, 1, 0.75, 0.5, 0.25, 0, 0, 0, 1)),
        (Smaller(target=80, limit=97, scale=0.5), VALUES, (1, 1, 0.8660254038, 0.7071067812, 0.5, 0, 0, 0, 1)),
        (Target(low=55, target=57.5, high=60), (54, 55, 56, 57.5, 58, 59.9, 60, 61), (0, 0, 0.4, 1, 0.8, 0.04, 0, 0)),
        (
            Target(low=55, target=57.5, high=60, scale_low=2, scale_high=0.5),
            (54, 55, 56, 57.5, 58, 59.9, 60, 61), (0, 0, 0.16, 1, 0.894427191, 0.2, 0, 0),
        ),
        (Target(low=0, target=2, high=10), (0, 1, 2, 6, 10), (0, 0.5, 1, 0.5, 0)),
    ],
)  # fmt: skip
def test_the_ramps_of_derringer_and_suich(
    shape: AnyDesirability, values: tuple[float, ...], expected: tuple[float, ...]
) -> None:
    assert [hard(shape, value) for value in values] == pytest.approx(expected, abs=1e-10)
    assert not any(math.copysign(1, hard(shape, value)) < 0 for value in values)


PURITY = {
    "conversion": {"shape": "larger", "limit": 80, "target": 97},
    "activity": {"shape": "target", "low": 55, "target": 57.5, "high": 60},
}


@pytest.mark.parametrize(
    ("conversion", "activity", "expected"),
    [(81.09, 59.85, 0.0620246630), (90, 57, 0.6859943406), (97, 57.5, 1), (79, 57.5, 0), (97, 61, 0)],
)
def test_the_overall_desirability_is_the_geometric_mean(conversion: float, activity: float, expected: float) -> None:
    worth = overall(study(**PURITY), {"conversion": conversion, "activity": activity})
    assert worth.overall == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(
    ("values", "expected"),
    [((5, 5, 5), 0.6299605249), ((8, 2, 4), 0.8), ((1, 1, 1), 0.2620741394), ((9, 9.9, 5), 0.2080083823)],
)
def test_three_metrics_together(values: tuple[float, float, float], expected: float) -> None:
    spec = study(
        a={"shape": "larger", "limit": 0, "target": 10}, b={"shape": "smaller", "target": 0, "limit": 10},
        c={"shape": "target", "low": 0, "target": 5, "high": 10},
    )  # fmt: skip
    assert overall(spec, dict(zip("abc", values, strict=True))).overall == pytest.approx(expected, abs=1e-9)


def test_the_tyre_of_1980_and_a_published_optimum() -> None:
    tyre = study(
        abrasion={"shape": "larger", "limit": 120, "target": 170},
        modulus={"shape": "larger", "limit": 1000, "target": 1300},
        elongation={"shape": "target", "low": 400, "target": 500, "high": 600},
        hardness={"shape": "target", "low": 60, "target": 67.5, "high": 75},
    )  # fmt: skip
    worth = overall(tyre, {"abrasion": 129.5, "modulus": 1300, "elongation": 465.7, "hardness": 68})
    assert worth.parts == pytest.approx({"abrasion": 0.19, "modulus": 1, "elongation": 0.657, "hardness": 14 / 15})
    assert worth.overall == pytest.approx(0.5842368375) and worth.limiting == "abrasion"
    tuned = study(
        loss={"shape": "smaller", "target": 10, "limit": 6000}, epochs={"shape": "smaller", "target": 32, "limit": 64}
    )
    assert overall(tuned, {"loss": 2786.569580078125, "epochs": 32}).overall == pytest.approx(1 - 0.26756171154312125)


def test_importance_weighs_the_mean() -> None:
    ramp = {"shape": "larger", "limit": 0, "target": 1}
    values = {"a": 0.5, "b": 0.8, "c": 0.2}
    weighted = study(a=ramp | {"importance": 1}, b=ramp | {"importance": 2}, c=ramp | {"importance": 5})
    assert overall(weighted, values).overall == pytest.approx(0.3171666350)
    assert overall(study(a=ramp, b=ramp, c=ramp), values).overall == pytest.approx(0.4308869380)


def test_unknown_is_not_diverged() -> None:
    spec = study(**PURITY)
    unknown = overall(spec, {"conversion": 90})
    assert unknown.overall is None and unknown.parts["activity"] is None and unknown.limiting == "conversion"
    diverged = overall(spec, {"conversion": math.nan, "activity": 57.5})
    assert diverged.overall == 0 and diverged.limiting == "conversion"
    assert overall(spec, {"conversion": math.inf, "activity": 57.5}).overall == 0
    assert overall(spec, {"conversion": 79}).overall == 0  # a veto stands whatever the other turns out to be
    assert overall(spec, {"conversion": 97, "activity": 57.5}).limiting is None


def test_the_score_is_what_a_rung_minimises() -> None:
    plain = {"name": "d", "space": {}, "method": METHOD}
    low = decode_study(plain | {"objective": {"metric": "loss"}})
    high = decode_study(plain | {"objective": {"metric": "loss", "goal": "maximize"}})
    assert score(low, {"loss": 2}) == 2 and score(high, {"loss": 2}) == -2
    assert score(low, {"loss": math.nan}) is None and score(low, {"other": 1}) is None
    spec = study(**PURITY)
    far, farther = {"conversion": 20, "activity": 30}, {"conversion": 19, "activity": 30}
    near, there = {"conversion": 96, "activity": 57.4}, {"conversion": 97, "activity": 57.5}
    scores = [score(spec, values) for values in (there, near, far, farther)]
    ranked = [value for value in scores if value is not None]
    assert scores[0] == 0 and scores == sorted(ranked) and len(set(scores)) == 4
    assert score(spec, far | {"activity": math.inf}) is None


shapes = st.one_of(
    st.builds(Larger, limit=st.just(2.0), target=st.just(5.0), scale=st.floats(0.1, 5)),
    st.builds(Smaller, target=st.just(2.0), limit=st.just(5.0), scale=st.floats(0.1, 5)),
    st.builds(
        Target, low=st.just(2.0), target=st.just(3.0), high=st.just(5.0),
        scale_low=st.floats(0.1, 5), scale_high=st.floats(0.1, 5),
    ),
)  # fmt: skip


@given(shapes, st.floats(-50, 50), st.floats(-50, 50))
def test_soft_orders_as_hard_does_and_falls_on_beyond_the_limit(shape: AnyDesirability, a: float, b: float) -> None:
    if isinstance(shape, Target):  # one side of the peak
        a, b = (min(3.0, a), min(3.0, b)) if shape.scale_low > 1 else (max(3.0, a), max(3.0, b))
    assert 0 <= soft(shape, a) <= 1
    if hard(shape, a) < hard(shape, b):
        assert log_soft(shape, a) < log_soft(shape, b)
    assume(abs(a - b) > 1e-6 and hard(shape, a) == hard(shape, b) == 0)
    worse = a if _beyond(shape, a) > _beyond(shape, b) else b
    assert log_soft(shape, worse) < log_soft(shape, b if worse == a else a)


@given(shapes, st.floats(-1e300, 1e300))
def test_soft_is_finite_and_near_the_linear_ramp(shape: AnyDesirability, value: float) -> None:
    assert math.isfinite(log_soft(shape, value))
    line = Larger(limit=0, target=1)
    u = min(2.0, max(-2.0, value))
    assert abs(soft(line, u) - hard(line, u)) < 0.035


def _beyond(shape: AnyDesirability, value: float) -> float:
    match shape:
        case Larger():
            return shape.limit - value
        case Smaller():
            return value - shape.limit
        case Target():
            return max(shape.low - value, value - shape.high)
