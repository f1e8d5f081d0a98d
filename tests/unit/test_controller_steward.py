"""The order in which checkpoints make room where a disk is over its quota."""

from __future__ import annotations

from isoloss.controller.steward import Standing, chosen
from isoloss.domain.ids import StudyId
from isoloss.domain.spec import decode_study
from isoloss.search.events import Asked, CreateTask, Dropped, Retried, Stopped, TaskDone, TrialAdded
from isoloss.search.retention import Regret, expendable
from isoloss.search.search import Search
from isoloss.store.disks import Lying

OLD, NEW = StudyId(1), StudyId(2)


def searched(results: int = 99, *, keep: str = "all") -> Search:
    """A study of nine trials, of which the earlier ones are better, after so many results."""
    spec = {
        "name": "s", "space": {"x": {"type": "float", "low": 0, "high": 1}}, "objective": {"metric": "loss"},
        "method": {"min_budget": 1, "max_budget": 9, "brackets": "first:1"}, "fidelity": {"keep": keep},
    }  # fmt: skip
    search = Search(decode_study(spec))
    for _ in range(results):
        for made in search.apply(Asked(n=1)):
            if isinstance(made, CreateTask):
                search.apply(TaskDone(trial=made.trial, level=made.level, status="ok", score=float(made.trial)))
    return search


def test_what_a_plan_that_ran_does_not_need_goes_the_worst_of_the_lowest_level_first() -> None:
    for keep in ("all", "needed", "planned"):
        found = list(expendable(searched(keep=keep)))
        assert found == [(Regret.UNPLANNED, trial) for trial in (8, 7, 6, 5, 4, 3, 2, 1)], "whatever is to be kept"


def test_what_the_plan_may_yet_take_up_goes_last_and_what_runs_failed_or_was_added_never() -> None:
    search = searched(7)
    assert list(expendable(search)) == [(Regret.WAITING, trial) for trial in (6, 5, 4, 3, 2, 1)]
    search = searched(9)
    search.apply(Asked(n=1))
    search.apply(TrialAdded(configuration={"x": 0.5}, level=0))
    search.apply(TaskDone(trial=9, level=0, status="ok", score=5.5))
    search.apply(Asked(n=2))
    assert search.runs(1, 1) and search.runs(2, 1)
    search.apply(TaskDone(trial=1, level=1, status="failed"))
    assert [trial for _, trial in expendable(search)] == [8, 7, 6, 5, 4, 3]
    search.apply(Retried(trial=1, level=1))
    search.apply(Dropped(trials=(8, 7)))
    assert [trial for _, trial in expendable(search)] == [6, 5, 4, 3], "and what is gone is not there to go"


def test_no_single_deepening_needs_what_goes_before_the_rest() -> None:
    diverged = searched(8)
    (_, made) = diverged.apply(Asked(n=1))
    assert isinstance(made, CreateTask)
    diverged.apply(TaskDone(trial=made.trial, level=made.level, status="diverged"))
    assert next(iter(expendable(diverged))) == (Regret.UNNEEDED, made.trial)


def test_of_a_stopped_study_all_goes_but_the_best() -> None:
    search = searched(11)
    search.apply(Stopped(reason="enough"))
    assert list(expendable(search)) == [(Regret.STOPPED, trial) for trial in (8, 7, 6, 5, 4, 3, 2, 1)]


def folder(study: StudyId, trial: int, level: int, *, passed: bool = False, repeated: bool = False) -> Lying:
    return Lying(
        study_id=study, trial=trial, level=level, task_id=trial * 10 + level, epoch=1, bytes=10, dropped=False,
        leaving=False, passed=passed, repeated=repeated,
    )  # fmt: skip


def test_superseded_folders_go_before_trials_the_oldest_study_first_and_none_more_than_is_needed() -> None:
    lying = [
        folder(NEW, 1, 0, passed=True), folder(NEW, 1, 1), folder(OLD, 2, 0, passed=True), folder(OLD, 2, 1),
        folder(OLD, 3, 0, passed=True), folder(OLD, 3, 1, repeated=True), folder(OLD, 3, 2),
    ]  # fmt: skip
    standing = {
        OLD: Standing(bests={(3, 0), (3, 1)}, expendable=[(Regret.UNPLANNED, 2)]),
        NEW: Standing(bests=(), expendable=[(Regret.STOPPED, 1)]),
    }

    def going(lacking: int) -> list[tuple[int, int, int]]:
        found = chosen(lying, standing, lacking)
        return sorted((study, one.trial, one.level) for study, those in found.items() for one in those.folders)

    first, second, third = (1, 2, 0), (1, 3, 1), (2, 1, 0)
    assert going(0) == [] and going(1) == going(10) == [first] and going(11) == [first, second]
    assert going(21) == [first, second, third]
    assert going(31) == [first, second, third, (2, 1, 1)], "then what was stopped, though it is younger"
    assert len(going(41)) == 5, "what went already is counted once"
    assert going(1000) == sorted({first, second, third, (2, 1, 1), (1, 2, 1)}), (
        "never the best, nor what is not expendable"
    )
    assert {study: those.trials for study, those in chosen(lying, standing, 1000).items()} == {OLD: [2], NEW: [1]}
    assert chosen(lying, {NEW: standing[NEW]}, 1000).keys() == {NEW}, "of a study that cannot be asked nothing goes"
