"""The fold's books: what is refused, added trials, limits, stopping, snapshots, and the ledger's words."""

from __future__ import annotations

import json
import math
import random
from typing import Any

import pytest

from isoloss.domain.space import Categorical, Float
from isoloss.domain.spec import StudySpec, decode_study
from isoloss.errors import InvalidSpec, WrongState
from isoloss.search.events import (
    Asked,
    CancelTask,
    Confirming,
    CreateTask,
    CreateTrial,
    Deepened,
    Dropped,
    Event,
    Idle,
    Proposed,
    Rescored,
    Retried,
    SpaceChanged,
    Stopped,
    TaskDone,
    TrialAdded,
    Widened,
    decision_from_mapping,
    event_from_mapping,
    to_mapping,
)
from isoloss.search.replay import replay
from isoloss.search.search import Search


def study(**changes: Any) -> StudySpec:
    method = {"min_budget": 1, "max_budget": 9, "brackets": "all", "sampler": "random"} | changes.pop("method", {})
    source = {
        "name": "fold", "space": {"x": {"type": "float", "low": 0, "high": 1}}, "objective": {"metric": "loss"},
        "method": method,
    }  # fmt: skip
    return decode_study(source | changes)


def started(n: int, **changes: Any) -> Search:
    search = Search(study(**changes))
    search.apply(Asked(n=n))
    return search


def test_the_first_ask_creates_a_trial_and_its_task() -> None:
    trial, task = Search(study()).apply(Asked())
    assert isinstance(trial, CreateTrial) and (trial.trial, trial.bracket, trial.index) == (0, 0, 0)
    assert trial.source == "random" and 0 <= float(trial.configuration["x"]) <= 1
    assert task == CreateTask(trial=0, level=0, budget_from=0, decay_from=1, budget_to=1)


def test_an_ask_for_several_creates_what_there_is_and_only_an_empty_one_is_idle() -> None:
    search = Search(
        study(
            method={"name": "fixed", "budget": 5, "min_budget": None, "max_budget": None, "brackets": "first:1"},
            limits={"trials": 3},
        )
    )
    assert len(search.apply(Asked(n=5))) == 6
    assert search.apply(Asked(n=5)) == (Idle(),)
    assert search.outstanding == 3 and not search.startable() and not search.idle


@pytest.mark.parametrize(
    ("event", "error", "said"),
    [
        (Asked(n=0), InvalidSpec, "asked.n is 0"),
        (TaskDone(trial=5, level=0, score=1.0), WrongState, "trial 5 at level 0 does not exist"),
        (TaskDone(trial=0, level=1, score=1.0), WrongState, "trial 0 at level 1 does not exist"),
        (TaskDone(trial=1, level=0, score=1.0), WrongState, "already has its result"),
        (Deepened(max_budget=20), InvalidSpec, "nearest are 27 and 81"),
        (Deepened(max_budget=9), InvalidSpec, "not above the maximum 9"),
        (Deepened(max_budget=3), InvalidSpec, "not above the maximum 9"),
        (
            Proposed(configurations=({"x": 0.5}, {"x": 2.0}), source="tpe"),
            InvalidSpec,
            r"proposed.configurations\[1\].x",
        ),
        (TrialAdded(configuration={"y": 1}), InvalidSpec, "trial_added.configuration lacks x"),
        (TrialAdded(configuration={"x": 0.1}, level=3), InvalidSpec, "trial_added.level is 3; accepted are 0 to 2"),
    ],
)
def test_an_event_that_cannot_be_changes_nothing(event: Event, error: type[Exception], said: str) -> None:
    search = started(3)
    search.apply(TaskDone(trial=1, level=0, score=0.5))
    before, changes = search.snapshot(), search.changes
    with pytest.raises(error, match=said):
        search.apply(event)
    assert (search.snapshot(), search.changes) == (before, changes)


