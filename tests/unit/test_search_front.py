"""Several objectives without a preference: places in the front, promotions by them, and samplers that learn vectors."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from isoloss.domain.spec import decode_study
from isoloss.errors import InvalidSpec
from isoloss.search.driver import Driver
from isoloss.search.encoding import Encoding
from isoloss.search.front import fronts, hypervolume, places, vector
from isoloss.search.gp import GaussianProcess
from isoloss.search.judging import Judge
from isoloss.search.proposals import check_sampler
from isoloss.search.quadratic import QuadraticPareto, model_of
from isoloss.search.replay import replay
from isoloss.search.worth import front_of

SPACE = {"x": {"type": "float", "low": 0, "high": 1}, "y": {"type": "float", "low": 0, "high": 1}}
BOTH = {"loss": "minimize", "speed": "maximize"}
vectors = st.lists(st.tuples(*[st.integers(0, 5).map(float)] * 3), min_size=1, max_size=15)


def study(**more: Any) -> dict[str, Any]:
    method = {"name": "fixed", "budget": 1, "sampler": "random"}
    return {"name": "f", "space": SPACE, "objectives": BOTH, "method": method} | more


def measured(params: Any) -> dict[str, float]:
    return {"loss": (params["x"] - 0.2) ** 2 + params["y"], "speed": 3 - (params["x"] - 0.8) ** 2 - params["y"]}


def dominates(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    return a != b and all(x <= y for x, y in zip(a, b, strict=True))


@given(vectors)
def test_what_dominates_has_the_better_place(found: list[tuple[float, ...]]) -> None:
    placed = places(found)
    assert len(set(placed)) == len(found) and sorted(n for front in fronts(found) for n in front) == list(
        range(len(found))
    )
    for k, a in enumerate(found):
        for j, b in enumerate(found):
            assert not dominates(a, b) or math.floor(placed[k]) < math.floor(placed[j])


@given(vectors)
def test_a_newcomer_that_dominates_everything_is_first(found: list[tuple[float, ...]]) -> None:
    best = tuple(min(column) - 1 for column in zip(*found, strict=True))
    assert min(places([*found, best])) == places([*found, best])[-1] == 0


def test_of_one_front_the_least_crowded_is_first() -> None:
    line = [(0.0, 10.0), (4.9, 5.1), (5.0, 5.0), (5.1, 4.9), (10.0, 0.0)]
    order = np.argsort(places(line)).tolist()
    assert set(order[:2]) == {0, 4} and order[-1] == 2
    assert vector({"loss": "minimize", "speed": "maximize"}, {"loss": 1, "speed": 2}) == (1, -2)


def test_asha_never_stops_what_dominates_everything() -> None:
    method = {"name": "asha", "min_budget": 1, "max_budget": 9, "sampler": "random"}
    driver = Driver(study(method=method, limits={"trials": 25}))
    for _ in range(10):
        ask = driver.ask()
        assert ask is not None
        driver.tell(ask.trial, ask.budget_to, {"loss": 5 + ask.trial, "speed": -float(ask.trial)})
    while (newcomer := driver.ask()) is not None and newcomer.budget_from > 0:
        driver.tell(newcomer.trial, newcomer.budget_to, {"loss": 5 + newcomer.trial, "speed": -float(newcomer.trial)})
    assert newcomer is not None
    driver.tell(newcomer.trial, newcomer.budget_to, {"loss": 1.0, "speed": 9.0})
    following = driver.ask()
    assert following is not None and (following.trial, following.budget_to) == (newcomer.trial, 3)
    assert replay(driver.spec, [e for e, _ in driver.ledger], [d for _, d in driver.ledger]).difference is None


@pytest.mark.parametrize("sampler", ["nsga2", "motpe", "quadratic-pareto"])
@pytest.mark.parametrize("preferred", [False, True])
def test_samplers_of_fronts_learn_vectors(sampler: str, preferred: bool) -> None:
    wish = {
        "loss": {"shape": "smaller", "target": 0, "limit": 1}, "speed": {"shape": "larger", "limit": 0, "target": 3}
    }  # fmt: skip
    said: dict[str, Any] = {"objectives": {}, "desirability": wish} if preferred else {}
    driver = Driver(study(method={"name": "fixed", "budget": 1, "sampler": sampler}, limits={"trials": 24}, **said))
    while (ask := driver.ask()) is not None:
        driver.tell(ask.trial, 1, {"loss": math.nan, "speed": 1.0} if ask.trial == 2 else measured(ask.params))
    sources = [driver.search.trial(number).source for number in range(24)]
    assert sources.count(sampler) > 8 and driver.best() is not None


def test_quadratic_surfaces_find_the_front_of_quadratics() -> None:
    spec = decode_study(study())
    rng = np.random.default_rng(0)
    seen: list[tuple[Any, tuple[float, ...]]] = []
    for number in range(16):
        params = QuadraticPareto(spec.space).propose(history=seen, pending=(), n=1, seed=number)[0]
        seen.append((params, vector(spec.objectives, measured(params))))
    late = [params for params, _ in seen[-6:]]
    assert all(float(p["y"]) < 0.05 and 0.15 < float(p["x"]) < 0.85 for p in late), late
    assert max(float(p["x"]) for p in late) - min(float(p["x"]) for p in late) > 0.2
    x = rng.random((40, 2))
    quadratic = model_of(x, 1 + x[:, 0] * x[:, 1] - x[:, 1] ** 2, Encoding(spec.space).blocks)
    assert quadratic(np.array([[0.5, 2.0]])) == pytest.approx([1 + 1 - 4], abs=0.05)
    wild = np.sin(25 * x[:, 0])
    fallback = model_of(x, wild, Encoding(spec.space).blocks)
    process = GaussianProcess(x, wild, Encoding(spec.space).blocks)
    assert fallback(x[:3]) == pytest.approx(process.predict(x[:3])[0])


def test_the_front_is_the_answer() -> None:
    driver = Driver(study(limits={"trials": 40}))
    while (ask := driver.ask()) is not None:
        driver.tell(ask.trial, 1, measured(ask.params))
    front = front_of(driver.search, driver._metrics)
    found = [vector(driver.spec.objectives, driver._metrics[one.trial, 0]) for one in front]
    everything = [vector(driver.spec.objectives, values) for values in driver._metrics.values()]
    assert list(driver.spec.objectives) == ["loss", "speed"] and found == sorted(found) and 1 < len(found) < 40
    assert not any(dominates(a, b) for a in everything for b in found)


def test_one_metric_is_no_front() -> None:
    plain = study(
        objectives={}, objective={"metric": "loss"}, method={"name": "fixed", "budget": 1, "sampler": "nsga2"}
    )
    with pytest.raises(InvalidSpec, match="nsga2 with one metric"):
        check_sampler(decode_study(plain))


@given(vectors)
def test_the_hypervolume_is_the_share_of_the_grid_that_is_beaten(seen: list[tuple[float, ...]]) -> None:
    reference = (5.0, 5.0, 5.0)
    cells = [(x + 0.5, y + 0.5, z + 0.5) for x in range(5) for y in range(5) for z in range(5)]
    beaten = sum(any(all(a <= c for a, c in zip(one, cell, strict=True)) for one in seen) for cell in cells)
    assert hypervolume(seen, reference) == pytest.approx(beaten)


def test_the_hypervolume_of_a_study_never_falls_and_is_none_before_its_reference() -> None:
    driver = Driver(study(limits={"trials": 30}))
    volumes: list[float | None] = []
    known: dict[tuple[int, int], dict[str, float]] = {}
    while (ask := driver.ask()) is not None:
        values = measured(ask.params)
        worth = Judge(driver.search, dict(known)).worth(ask.trial, 0, values)
        assert worth is not None and worth["y"] == values
        volumes.append(worth["hypervolume"])
        known[ask.trial, 0] = values
        driver.tell(ask.trial, ask.budget_to, values)
    assert volumes[:9] == [None] * 9
    later = [volume for volume in volumes[9:] if volume is not None]
    assert len(later) == 21 and later == sorted(later) and later[-1] > later[0]
