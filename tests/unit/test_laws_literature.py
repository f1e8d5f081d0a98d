from __future__ import annotations

import math

import pytest

from isoloss.laws.literature import LITERATURE


@pytest.mark.parametrize("name", LITERATURE)
def test_an_entry_gives_the_figures_its_paper_prints(name: str) -> None:
    entry = LITERATURE[name]
    for rule, (N, D, value) in entry.printed.items():
        assert entry.at(N, D)[rule] == pytest.approx(value, rel=0.03), "papers round"
    assert entry.source and entry.n_count and entry.equation


@pytest.mark.parametrize("name", LITERATURE)
def test_everything_it_gives_is_a_plausible_number_inside_its_range(name: str) -> None:
    entry = LITERATURE[name]
    N = math.sqrt(math.prod(entry.n_params)) if entry.n_params else 3e8
    D = math.sqrt(math.prod(entry.n_tokens)) if entry.n_tokens else 1e10
    bounds = {"lr": (1e-5, 0.1), "loss": (1.5, 8.0)}
    for rule, value in entry.at(N, D).items():
        low, high = bounds.get(rule, (1e3, 1e13))
        assert low <= value <= high, rule


def test_the_misprints_are_not_ours() -> None:
    critical = LITERATURE["kaplan"].at(1e9, 2e10)["critical_batch_tokens"]
    assert 1e5 < critical < 1e8, "2e18 would give ten billion times as much"
    assert 1e-4 < LITERATURE["microsoft"].at(1e9, 1e11)["lr"] < 1e-2


def test_a_target_outside_what_a_law_has_seen_is_said_in_times() -> None:
    assert LITERATURE["step-law"].beyond(7e9, 1.4e11) == pytest.approx({"n_params": 7e9 / 1.07e9, "n_tokens": 1.4})
    assert LITERATURE["step-law"].beyond(1e8, 1e10) == {"n_params": 1.0, "n_tokens": 1.0}
    assert LITERATURE["deepseek"].beyond(1e12, 1e13) == {}