@pytest.mark.parametrize(
    "event",
    [
        Asked(n=3), Proposed(configurations=({"x": 0.5},), source="tpe"), TaskDone(trial=1, level=0, score=0.1),
        Proposed(configurations=({"x": 0.5},), source="enqueued"), Dropped(trials=(2,)), Stopped(reason="enough"),
        Deepened(max_budget=27), Widened(width=2), SpaceChanged(space={"x": Float(low=0.0, high=2.0)}),
        Rescored(scores=((0, 0, 7.0),)), Retried(trial=3, level=0), TrialAdded(configuration={"x": 0.1}),
        Confirming(finalists=2, delta=0.1, runs=4),
    ],
)  # fmt: skip
def test_whatever_a_copy_hears_its_original_does_not(event: Event) -> None:
    search = started(12)
    search.apply(Proposed(configurations=tuple({"x": 0.25} for _ in range(3)), source="tpe"))
    search.apply(Proposed(configurations=({"x": 0.75},), source="enqueued"))
    for trial, score in ((0, 0.5), (2, 0.7), (4, 0.2), (5, 0.3)):
        search.apply(TaskDone(trial=trial, level=0, score=score))
    search.apply(TaskDone(trial=3, level=0, status="failed"))
    search.apply(Confirming(finalists=3, delta=0.1, runs=6))
    before, changes, other = search.snapshot(), search.changes, search.copy()
    other.apply(event)
    while other.startable():
        other.apply(Asked())
    assert (search.snapshot(), search.changes) == (before, changes) and other.changes > changes
    twin = Search.restore(study(), before)
    assert search.copy().snapshot() == twin.snapshot() == before and search._finite == twin._finite
    assert search.apply(Asked(n=40)) == twin.apply(Asked(n=40))


def test_after_stopped_there_is_nothing() -> None:
    search = started(2)
    search.apply(TaskDone(trial=0, level=0, score=1.0))
    assert search.apply(Stopped(reason="budget spent")) == (CancelTask(trial=1, level=0),)
    assert search.stopped == "budget spent" and not search.startable() and search.idle and search.wants_proposals() == 0
    for event in (Asked(), TaskDone(trial=1, level=0, score=1.0), Deepened(max_budget=27), Stopped(reason="again")):
        with pytest.raises(WrongState, match=r"stopped \(budget spent\)"):
            search.apply(event)
    restored = Search.restore(study(), search.snapshot())
    assert restored.snapshot() == search.snapshot() and restored.outstanding == 0


def test_an_added_trial_runs_at_once_outside_brackets_and_limits() -> None:
    search = started(2, limits={"trials": 3})
    trial, task = search.apply(TrialAdded(configuration={"x": 0.25}))
    assert isinstance(trial, CreateTrial) and (trial.trial, trial.bracket, trial.index) == (2, -1, 0)
    assert task == CreateTask(trial=2, level=2, budget_from=0, decay_from=9, budget_to=9)
    search.apply(TrialAdded(configuration={"x": 0.5}, level=0))
    search.apply(TaskDone(trial=2, level=2, score=-1.0))
    best = search.best()
    assert best is not None and (best.trial, best.level, best.configuration) == (2, 2, {"x": 0.25})
    fresh = search.apply(Asked(n=9))
    assert [d.index for d in fresh if isinstance(d, CreateTrial)] == [2]
    assert sum(rung.results for rung in search.rungs()) == 0


def test_an_added_trial_takes_no_point_of_the_streams() -> None:
    plain, extended = started(4), started(2)
    extended.apply(TrialAdded(configuration={"x": 0.5}))
    extended.apply(Asked(n=2))
    drawn = [extended.trial(t).configuration for t in (0, 1, 3, 4)]
    assert drawn == [plain.trial(t).configuration for t in range(4)]


def test_what_is_not_ok_ranks_last_and_is_never_best() -> None:
    search = started(9)
    for trial, (status, score) in enumerate(
        [("diverged", 0.0), ("failed", 0.0), ("cancelled", 0.0), ("ok", math.nan), ("ok", None), ("ok", -math.inf)]
    ):
        search.apply(TaskDone(trial=trial, level=0, status=status, score=score))  # type: ignore[arg-type]
    assert search.best() is None
    for trial, score in ((6, 3.0), (7, 2.0), (8, 1.0)):
        search.apply(TaskDone(trial=trial, level=0, score=score))
    assert search.settled()[0][1] == (6, 7, 8)
    assert [d.trial for d in search.apply(Asked(n=3)) if isinstance(d, CreateTask)] == [8, 7, 6]


