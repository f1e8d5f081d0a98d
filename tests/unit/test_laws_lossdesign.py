from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from isoloss.errors import InvalidSpec
from isoloss.laws.evidence import Fit
from isoloss.laws.lossdesign import LossOutlook, opening, plan
from isoloss.laws.lossform import columns_of, predict
from isoloss.laws.lossforms import LOSS_FORMS
from isoloss.laws.losslaw import Settings, fit_loss_law
from isoloss.laws.mixture import mean_log_loss
from isoloss.laws.observation import Observation, Observations

Bought = NDArray[np.bool_]
FORMS = ("chinchilla", "interaction")
SIZES, TOKENS = np.geomspace(3e7, 3e9, 9), np.geomspace(1e9, 1e11, 9)


def loss(N: float, D: float) -> float:
    """A law that no form below can say exactly: what a token is worth moves with N."""
    return float(1.8 + 480 / N**0.35 + 2100 / D ** (0.37 * (N / 1e9) ** -0.02))


def observed(cells: list[tuple[float, float]], seed: int = 0, noise: float = 0.003) -> Observations:
    rng = np.random.default_rng(seed)
    return Observations(
        tuple(
            Observation(n_params=N, n_tokens=D, loss=loss(N, D) * float(np.exp(noise * rng.standard_normal())))
            for N, D in cells
        )
    )


POOL = observed([(N, D) for N in SIZES for D in TOKENS])
TARGETS = observed([(1e10, 3e11), (2e10, 2e11)], noise=0.0)
X = {name: np.hstack([columns_of(LOSS_FORMS[name], part) for part in (POOL, TARGETS)]) for name in FORMS}


def fits(bought: Bought, pool: Observations = POOL) -> list[Fit]:
    kept = pool.select(bought)
    return [fit_loss_law(LOSS_FORMS[name], kept, Settings(bootstrap=0, test=False)) for name in FORMS]


def first(seed: int = 0) -> Bought:
    bought = np.zeros(len(POOL), dtype=bool)
    bought[opening(X["chinchilla"][:, : len(POOL)], POOL.flops, 0.02 * POOL.flops.sum(), 12, rng(seed))] = True
    return bought


def rng(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def outlook(bought: Bought, pool: Observations = POOL) -> LossOutlook:
    return LossOutlook.by(fits(bought, pool), X, pool.flops, TARGETS.flops)


KNOWN = outlook(first())


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, len(POOL) - 1), min_size=1, max_size=6))
def test_no_run_makes_any_loss_less_certain(runs: list[int]) -> None:
    before = KNOWN
    for run in runs:
        after = before.after(run)
        assert np.all(np.diag(after.covariance) <= np.diag(before.covariance) + 1e-15)
        assert after.error**2 == pytest.approx(before.error**2 - before.saved[run], rel=1e-6)
        before = after


def test_a_plan_keeps_its_budget_buys_nothing_twice_and_each_purchase_helps() -> None:
    budget, taken = 0.1 * POOL.flops.sum(), first()
    bought = plan(KNOWN, budget, taken=taken)
    chosen = [one.candidate for one in bought]
    assert len(set(chosen)) == len(chosen) > 3
    assert not taken[chosen].any()
    assert sum(one.flops for one in bought) <= budget
    assert all(one.error_after <= one.error_before for one in bought)
    assert bought == plan(KNOWN, budget, taken=taken)


def test_runs_that_take_little_are_not_named_and_no_money_buys_nothing() -> None:
    fewer = plan(KNOWN, POOL.flops.sum(), least=0.01)
    assert 0 < len(fewer) < len(plan(KNOWN, POOL.flops.sum()))
    assert all(one.error_after**2 <= 0.99 * one.error_before**2 + 1e-15 for one in fewer)
    assert plan(KNOWN, 0.5 * POOL.flops.min()) == []


def test_laws_that_disagree_leave_more_doubt_than_either() -> None:
    laws = fits(first())
    alone = [LossOutlook.by([law], X, POOL.flops, TARGETS.flops).error ** 2 for law in laws]
    means = [np.log(predict(LOSS_FORMS[law.form], np.array(law.theta), X[law.form])[0]) for law in laws]
    assert not np.allclose(*means)
    assert KNOWN.error**2 > min(alone)


def test_an_opening_is_cheap_spread_out_and_another_for_another_seed() -> None:
    x, budget = X["chinchilla"][:, : len(POOL)], 0.02 * POOL.flops.sum()
    chosen = opening(x, POOL.flops, budget, 12, rng(0))
    assert len(chosen) == 12
    assert POOL.flops[chosen].sum() <= budget
    assert min(len(set(POOL.n_params[chosen])), len(set(POOL.n_tokens[chosen]))) >= 4
    assert chosen == opening(x, POOL.flops, budget, 12, rng(0)) != opening(x, POOL.flops, budget, 12, rng(1))
    taken = np.ones(len(POOL), dtype=bool)
    assert opening(x, POOL.flops, budget, 12, rng(0), taken=taken) == []


def test_planned_runs_foretell_better_than_random_ones_for_the_same_money() -> None:
    budget = 0.1 * POOL.flops.sum()
    ours, random = [], []
    for seed in range(6):
        pool, bought = observed([(row.n_params, row.n_tokens) for row in POOL], seed), first(seed)
        for stop in (0.5, 1.0):
            money = stop * budget - pool.flops[bought].sum()
            bought[[one.candidate for one in plan(outlook(bought, pool), money, taken=bought)]] = True
        assert pool.flops[bought].sum() <= budget * (1 + 1e-9)
        ours.append(error(bought, pool))
        random.append(error(drawn(budget, seed), pool))
    assert np.mean(ours) < 0.8 * np.mean(random)


def drawn(budget: float, seed: int) -> Bought:
    bought = np.zeros(len(POOL), dtype=bool)
    for run in np.argsort(rng(seed).exponential(size=len(POOL)) * POOL.flops):
        bought[run] = POOL.flops[bought].sum() + POOL.flops[run] <= budget
    return bought


def error(bought: Bought, pool: Observations) -> float:
    x = {name: columns_of(LOSS_FORMS[name], TARGETS) for name in FORMS}
    gap = mean_log_loss(fits(bought, pool), x) - np.log(TARGETS.loss)
    return float(np.sqrt(np.mean(gap**2)))


def test_without_a_law_there_is_no_outlook() -> None:
    with pytest.raises(InvalidSpec, match="no loss law"):
        LossOutlook.by([], {}, POOL.flops, TARGETS.flops)
