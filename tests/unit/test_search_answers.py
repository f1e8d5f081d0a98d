"""What a search answers: reasons, prices, ranks, other methods on the same results, and time on a virtual clock."""

from __future__ import annotations

import math
from typing import Any

import pytest

from isoloss.domain.spec import StudySpec, decode_study
from isoloss.errors import InvalidSpec, WrongState
from isoloss.search.events import (
    ENQUEUED,
    Asked,
    CreateTask,
    CreateTrial,
    Deepened,
    Idle,
    Proposed,
    Rescored,
    Retried,
    SpaceChanged,
    Stopped,
    TaskDone,
    TrialAdded,
    Widened,
)
from isoloss.search.preview import outlook, preview
from isoloss.search.replay import replay_other
from isoloss.search.search import Search
from isoloss.search.simulate import Finished, play, wall_time
from isoloss.search.standing import agreement, settled_best
from isoloss.search.why import Code, reasons


def study(**changes: Any) -> StudySpec:
    method = {"min_budget": 1, "max_budget": 9, "sampler": "random"} | changes.pop("method", {})
    source = {
        "name": "a", "space": {"x": {"type": "float", "low": 0, "high": 1}}, "objective": {"metric": "loss"},
        "method": method,
    }  # fmt: skip
    return decode_study(source | changes)


def quality(search: Search, task: CreateTask) -> float:
    return float(search.trial(task.trial).configuration["x"])


def run(search: Search, workers: int = 4) -> list[Finished]:
    return list(
        play(
            search, workers=workers, seconds=lambda task: task.budget_to - task.budget_from,
            score=lambda task: quality(search, task),
        )
    )  # fmt: skip


def codes(search: Search) -> dict[int, Code]:
    return {reason.trial: reason.code for reason in reasons(search)}


# ---- methods ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "variant", "sync", "brackets", "order"),
    [
        ({}, "settled", False, "first:1", "auto"),
        ({"sync": True}, "discarding", True, "all", "auto"),
        ({"name": "hyperband"}, "discarding", True, "all", "auto"),
        ({"name": "sha"}, "discarding", True, "first:1", "auto"),
        ({"name": "asha"}, "settled", False, "first:1", "eager"),
        ({"name": "hyperband", "sync": False, "variant": "efficient"}, "efficient", False, "all", "auto"),
    ],
)
def test_a_spec_says_every_part_of_its_method(
    method: dict[str, Any], variant: str, sync: bool, brackets: str, order: str
) -> None:
    said = study(method=method).method
    assert (said.variant, said.sync, said.brackets, said.order) == (variant, sync, brackets, order)


@pytest.mark.parametrize(
    ("method", "said"),
    [
        ({"variant": "preserving"}, "variant is 'preserving' with sync false; accepted are settled, efficient"),
        ({"sync": True, "variant": "settled"}, "accepted are discarding, preserving, efficient"),
        ({"name": "asha", "sync": True}, "method.variant is 'discarding' with method asha"),
        ({"name": "asha", "width": 2}, "method.width is 2 with method asha"),
        ({"width": 0}, "method.width"),
        ({"ahead": -1}, "method.ahead"),
    ],
)
def test_parts_that_do_not_fit_are_refused(method: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidSpec, match=said):
        study(method=method)


def test_asha_promotes_the_best_third_without_quotas_until_its_trials_are_spent() -> None:
    search = Search(study(method={"name": "asha"}, limits={"trials": 30}))
    run(search)
    assert search.trials == 30 and search.idle and not any(r.settled for r in search.rungs())
    assert search.rungs()[0].results == 30 and search.rungs()[1].results >= 10
    search.apply(Deepened(max_budget=27))
    assert search.startable()
    with pytest.raises(WrongState, match="no quotas to widen"):
        search.apply(Widened(width=2))


def test_width_auto_goes_on_until_the_limit() -> None:
    search = Search(study(method={"width": "auto"}, limits={"trials": 40}))
    run(search)
    assert search.trials == 40 and search.width == 5  # 9 configurations an iteration
    whole = Search(study(method={"width": 5}, limits={"trials": 40}))
    run(whole)
    assert whole.settled() == search.settled()


def test_behind_a_barrier_width_auto_waits_for_the_iteration_to_end() -> None:
    search = Search(study(method={"name": "sha", "width": "auto"}, limits={"trials": 27}))
    search.apply(Asked(n=9))
    for trial in range(8):
        search.apply(TaskDone(trial=trial, level=0, score=float(trial)))
        assert search.apply(Asked()) == (Idle(),) and search.width == 1
    search.apply(TaskDone(trial=8, level=0, score=8.0))
    made = search.apply(Asked())
    assert isinstance(made[0], CreateTask) and (made[0].trial, made[0].level) == (0, 1)
    search.apply(TaskDone(trial=0, level=1, score=0.0))
    run(search)
    assert search.trials == 27 and search.width == 3


