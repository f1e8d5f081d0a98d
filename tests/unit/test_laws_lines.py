from __future__ import annotations

import itertools

import numpy as np
import pytest

from isoloss.errors import FitFailed, InvalidSpec
from isoloss.laws.criticalbatch import batch_by_tokens, critical_batch_by_loss
from isoloss.laws.fit import Fit, fit
from isoloss.laws.forecast import forecast
from isoloss.laws.observation import Observations
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


def runs(**changes: object) -> list[dict[str, object]]:
    """A grid of weight decays and batches in six cells, whose best lie on c = 1.1, p = −.52 and B = .03 D^.4."""
    rows = []
    for n, d in ((1e8, 2e9), (1e8, 2e10), (4e8, 8e9), (4e8, 8e10), (1e9, 2e10), (1e9, 1e11)):
        batch, lr = 0.03 * d**0.4, 1e-3
        decay = batch / (lr * d * 1.1 * (d / n) ** -0.52)
        for i, j in itertools.product((-1, 0, 1), repeat=2):
            loss = 3.0 + 0.01 * (i * i + j * j)
            rows.append(
                {"n_params": n, "n_tokens": d, "lr": lr, "batch_tokens": batch * 2.0**i, "weight_decay": decay * 2.0**j,
                 "loss": loss} | changes
            )  # fmt: skip
    return rows


def test_the_lines_of_power_lines_are_fitted_from_the_best_run_of_every_cell_and_foretell_a_decay() -> None:
    seen = Observations.from_rows(runs())
    scale, batch = fit("timescale", seen), fit("batch-line", seen)
    assert (scale.estimates["c"].value, scale.estimates["p"].value) == pytest.approx((1.1, -0.52))
    assert (batch.estimates["c"].value, batch.estimates["p"].value) == pytest.approx((0.03, 0.4))
    again = [Fit.from_mapping(made.to_mapping()) for made in (scale, batch)]
    found = forecast(again, 2e9, 2e11, given={"lr": 1e-3, "batch_tokens": 1e6})
    assert found.batch_tokens == pytest.approx(0.03 * 2e11**0.4)
    assert found.timescale == pytest.approx(1.1 * 100**-0.52)
    assert found.weight_decay == pytest.approx(1e6 / (1e-3 * 2e11 * 1.1 * 100**-0.52))
    assert found.weight_decay_interval is not None and found.weight_decay is not None
    low, high = found.weight_decay_interval
    assert low <= found.weight_decay <= high and found.to_mapping()["weight_decay_interval"] == [low, high]
    assert forecast([scale], 2e9, 2e11).weight_decay is None


def test_a_line_whose_optima_lie_at_the_ends_of_what_was_tried_says_so_and_a_missing_column_is_named() -> None:
    edge = [row | {"loss": 3.0 + float(str(row["batch_tokens"])) / 1e9} for row in runs()]
    assert any(
        "at an end of what was tried" in note for note in fit("batch-line", Observations.from_rows(edge)).warnings
    )
    assert not fit("batch-line", Observations.from_rows(runs())).warnings
    assert not any("repeat others" in said for said in Observations.from_rows(runs()).cautions()), "decays differ"
    bare = [{name: value for name, value in row.items() if name != "weight_decay"} for row in runs()]
    with pytest.raises(InvalidSpec, match="no finished run has weight_decay; timescale needs the columns n_params"):
        fit("timescale", Observations.from_rows(bare))


def test_critical_batches_measured_at_losses_give_kaplans_constants() -> None:
    rows = [
        {"n_params": 1e8, "n_tokens": 1e9 * k, "loss": loss, "critical_batch_tokens": 2e8 * loss ** (-1 / 0.21)}
        for k, loss in enumerate(np.linspace(2.0, 5.0, 7), start=1)
    ]
    made = fit("critical-batch", Observations.from_rows(rows))
    assert (made.estimates["B"].value, made.estimates["alpha"].value) == pytest.approx((2e8, 0.21))
    assert forecast([made], 1e9, 1e11, given={"loss": 1.8}).critical_batch_tokens == pytest.approx(
        2e8 * 1.8 ** (-1 / 0.21)
    )
    assert forecast([made], 1e9, 1e11).critical_batch_tokens is None


def test_what_a_bootstrap_draws_is_the_users_choice_where_the_form_has_one() -> None:
    rng = np.random.default_rng(1)
    rows = [
        {"n_params": n, "n_tokens": d, "loss": (1.7 + 400 / n**0.34 + 400 / d**0.28) * np.exp(shift + 0.002 * rng.normal())}
        for n in np.geomspace(1e7, 1e9, 5) for d in np.geomspace(1e9, 1e11, 4)
        for shift in 0.02 * rng.normal(size=1) for _ in range(4)
    ]  # fmt: skip
    seen = Observations.from_rows(rows)
    width = {}
    for by in ("", "rows", "cells"):
        E = fit("chinchilla", seen, bootstrap=100, resample=by, loss="squared").estimates["E"]
        assert E.high is not None and E.low is not None
        width[by] = E.high - E.low
    assert max(width[""], width["rows"]) < 0.8 * width["cells"], "what all runs of a cell share is no independent noise"
    with pytest.raises(InvalidSpec, match="no row has a run"):
        fit("chinchilla", seen, bootstrap=10, resample="runs")
    with pytest.raises(InvalidSpec, match="accepted is one of rows, runs, cells"):
        fit("chinchilla", seen, resample="columns")
    with pytest.raises(InvalidSpec, match="steplaw draws cells"):
        fit("steplaw", seen, resample="rows")
    for form in ("frontier", "isoflop", "lr-batch", "batch-line"):
        with pytest.raises(InvalidSpec, match=f"{form} draws points of its own"):
            fit(form, seen, resample="cells")
