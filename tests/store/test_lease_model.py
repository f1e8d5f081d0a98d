"""The lease state machine beside a model of it in plain Python: whatever is done in whatever order, both say the same (I2–I7, I14).

The model knows nothing of SQL or of ``domain.lease``. After every step the rows are compared with it, and the oracles look.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from isoloss.controller import decider as deciding
from isoloss.controller.decider import Decider
from isoloss.controller.duty import Bell
from isoloss.domain.lease import Checkpoint, Ending, LeaseKey
from isoloss.domain.spec import decode_study, encode
from isoloss.store import tasks
from isoloss.store.pool import Pool
from isoloss.store.tasks import Want
from isoloss.testing.oracles import violations

EXCEPTIONS, SILENCES = 3, 5  # by which a task is given up
ENDINGS = {
    "complete": Ending(kind="complete", values={"loss": 0.5}), "nan": Ending(kind="complete", values={"loss": float("nan")}),
    "mute": Ending(kind="complete", values={"other": 1.0}), "diverge": Ending(kind="diverge", step=1), "release": Ending(kind="release"),
    "fail": Ending(kind="fail", message="no luck"), "refuse": Ending(kind="fail", retryable=False),
}  # fmt: skip
OUTCOME = {
    "complete": "ok", "nan": "diverged", "mute": "failed", "diverge": "diverged", "release": "released", "fail": "failed",
    "refuse": "failed", "silence": "expired",
}  # fmt: skip
ROWS = """
    SELECT id, task.state::text, task.epoch, failures, infra_failures, result.status::text, lease.task_id IS NOT NULL
    FROM task LEFT JOIN result ON result.task_id = id LEFT JOIN lease ON lease.task_id = id"""


@dataclass
class Task:
    """What should be true of one task."""

    state: str = "ready"
    epoch: int = 0
    failures: int = 0
    silences: int = 0
    status: str | None = None
    outcomes: dict[int, str] = field(default_factory=dict)  # of its attempts, by epoch
    saved: int = 0  # the step of its last checkpoint
    saved_now: bool = False  # whether that is this attempt's
    keys: list[LeaseKey] = field(default_factory=list)  # the last is current while it is leased

    def end(self, kind: str) -> None:
        """What an ending makes of it."""
        final = {"complete": "ok", "nan": "diverged", "diverge": "diverged", "mute": "failed", "refuse": "failed"}.get(
            kind
        )
        self.failures += kind in ("fail", "mute", "refuse")
        self.silences += kind == "silence" and not self.saved_now
        if (kind == "fail" and self.failures == EXCEPTIONS) or self.silences == SILENCES:
            final = "failed"
        self.state = "ready" if final is None else "failed" if final == "failed" else "done"
        self.outcomes[self.epoch] = OUTCOME[kind]
        self.status, self.saved_now = final, False


class Leases(RuleBasedStateMachine):
    """One study of three trials at one budget, and two workers that do what they like."""

    dsn = ""

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.pool = self.runner.run(self._opened())
        self.model: dict[int, Task] = {}

    async def _opened(self) -> Pool:
        with psycopg.connect(self.dsn, autocommit=True) as conn:
            conn.execute("TRUNCATE study, dedup RESTART IDENTITY CASCADE")
        pool = await Pool(self.dsn, size=1).__aenter__()
        spec = decode_study({
            "name": "s", "space": {"x": {"type": "float", "low": 0, "high": 1}}, "objective": {"metric": "loss"},
            "method": {"name": "fixed", "budget": 9}, "limits": {"trials": 3},
        })  # fmt: skip
        async with pool.connection() as conn:
            row = await deciding.create(conn, spec, mapping=encode(spec), trainable="")
        assert row is not None
        self.study, self.decider = row.id, Decider(pool, Bell())
        return pool

    def teardown(self) -> None:
        self.runner.run(self.pool.__aexit__(None, None, None))
        self.runner.close()

    def do(self, body: Callable[[Any], Awaitable[Any]]) -> Any:
        async def within() -> Any:
            async with self.pool.connection() as conn:
                return await body(conn)

        return self.runner.run(within())

    def of(self, state: str) -> list[int]:
        return sorted(number for number, task in self.model.items() if task.state == state)

    @rule(n=st.integers(1, 3))
    def ask(self, n: int) -> None:
        decided = self.runner.run(self.decider.decide(self.study, ask=n))
        for _ in range(decided.created):
            self.model[len(self.model) + 1] = Task()
        assert len(self.model) <= 3

    @rule(n=st.integers(1, 3), worker=st.sampled_from(["a", "b"]))
    def lease(self, n: int, worker: str) -> None:
        """The oldest that wait, as many as are wanted and no more."""
        wants = [Want(holder=worker, incarnation="i", n=n)]
        granted = self.do(lambda conn: tasks.lease_next(conn, [self.study], wants, timedelta(minutes=1)))
        found = self.do(lambda conn: tasks.describe(conn, granted))
        assert [one.task_id for one in found] == self.of("ready")[:n]
        for one in found:
            task = self.model[one.task_id]
            task.state, task.epoch, task.saved_now = "leased", task.epoch + 1, False
            assert (one.epoch, one.budget_from) == (task.epoch, task.saved)
            task.keys.append(LeaseKey(task_id=one.task_id, epoch=one.epoch, secret=one.secret))

    def any_key(self, data: st.DataObject) -> tuple[Task, LeaseKey, bool]:
        """A task, a key that was once given for it or was made up, and whether it is the current one."""
        task = data.draw(st.sampled_from([task for task in self.model.values() if task.keys]), label="task")
        key = data.draw(
            st.sampled_from([*task.keys, LeaseKey(task_id=task.keys[0].task_id, epoch=task.epoch, secret="?")])
        )
        return task, key, task.state == "leased" and key == task.keys[-1]

    @precondition(lambda self: any(task.keys for task in self.model.values()))
    @rule(data=st.data(), kind=st.sampled_from(sorted(ENDINGS)))
    def finish(self, data: st.DataObject, kind: str) -> None:
        task, key, current = self.any_key(data)
        (verdict,), _ = self.do(lambda conn: tasks.finish(conn, [(key, ENDINGS[kind])], owed))
        if current:
            assert verdict == "accepted"
            task.end(kind)
        elif task.outcomes.get(key.epoch) == OUTCOME[kind]:  # told again: the answer was lost
            assert verdict == "accepted"
        else:  # something else of what has ended, or of what somebody else has now
            assert verdict == ("already_done" if task.status is not None and key.epoch == task.epoch else "stale")

    @precondition(lambda self: any(task.keys for task in self.model.values()))
    @rule(data=st.data())
    def beat(self, data: st.DataObject) -> None:
        _, key, current = self.any_key(data)
        held = self.do(lambda conn: tasks.heartbeat(conn, [key], ttl=timedelta(minutes=1)))
        assert (key in held) == current

    @precondition(lambda self: any(task.keys for task in self.model.values()))
    @rule(data=st.data(), step=st.integers(1, 8))
    def save(self, data: st.DataObject, step: int) -> None:
        """In mid-run; who dies with all of it saved runs it again, or there would be no result."""
        task, key, current = self.any_key(data)
        self.do(
            lambda conn: tasks.add_checkpoint(
                conn, key, Checkpoint(step=step, path=f"/{key.task_id}/{key.epoch}", manifest={})
            )
        )
        if current and step > task.saved:
            task.saved, task.saved_now = step, True

    @precondition(lambda self: self.of("leased"))
    @rule(data=st.data())
    def falls_silent(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(self.of("leased")))
        with psycopg.connect(self.dsn, autocommit=True) as conn:
            conn.execute("UPDATE lease SET expires_at = now() - interval '1 second' WHERE task_id = %s", [number])
        assert self.do(tasks.reap) == [self.study]
        self.model[number].end("silence")

    @invariant()
    def both_say_the_same(self) -> None:
        with psycopg.connect(self.dsn, autocommit=True) as conn:
            conn.execute("UPDATE task SET not_before = now()")  # who backs off has waited
            rows = {row[0]: row[1:] for row in conn.execute(ROWS).fetchall()}
            assert not violations(conn)
        assert rows == {
            number: (t.state, t.epoch, t.failures, t.silences, t.status, t.state == "leased")
            for number, t in self.model.items()
        }


async def owed(conn: Any, study_id: Any, version: int) -> tuple[str, ...]:
    return ("loss",)


def test_whatever_workers_do_the_rows_are_what_a_model_says(dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Leases, "dsn", dsn)
    examples = int(os.environ.get("ISOLOSS_CASES", "5"))
    checks = [HealthCheck.too_slow, HealthCheck.filter_too_much]
    run_state_machine_as_test(
        Leases,
        settings=settings(max_examples=examples, stateful_step_count=30, deadline=None, suppress_health_check=checks),
    )