# ---- events ----------------------------------------------------------------------------------------------------------


def test_enqueued_configurations_are_started_next_inside_the_brackets() -> None:
    search = Search(study(method={"sampler": "tpe"}))
    search.apply(Proposed(configurations=({"x": 0.25}, {"x": 0.5}), source=ENQUEUED))
    made = search.apply(Asked(n=3))
    created = [one for one in made if isinstance(one, CreateTrial)]
    assert [one.configuration["x"] for one in created[:2]] == [0.25, 0.5] and created[2].source == "random"
    assert [(one.bracket, one.index) for one in created] == [(0, 0), (0, 1), (0, 2)]
    with pytest.raises(InvalidSpec, match=r"configurations\[0\]\.x is 2"):
        search.apply(Proposed(configurations=({"x": 2.0},), source=ENQUEUED))


def test_a_space_may_grow_and_old_trials_stay_points_of_it() -> None:
    search = Search(study())
    search.apply(Asked(n=4))
    wider = decode_study(
        {"name": "b", "space": {"x": {"type": "float", "low": 0, "high": 100}}, "objective": {"metric": "loss"},
         "method": {"min_budget": 1, "max_budget": 9}}
    ).space  # fmt: skip
    search.apply(SpaceChanged(space=dict(wider)))
    created = [one for one in search.apply(Asked(n=5)) if isinstance(one, CreateTrial)]
    assert max(float(one.configuration["x"]) for one in created) > 1
    restored = Search.restore(study(), search.snapshot())
    assert restored.spec.space == wider
    with pytest.raises(InvalidSpec, match=r"space\.x\.high is 1; accepted is at least 100"):
        search.apply(SpaceChanged(space=dict(study().space)))