def test_of_equal_scores_the_higher_level_is_best() -> None:
    search = started(9)
    for trial in range(9):
        search.apply(TaskDone(trial=trial, level=0, score=0.0))
    promoted = search.apply(Asked())[0]
    assert isinstance(promoted, CreateTask) and (promoted.trial, promoted.level) == (0, 1)
    search.apply(TaskDone(trial=0, level=1, score=0.0))
    best = search.best()
    assert best is not None and (best.trial, best.level) == (0, 1)


def finish(search: Search) -> list[CreateTask]:
    """Every task to the end, three at a time; of the same bracket the earlier trial scores better."""
    ran: list[CreateTask] = []
    while not search.idle:
        made = [task for task in search.apply(Asked(n=3)) if isinstance(task, CreateTask)]
        for task in made:
            search.apply(TaskDone(trial=task.trial, level=task.level, score=task.trial / 10))
        ran += made
    return ran


def test_deepening_withdraws_nothing_and_takes_old_finishers_further() -> None:
    search = Search(study(method={"brackets": "first:1"}))
    before = finish(search)
    assert [rung.results for rung in search.rungs()] == [9, 3, 1] and len(before) == 13
    assert search.apply(Deepened(max_budget=27)) == () and search.startable() and not search.idle
    after = finish(search)
    assert not {(task.trial, task.level) for task in before} & {(task.trial, task.level) for task in after}
    assert [rung.quota for rung in search.rungs()] == [27, 9, 3, 1]
    assert [task for task in after if task.trial == 0] == [
        CreateTask(trial=0, level=3, budget_from=9, decay_from=27, budget_to=27)
    ]
    assert search.settled()[0] == {0: tuple(range(27)), 1: tuple(range(9)), 2: (0, 1, 2), 3: (0,)}


@pytest.mark.parametrize(
    "changes",
    [
        {}, {"method": {"order": "eager", "brackets": "first:2"}}, {"method": {"variant": "efficient"}}, {"method": {"sync": True}},
        {"method": {"brackets": "first:1", "max_budget": 27, "width": 3}}, {"method": {"width": "auto"}, "limits": {"trials": 40}},
        {"limits": {"trials": 5}},
    ],
)  # fmt: skip
def test_how_many_tasks_could_start_is_how_many_an_ask_for_all_would_create(changes: dict[str, Any]) -> None:
    rng = random.Random(str(changes))
    search, seen = Search(study(**changes)), set[int]()
    running: list[CreateTask] = []
    for turn in range(160):
        most = rng.choice((1, 7, 1000))
        other = Search.restore(search.spec, search.snapshot())
        made = sum(isinstance(decision, CreateTask) for decision in other.apply(Asked(n=most)))
        assert search.startable_now(most) == made, turn
        seen.add(made)
        running += [task for task in search.apply(Asked(n=rng.randint(1, 4))) if isinstance(task, CreateTask)]
        for _ in range(min(len(running), rng.randint(0, 4))):
            task = running.pop(rng.randrange(len(running)))
            score = None if rng.random() < 0.1 else rng.random()
            search.apply(TaskDone(trial=task.trial, level=task.level, status="ok" if score else "failed", score=score))
        if turn == 60 and search.idle:
            search.apply(Confirming(finalists=2, delta=0.05, runs=9))
        if turn == 100:
            search.apply(Deepened(max_budget=search.ladder.budget(search.ladder.top) * 3))
    assert len(seen) > 4 and 0 in seen


