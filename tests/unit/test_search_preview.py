"""What a study will run, in the words of ``study preview --json``."""

from __future__ import annotations

import json
from typing import Any

import pytest

from isoloss.domain.spec import StudySpec, decode_study
from isoloss.errors import InvalidSpec, WrongState
from isoloss.search.preview import preview


def study(*, fidelity: object = None, limits: object = None, **method: object) -> StudySpec:
    source = {"name": "p", "space": {}, "objective": {"metric": "loss"}, "method": {"brackets": "all"} | method}
    extra = {"fidelity": fidelity, "limits": limits}
    return decode_study(source | {key: value for key, value in extra.items() if value})


def figures(said: dict[str, Any], *names: str) -> list[Any]:
    return [said[name] for name in names]


def test_the_plan_of_81_and_what_deepening_to_243_adds() -> None:
    spec = study(min_budget=1, max_budget=81)
    first = preview(spec)
    assert figures(first, "tasks", "total_budget", "resumed_budget", "billed_budget") == [206, 1902, 1581, 1581]
    assert [b["rungs"][0]["configurations"] for b in first["brackets"]] == [81, 34, 15, 8, 5]
    assert first["brackets"][3] == {
        "bracket": 3,
        "rungs": [
            {"rung": 0, "level": 3, "budget": 27, "configurations": 8},
            {"rung": 1, "level": 4, "budget": 81, "configurations": 2},
        ],
    }
    deeper = preview(spec, [243])
    assert figures(deeper, "tasks", "total_budget", "resumed_budget") == [611, 8457, 6831]
    assert figures(deeper, "added_tasks", "added_budget", "added_resumed_budget") == [405, 6555, 5250]
    assert figures(deeper, "restart_budget", "restart_resumed_budget") == [10359, 8412]
    saved = [1 - deeper["total_budget"] / 10359, 1 - deeper["resumed_budget"] / 8412]
    assert saved == pytest.approx([0.184, 0.188], abs=5e-4)
    assert sum(b["rungs"][0]["new"] for b in deeper["brackets"]) == 272
    assert json.loads(json.dumps(deeper)) == deeper


def test_the_new_tasks_of_27_to_81_rung_by_rung() -> None:
    deeper = preview(study(min_budget=1, max_budget=27), [81])
    new = [[rung["new"] for rung in bracket["rungs"]] for bracket in deeper["brackets"]]
    assert new == [[54, 18, 6, 2, 1], [22, 7, 2, 1], [9, 3, 1], [4, 2], [5]]


def test_deepening_twice_ends_where_one_hyperband_does() -> None:
    spec = study(min_budget=1, max_budget=9)
    twice = preview(spec, [27, 81])
    assert figures(twice, "total_budget", "restart_budget", "restart_resumed_budget") == [1902, 2403, 2007]
    assert figures(twice, "added_budget") == [1479]


def test_the_bill_follows_the_declared_fidelity() -> None:
    """A trial that reaches J in branch mode costs (1 - decay) rho_J + decay times the sum of its budgets."""
    one = {"min_budget": 10, "max_budget": 90, "brackets": "first:1"}
    branch = preview(study(**one, fidelity={"mode": "branch", "decay": 0.2}))
    assert figures(branch, "tasks", "total_budget", "resumed_budget") == [13, 270, 210]
    trunk_and_decays = (6 * 10 * 1.0) + 2 * (0.8 * 30 + 0.2 * 40) + 1 * (0.8 * 90 + 0.2 * 130)
    assert branch["billed_budget"] == pytest.approx(trunk_and_decays)
    assert preview(study(**one, fidelity={"mode": "fresh"}))["billed_budget"] == 270


def test_a_limit_on_trials_is_spent_in_the_order_of_the_brackets() -> None:
    spec = study(min_budget=1, max_budget=27, limits={"trials": 30})
    said = preview(spec)
    assert [[rung["configurations"] for rung in b["rungs"]] for b in said["brackets"]] == [
        [27, 9, 3, 1], [3, 1, 0], [0, 0], [0],
    ]  # fmt: skip
    assert said["tasks"] == 44
    deeper = preview(spec, [81])
    assert [rung["new"] for rung in deeper["brackets"][0]["rungs"]] == [0, 0, 0, 0, 0]


def test_a_fixed_study_has_a_cost_when_it_has_an_end() -> None:
    method = {"name": "fixed", "budget": 50, "brackets": "first:1"}
    assert preview(study(**method, limits={"trials": 4}))["total_budget"] == 200
    endless = preview(study(**method))
    assert endless["tasks"] is None and endless["brackets"][0]["rungs"][0]["configurations"] is None
    with pytest.raises(WrongState, match="cannot be deepened"):
        preview(study(**method), [150])


def test_previewing_an_impossible_deepening_is_refused() -> None:
    with pytest.raises(InvalidSpec, match="nearest are 81 and 243"):
        preview(study(min_budget=1, max_budget=27), [80])
