"""The scheduler under virtual time with seeded faults (``tests/sim/scheduler.py``): a few seeds here, ``poe sim`` plays thousands."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from scheduler import database, play

from isoloss.controller.decider import Decider
from isoloss.store import tasks

SEEDS = range(100, 106)
ENOUGH = range(24)  # seeds by which each missing defence is noticed


@pytest.fixture(scope="module")
def dsn() -> Iterator[str]:
    with database() as found:
        yield found


def test_whatever_goes_wrong_nothing_acknowledged_is_lost_and_a_study_ends_as_it_does_undisturbed(dsn: str) -> None:
    histories = [play(dsn, seed) for seed in SEEDS]
    assert [history.failed for history in histories] == [""] * len(SEEDS)
    wrong = {name for history in histories for name, n in history.faults.items() if n}
    assert wrong >= {"request", "reply", "twice", "late", "crash", "pause", "partition", "death", "stale verdicts"}


def test_a_seed_is_a_whole_history(dsn: str) -> None:
    first, again = play(dsn, 7), play(dsn, 7)
    assert first == again and first.fingerprint != play(dsn, 8).fingerprint


class Sticky(dict[Any, Any]):
    """A cache that keeps what it should forget."""

    def pop(self, *_: Any) -> None:
        """Nothing."""


def no_key(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(
        tasks,
        "HELD",
        tasks.HELD.replace("AND lease.epoch = said.epoch AND lease.secret_hash = sha256(said.secret::bytea)", ""),
    )


def all_accepted(patch: pytest.MonkeyPatch) -> None:
    async def repeated(_conn: Any, endings: Any, _owed: Any) -> list[str]:
        return ["accepted"] * len(endings)

    patch.setattr(tasks, "_repeated", repeated)


def kept_folds(patch: pytest.MonkeyPatch) -> None:
    begin = Decider.__init__

    def init(self: Decider, *given: Any) -> None:
        begin(self, *given)
        self._cache = Sticky()

    patch.setattr(Decider, "__init__", init)


def change(patch: pytest.MonkeyPatch, statement: str, text: str, instead: str) -> None:
    """Change a statement of the tasks, whose text stands there once."""
    whole: str = getattr(tasks, statement)
    assert whole.count(text) == 1, f"{statement} has another text now"
    patch.setattr(tasks, statement, whole.replace(text, instead))


def no_result(patch: pytest.MonkeyPatch) -> None:
    change(patch, "END_ATTEMPTS", "WHERE said.status IS NOT NULL", "WHERE said.status = 'ok'")


def lost_leases(patch: pytest.MonkeyPatch) -> None:
    change(patch, "EXPIRED", "LIMIT 500", "LIMIT 0")


@pytest.mark.long
@pytest.mark.parametrize("without", [no_key, all_accepted, kept_folds, no_result, lost_leases])
def test_a_defence_that_is_missing_is_noticed(
    dsn: str, monkeypatch: pytest.MonkeyPatch, without: Callable[[pytest.MonkeyPatch], None]
) -> None:
    without(monkeypatch)
    for seed in ENOUGH:
        try:
            if play(dsn, seed).failed:
                return
        except Exception:  # noqa: BLE001 - a crash is a failure too
            return
    pytest.fail(f"{without.__name__}: {len(ENOUGH)} seeds noticed nothing")
