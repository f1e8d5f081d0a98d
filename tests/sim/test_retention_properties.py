"""Nothing that a search resumes from was dropped: random studies, any order of arrival, deepened or widened once."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Iterator
from dataclasses import dataclass, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from isoloss.domain.spec import StudySpec, decode_study
from isoloss.search import retention
from isoloss.search.deepening import Bracket
from isoloss.search.events import (
    Asked,
    CreateTask,
    Decision,
    Deepened,
    Dropped,
    Event,
    Retried,
    Stopped,
    TaskDone,
    TrialAdded,
    Widened,
)
from isoloss.search.geometry import Plan
from isoloss.search.retention import bests, expendable, spare
from isoloss.search.search import Search
from isoloss.search.standing import failures

CASES = int(os.environ.get("ISOLOSS_CASES", "30"))
VARIANTS = (("settled", False), ("efficient", False), ("discarding", True), ("preserving", True), ("efficient", True))


@dataclass(frozen=True, kw_only=True)
class Case:
    """One random study; ``change`` is deepen, widen or nothing, after so many results."""

    keep: str
    eta: int
    top: int
    brackets: str
    variant: tuple[str, bool]
    workers: int
    change: str
    moment: int
    noise: float
    failures: float
    seed: int
    mode: str = "resume"
    quota: int = 10**6  # checkpoints, before room is made

    @property
    def spec(self) -> StudySpec:
        variant, sync = self.variant
        method = {
            "min_budget": 4, "max_budget": 4 * self.eta**self.top, "eta": self.eta, "brackets": self.brackets,
            "variant": variant, "sync": sync, "sampler": "random",
        }  # fmt: skip
        return decode_study(
            {"name": "case", "space": {"x": {"type": "float", "low": 0, "high": 1}}, "objective": {"metric": "loss"},
             "method": method, "fidelity": {"mode": self.mode, "keep": self.keep}, "seed": self.seed % 1000}
        )  # fmt: skip


@dataclass
class Disk:
    """The search with its checkpoints: which level's each trial has, and where each task began."""

    case: Case
    fold: Search
    held: dict[int, int]
    dropped: int = 0

    def tell(self, event: Event) -> tuple[Decision, ...]:
        decisions = self.fold.apply(event)
        for task in decisions:
            if isinstance(task, CreateTask):
                self.check(task)
        return decisions

    def check(self, task: CreateTask) -> None:
        """A task begins at the checkpoint that is there, and it is there whenever the rule promised so."""
        ladder, level = self.fold.ladder, self.held.get(task.trial)
        assert task.budget_from == (0 if level is None else ladder.budget_from(task.level, level)), "the bill is true"
        trial = self.fold.trial(task.trial)
        promised = self.case.keep == "needed" or not (self.case.change or self.case.failures or self.case.keep == "all")
        if promised and self.case.mode != "fresh" and task.level > trial.bracket >= 0:
            assert level is not None, "it was dropped"

    def tidy(self) -> None:
        """Drop what is spare, and what is over the quota, as the decider does."""
        found = spare(self.fold)
        if (over := len(self.held) - len(found) - self.case.quota) > 0 and self.fold.stopped is None:
            may_go = [trial for _, trial in expendable(self.fold) if trial in self.held and trial not in found]
            running = {trial for trial, level in self.fold.tasks if self.fold.runs(trial, level)}
            failed = {trial for trial, _ in failures(self.fold)}
            assert not {*may_go} & (running | failed | {trial for trial, _ in bests(self.fold)})
            found += tuple(may_go[:over])
        if self.fold.stopped is None and found:
            self.tell(Dropped(trials=found))
        for trial in found:
            self.dropped += self.held.pop(trial, None) is not None


def play(case: Case) -> Disk:
    """A study to its end, its workers answering in random order."""
    disk, chance, results = Disk(case, Search(case.spec), {}), random.Random(case.seed), 0
    running: list[CreateTask] = []
    changed = case.change == ""
    while True:
        while len(running) < case.workers and disk.fold.startable():
            running += [task for task in disk.tell(Asked(n=1)) if isinstance(task, CreateTask)]
        if not changed and (results >= case.moment or not running):
            changed, plan = True, disk.fold.plan
            top = plan.ladder.budget(plan.ladder.top) * case.eta
            disk.tell(Deepened(max_budget=top) if case.change == "deepen" else Widened(width=plan.width + 1))
            continue
        if not running:
            if not (again := failures(disk.fold)):
                return disk
            for trial, level in again:
                disk.tell(Retried(trial=trial, level=level))
                running.append(CreateTask(trial=trial, level=level, budget_from=0, decay_from=0, budget_to=0))
        task = running.pop(chance.randrange(len(running)))
        results += 1
        disk.tell(outcome(case, task, disk.fold, again=disk.fold.result(task.trial, task.level) is not None))
        if (result := disk.fold.result(task.trial, task.level)) is not None and result.status == "ok":
            disk.held[task.trial] = task.level
        disk.tidy()
        if chance.random() < 0.03:
            disk.fold = Search.restore(case.spec, json.loads(json.dumps(disk.fold.snapshot())))


def outcome(case: Case, task: CreateTask, fold: Search, *, again: bool) -> TaskDone:
    trial, where = fold.trial(task.trial), {"trial": task.trial, "level": task.level}
    base = random.Random(f"{case.seed} {trial.bracket} {trial.index}")
    quality, luck = base.random(), random.Random(f"{case.seed} {trial.bracket} {trial.index} {task.level}")
    if not again and luck.random() < case.failures:
        return TaskDone(status=luck.choice(("failed", "diverged")), **where)
    return TaskDone(status="ok", score=round(quality + luck.gauss(0, case.noise), 2), **where)


