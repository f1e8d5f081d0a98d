from __future__ import annotations

from functools import partial

import numpy as np
import pytest

from isoloss.errors import InvalidSpec
from isoloss.laws.chinchilla import ChinchillaLaw
from isoloss.laws.fit import optimum
from isoloss.laws.flops import counted, possible, sensitivity
from isoloss.laws.observation import Observation, Observations

LAW = ChinchillaLaw(E=1.7, A=400, B=400, alpha=0.33, beta=0.3)
ARCHITECTURE: dict[str, float | str] = {"width": 512.0, "vocab": 50304.0, "depth": 8.0, "seq_len": 2048.0}


def runs(extras: dict[str, float | str] | None = None, noise: float = 0.002) -> Observations:
    rng = np.random.default_rng(0)
    return Observations(
        tuple(
            Observation(n_params=N, n_tokens=D, loss=LAW.loss(N, D) * (1 + noise * rng.normal()), extras=extras or {})
            for N in np.geomspace(2e7, 1e9, 6)
            for D in np.geomspace(1e9, 3e10, 5)
        )
    )


def test_each_rule_counts_what_its_equation_says() -> None:
    (row,) = Observations((Observation(n_params=25e6, n_tokens=1e9, loss=3.0, extras=ARCHITECTURE),))
    seen = Observations((row,))
    N, head = 25e6, 50304 * 512
    assert counted(seen, "6n").flops[0] == pytest.approx(6 * N * 1e9)
    assert counted(seen, "head").flops[0] == pytest.approx(6 * (N + head) * 1e9)
    assert counted(seen, "attention").flops[0] == pytest.approx((6 * (N + head) + 6 * 8 * 2048 * 512) * 1e9)
    for rule in ("6n", "head", "attention"):
        one = counted(seen, rule)
        assert one.flops[0] == pytest.approx(6 * one.n_params[0] * one.n_tokens[0]), "C = 6 N D holds for every law"


def test_a_rule_without_its_columns_is_refused_by_name_and_left_out() -> None:
    with pytest.raises(InvalidSpec, match="30 of 30 rows have no width"):
        counted(runs(), "head")
    with pytest.raises(InvalidSpec, match="accepted is one of 6n"):
        counted(runs(), "8n")
    assert possible(runs()) == ("6n",)
    assert possible(runs({**ARCHITECTURE, "n_active": 1e7})) == ("6n", "head", "attention", "active")


def test_sensitivity_changes_one_choice_at_a_time_and_says_which_failed() -> None:
    found = {one.choice: one for one in sensitivity(runs(ARCHITECTURE), 1e22, partial(optimum, "chinchilla"))}
    assert {"as asked", "FLOP by head", "loss lad", "without the 5 largest losses"} <= set(found)
    plain = found["as asked"]
    assert plain.n_params == pytest.approx(LAW.optimal(1e22)[0], rel=0.25)
    assert plain.a == pytest.approx(LAW.beta / (LAW.alpha + LAW.beta), abs=0.05)
    assert found["FLOP by head"].n_params != plain.n_params
    few = sensitivity(Observations(runs().rows[:6]), 1e22, partial(optimum, "chinchilla"))
    assert all(one.n_params is None and "chinchilla" in one.why for one in few)


def test_only_a_form_that_knows_sizes_has_an_optimum() -> None:
    with pytest.raises(InvalidSpec, match="gives N and D"):
        optimum("lr-batch", _searched(), "huber:1e-3", 1e20)


def _searched() -> Observations:
    return Observations(
        tuple(
            Observation(n_params=1e8, n_tokens=1e9, lr=2.0**u, batch_tokens=2.0**v, loss=3 + 0.01 * u**2 + 0.01 * v**2)
            for u in (-2, -1, 0, 1)
            for v in (-1, 0, 1)
        )
    )
