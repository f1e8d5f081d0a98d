"""Scores from what is foreseen of a run, other scores for another preference, and what the limits leave."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from isoloss.domain.objective import Leaf, Smaller
from isoloss.domain.spec import decode_study
from isoloss.errors import InvalidSpec, WrongState
from isoloss.search.desirability import expected_log, hard, log_soft
from isoloss.search.driver import Driver
from isoloss.search.events import Rescored, TrialAdded
from isoloss.search.foresight import Forecast, Foresight
from isoloss.search.geometry import ladder_of
from isoloss.search.judging import Judge
from isoloss.search.search import Search
from isoloss.search.worth import limits, near_best, ranking

SPACE = {"x": {"type": "float", "low": 0, "high": 1}}
LOSS: dict[str, Any] = {"shape": "smaller", "target": 0.1, "limit": 0.5}
JOULES: dict[str, Any] = {"shape": "smaller", "target": 10, "limit": 100, "kind": "cumulative"}


def study(**more: Any) -> dict[str, Any]:
    method = {"name": "idhb", "min_budget": 1, "max_budget": 27, "sampler": "random"}
    return {"name": "j", "space": SPACE, "desirability": {"loss": LOSS, "joules": JOULES}, "method": method} | more


def curve(x: float, budget: float) -> dict[str, float]:
    return {"loss": (0.1 + abs(x - 0.4)) * (1 + 9 / budget), "joules": budget * (1 + 3 * x)}


def played(driver: Driver, tasks: int = 10_000) -> Driver:
    for _ in range(tasks):
        if (ask := driver.ask()) is None:
            break
        driver.tell(ask.trial, ask.budget_to, curve(float(ask.params["x"]), ask.budget_to))
    return driver


def test_a_level_foretells_the_top_by_lines_through_the_studys_own_trials() -> None:
    spec = decode_study(study())
    ladder = ladder_of(spec)
    finals = [0.2 + 0.05 * k for k in range(12)]
    known = {
        (trial, level): {"loss": final * (1 + 9 / ladder.budget(level)), "joules": 1.0 * ladder.budget(level)}
        for trial, final in enumerate(finals)
        for level in range(4)
    }
    foresight = Foresight(spec, ladder, known)
    found = foresight.forecast("loss", 0.5 * 10, 0)
    assert (
        found is not None and found.log and found.middle == pytest.approx(0.5 * (1 + 9 / 27)) and found.deviation < 1e-6
    )
    assert foresight.forecast("joules", 1.0, 0) is None and foresight.forecast("loss", 1.0, 3) is None
    few = {task: values for task, values in known.items() if task[0] < 4}
    assert Foresight(spec, ladder, few).forecast("loss", 5.0, 0) is None
    stages = [Foresight(spec, ladder, {t: v for t, v in known.items() if t[0] < n}).stage[0] for n in range(4, 13)]
    assert stages == [0, 5, 5, 5, 8, 8, 8, 8, 12]
    one = Foresight(spec, ladder_of(decode_study(study(method={"name": "fixed", "budget": 1}))), known)
    assert one.stage == ()


def test_the_expected_desirability_of_a_forecast_is_the_closed_form() -> None:
    shape = Smaller(target=80, limit=97)
    for mean, deviation in ((98, 2), (88.5, 3), (80, 1)):
        draws = mean + deviation * np.random.default_rng(0).normal(size=200_000)
        leaf = Leaf(shape=shape, weight=0.5)
        expected = math.log(np.exp(0.5 * np.asarray(log_soft(shape, draws))).mean()) / 0.5
        found = expected_log(leaf, Forecast(mean=mean, deviation=deviation, log=False))
        assert found == pytest.approx(expected, abs=0.12)
    sure = Forecast(mean=90, deviation=0, log=False)
    assert expected_log(Leaf(shape=shape, weight=0.3), sure) == pytest.approx(log_soft(shape, 90.0))


def test_a_study_promotes_by_the_end_it_foresees_and_never_by_a_raw_rung() -> None:
    driver = played(Driver(study()))
    kinds = [type(event) for event, _ in driver.ledger]
    assert Rescored in kinds, "once lines are known the history is scored by them"
    judge = Judge(driver.search, driver._metrics)
    for (trial, level), values in driver._metrics.items():
        result = driver.search.result(trial, level)
        assert result is not None and result.score == pytest.approx(judge.score(trial, level, values))
    best = driver.best()
    assert best is not None and best.level == 3
    assert hard(Smaller(target=0.1, limit=0.5), curve(0.4, 1)["loss"]) == 0, (
        "raw, the best would be worthless at the start"
    )


def test_the_ledger_alone_gives_the_same_search_again() -> None:
    driver = played(Driver(study()))
    search = Search(driver.spec)
    for event, decisions in driver.ledger:
        assert search.apply(event) == decisions
    assert search.snapshot() == driver.search.snapshot()


def test_deepening_carries_what_is_cumulative_on_to_the_new_top() -> None:
    driver = played(Driver(study(desirability={"joules": JOULES | {"limit": 1000}})))
    before = driver.search.result(0, 0)
    after = driver.deepen(81).search.result(0, 0)
    assert before is not None and after is not None and before.score != after.score


def test_another_preference_reorders_and_promotions_made_stand() -> None:
    driver = played(Driver(study()))
    tasks, best = set(driver.search.tasks), driver.best()
    cheap = {"loss": LOSS | {"limit": 5, "importance": 0.01}, "joules": JOULES | {"limit": 200}}
    after = driver.prefer(cheap)
    assert set(after.search.tasks) == tasks and best is not None
    ranked = ranking(after.search, after._metrics)
    assert ranked and ranked[0] == min(ranked, key=lambda worth: float(worth.incumbent.configuration["x"]))
    with pytest.raises(InvalidSpec, match=r"desirability\.f1 is a metric that not every result has"):
        driver.prefer({"f1": LOSS})
    with pytest.raises(InvalidSpec, match=r"desirability\.loss has target 0\.1, limit 0"):
        driver.prefer({"loss": LOSS | {"limit": 0}})
    assert driver.prefer({"f1": LOSS | {"missing": "neutral"}, "loss": LOSS}).spec.metrics == ("loss",)
    plain = Driver(
        {"name": "p", "space": SPACE, "objective": {"metric": "loss"}, "method": {"name": "fixed", "budget": 1}}
    )
    with pytest.raises(WrongState, match="has no desirability"):
        plain.prefer({"loss": LOSS})


def test_the_limits_say_what_they_veto() -> None:
    driver = Driver(study(method={"name": "fixed", "budget": 1, "sampler": "random"}, limits={"trials": 30}))
    played(driver)
    report = limits(driver.search, driver._metrics)
    assert report.measured == 30 == report.drawn and report.vetoed == report.vetoes["loss"] == 30 and report.alive == 0
    assert "veto 100% of the 30 trials measured, most often loss: nothing is worth anything yet" in report.sentence
    assert ranking(driver.search, driver._metrics) == []
    driver.prefer({"loss": LOSS | {"limit": 4}, "joules": JOULES | {"limit": 3.0, "target": 1}})
    report, ranked = limits(driver.search, driver._metrics), ranking(driver.search, driver._metrics)
    assert 0 < report.alive == report.measured - report.vetoed < 30
    assert report.sentence.startswith(f"Your limits veto {report.vetoed / 30:.0%} of the 30 trials measured")
    near = near_best(ranked)
    assert near[0] == ranked[0] and all(w.value >= ranked[0].value - 0.05 for w in near) and len(near) < len(ranked)
    driver.prefer({"loss": LOSS | {"limit": 100}})
    assert limits(driver.search, driver._metrics).sentence == ""


def test_what_a_formula_says_is_worth_nothing_never_runs() -> None:
    size = {"shape": "smaller", "target": 0.1, "limit": 0.5, "kind": "static", "formula": "x"}
    method = {"name": "fixed", "budget": 1, "sampler": "random"}
    driver = Driver(study(desirability={"loss": LOSS, "size": size}, method=method, limits={"trials": 30}))
    driver._apply(TrialAdded(configuration={"x": 0.9}))
    ran = []
    while (ask := driver.ask()) is not None:
        ran.append(float(ask.params["x"]))
        driver.tell(ask.trial, 1, curve(ran[-1], 1))
    assert 5 < len(ran) < 25 and max(ran) < 0.5, "and what a user added is not asked about"
    cancelled = [t for (t, _), result in driver.search.tasks.items() if result and result.status == "cancelled"]
    places = [float(driver.search.trial(trial).configuration["x"]) for trial in cancelled]
    assert len(places) + len(ran) == 30 and min(places) >= 0.5
