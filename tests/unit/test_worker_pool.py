"""How large a pool on Ray is to be, without a Ray: when it grows, who may leave, and what is no size."""

from __future__ import annotations

import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isoloss.errors import InvalidSpec
from isoloss_worker.agent import Agent
from isoloss_worker.allow import AllowList
from isoloss_worker.ray_command import scale
from isoloss_worker.ray_keeper import Bounds, change

BOUNDS = Bounds(least=1, most=4, idle_seconds=60.0)


def test_a_pool_grows_to_those_at_work_and_those_wanted_and_counts_who_rests_or_begins_among_these() -> None:
    assert change({}, 0, BOUNDS) == (1, []) and change({}, 9, BOUNDS) == (4, [])
    assert change({"a": None}, 2, BOUNDS) == (2, []) and change({"a": 0.0, "b": 3.0}, 2, BOUNDS) == (0, [])
    assert change({"a": None, "b": 0.0}, 2, BOUNDS) == (1, []), "b begins, and will take one of the two"


def test_who_rested_for_long_may_leave_the_last_first_and_nobody_at_work_or_below_the_least_does() -> None:
    rested = {"a": 99.0, "b": None, "c": 70.0, "d": 61.0}
    assert change(rested, 0, BOUNDS) == (0, ["a", "c", "d"]), "b alone is the least"
    assert change({"a": 99.0, "c": 70.0, "d": 59.0}, 0, BOUNDS) == (0, ["a", "c"])
    assert change({"a": 99.0, "c": 70.0, "d": 61.0}, 0, BOUNDS) == (0, ["c", "d"])
    assert change(rested, 2, BOUNDS) == (0, ["d"]) and change(rested, 3, BOUNDS) == (0, [])
    assert change({"a": None, "b": None, "c": None}, 0, Bounds(0, 1, 60.0)) == (0, []), "at work, whatever the bound"


@given(
    st.dictionaries(st.text(), st.none() | st.floats(0, 200), max_size=8),
    st.integers(0, 9),
    st.integers(0, 4),
    st.integers(1, 6),
)
def test_no_pool_leaves_its_bounds_by_itself(idle: dict[str, float | None], wanted: int, least: int, more: int) -> None:
    bounds = Bounds(least, least + more, 60.0)
    begun, leaving = change(idle, wanted, bounds)
    assert not begun or not leaving
    assert begun == 0 or least <= len(idle) + begun <= bounds.most
    assert all((idle[name] or 0.0) >= 60.0 for name in leaving)
    assert not leaving or len(idle) - len(leaving) >= min(bounds.most, max(least, wanted))


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([], "The pool's size is not said; accepted is --workers N, or --min A --max B."),
        (["--workers", "2", "--max", "3"], "The pool's size is --workers 2, --max 3; accepted is"),
        (["--min", "2"], "The pool's size is --min 2; accepted is"),
        (["--workers", "2", "--min", "1"], "The pool's size is --workers 2, --min 1; accepted is"),
        (["--workers", "-1"], "--workers is -1; accepted is a number from 0."),
        (["--min", "3", "--max", "2"], "--min is 3, --max 2; accepted are"),
        (["--min", "-1", "--max", "2"], "--min is -1, --max 2; accepted are"),
        (["--max", "0"], "--min is 0, --max 0; accepted are"),
        (["--max", "2", "--idle", "0"], "--idle is 0; accepted are seconds above 0."),
        (["--max", "2", "--idle", "nan"], "--idle is nan; accepted are seconds above 0."),
        (["--max", "2", "--cpus", "-1"], "--gpus is 0, --cpus -1.0; accepted are numbers from 0."),
    ],
)
def test_what_is_no_size_is_said_before_any_ray_is_looked_for(words: list[str], sentence: str) -> None:
    with pytest.raises(InvalidSpec) as refused:
        scale(words)
    assert sentence in str(refused.value)


def test_a_worker_that_got_work_since_it_was_seen_to_rest_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    agent = Agent.__new__(Agent)
    agent._name, agent._rests_since, left = "w", time.monotonic() - 99.0, list[str]()
    monkeypatch.setattr(Agent, "leave", lambda _, how: left.append(how))
    holding: Any = {"a task": None}
    agent._holding = holding
    assert agent.idle_seconds is None
    agent.leave_idle(60.0)
    agent._holding = {}
    agent.leave_idle(100.0)
    assert not left
    agent.leave_idle(60.0)
    assert left == ["finish"]


def test_a_worker_says_what_it_allows_as_its_pools_keeper_does_before_there_is_one() -> None:
    said = AllowList(functions=("m:f",)).message
    for shares, gpus, most in (
        ([()], 0, 0),
        ([("0",), ("1",)], 1, 2),
        ([("0",), ("0",)], 1, 1),
        ([("0", "1"), ("2", "3")], 2, 4),
    ):
        found = said(shares)
        assert (found.gpus, found.most_gpus, found.nodes, found.gpt) == (gpus, most, 1, True)
