"""Desirabilities: the published tables, and that the soft form orders as the hard one does and never goes flat."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from isoloss.domain.objective import (
    Box,
    Category,
    Harrington,
    HarringtonTwoSided,
    Larger,
    Shape,
    Smaller,
    Table,
    Target,
    leaves,
)
from isoloss.domain.spec import StudySpec, decode_study
from isoloss.errors import InvalidSpec
from isoloss.search.desirability import expected, hard, log_soft, neutral, overall, soft
from isoloss.search.scoring import score

VALUES = (-1, 80, 84.25, 88.5, 92.75, 97, 98, math.inf, -math.inf)
TABLE = ((-1.0, 0.2), (0.0, 0.8), (2.0, 0.5), (5.0, 1.0))
LOGISTIC = tuple((float(x), float(1 / (1 + np.exp(-x)))) for x in np.linspace(-5, 5, 20))
HARRINGTON = (52.5, 55, 56, 57.5, 58.75, 60)
CODES = Category(values={"v1": 0.1, "v2": 0.9, "v3": 0.2})
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
        (Table(points=TABLE), (-2, -1, -0.5, 0, 1, 2, 3.5, 5, 9), (0.2, 0.2, 0.5, 0.8, 0.65, 0.5, 0.75, 1, 1)),
        (
            Table(points=LOGISTIC), (-10, -5, -1, 0, 1, 2.5, 5, 10),
            (0.0066928509, 0.0066928509, 0.2719768818, 0.5, 0.7280231182, 0.9226869139, 0.9933071491, 0.9933071491),
        ),
        (Box(low=-1.682, high=1.682), (-1.683, -1.682, 0, 1.682, 1.6821), (0, 1, 1, 1, 0)),
        (Larger(limit=0, target=10, floor=0.01), (-1, 0, 0.05, 0.1, 1), (0.01, 0.01, 0.01, 0.01, 0.1)),
        (
            Harrington(at=((80, 0.05), (97, 0.95))), (70, 80, 88.5, 97, 105),
            (0, 0.05, 0.6757067190, 0.95, 0.9924638080),
        ),
        (
            HarringtonTwoSided(low=55, high=60), HARRINGTON,
            (0.1353352832, 0.3678794412, 0.5488116361, 1, 0.6065306597, 0.3678794412),
        ),
        (
            HarringtonTwoSided(low=55, high=60, power=2), HARRINGTON,
            (0.0183156389, 0.3678794412, 0.6976763261, 1, 0.7788007831, 0.3678794412),
        ),
        (
            HarringtonTwoSided(low=55, high=60, power=4), HARRINGTON,
            (0.0000001125, 0.3678794412, 0.8784467393, 1, 0.9394130628, 0.3678794412),
        ),
    ],
)  # fmt: skip
def test_the_ramps_of_derringer_and_suich(shape: Shape, values: tuple[float, ...], expected: tuple[float, ...]) -> None:
    assert [hard(shape, value) for value in values] == pytest.approx(expected, abs=1e-10)
    assert not any(math.copysign(1, hard(shape, value)) < 0 for value in values)
    singly = [hard(shape, value) for value in values]  # an array may be raised to a power by other instructions
    assert hard(shape, np.array([values, values])) == pytest.approx(np.array([singly, singly]), rel=1e-15, abs=0)
    assert hard(shape, math.nan) == 0


@pytest.mark.parametrize(
    ("shape", "mean"),
    [
        (Larger(limit=80, target=97), 0.5), (Larger(limit=80, target=97, scale=0.5), 0.6647952752),
        (Larger(limit=80, target=97, scale=2), 0.3350168350), (Larger(limit=80, target=97, scale=3), 0.2525252525),
        (Smaller(target=80, limit=97, scale=0.5), 0.6647952752), (Target(low=55, target=57.5, high=60), 0.4949494949),
        (Target(low=55, target=57.5, high=60, scale_low=2, scale_high=0.5), 0.4946834797), (Box(low=0, high=1), 1),
        (Table(points=TABLE), 0.6742171717), (CODES, 0.4),
    ],
)  # fmt: skip
def test_what_is_missing_may_count_as_the_mean(shape: Shape, mean: float) -> None:
    assert neutral(shape) == pytest.approx(mean, abs=1e-10)


def test_a_category_that_is_not_listed_is_never_free() -> None:
    assert [hard(CODES, name) for name in ("v1", "v2", "v3", "v4")] == [0.1, 0.9, 0.2, 0]
    assert hard(Category(values={"0": 0.5, "1": 1}), 1.0) == 1 and log_soft(CODES, "v4") < log_soft(CODES, "v1") < 0


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


def test_a_group_counts_as_one() -> None:
    ramp = {"shape": "larger", "limit": 0, "target": 1}
    values = {"a": 0.5, "b": 0.8, "c": 0.2}
    inner = overall(study(b=ramp, c=ramp | {"importance": 3}), {"b": 0.8, "c": 0.2}).overall
    nested = study(a=ramp, quality={"shape": "group", "of": {"b": ramp, "c": ramp | {"importance": 3}}})
    found = overall(nested, values)
    assert inner is not None and found.overall == pytest.approx(math.sqrt(0.5 * inner))
    assert set(found.parts) == set(nested.metrics) == {"a", "b", "c"} and found.limiting == "c"


def test_what_is_missing_counts_as_the_spec_says() -> None:
    ramp = {"shape": "larger", "limit": 0, "target": 1}
    for said, wanted in (("veto", 0.0), (0.25, 0.5), ("neutral", math.sqrt(0.5))):
        spec = study(a=ramp, b=ramp | {"missing": said})
        assert spec.metrics == ("a",) and overall(spec, {"a": 1}).overall == pytest.approx(wanted)
        assert score(spec, {"a": 1}) is not None
    assert study(a=ramp, b=ramp | {"kind": "final"}).metrics == ("a",)
    both = {"conversion": math.nan, "activity": math.nan}
    assert overall(study(**{m: p | {"missing": "neutral"} for m, p in PURITY.items()}), {}).overall == pytest.approx(
        0.4974683382
    )
    assert overall(study(**PURITY), both).overall == 0


def test_a_formula_is_known_before_anything_runs() -> None:
    size = {"shape": "smaller", "target": 100, "limit": 1000, "kind": "static", "formula": "12 * depth * width**2"}
    liked = {"shape": "category", "values": {"adam": 1, "sgd": 0.25}, "kind": "static", "formula": "optimizer"}
    spec = decode_study(
        {
            "name": "d", "method": METHOD, "desirability": {"size": size, "liked": liked}, "fixed": {"depth": 2},
            "space": {
                "width": {"type": "int", "low": 1, "high": 64},
                "optimizer": {"type": "categorical", "choices": ["adam", "sgd"]},
            },
        }
    )  # fmt: skip
    assert spec.metrics == ()
    found = overall(spec, {}, {"width": 2, "optimizer": "sgd"})
    assert found.parts == {"size": 1.0, "liked": 0.25} and found.overall == 0.5
    assert overall(spec, {}, {"width": 64, "optimizer": "adam"}).overall == 0


def test_a_veto_ranks_behind_everything_and_a_low_rung_vetoes_no_curve() -> None:
    spec = study(
        loss={"shape": "smaller", "target": 1, "limit": 2, "veto": True},
        size={"shape": "box", "low": 0, "high": 10, "kind": "static", "veto": True},
        joules={"shape": "smaller", "target": 50, "limit": 400, "kind": "cumulative"},
    )
    good, late = {"loss": 1.5, "size": 5.0, "joules": 10.0}, {"loss": 9.0, "size": 5.0, "joules": 10.0}
    big = good | {"size": 11.0}
    for share in (0.1, 1.0):
        ranked = [score(spec, values, share=share) for values in (good, late, big)]
        assert all(value is not None for value in ranked)
        assert (ranked[0] < ranked[1] < ranked[2]) if share < 1 else ranked[1] > 1e9 and ranked[2] > 1e9  # type: ignore[operator]
    assert score(spec, good, share=0.1) == score(spec, good | {"joules": 100.0})


@pytest.mark.parametrize(
    ("part", "said"),
    [
        ({"shape": "larger", "limit": 2, "target": 1}, r"desirability\.a has limit 2, target 1; accepted is limit < target"),
        ({"shape": "smaller", "limit": 1, "target": 1}, "accepted is target < limit"),
        ({"shape": "larger", "limit": math.nan, "target": 1}, r"desirability.*limit: .*nan; accepted is .* finite"),
        ({"shape": "box", "low": 0, "high": math.inf}, r"high: .*inf; accepted is .* finite"),
        ({"shape": "target", "low": 0, "target": 3, "high": 2}, "low < target < high"),
        ({"shape": "target", "low": 0, "target": 1, "high": 2, "scale_low": 0}, r"scale_low: Expected `float` > 0"),
        ({"shape": "table", "points": [[0, 0], [2, 1], [1, 0]]}, r"points has x0 0, x1 2, x2 1; accepted is x0 < x1 < x2"),
        ({"shape": "table", "points": [[0, 0], [1, 1.5]]}, r"points\[.*\]: Expected `float` <= 1"),
        ({"shape": "table", "points": [[0, 0]]}, "length >= 2"),
        ({"shape": "category", "values": {"x": -1, "y": 1}}, "Expected `float` >= 0"),
        ({"shape": "category", "values": {"x": 1}}, "length >= 2"),
        ({"shape": "harrington", "at": [[0, 0.5], [0, 0.7]]}, "different finite y"),
        ({"shape": "harrington", "at": [[0, 0], [1, 0.7]]}, "between 0 and 1"),
        ({"shape": "larger", "limit": 0, "target": 1, "importance": 0}, r"importance: Expected `float` > 0"),
        ({"shape": "larger", "limit": 0, "target": 1, "importance": math.inf}, "accepted is a finite number above 0"),
        ({"shape": "larger", "limit": 0, "target": 1, "missing": 5}, "missing"),
        ({"shape": "larger", "limit": 0, "target": 1, "floor": 1}, "floor"),
        ({"shape": "larger", "limit": 0, "target": 1, "formula": "x"}, "accepted is kind static"),
        ({"shape": "larger", "limit": 0, "target": 1, "kind": "static", "formula": "y + 1"}, "names 'y'"),
        ({"shape": "larger", "limit": 0, "target": 1, "kind": "static", "formula": "x.real"}, "accepted is arithmetic"),
        ({"shape": "larger", "limit": 0, "target": 1, "kind": "static", "formula": "print(x)"}, "names 'print'"),
        ({"shape": "category", "values": {"u": 1, "w": 0}, "kind": "static", "formula": "c"}, "lacks 'v', a choice of c"),
        ({"shape": "group", "of": {}}, "length >= 1"),
        ({"shape": "group", "of": {"b": {"shape": "box", "low": 0, "high": 1}}}, "names the metric 'b' again"),
    ],
)  # fmt: skip
def test_a_desirability_that_cannot_be_is_refused_in_words(part: dict[str, Any], said: str) -> None:
    space = {"x": {"type": "float", "low": 0, "high": 1}, "c": {"type": "categorical", "choices": ["u", "v"]}}
    other = {"shape": "larger", "limit": 0, "target": 1}
    with pytest.raises(InvalidSpec, match=said):
        decode_study({"name": "d", "space": space, "desirability": {"a": part, "b": other}, "method": METHOD})


def test_what_to_optimise_is_said_once() -> None:
    plain: dict[str, Any] = {"name": "d", "space": {}, "method": METHOD}
    ramp = {"shape": "larger", "limit": 0, "target": 1}
    both = {"objective": {"metric": "a"}, "desirability": {"a": ramp}}
    with pytest.raises(InvalidSpec, match="has objective and desirability; accepted is exactly one"):
        decode_study(plain | both)
    with pytest.raises(InvalidSpec, match="names only a; accepted are two or more"):
        decode_study(plain | {"objectives": {"a": "minimize"}})


shapes = st.one_of(
    st.builds(Larger, limit=st.just(2.0), target=st.just(5.0), scale=st.floats(0.1, 5)),
    st.builds(Smaller, target=st.just(2.0), limit=st.just(5.0), scale=st.floats(0.1, 5)),
    st.builds(
        Target, low=st.just(2.0), target=st.just(3.0), high=st.just(5.0),
        scale_low=st.floats(0.1, 5), scale_high=st.floats(0.1, 5),
    ),
    st.just(Box(low=2.0, high=5.0)),
    st.just(Table(points=((0.0, 0.0), (2.0, 0.0), (3.0, 1.0), (5.0, 0.0)))),
)  # fmt: skip


@given(shapes, st.floats(-50, 50), st.floats(-50, 50))
def test_soft_orders_as_hard_does_and_falls_on_beyond_the_limit(shape: Shape, a: float, b: float) -> None:
    if isinstance(shape, Target):  # one side of the peak
        a, b = (min(3.0, a), min(3.0, b)) if shape.scale_low > 1 else (max(3.0, a), max(3.0, b))
    assert 0 <= soft(shape, a) <= 1
    if hard(shape, a) < hard(shape, b):
        assert log_soft(shape, a) < log_soft(shape, b)
    assume(abs(a - b) > 1e-6 and hard(shape, a) == hard(shape, b) == 0)
    worse = a if _beyond(shape, a) > _beyond(shape, b) else b
    assert log_soft(shape, worse) < log_soft(shape, b if worse == a else a)


@given(shapes, st.floats(-1e300, 1e300))
def test_soft_is_finite_and_near_the_linear_ramp(shape: Shape, value: float) -> None:
    assert math.isfinite(log_soft(shape, value))
    line = Larger(limit=0, target=1)
    u = min(2.0, max(-2.0, value))
    assert abs(soft(line, u) - hard(line, u)) < 0.035


def _beyond(shape: Shape, value: float) -> float:
    match shape:
        case Larger():
            return shape.limit - value
        case Smaller():
            return value - shape.limit
        case Target():
            return max(shape.low - value, value - shape.high)
        case Box():
            return max(shape.low - value, value - shape.high)
        case Table():  # the one below
            return max(2.0 - value, value - 5.0)
    raise TypeError(shape)


def test_limits_are_written_as_people_write_numbers() -> None:
    wish = {"shape": "smaller", "target": "1M", "limit": "10M"}
    spec = decode_study(
        {"name": "s", "space": {}, "desirability": {"parameters": wish}, "method": {"name": "fixed", "budget": 1}}
    )
    (shape,) = (leaf.shape for leaf in leaves(spec.desirability).values())
    assert hard(shape, 5.5e6) == 0.5
    with pytest.raises(InvalidSpec, match=r"target.*'1X'; accepted is a number, optionally with K, M, B or T"):
        decode_study(
            {
                "name": "s",
                "space": {},
                "desirability": {"p": wish | {"target": "1X"}},
                "method": {"name": "fixed", "budget": 1},
            }
        )


@pytest.mark.parametrize(
    ("mean", "deviation", "whole", "root"),
    [
        (79, 2, 0.0232701832, 0.0772894669), (88.5, 3, 0.5, 0.6939977095), (97, 1, 0.9765328070, 0.9880392201),
        (60, 5, 0.0000021015, 0.0000072708),
    ],
)  # fmt: skip
def test_the_expected_d_of_a_normal_value(mean: float, deviation: float, whole: float, root: float) -> None:
    shape = Larger(limit=80, target=97)
    assert float(expected(shape, mean, deviation)) == pytest.approx(whole, abs=1e-10)
    assert float(expected(shape, mean, deviation, 0.5)) == pytest.approx(root, abs=1e-10)


@given(st.sampled_from(range(6)), st.floats(-30, 30), st.floats(0.01, 20), st.floats(0.1, 3))
def test_the_expected_d_is_the_mean_over_many_draws(which: int, mean: float, deviation: float, weight: float) -> None:
    shape: Any = (
        Smaller(target=-4, limit=7, scale=2), Target(low=-3, target=1, high=12, scale_low=0.5, scale_high=2), Box(low=-2, high=5),
        Table(points=((-3, 0.2), (0, 0.9), (4, 0.1), (6, 1))), Harrington(at=((-3, 0.1), (6, 0.9))), Larger(limit=0, target=1e-3),
    )[which]  # fmt: skip
    grid = mean + deviation * np.linspace(-9, 9, 120_001)
    density = np.exp(-0.5 * ((grid - mean) / deviation) ** 2)
    wanted = float((hard(shape, grid) ** weight * density).sum() / density.sum())
    assert float(expected(shape, np.array([mean]), np.array([deviation]), weight)[0]) == pytest.approx(wanted, abs=3e-4)
