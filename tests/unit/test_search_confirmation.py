"""The confirmation phase: finalists that run again with other seeds, and when one is said to be the best."""

from __future__ import annotations

import random
from typing import Any

import pytest

from isoloss.domain.spec import decode_study
from isoloss.errors import InvalidSpec, WrongState
from isoloss.search.confirmation import Confirmation, Pull, finalists_of, sentence, separated
from isoloss.search.confirmation import rewards as rewards_of
from isoloss.search.driver import Driver
from isoloss.search.events import Asked, Confirming
from isoloss.search.replay import replay
from isoloss.search.retention import spare
from isoloss.search.search import Search


def confirmed(
    means: list[float], noise: float, *, seed: int, seeds: float = 0.05, runs: int = 60, delta: float = 0.05
) -> tuple[Confirmation, dict[Pull, float]]:
    """A whole confirmation of arms with these means; a seed does the same to every arm."""
    rng, shared = random.Random(seed), dict[int, float]()
    found = Confirmation(finalists=tuple(range(len(means))), level=0, delta=delta, runs=runs)
    rewards: dict[Pull, float] = {}
    while (pull := found.next(rewards)) is not None:
        found.trials[pull] = len(found.trials)
        luck = shared.setdefault(pull[1], rng.gauss(0, seeds))
        rewards[pull] = means[pull[0]] + luck + rng.gauss(0, noise)
    return found, rewards


def test_the_wrong_one_is_named_no_more_often_than_asked_for_and_the_right_one_nearly_always() -> None:
    ends = [confirmed([0.66, 0.7, 0.64, 0.6], 0.015, seed=seed) for seed in range(60)]
    standings = [found.standing(rewards) for found, rewards in ends]
    named = [standing[0].trial for standing in standings if separated(standing)]
    assert len(named) >= 50 and named.count(1) >= 0.95 * len(named)


def test_equals_are_never_separated_and_end_at_the_runs_that_were_allowed() -> None:
    ends = [confirmed([0.5, 0.5, 0.5], 0.02, seed=seed, runs=30) for seed in range(40)]
    standings = [found.standing(rewards) for found, rewards in ends]
    assert sum(map(separated, standings)) <= 2
    assert all(
        len(rewards) == 30 for (_, rewards), standing in zip(ends, standings, strict=True) if not separated(standing)
    )
    assert "not yet separated from" in sentence(standings[0], ends[0][0]) and "used up" in sentence(
        standings[0], ends[0][0]
    )


def test_what_a_seed_does_to_everybody_costs_no_runs() -> None:
    quiet = [len(confirmed([0.7, 0.65], 0.01, seed=seed, seeds=0.0)[1]) for seed in range(20)]
    loud = [len(confirmed([0.7, 0.65], 0.01, seed=seed, seeds=10.0)[1]) for seed in range(20)]
    assert loud == quiet


def test_who_is_clearly_behind_is_not_run_on() -> None:
    found, rewards = confirmed([0.7, 0.69, 0.2, 0.1], 0.02, seed=3)
    runs = {one.trial: one.runs for one in found.standing(rewards)}
    assert runs[2] == runs[3] == 2 < runs[1] <= runs[0] + 1


def test_nothing_is_said_before_the_noise_is_known() -> None:
    found = Confirmation(finalists=(4, 7), level=0, delta=0.05, runs=10, trials={(4, 1): 9})
    assert found.standing({}) == found.standing({(4, 1): 0.5}) == [] and sentence([], found) == ""
    assert found.next({}) == (7, 1)


SPEC: dict[str, Any] = {
    "name": "c", "space": {"x": {"type": "float", "low": 0, "high": 1}},
    "objective": {"metric": "loss", "goal": "minimize"},
    "method": {"name": "idhb", "min_budget": 1, "max_budget": 9, "sampler": "random"},
    "confirm": {"finalists": 3, "runs": 30},
}  # fmt: skip


