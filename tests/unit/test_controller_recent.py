"""What a controller remembers is bounded."""

from __future__ import annotations

import pytest

from isoloss.controller import health, recent
from isoloss.controller.health import Health
from isoloss.controller.recent import Recent
from isoloss.domain.ids import StudyId, TaskId


def test_what_was_set_longest_ago_is_forgotten_first() -> None:
    memory = Recent[str, int](2)
    memory["a"], memory["b"] = 1, 2
    memory["a"] = 3
    memory["c"] = 4
    assert memory == {"a": 3, "c": 4}


def test_a_controller_that_lives_long_remembers_no_more_of_its_workers_than_fits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(health, "MOST_HELD", 7)
    monkeypatch.setattr(recent, "MOST", 5)
    memory = Health()
    for n in range(100):
        memory.granted(TaskId(n), f"w{n}", StudyId(n))
        if n < 93:
            memory.ended(TaskId(n), failed=n % 2 == 0, now=float(n))
    assert (len(memory._held), len(memory._streaks), len(memory._fine)) == (7, 5, 5)