def test_proposals_are_taken_in_order_and_every_third_trial_is_its_streams() -> None:
    search = Search(study(method={"sampler": "tpe"}))
    assert search.wants_proposals() == 0 and search.proposal_request() is None
    search.apply(Asked(n=3))
    for trial in range(2):
        search.apply(TaskDone(trial=trial, level=0, score=float(trial)))
    request = search.proposal_request()
    assert request is not None and request.n == search.wants_proposals() == 8 and request.level == 0
    assert [score for _, score in request.history] == [0.0, 1.0]
    assert request.pending == (search.trial(2).configuration,)
    search.apply(Proposed(configurations=tuple({"x": i / 10} for i in range(8)), source="tpe", level=0))
    assert search.wants_proposals() == 0
    created = [d for d in search.apply(Asked(n=5)) if isinstance(d, CreateTrial)]
    assert [(d.trial, d.source) for d in created] == [
        (3, "random"), (4, "tpe"), (5, "tpe"), (6, "random"), (7, "tpe"),
    ]  # fmt: skip
    assert [d.configuration["x"] for d in created if d.source == "tpe"] == [0.0, 0.1, 0.2]
    restored = Search.restore(search.spec, json.loads(json.dumps(search.snapshot())))
    assert restored.apply(Asked()) == search.apply(Asked())


def test_no_more_proposals_than_configurations_to_start() -> None:
    search = started(15, method={"sampler": "tpe"})
    search.apply(TaskDone(trial=0, level=0, score=1.0))
    search.apply(TaskDone(trial=1, level=0, score=1.0))
    assert search.wants_proposals() == 2  # 9 + 5 + 3 = 17 configurations are planned


def test_a_snapshot_of_another_engine_is_refused() -> None:
    with pytest.raises(InvalidSpec, match=r"snapshot.engine is 99; accepted is 2"):
        Search.restore(study(), {"engine": 99})


@pytest.mark.parametrize(
    "event",
    [
        Asked(n=3), TaskDone(trial=1, level=2, score=0.5), TaskDone(trial=1, level=2, status="failed"),
        Deepened(max_budget=81.0), TrialAdded(configuration={"x": 1, "name": "a", "flag": True}, level=0),
        Proposed(configurations=({"x": 0.5},), source="tpe", level=1), Stopped(reason="enough"),
        Widened(width=2), Retried(trial=3, level=0), Rescored(scores=((0, 1, 0.5), (2, 0, None))),
        SpaceChanged(space={"x": Float(low=0, high=2), "c": Categorical(choices=("a", "b"))}),
    ],
)  # fmt: skip
def test_events_survive_json(event: Event) -> None:
    assert event_from_mapping(json.loads(json.dumps(to_mapping(event), allow_nan=False))) == event


def test_decisions_survive_json_and_a_diverged_score_is_none() -> None:
    for made in (*Search(study()).apply(Asked()), Idle(), CancelTask(trial=1, level=0)):
        assert decision_from_mapping(json.loads(json.dumps(to_mapping(made)))) == made
    assert to_mapping(TaskDone(trial=0, level=0, score=math.nan))["score"] is None
    with pytest.raises(InvalidSpec, match=r"event\.kind is 'enlarged'; accepted are asked"):
        event_from_mapping({"kind": "enlarged"})
    with pytest.raises(InvalidSpec, match=r"event\.m is no key of asked"):
        event_from_mapping({"kind": "asked", "m": 1})
    with pytest.raises(InvalidSpec, match="event asked: Expected `int`"):
        event_from_mapping({"kind": "asked", "n": "two"})


def test_a_replay_names_the_first_event_decided_otherwise() -> None:
    results = [TaskDone(trial=trial, level=0, score=float(trial)) for trial in range(9)]
    search = Search(study())
    events: list[Event] = [Asked(n=9), *results, Asked()]
    recorded = [search.apply(event) for event in events]
    assert replay(study(), events, recorded).ok
    flipped = [*events[:1], TaskDone(trial=0, level=0, score=99.0), *events[2:]]
    report = replay(study(), flipped, recorded)
    assert report.difference is not None and report.difference.number == 11 and report.difference.got != recorded[-1]
    twice = replay(study(), [*events, events[1]], [*recorded, ()])
    assert twice.difference is not None and "already has its result" in twice.difference.error
    assert not replay(study(), events, recorded[:-1]).ok and not replay(study(), events[:-1], recorded).ok