@st.composite
def cases(draw: st.DrawFn, keep: str, change: tuple[str, ...]) -> Case:
    eta, tops = draw(st.sampled_from([(2, (1, 2, 3, 4)), (3, (1, 2, 3)), (4, (1, 2))]))
    return Case(
        keep=keep, eta=eta, top=draw(st.sampled_from(tops)), brackets=draw(st.sampled_from(["all", "first:1", "first:2"])),
        variant=draw(st.sampled_from(VARIANTS)), workers=draw(st.sampled_from([1, 3, 16])), change=draw(st.sampled_from(change)),
        moment=draw(st.integers(0, 120)), noise=draw(st.sampled_from([0.0, 0.1, 0.5])),
        failures=draw(st.sampled_from([0.0, 0.2])), seed=draw(st.integers(0, 2**32)),
    )  # fmt: skip


@settings(deadline=None, max_examples=max(80, CASES))
@given(case=cases("needed", ("", "deepen", "widen")))
def test_needed_serves_every_promotion_even_after_one_deepening_or_widening(case: Case) -> None:
    play(case)


@settings(deadline=None, max_examples=max(80, CASES))
@given(case=cases("planned", ("",)))
def test_planned_serves_every_promotion_of_the_plan_and_the_bests_are_there_in_the_end(case: Case) -> None:
    disk = play(case)
    assert case.failures or {trial for trial, _ in bests(disk.fold)} <= set(disk.held)


@settings(deadline=None, max_examples=CASES)
@given(case=cases("planned", ("deepen", "widen")))
def test_what_planned_dropped_and_a_change_promotes_after_all_is_billed_from_step_0(case: Case) -> None:
    play(case)


@settings(deadline=None, max_examples=max(80, CASES))
@given(case=cases("all", ("", "deepen", "widen")), quota=st.integers(0, 12))
def test_below_a_quota_the_bill_is_true_and_what_runs_failed_or_is_best_keeps_its_checkpoint(
    case: Case, quota: int
) -> None:
    disk = play(replace(case, quota=quota))
    best = disk.fold.best()  # the settled best may have gone before its rung was settled
    assert best is None or case.failures or best.trial in disk.held
    most = max(quota, len({trial for trial, _ in bests(disk.fold)}))
    assert len(disk.held) <= most, "at rest whatever may go can go"


CASE = Case(
    keep="planned", eta=3, top=3, brackets="first:1", variant=("efficient", False), workers=4, change="", moment=0,
    noise=0.3, failures=0.0, seed=3,
)  # fmt: skip


def test_a_finished_plan_keeps_the_best_and_a_stopped_study_the_best_and_what_was_added() -> None:
    disk = play(CASE)
    assert disk.fold.trials == 27 and set(disk.held) == {trial for trial, _ in bests(disk.fold)}
    wide = play(replace(CASE, keep="needed"))
    assert len(wide.held) == 27, "one deepening could promote all 27 of the first bracket"
    wide.tell(TrialAdded(configuration={"x": 0.5}))
    wide.tell(Stopped(reason="enough"))
    assert set(range(28)) - set(spare(wide.fold)) - wide.fold.dropped == {t for t, _ in bests(wide.fold)} | {27}


def test_all_drops_nothing_fresh_everything_and_a_study_that_widens_by_itself_no_loser() -> None:
    assert play(replace(CASE, keep="all")).dropped == 0
    fresh = play(replace(CASE, keep="needed", mode="fresh"))
    assert set(fresh.held) == {trial for trial, _ in bests(fresh.fold)}
    endless = decode_study(
        {"name": "s", "space": {"x": {"type": "float", "low": 0, "high": 1}}, "objective": {"metric": "loss"},
         "method": {"min_budget": 1, "max_budget": 9, "width": "auto"}, "fidelity": {"keep": "planned"},
         "limits": {"trials": 99}}
    )  # fmt: skip
    fold = Search(endless)
    for n in range(40):
        for task in fold.apply(Asked(n=1)):
            if isinstance(task, CreateTask):
                fold.apply(TaskDone(trial=task.trial, level=task.level, status="ok", score=float(n)))
    assert spare(fold) == ()


# ---- broken on purpose: each of these must be noticed ---------------------------------------------------------------


def rank_alone(bracket: Bracket, level: int, place: int, _: int) -> int:
    return place


def one_too_few(plan: Plan, bracket: Bracket) -> dict[int, int]:
    return {level: max(0, room - 1) for level, room in ROOM(plan, bracket).items()}


def never_changed(plan: Plan) -> Iterator[Plan]:
    yield from ()


def deepened_only(plan: Plan) -> Iterator[Plan]:
    yield next(iter(CHANGED(plan)))


ROOM, CHANGED = retention._room, retention._changed
MUTATIONS = {
    "the rank of a higher rung is enough": ("_ahead", rank_alone),
    "room off by one": ("_room", one_too_few),
    "no change is looked ahead to": ("_changed", never_changed),
    "widening is forgotten": ("_changed", deepened_only),
}


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_rule_broken_on_purpose_is_noticed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention, *MUTATIONS[name])
    for seed in range(500):
        chance = random.Random(seed)
        case = replace(
            CASE, keep="needed", eta=2, top=chance.choice((2, 3)), brackets="all", variant=chance.choice(VARIANTS[:3]),
            workers=16, change=chance.choice(("deepen", "widen")), moment=10**6, noise=0.5, seed=seed,
        )  # fmt: skip
        try:
            play(case)
        except AssertionError:
            return
    pytest.fail(f"nobody noticed: {name}")
