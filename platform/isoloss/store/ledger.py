"""The ledger: a study's events in order, each with the decisions it caused. Insert-only, gap-free, the only truth.

Everything here runs under the study's row lock (``studies.lock``), so ``seq`` follows ``seq`` without a hole.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, LiteralString

from psycopg.rows import class_row
from psycopg.types.json import Jsonb

from isoloss.domain.ids import StudyId, TaskId
from isoloss.store.pool import Conn


@dataclass(frozen=True, slots=True, kw_only=True)
class Undecided:
    """A durable result that no event has taken up yet."""

    task_id: TaskId
    trial_no: int
    level: int
    status: str
    values: dict[str, Any]
    cost: float


UNDECIDED: Final[LiteralString] = """
    SELECT task_id, task.trial_no, task.level, result.status::text, result."values",
           (task.budget_to - task.budget_from)::float8 AS cost
    FROM result JOIN task ON task.id = result.task_id
    WHERE result.study_id = %(study_id)s AND decided_seq IS NULL ORDER BY received_at, task_id LIMIT 1000"""


async def undecided(conn: Conn, study_id: StudyId) -> list[Undecided]:
    """Results to decide, in the order they became durable."""
    async with conn.cursor(row_factory=class_row(Undecided)) as cursor:
        await cursor.execute(UNDECIDED, {"study_id": study_id})
        return await cursor.fetchall()


PENDING: Final[LiteralString] = """
    SELECT DISTINCT result.study_id FROM result JOIN study ON study.id = result.study_id
    WHERE decided_seq IS NULL AND study.state <> 'stopped'"""


async def pending(conn: Conn) -> list[StudyId]:
    """Studies with results to decide."""
    return [StudyId(row[0]) for row in await (await conn.execute(PENDING)).fetchall()]


APPEND: Final[LiteralString] = """
    INSERT INTO event (study_id, seq, kind, body, decisions)
    VALUES (%(study_id)s, %(seq)s, %(kind)s, %(body)s, %(decisions)s)"""


async def append(
    conn: Conn, study_id: StudyId, seq: int, event: Mapping[str, Any], decisions: Sequence[Mapping[str, Any]]
) -> None:
    """Append one event with its decisions."""
    given = {
        "study_id": study_id, "seq": seq, "kind": event["kind"], "body": Jsonb(dict(event)),
        "decisions": Jsonb([dict(d) for d in decisions]),
    }  # fmt: skip
    await conn.execute(APPEND, given)


DECIDED: Final[LiteralString] = """
    UPDATE result SET decided_seq = %(seq)s, score = %(score)s WHERE task_id = %(task_id)s AND decided_seq IS NULL"""


async def mark_decided(conn: Conn, task_id: TaskId, seq: int, score: float | None) -> None:
    """The result has its place in the ledger, and the score its rung ranks."""
    await conn.execute(DECIDED, {"task_id": task_id, "seq": seq, "score": score})


INSERT_TRIAL: Final[LiteralString] = """
    INSERT INTO trial (study_id, no, bracket, index, params, source)
    VALUES (%(study_id)s, %(no)s, %(bracket)s, %(index)s, %(params)s, %(source)s)"""


async def insert_trial(
    conn: Conn, study_id: StudyId, no: int, *, bracket: int, index: int, params: Mapping[str, Any], source: str
) -> None:
    """A configuration enters the study."""
    given = {
        "study_id": study_id,
        "no": no,
        "bracket": bracket,
        "index": index,
        "params": Jsonb(dict(params)),
        "source": source,
    }
    await conn.execute(INSERT_TRIAL, given)


INSERT_TASK: Final[LiteralString] = """
    INSERT INTO task (study_id, trial_no, level, budget_from, decay_from, budget_to)
    VALUES (%(study_id)s, %(trial_no)s, %(level)s, %(budget_from)s, %(decay_from)s, %(budget_to)s)"""


async def insert_task(
    conn: Conn, study_id: StudyId, trial_no: int, level: int, *, budget_from: int, decay_from: int, budget_to: int
) -> None:
    """A trial is to run to a level."""
    given = {
        "study_id": study_id, "trial_no": trial_no, "level": level, "budget_from": budget_from, "decay_from": decay_from,
        "budget_to": budget_to,
    }  # fmt: skip
    await conn.execute(INSERT_TASK, given)


CANCEL_WAITING: Final[LiteralString] = """
    WITH cancelled AS (
        UPDATE task SET state = 'cancelled', ended_at = now()
        WHERE study_id = %(study_id)s AND state = 'ready' RETURNING id, study_id)
    INSERT INTO result (task_id, study_id, epoch, status, "values", decided_seq)
    SELECT id, study_id, NULL, 'cancelled', '{}'::jsonb, %(seq)s FROM cancelled"""
CANCEL_RUNNING: Final[LiteralString] = """
    UPDATE task SET state = 'cancelling' WHERE study_id = %(study_id)s AND state = 'leased'"""


async def cancel_open(conn: Conn, study_id: StudyId, seq: int) -> None:
    """Cancel every open task: those that wait at once, those that run by their next heartbeat."""
    await conn.execute(CANCEL_WAITING, {"study_id": study_id, "seq": seq})
    await conn.execute(CANCEL_RUNNING, {"study_id": study_id})


VETO: Final[LiteralString] = """
    WITH vetoed AS (
        UPDATE task SET state = 'cancelled', ended_at = now()
        WHERE study_id = %(study_id)s AND trial_no = %(trial_no)s AND level = %(level)s AND state = 'ready'
        RETURNING id, study_id)
    INSERT INTO result (task_id, study_id, epoch, status, "values")
    SELECT id, study_id, NULL, 'cancelled', '{}'::jsonb FROM vetoed RETURNING task_id"""


async def veto(conn: Conn, study_id: StudyId, trial_no: int, level: int) -> TaskId:
    """Cancel a task that was only just created, before anybody can lease it."""
    row = await (await conn.execute(VETO, {"study_id": study_id, "trial_no": trial_no, "level": level})).fetchone()
    assert row is not None  # noqa: S101 - the same transaction created it
    return TaskId(row[0])


REOPEN: Final[LiteralString] = """
    WITH gone AS (
        DELETE FROM result USING task
        WHERE task.id = result.task_id AND task.study_id = %(study_id)s AND task.trial_no = %(trial_no)s
          AND task.level = %(level)s AND result.status = 'failed' RETURNING result.task_id)
    UPDATE task SET state = 'ready', ended_at = NULL, failures = 0, infra_failures = 0, not_before = now()
    FROM gone WHERE task.id = gone.task_id RETURNING (budget_to - budget_from)::float8"""


async def reopen(conn: Conn, study_id: StudyId, trial_no: int, level: int) -> float:
    """A failed task waits again, with all its attempts left; returns its cost."""
    rows = await conn.execute(REOPEN, {"study_id": study_id, "trial_no": trial_no, "level": level})
    return float(sum(row[0] for row in await rows.fetchall()))


EVENTS: Final[LiteralString] = """
    SELECT seq, kind, body, decisions FROM event WHERE study_id = %(study_id)s AND seq > %(after)s
    ORDER BY seq LIMIT %(limit)s"""


async def events(
    conn: Conn, study_id: StudyId, *, after: int = 0, limit: int = 1_000_000
) -> list[tuple[int, str, dict[str, Any], list[dict[str, Any]]]]:
    """Events after a cursor: (seq, kind, body, decisions)."""
    rows = await conn.execute(EVENTS, {"study_id": study_id, "after": after, "limit": limit})
    return [(r[0], r[1], r[2], r[3]) for r in await rows.fetchall()]


SNAPSHOT: Final[LiteralString] = "SELECT snapshot, snapshot_seq FROM study WHERE id = %(study_id)s"
SAVE_SNAPSHOT: Final[LiteralString] = """
    UPDATE study SET snapshot = %(snapshot)s, snapshot_seq = %(seq)s WHERE id = %(study_id)s AND snapshot_seq < %(seq)s"""


async def snapshot(conn: Conn, study_id: StudyId) -> tuple[dict[str, Any] | None, int]:
    """The cached fold and the seq it stands at."""
    row = await (await conn.execute(SNAPSHOT, {"study_id": study_id})).fetchone()
    return (row[0], row[1]) if row else (None, 0)


async def save_snapshot(conn: Conn, study_id: StudyId, seq: int, body: Mapping[str, Any]) -> None:
    """Cache the fold; the ledger stays the truth."""
    await conn.execute(SAVE_SNAPSHOT, {"study_id": study_id, "seq": seq, "snapshot": Jsonb(dict(body))})
