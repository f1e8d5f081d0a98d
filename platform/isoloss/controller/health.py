"""Which worker may be what fails: a broken machine ends tasks faster than a sound one, and would be given them all.

What this controller granted and heard, in memory: a controller that begins anew gives every worker its trust back.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from isoloss.controller.recent import Recent
from isoloss.domain.ids import StudyId, TaskId

SUSPECT: Final = 3  # tasks of one study in a row, each another
PAUSE_SECONDS: Final = 60.0  # doubled with every further failure
LONGEST_SECONDS: Final = 3600.0
MOST_HELD: Final = 1_000_000  # tasks that run at once


@dataclass(slots=True)
class _Streak:
    """Failures of a worker in one study since its last success there."""

    tasks: set[TaskId] = field(default_factory=set)
    begun: float = 0.0
    last: float = 0.0


class Health:
    """Streaks of failures by worker and study, and when others last succeeded."""

    def __init__(self) -> None:
        self._held = Recent[TaskId, tuple[str, StudyId]](MOST_HELD)
        self._streaks = Recent[str, Recent[StudyId, _Streak]]()
        self._fine = Recent[StudyId, Recent[str, float]]()

    def granted(self, task_id: TaskId, holder: str, study_id: StudyId) -> None:
        """A worker has been given a task."""
        self._held[task_id] = (holder, study_id)

    def ended(self, task_id: TaskId, *, failed: bool, now: float) -> None:
        """It ended there: failed in a way that trying again may help, or well."""
        if (held := self._held.pop(task_id, None)) is None:
            return
        holder, study_id = held
        if not failed:
            if (streaks := self._streaks.get(holder)) is not None:
                streaks.pop(study_id, None)
            self._fine[study_id] = fine = self._fine.get(study_id) or Recent()
            fine[holder] = now
            return
        self._streaks[holder] = streaks = self._streaks.get(holder) or Recent()
        streaks[study_id] = streak = streaks.get(study_id) or _Streak(begun=now)
        streak.tasks.add(task_id)
        streak.last = now

    def cools_until(self, holder: str, now: float) -> float | None:
        """Until when a worker is given nothing; ``None`` unless tasks fail with it that go well with others."""
        ends = [
            streak.last + min(PAUSE_SECONDS * 2 ** (len(streak.tasks) - SUSPECT), LONGEST_SECONDS)
            for study_id, streak in self._streaks.get(holder, {}).items()
            if len(streak.tasks) >= SUSPECT
            and any(at >= streak.begun for other, at in self._fine.get(study_id, {}).items() if other != holder)
        ]
        return max((end for end in ends if end > now), default=None)
