from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from isoloss.laws.basin import TYPICAL
from isoloss.laws.design import RING, Outlook, candidates, curvature, information, plan, purchases, ring

TARGET = (5e8, 5e10)
CELLS = candidates([6e7, 1.2e8, 2.5e8], [2e9, 4e9, 8e9, 1.6e10], TARGET)


def outlook() -> Outlook:
    return Outlook.nothing(CELLS, TARGET, (-9.0, 18.0))


def test_candidates_are_cheaper_than_the_target() -> None:
    assert len(candidates([1e8, 1e9], [1e10, 1e11], (1e9, 1e10))) == 1
    assert len(candidates([1e9], [1e11], (1e9, 1e10))) == 0


def test_the_curvature_is_the_basins_second_derivative() -> None:
    h = 1e-3
    at = [TYPICAL.excess(np.array(i * h), np.array(j * h)) for i, j in ((1, 0), (0, 1), (1, 1))]
    H = curvature(TYPICAL)
    assert 2 * at[0] / h**2 == pytest.approx(H[0, 0], rel=1e-2)
    assert 2 * at[1] / h**2 == pytest.approx(H[1, 1], rel=1e-2)
    assert (2 * at[2] / h**2 - H[0, 0] - H[1, 1]) / 2 == pytest.approx(H[0, 1], rel=2e-2)


def test_one_run_says_nothing_of_an_optimum_and_a_ring_says_both_directions() -> None:
    offsets = ring(TYPICAL, 0.01 * np.eye(2), 0.3)
    alone = information(TYPICAL, 0.003, offsets[:1])
    assert np.abs(alone).max() < 1e-6
    assert np.linalg.eigvalsh(information(TYPICAL, 0.003, offsets)).min() > 1.0


@given(cell=st.integers(0, len(CELLS) - 1), turn=st.floats(0, 6.28))
def test_seeing_runs_never_makes_the_target_less_certain(cell: int, turn: float) -> None:
    before = outlook()
    at = slice(2 * cell, 2 * cell + 2)
    after = before.after(cell, ring(before.basin, before.covariance[at, at], turn))
    assert after.regret <= before.regret + 1e-12
    assert np.linalg.eigvalsh(after.covariance).min() > -1e-9
    assert np.trace(after.covariance[at, at]) < np.trace(before.covariance[at, at])


def test_a_plan_keeps_its_budget_and_each_purchase_helps() -> None:
    budget = 0.25 * 6 * TARGET[0] * TARGET[1]
    bought = plan(outlook(), budget, thrifty=False)
    assert sum(purchase.flops for purchase in bought) <= budget
    regrets = [bought[0].regret_before, *(purchase.regret_after for purchase in bought)]
    assert all(later < earlier for earlier, later in itertools.pairwise(regrets))
    assert all(len(purchase.places) == RING for purchase in bought)


def test_a_thrifty_plan_stops_where_a_purchase_costs_more_than_it_saves() -> None:
    known = outlook()
    thrifty, all_of_it = (plan(known, 6 * TARGET[0] * TARGET[1], thrifty=thrifty) for thrifty in (True, False))
    assert 0 < sum(p.flops for p in thrifty) < sum(p.flops for p in all_of_it)
    assert all(p.saved / 0.05 > p.flops / known.flops[-1] for p in thrifty)
    certain = replace(known, covariance=1e-6 * known.covariance)
    assert plan(certain, 1e21) == []


def test_offers_are_affordable_and_the_best_value_first() -> None:
    offers = purchases(outlook(), RING * 6 * 6e7 * 4e9)
    assert {(offer.n_params, offer.n_tokens) for offer in offers} == {(6e7, 2e9), (6e7, 4e9), (1.2e8, 2e9)}
    value = [offer.saved / offer.flops for offer in offers]
    assert value == sorted(value, reverse=True)


def test_where_the_batch_is_fixed_a_purchase_varies_the_learning_rate_alone() -> None:
    fixed = replace(outlook(), batch_varied=False)
    (offer, *_) = purchases(fixed, 1e22)
    assert np.ptp(offer.places[:, 1]) < 1e-9
    assert len(np.unique(np.round(offer.places[:, 0], 6))) == RING