@pytest.mark.parametrize(
    ("event", "said"),
    [
        (Retried(trial=0, level=0), "did not fail"), (Rescored(scores=((0, 1, 1.0),)), "has no score"),
        (Rescored(scores=((8, 0, 1.0),)), "has no score"), (Widened(width=1), "above the study's, 1"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_before_anything_changes(event: Any, said: str) -> None:
    search = Search(study())
    search.apply(Asked(n=9))
    for trial in range(8):
        search.apply(TaskDone(trial=trial, level=0, score=float(trial)))
    before = search.snapshot()
    with pytest.raises((InvalidSpec, WrongState), match=said):
        search.apply(event)
    assert search.snapshot() == before


# ---- answers ---------------------------------------------------------------------------------------------------------


def test_every_trial_that_does_not_run_has_its_reason() -> None:
    search = Search(study())
    search.apply(Asked(n=9))
    for trial in range(7):
        search.apply(TaskDone(trial=trial, level=0, score=float(trial)))
    assert set(codes(search).values()) == {Code.AWAITS_RUNG} and len(codes(search)) == 7
    search.apply(TaskDone(trial=7, level=0, status="failed"))
    search.apply(TaskDone(trial=8, level=0, status="diverged"))
    found = codes(search)
    assert [found[trial] for trial in (0, 1, 2)] == [Code.DUE] * 3 and found[3] == Code.OUTRANKED
    assert (found[7], found[8]) == (Code.FAILED, Code.DIVERGED)
    assert "It ranks 4 of 9 in its rung and 3 go up" in reasons(search)[3].sentence
    added = search.apply(TrialAdded(configuration={"x": 0.5}, level=1))[0]
    assert isinstance(added, CreateTrial) and added.trial not in codes(search)
    search.apply(TaskDone(trial=added.trial, level=1, score=0.1))
    assert codes(search)[added.trial] == Code.ADDED
    run(search)
    assert codes(search)[0] == Code.AT_TOP
    search.apply(Deepened(max_budget=27))
    search.apply(Stopped(reason="enough"))
    assert codes(search)[0] == Code.STOPPED


def test_the_next_cost_is_that_of_the_next_task() -> None:
    search = Search(study(method={"brackets": "all"}))
    while (cost := search.next_cost()) is not None:
        task = search.apply(Asked())[-1]
        assert isinstance(task, CreateTask) and cost == task.budget_to - task.budget_from
        search.apply(TaskDone(trial=task.trial, level=task.level, score=quality(search, task)))
    assert search.idle


def test_what_a_change_would_add_is_what_it_adds() -> None:
    for event in (Deepened(max_budget=27), Widened(width=3)):
        search = Search(study(method={"variant": "efficient", "brackets": "all", "order": "eager"}))
        run(search)
        said = outlook(search, event)
        search.apply(event)
        done = run(search)
        spent = sum(finished.task.budget_to - finished.task.budget_from for finished in done)
        assert (said["added_tasks"], said["added_budget"]) == (len(done), spent)
    fresh = outlook(Search(study(method={"brackets": "all"})), Deepened(max_budget=27))
    assert fresh["restart_budget"] == fresh["added_budget"] == 357


def test_what_deepening_is_expected_to_add_lies_between_the_bounds() -> None:
    said = preview(study(method={"brackets": "all", "max_budget": 27}), [81])
    assert said["added_budget"] == 1479 and said["most_added_budget"] == 1677
    assert said["expected_added_budget"] == pytest.approx(1515.0, abs=0.05)  # search.md, section 3
    exact = preview(study(method={"brackets": "all", "max_budget": 27, "variant": "efficient"}), [81])
    assert exact["expected_added_budget"] == exact["most_added_budget"] == 1479


def test_ranks_are_compared_once_five_trials_are_at_both_levels() -> None:
    search = Search(study(method={"max_budget": 27}))
    search.apply(Asked(n=27))
    for trial in range(27):
        search.apply(TaskDone(trial=trial, level=0, score=float(trial)))
    assert agreement(search) is None
    search.apply(Asked(n=5))
    for trial in range(5):
        search.apply(TaskDone(trial=trial, level=1, score=-float(trial)))
    found = agreement(search)
    assert found is not None
    assert (found.level, found.trials) == (1, 5) and found.spearman == pytest.approx(-1.0)


def test_the_settled_best_is_of_the_highest_settled_rung() -> None:
    search = Search(study())
    search.apply(Asked(n=9))
    assert settled_best(search) is None
    for trial in range(9):
        search.apply(TaskDone(trial=trial, level=0, score=float(trial)))
    for trial in range(3):
        search.apply(Asked())
        search.apply(TaskDone(trial=trial, level=1, score=10.0 - trial))
    best, settled = search.best(), settled_best(search)
    assert best is not None and (best.trial, best.level) == (0, 0)
    assert settled is not None and (settled.trial, settled.level, settled.score) == (2, 1, 8.0)


def test_another_method_on_the_same_results_is_what_it_would_have_been() -> None:
    spec = study(method={"brackets": "first:1", "order": "eager"})
    search = Search(spec)
    run(search)
    same = replay_other(search, spec)
    assert same.unknown == 0 and same.best is not None and same.best == search.best()
    fixed = replay_other(search, study(method={"name": "fixed", "budget": 9, "min_budget": None, "max_budget": None}))
    assert fixed.known < 9 < fixed.unknown + fixed.known + 1


# ---- the virtual clock ------------------------------------------------------------------------------------------------


def test_virtual_workers_never_idle_while_there_is_work_and_time_goes_on() -> None:
    search = Search(study(method={"width": 9, "brackets": "all"}))
    done = run(search, workers=8)
    clocks = [finished.clock for finished in done]
    assert clocks == sorted(clocks) and search.idle
    assert sum(f.seconds for f in done) > 0.9 * 8 * clocks[-1]


def test_wall_time_halves_with_twice_the_workers_and_names_what_has_no_end() -> None:
    spec = study(method={"brackets": "all", "width": 20})
    tasks = preview(spec)["tasks"]
    one, two = (wall_time(spec, workers=n, tasks=tasks, seconds_per_unit=2.0) for n in (4, 8))
    assert 1.7 < one["seconds"] / two["seconds"] < 2.3 and one["interval"][0] <= one["seconds"] <= one["interval"][1]
    with pytest.raises(InvalidSpec, match="has no end"):
        wall_time(study(method={"width": "auto"}), workers=4, tasks=10)
    with pytest.raises(InvalidSpec, match="workers is 0"):
        wall_time(spec, workers=0, tasks=tasks)
    assert math.isfinite(one["utilization"])


def test_the_order_of_a_specs_keys_changes_nothing() -> None:
    """Postgres's jsonb keeps none, and a notebook must draw what the controller draws."""
    space = {name: {"type": "float", "low": 0, "high": 1} for name in ("momentum", "lr", "wd")}
    turned = dict(sorted(space.items()))
    one, other = (Search(study(space=order)) for order in (space, turned))
    assert list(one.spec.space) == ["lr", "wd", "momentum"]
    assert one.apply(Asked(n=5)) == other.apply(Asked(n=5))
    wider = decode_study(
        {"name": "w", "space": {name: parameter | {"high": 2} for name, parameter in space.items()},
         "objective": {"metric": "loss"}, "method": {"min_budget": 1, "max_budget": 9}}
    ).space  # fmt: skip
    one.apply(SpaceChanged(space=dict(wider)))
    other.apply(SpaceChanged(space=dict(reversed(wider.items()))))
    assert one.apply(Asked(n=4)) == other.apply(Asked(n=4))
