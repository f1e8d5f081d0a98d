"""What tasks are foreseen to take, from those that are done."""

from __future__ import annotations

from statistics import linear_regression, mean
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isoloss.domain.pace import Pace, Use, hours_per_flop, pace


def told(*done: tuple[float, float], **others: Any) -> Use:
    """The use of a study with these done tasks: (budget, device hours)."""
    budgets, hours = [budget for budget, _ in done], [hour for _, hour in done]
    slope = linear_regression(budgets, hours).slope if len(set(budgets)) > 1 else None
    means: dict[str, Any] = {"mean_hours": mean(hours), "mean_budget": mean(budgets)} if done else {}
    return Use(study_id=1, hours=sum(hours), done=len(done), slope=slope, **means, **others)


def test_two_budgets_tell_the_start_from_the_units() -> None:
    assert pace(told((1, 10), (3, 14))).hours(81) == pytest.approx(170)


def test_one_budget_is_taken_as_all_units() -> None:
    assert pace(told((4, 10), (4, 14))).hours(8) == pytest.approx(24)


def test_hours_that_do_not_grow_with_the_budget_are_all_start() -> None:
    assert pace(told((1, 10), (3, 8))) == Pace(9.0, 0.0)


def test_while_nothing_tells_a_task_is_foreseen_to_take_nothing() -> None:
    assert pace(told()).hours(81) == 0 == pace(told(flops_per_unit=6.0)).hours(81)


def test_a_study_without_done_tasks_is_foreseen_by_the_flops_of_the_others() -> None:
    others = [told((10, 2), flops_per_unit=3.0), told((10, 4), (10, 6), flops_per_unit=6.0), told((1, 99))]
    assert hours_per_flop(others) == pytest.approx(12 / 150)
    assert pace(told(flops_per_unit=9.0), others).hours(2) == pytest.approx(18 * 12 / 150)
    assert pace(told((1, 1), flops_per_unit=9.0), others).hours(2) == 2, "its own tasks tell more"


def test_an_open_task_reserves_what_it_has_not_taken_yet_and_never_less_than_nothing() -> None:
    use = told((1, 2), open=[(1, 0.5), (2, 0.0), (1, 7.0)])
    assert use.reserved(pace(use)) == pytest.approx(1.5 + 4)


@given(st.lists(st.tuples(st.integers(1, 10**6), st.floats(0, 1e6)), max_size=9), st.floats(1, 1e9))
def test_what_is_foreseen_is_never_negative(done: list[tuple[int, float]], budget: float) -> None:
    assert pace(told(*done)).hours(budget) >= 0
