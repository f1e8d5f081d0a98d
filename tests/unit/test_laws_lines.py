from __future__ import annotations

import numpy as np
import pytest

from isoloss.errors import FitFailed, InvalidSpec
from isoloss.laws.criticalbatch import batch_by_tokens, critical_batch_by_loss
from isoloss.laws.powerline import fit_power_line
from isoloss.laws.timescale import timescale, timescale_by_ratio, weight_decay


def test_kaplans_critical_batch_is_found_again() -> None:
    loss = np.linspace(2.0, 5.0, 7)
    line = critical_batch_by_loss(loss, 2e8 * loss ** (-1 / 0.21))
    assert line.c.value == pytest.approx(2e8)
    assert -1 / line.p.value == pytest.approx(0.21)
    assert line.p.verdict == "identified"


def test_an_interval_covers_a_new_observation_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    D = np.geomspace(1e9, 1e11, 8)
    hits = 0
    for _ in range(200):
        line = batch_by_tokens(D, 0.0306 * D**0.383 * np.exp(0.1 * rng.standard_normal(8)))
        low, high = line.interval(1e12)
        hits += low <= 0.0306 * 1e12**0.383 * np.exp(0.1 * rng.standard_normal()) <= high
    assert 168 <= hits <= 192


def test_a_line_says_when_its_slope_is_unknown() -> None:
    x = np.array([1.0, 1.01, 1.02, 1.03])
    line = fit_power_line(x, np.array([1.0, 1.4, 0.8, 1.2]))
    assert line.p.verdict == "not identified"


def test_weight_decay_puts_a_run_on_the_line_of_timescales() -> None:
    N, D = np.array([1e8, 1e8, 4e8, 1e9]), np.array([2e9, 2e10, 8e9, 1e11])
    line = timescale_by_ratio(1.1 * (D / N) ** -0.52, D, N)
    assert (line.c.value, line.p.value) == pytest.approx((1.1, -0.52))
    decay = weight_decay(line, batch_tokens=1e6, lr=1e-3, n_tokens=5e10, n_params=5e8)
    tau = timescale(np.array([1e6]), np.array([1e-3]), np.array([decay]), np.array([5e10]))
    assert tau[0] == pytest.approx(1.1 * 100**-0.52)


def test_what_no_line_goes_through_is_refused() -> None:
    with pytest.raises(InvalidSpec, match="accepted are finite numbers above 0"):
        fit_power_line(np.array([1.0, 2.0, 3.0]), np.array([1.0, -2.0, 3.0]))
    with pytest.raises(FitFailed, match="needs 3"):
        fit_power_line(np.array([1.0, 2.0]), np.array([1.0, 2.0]))
