"""A worker with which tasks fail that go well with others is given nothing for a while."""

from __future__ import annotations

from isoloss.controller.health import LONGEST_SECONDS, PAUSE_SECONDS, Health
from isoloss.domain.ids import StudyId, TaskId

ONE, OTHER = StudyId(1), StudyId(2)


class Story:
    """Tasks that end at once, one after another."""

    def __init__(self) -> None:
        self.health = Health()
        self.tasks = 0

    def ran(self, holder: str, *, failed: bool, at: float, study: StudyId = ONE, task: int | None = None) -> None:
        self.tasks += 1
        which = TaskId(task or self.tasks)
        self.health.granted(which, holder, study)
        self.health.ended(which, failed=failed, now=at)


def test_it_takes_several_tasks_in_a_row_and_somebody_with_whom_they_go_well() -> None:
    story = Story()
    for at in (1.0, 2.0, 3.0):
        assert story.health.cools_until("bad", at) is None
        story.ran("bad", failed=True, at=at)
    assert story.health.cools_until("bad", 4.0) is None, "nobody knows yet whether it is the trainer"
    story.ran("good", failed=False, at=4.0)
    assert story.health.cools_until("bad", 5.0) == 3.0 + PAUSE_SECONDS
    assert story.health.cools_until("good", 5.0) is None
    assert story.health.cools_until("bad", 3.0 + PAUSE_SECONDS) is None, "then it may try again"
    story.ran("bad", failed=True, at=70.0)
    assert story.health.cools_until("bad", 71.0) == 70.0 + 2 * PAUSE_SECONDS
    story.ran("bad", failed=False, at=200.0)
    story.ran("bad", failed=True, at=201.0)
    assert story.health.cools_until("bad", 202.0) is None, "a success ends the row"


def test_one_task_again_and_again_and_a_success_of_before_or_of_another_study_say_nothing() -> None:
    story = Story()
    story.ran("good", failed=False, at=0.0)
    for at in (1.0, 2.0, 3.0):
        story.ran("bad", failed=True, at=at)
    story.ran("good", failed=False, at=4.0, study=OTHER)
    assert story.health.cools_until("bad", 5.0) is None
    story = Story()
    for at in (1.0, 2.0, 3.0):
        story.ran("bad", failed=True, at=at, task=77)
    story.ran("good", failed=False, at=4.0)
    assert story.health.cools_until("bad", 5.0) is None


def test_the_pause_has_an_end_however_often_it_fails_and_what_was_not_granted_here_counts_nothing() -> None:
    story = Story()
    for at in range(1, 40):
        story.ran("bad", failed=True, at=float(at))
    story.ran("good", failed=False, at=40.0)
    assert story.health.cools_until("bad", 41.0) == 39.0 + LONGEST_SECONDS
    story.health.ended(TaskId(999), failed=True, now=42.0)
    assert story.health.cools_until("nobody", 43.0) is None