def play(driver: Driver, limit: int = 500) -> int:
    """Run whatever is asked for: the loss of x at a budget, noisy by the run's seed."""
    for count in range(limit):
        if (ask := driver.ask()) is None:
            return count
        noise = random.Random(f"{ask.params['x']}/{ask.repeat}").gauss(0, 0.003)
        driver.tell(ask.trial, ask.budget_to, {"loss": abs(float(ask.params["x"]) - 0.3) + 1 / ask.budget_to + noise})
    return limit


def test_a_search_confirms_at_rest_and_once_more_when_it_is_deepened() -> None:
    driver = Driver(SPEC)
    play(driver)
    search = driver.search
    first = search.confirmation
    assert first is not None and search.idle and first.level == 2
    standing = first.standing(rewards_of(search))
    assert separated(standing) and standing[0].behind == 0
    again = [search.trial(number) for number in first.trials.values()]
    assert {one.source for one in again} == {"confirm"} and {one.repeat for one in again} >= {1, 2}
    assert all(
        one.configuration == search.trial(f).configuration for (f, _), one in zip(first.trials, again, strict=True)
    )
    best = driver.best()
    assert best is not None and search.trial(best.trial).repeat == 0, "a finalist's further run is no better trial"
    driver.deepen(27)
    play(driver)
    assert search.confirmation is not None and search.confirmation.level == 3
    found = replay(driver.spec, [event for event, _ in driver.ledger], [decisions for _, decisions in driver.ledger])
    assert found.difference is None
    restored = Search.restore(driver.spec, search.snapshot())
    assert restored.snapshot() == search.snapshot() and restored.idle


def test_many_workers_get_other_seeds_and_no_more_than_the_runs_allowed() -> None:
    driver = Driver({**SPEC, "confirm": {"finalists": 3, "runs": 9}})
    while driver.search.confirmation is None:
        asks = [ask for ask in (driver.ask() for _ in range(8)) if ask is not None]
        for ask in asks:
            driver.tell(ask.trial, ask.budget_to, {"loss": float(ask.params["x"])})
    waiting = driver.search.apply(Asked(n=64))
    assert sum(type(one).__name__ == "CreateTrial" for one in waiting) + len(asks) >= 8
    assert len(driver.search.confirmation.trials) == len(set(driver.search.confirmation.trials)) <= 9


def test_a_confirmation_that_cannot_be_is_refused_by_name() -> None:
    for confirm, said in (
        ({"finalists": 1}, "confirm.finalists is 1"),
        ({"delta": 1.5}, "confirm.delta is 1.5"),
        ({"finalists": 8, "runs": 10}, "confirm.runs is 10"),
    ):
        with pytest.raises(InvalidSpec, match=said):
            decode_study({**SPEC, "confirm": confirm})
    with pytest.raises(InvalidSpec, match="confirm is set with objectives"):
        decode_study({**SPEC, "objective": None, "objectives": {"a": "minimize", "b": "maximize"}})
    with pytest.raises(WrongState, match="confirming finds 0 trials with a result;"):
        Driver(SPEC).search.apply(Confirming(finalists=2, delta=0.05, runs=9))


def test_a_run_that_diverged_counts_against_its_finalist() -> None:
    driver = Driver(SPEC)
    for _ in range(300):
        if (ask := driver.ask()) is None:
            break
        x = float(ask.params["x"])
        favourite = driver.search.trial(finalists_of(driver.search, 1)[0]).configuration["x"] if ask.repeat else None
        bad = ask.repeat % 2 == 1 and x == favourite
        driver.tell(ask.trial, ask.budget_to, {"loss": float("nan") if bad else x})
    search = driver.search
    assert search.confirmation is not None
    rewards = rewards_of(search)
    favourite = search.confirmation.finalists[0]
    assert rewards[favourite, 1] == min(rewards.values())


def test_nothing_goes_on_from_a_further_run_so_its_checkpoint_may_go() -> None:
    driver = Driver({**SPEC, "fidelity": {"keep": "planned"}})
    play(driver)
    confirmation = driver.search.confirmation
    assert confirmation is not None and set(confirmation.trials.values()) <= set(spare(driver.search))
