"""Tasks and leases. Every transition is guarded by state, epoch and secret inside the statement that makes it.

Lock order is always study, then task by id, then lease, then result.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final, LiteralString

from psycopg.rows import class_row
from psycopg.types.json import Jsonb

from isoloss.domain.ids import StudyId, TaskId
from isoloss.domain.lease import Checkpoint, Ending, LeaseKey, Move, judge
from isoloss.domain.task import TERMINAL, ResultStatus, TaskState
from isoloss.store.pool import Conn


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """One leased task, with what a trainer needs; ``resume_from`` is empty when it begins at step 0."""

    task_id: TaskId
    epoch: int
    secret: str
    project: str
    study: str
    study_id: StudyId
    trial_no: int
    level: int
    budget_from: int
    decay_from: int
    budget_to: int
    params: dict[str, Any]
    resume_from: str
    spec: dict[str, Any]


LEASE_NEXT: Final[LiteralString] = """
    WITH next AS MATERIALIZED (
        SELECT id FROM task WHERE study_id = ANY(%(study_ids)s) AND state = 'ready' AND not_before <= now()
        ORDER BY level DESC, id LIMIT %(n)s FOR UPDATE SKIP LOCKED),
    leased AS (
        UPDATE task SET state = 'leased', epoch = epoch + 1 FROM next WHERE task.id = next.id RETURNING task.id, task.epoch),
    attempted AS (
        INSERT INTO attempt (task_id, epoch, worker_id) SELECT id, epoch, %(worker_id)s FROM leased),
    secret AS MATERIALIZED (SELECT id, epoch, gen_random_uuid()::text AS secret FROM leased),
    granted AS (
        INSERT INTO lease (task_id, epoch, worker_id, incarnation, secret_hash, expires_at)
        SELECT id, epoch, %(worker_id)s, %(incarnation)s, sha256(secret::bytea), now() + %(ttl)s FROM secret)
    SELECT id, secret FROM secret"""

RECLAIM: Final[LiteralString] = """
    WITH secret AS MATERIALIZED (
        SELECT task_id AS id, gen_random_uuid()::text AS secret FROM lease
        WHERE worker_id = %(worker_id)s AND incarnation = %(incarnation)s AND NOT task_id = ANY(%(holding)s)
          AND EXISTS (SELECT FROM task WHERE task.id = lease.task_id AND study_id = ANY(%(study_ids)s))
        FOR UPDATE),
    renewed AS (
        UPDATE lease SET secret_hash = sha256(secret::bytea), expires_at = now() + %(ttl)s
        FROM secret WHERE lease.task_id = secret.id)
    SELECT id, secret FROM secret"""

DESCRIBE: Final[LiteralString] = """
    SELECT task.id AS task_id, task.epoch, given.secret, study.project, study.name AS study, study.id AS study_id,
           task.trial_no, task.level, coalesce(checkpoint.step, 0) AS budget_from, task.decay_from, task.budget_to,
           trial.params, coalesce(checkpoint.path, '') AS resume_from, study.spec
    FROM unnest(%(ids)s::bigint[], %(secrets)s::text[]) AS given(id, secret)
    JOIN task ON task.id = given.id
    JOIN study ON study.id = task.study_id
    JOIN trial ON trial.study_id = task.study_id AND trial.no = task.trial_no
    LEFT JOIN LATERAL (
        SELECT c.step, c.path FROM checkpoint c JOIN task earlier ON earlier.id = c.task_id
        WHERE earlier.study_id = task.study_id AND earlier.trial_no = task.trial_no
          AND c.step <= task.decay_from AND c.step < task.budget_to AND c.dropped_at IS NULL
          AND (earlier.id = task.id OR study.spec #>> '{fidelity,mode}' IS DISTINCT FROM 'fresh')
        ORDER BY c.step DESC, c.at DESC LIMIT 1) AS checkpoint ON true
    ORDER BY task.id"""


async def lease_next(
    conn: Conn, study_ids: Sequence[StudyId], *, worker_id: str, incarnation: str, n: int, ttl: timedelta
) -> list[Lease]:
    """Lease up to ``n`` ready tasks nearest the top; never waits for another worker's row."""
    given = {"study_ids": list(study_ids), "worker_id": worker_id, "incarnation": incarnation, "n": n, "ttl": ttl}
    return await _describe(conn, await (await conn.execute(LEASE_NEXT, given)).fetchall())


async def reclaim(
    conn: Conn,
    study_ids: Sequence[StudyId],
    *,
    worker_id: str,
    incarnation: str,
    holding: Sequence[int],
    ttl: timedelta,
) -> list[Lease]:
    """The worker's own leases that it does not know of (their reply was lost), under a new secret."""
    given = {
        "worker_id": worker_id, "incarnation": incarnation, "holding": list(holding), "ttl": ttl, "study_ids": list(study_ids)
    }  # fmt: skip
    return await _describe(conn, await (await conn.execute(RECLAIM, given)).fetchall())


async def _describe(conn: Conn, granted: Sequence[tuple[Any, ...]]) -> list[Lease]:
    if not granted:
        return []
    async with conn.cursor(row_factory=class_row(Lease)) as cursor:
        await cursor.execute(DESCRIBE, {"ids": [g[0] for g in granted], "secrets": [g[1] for g in granted]})
        return await cursor.fetchall()


HEARTBEAT: Final[LiteralString] = """
    UPDATE lease SET expires_at = now() + %(ttl)s
    FROM unnest(%(ids)s::bigint[], %(epochs)s::int[], %(secrets)s::text[]) AS held(id, epoch, secret), task
    WHERE lease.task_id = held.id AND lease.epoch = held.epoch AND lease.secret_hash = sha256(held.secret::bytea)
      AND task.id = lease.task_id
    RETURNING lease.task_id, task.state::text"""


async def heartbeat(conn: Conn, keys: Sequence[LeaseKey], *, ttl: timedelta) -> dict[int, TaskState]:
    """Renew; returns the state of every task still held. A key that is missing in the answer has lost its lease."""
    await conn.execute("SET LOCAL synchronous_commit = off")
    rows = await (await conn.execute(HEARTBEAT, _columns(keys) | {"ttl": ttl})).fetchall()
    return {row[0]: TaskState(row[1]) for row in rows}


LOCK_HELD: Final[LiteralString] = """
    SELECT task.state::text, task.failures, task.infra_failures FROM task JOIN lease ON lease.task_id = task.id
    WHERE task.id = %(task_id)s AND lease.epoch = %(epoch)s AND lease.secret_hash = sha256(%(secret)s::bytea)
    FOR UPDATE OF task"""

END_ATTEMPT: Final[LiteralString] = """
    WITH moved AS (
        UPDATE task SET state = %(state)s, failures = failures + %(failures)s,
               infra_failures = infra_failures + %(infra_failures)s, not_before = now() + %(delay)s,
               ended_at = CASE WHEN %(final)s THEN now() END
        FROM lease WHERE task.id = %(task_id)s AND lease.task_id = task.id AND lease.epoch = %(epoch)s
          AND task.state IN ('leased', 'cancelling')
        RETURNING task.id, task.study_id, lease.epoch),
    freed AS (DELETE FROM lease USING moved WHERE lease.task_id = moved.id),
    ended AS (
        UPDATE attempt SET ended_at = now(), outcome = %(outcome)s, message = %(message)s
        FROM moved WHERE attempt.task_id = moved.id AND attempt.epoch = moved.epoch),
    recorded AS (
        INSERT INTO result (task_id, study_id, epoch, status, "values", step)
        SELECT id, study_id, epoch, %(status)s::result_status, %(values)s, %(step)s FROM moved
        WHERE %(status)s::result_status IS NOT NULL)
    SELECT study_id FROM moved"""

STORED: Final[LiteralString] = """
    SELECT epoch, status::text, "values" FROM result WHERE task_id = %(task_id)s"""

NEEDED: Final[LiteralString] = """
    SELECT study.id, study.spec FROM task JOIN study ON study.id = task.study_id WHERE task.id = %(task_id)s"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What became of an ending: ``accepted``, ``stale`` or ``already_done``; the study that now has something to decide."""

    said: str
    study_id: StudyId | None = None


async def finish(conn: Conn, key: LeaseKey, ending: Ending, needed: Sequence[str]) -> Verdict:
    """End one attempt; durable when the transaction commits. A key that is not current changes no row."""
    given = {"task_id": key.task_id, "epoch": key.epoch, "secret": key.secret}
    held = await (await conn.execute(LOCK_HELD, given)).fetchone()
    if held is None:
        return await _repeated(conn, key, ending, needed)
    move = judge(ending, state=TaskState(held[0]), failures=held[1], infra_failures=held[2], needed=needed)
    if ending.checkpoint is not None:
        await add_checkpoint(conn, key, ending.checkpoint)
    return Verdict(said="accepted", study_id=await _end(conn, key.task_id, key.epoch, move, ending.step))


async def _end(conn: Conn, task_id: TaskId, epoch: int, move: Move, step: int | None) -> StudyId:
    row = await (
        await conn.execute(
            END_ATTEMPT,
            {
                "task_id": task_id, "epoch": epoch, "state": move.state, "outcome": move.outcome, "status": move.status,
                "values": Jsonb(dict(move.values)), "step": step, "failures": move.failures, "final": move.state in TERMINAL,
                "infra_failures": move.infra_failures, "delay": timedelta(seconds=move.delay_seconds), "message": move.message,
            },
        )
    ).fetchone()  # fmt: skip
    assert row is not None, "the row was locked"  # noqa: S101
    return StudyId(row[0])


async def _repeated(conn: Conn, key: LeaseKey, ending: Ending, needed: Sequence[str]) -> Verdict:
    """An ending that came twice is acknowledged as it was; one that came too late is told so."""
    row = await (await conn.execute(STORED, {"task_id": key.task_id})).fetchone()
    if row is None or row[0] != key.epoch:
        return Verdict(said="stale")
    move = judge(ending, state=TaskState.LEASED, failures=0, infra_failures=0, needed=needed)
    same = move.status == ResultStatus(row[1]) and dict(move.values) == row[2]
    return Verdict(said="accepted" if same or ending.kind == "fail" else "already_done")


async def study_of(conn: Conn, task_id: TaskId) -> tuple[StudyId, Mapping[str, Any]] | None:
    """The study a task belongs to and its spec, or ``None`` for a task that does not exist."""
    row = await (await conn.execute(NEEDED, {"task_id": task_id})).fetchone()
    return (StudyId(row[0]), row[1]) if row else None


EXPIRED: Final[LiteralString] = """
    SELECT task.id, lease.epoch, task.state::text, task.failures, task.infra_failures
    FROM task JOIN lease ON lease.task_id = task.id WHERE lease.expires_at < now()
    ORDER BY task.id LIMIT 500 FOR UPDATE OF task SKIP LOCKED"""

FORMER: Final[LiteralString] = """
    SELECT task.id, lease.epoch FROM task JOIN lease ON lease.task_id = task.id
    WHERE lease.worker_id = %(worker_id)s AND lease.incarnation <> %(incarnation)s ORDER BY task.id FOR UPDATE OF task"""


async def reap(conn: Conn) -> list[StudyId]:
    """End the leases that are past their deadline; returns the studies that now have something to decide."""
    studies = []
    for task_id, epoch, state, failures, infra_failures in await (await conn.execute(EXPIRED)).fetchall():
        move = judge(
            Ending(kind="expire"), state=TaskState(state), failures=failures, infra_failures=infra_failures, needed=()
        )
        studies.append(await _end(conn, task_id, epoch, move, None))
    return studies


async def end_former(conn: Conn, worker_id: str, incarnation: str) -> int:
    """A restarted worker lost what its former process held: count it as expired at once."""
    rows = await (await conn.execute(FORMER, {"worker_id": worker_id, "incarnation": incarnation})).fetchall()
    for task_id, _ in rows:
        await conn.execute("UPDATE lease SET expires_at = now() - interval '1 second' WHERE task_id = %s", (task_id,))
    return len(rows)


BEAT: Final[LiteralString] = """
    WITH before AS (SELECT beat_at FROM control_plane FOR UPDATE), beat AS (UPDATE control_plane SET beat_at = now())
    SELECT now() - beat_at > %(gap)s FROM before"""
EXTEND_ALL: Final[LiteralString] = "UPDATE lease SET expires_at = greatest(expires_at, now() + %(ttl)s)"


async def beat(conn: Conn, ttl: timedelta) -> bool:
    """The control plane lives. After an outage longer than half a lease, every lease gets one more; returns whether."""
    row = await (await conn.execute(BEAT, {"gap": ttl / 2})).fetchone()
    if row is None or not row[0]:
        return False
    await conn.execute(EXTEND_ALL, {"ttl": ttl})
    return True


ADD_CHECKPOINT: Final[LiteralString] = """
    INSERT INTO checkpoint (task_id, epoch, step, path, manifest, dropped_at)
    SELECT lease.task_id, lease.epoch, %(step)s, %(path)s, %(manifest)s,
           CASE WHEN study.state = 'stopped' AND study.spec #>> '{fidelity,keep}' IN ('needed', 'planned') THEN now() END
    FROM lease JOIN task ON task.id = lease.task_id JOIN study ON study.id = task.study_id
    WHERE lease.task_id = %(task_id)s AND lease.epoch = %(epoch)s AND lease.secret_hash = sha256(%(secret)s::bytea)
    ON CONFLICT (task_id, epoch, step) DO NOTHING"""


async def add_checkpoint(conn: Conn, key: LeaseKey, checkpoint: Checkpoint) -> None:
    """Register a complete checkpoint; nothing happens unless the lease is current.

    What a stopped study still says is dropped at once where not all is kept: no decision follows that could do it.
    """
    await conn.execute(
        ADD_CHECKPOINT,
        {
            "task_id": key.task_id, "epoch": key.epoch, "secret": key.secret, "step": checkpoint.step,
            "path": checkpoint.path, "manifest": Jsonb(dict(checkpoint.manifest)),
        },
    )  # fmt: skip


def _columns(keys: Sequence[LeaseKey]) -> dict[str, list[Any]]:
    """Keys as arrays for ``unnest``."""
    return {
        "ids": [k.task_id for k in keys], "epochs": [k.epoch for k in keys], "secrets": [k.secret for k in keys]
    }  # fmt: skip
