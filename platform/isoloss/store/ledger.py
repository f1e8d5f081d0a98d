"""The ledger: a study's events in order, each with the decisions it caused. Insert-only, gap-free, the only truth.

Everything here runs under the study's row lock (``studies.lock``), so ``seq`` follows ``seq`` without a hole.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Final, LiteralString

import msgspec
from psycopg.rows import class_row, dict_row

from isoloss.domain.ids import StudyId, TaskId
from isoloss.domain.lease import LeaseKey
from isoloss.domain.task import TaskState
from isoloss.errors import NotFound
from isoloss.search.events import CreateTask, CreateTrial
from isoloss.store import tasks
from isoloss.store.pool import Conn, Cursor
from isoloss.store.studies import StudyRow
from isoloss.store.tasks import Held, Said, Undecided

MOST: Final = 1000  # results taken up at once


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """A study under its lock, and what there was to do when the lock was asked for.

    Who had to wait for the lock may see results here that were decided meanwhile, and miss what came: ``undecided`` is
    true only where no event came in between, and what made something ready or durable makes somebody look again.
    """

    row: StudyRow
    undecided: tuple[Undecided, ...]
    ready: bool  # whether tasks wait for a slot
    again: bool  # whether one of the holders named holds something that is not about to end


OPEN: Final[LiteralString] = """
    SELECT id, project, name, campaign_id, size, n_params, spec_version, trainable, state::text, max_budget, next_seq, cap,
           reserved, spent, startable, CASE WHEN spec_version <> %(known)s THEN spec END AS spec,
           EXISTS (SELECT FROM task WHERE task.study_id = study.id AND task.state = 'ready') AS ready,
           EXISTS (SELECT FROM lease WHERE worker_id = ANY(%(holders)s)
                   AND (task_id, epoch) NOT IN (SELECT * FROM unnest(%(ids)s::bigint[], %(epochs)s::int[]))) AS again,
           (SELECT coalesce(json_agg(waiting), '[]'::json) FROM (
               SELECT task_id, task.trial_no, task.level, result.status, result."values",
                      (task.budget_to - task.budget_from)::float8 AS cost
               FROM result JOIN task ON task.id = result.task_id
               WHERE result.study_id = study.id AND decided_seq IS NULL ORDER BY received_at, task_id LIMIT %(most)s
           ) AS waiting) AS undecided
    FROM study WHERE id = %(study_id)s FOR NO KEY UPDATE OF study"""


OPEN_UNLESS_TAKEN: Final[LiteralString] = OPEN + " SKIP LOCKED"

Holding = Mapping[LeaseKey, Held]  # tasks that are locked, by the current keys that were shown


async def opened(
    conn: Conn, study_id: StudyId, known: StudyRow | None, holders: Sequence[str] = (), ending: Sequence[Said] = ()
) -> tuple[Opened | None, Holding]:
    """Lock the study's row until the end of the transaction: whoever holds it decides. Then what is said to be ``ending``.

    The spec of a row ``known`` already is not sent again unless it has changed since. An ending waits for no decision: with
    one the study is not opened while somebody else decides for it.
    """
    given = {
        "study_id": study_id, "known": known.spec_version if known else 0, "holders": list(holders),
        "ids": [key.task_id for key, _ in ending], "epochs": [key.epoch for key, _ in ending], "most": MOST,
    }  # fmt: skip
    async with conn.pipeline():  # one round trip, with the BEGIN before it
        opening = await conn.cursor(row_factory=dict_row).execute(OPEN_UNLESS_TAKEN if ending else OPEN, given)
        holding = await tasks.hold(conn, ending) if ending else None
    row, held = await opening.fetchone(), await tasks.held(holding) if holding else {}
    if row is None and ending:
        return None, held
    if row is None:
        raise NotFound(f"There is no study with id {study_id}.")
    if known is not None and row["spec"] is None:
        row["spec"] = known.spec
    undecided_, ready, again = row.pop("undecided"), row.pop("ready"), row.pop("again")
    waiting = tuple(Undecided(**one) for one in undecided_)
    return Opened(row=StudyRow(**row), undecided=waiting, ready=ready, again=again), held


UNDECIDED: Final[LiteralString] = """
    SELECT task_id, task.trial_no, task.level, result.status::text, result."values",
           (task.budget_to - task.budget_from)::float8 AS cost
    FROM result JOIN task ON task.id = result.task_id
    WHERE result.study_id = %(study_id)s AND decided_seq IS NULL ORDER BY received_at, task_id LIMIT %(most)s"""


async def undecided(conn: Conn, study_id: StudyId) -> list[Undecided]:
    """Results to decide, in the order they became durable."""
    async with conn.cursor(row_factory=class_row(Undecided)) as cursor:
        await cursor.execute(UNDECIDED, {"study_id": study_id, "most": MOST})
        return await cursor.fetchall()


PENDING: Final[LiteralString] = """
    SELECT DISTINCT result.study_id FROM result JOIN study ON study.id = result.study_id
    WHERE decided_seq IS NULL AND study.state <> 'stopped'"""


async def pending(conn: Conn) -> list[StudyId]:
    """Studies with results to decide."""
    return [StudyId(row[0]) for row in await (await conn.execute(PENDING)).fetchall()]


@dataclass(slots=True, kw_only=True)
class NewTask:
    """A task to be written: for somebody at once (``holder``), for whoever comes, or vetoed by the event ``vetoed``."""

    task: CreateTask
    holder: str | None = None
    incarnation: str = ""
    secret: str = ""
    project: str = ""
    vetoed: int | None = None

    @property
    def state(self) -> TaskState:
        """What it begins as."""
        if self.vetoed is not None:
            return TaskState.CANCELLED
        return TaskState.READY if self.holder is None else TaskState.LEASED


@dataclass(slots=True)
class Page:
    """What a decision adds to a study's rows, written by one statement."""

    events: list[tuple[int, Mapping[str, Any], Sequence[Mapping[str, Any]]]] = field(default_factory=list)
    decided: list[tuple[TaskId, int, float | None, Mapping[str, Any] | None]] = field(
        default_factory=list
    )  # task, seq, score, worth
    trials: list[CreateTrial] = field(default_factory=list)
    tasks: list[NewTask] = field(default_factory=list)


WRITE: Final[LiteralString] = """
    WITH page AS MATERIALIZED (SELECT %(page)s::json AS whole),
    said AS (
        INSERT INTO event (study_id, seq, kind, body, decisions)
        SELECT %(study_id)s, seq, body ->> 'kind', body, decisions
        FROM page, json_to_recordset(page.whole -> 'events') AS e(seq bigint, body jsonb, decisions jsonb)),
    decided AS (
        UPDATE result SET decided_seq = seq, score = new.score, worth = new.worth
        FROM page, json_to_recordset(page.whole -> 'decided') AS new(task_id bigint, seq bigint, score float8, worth jsonb)
        WHERE result.task_id = new.task_id AND result.decided_seq IS NULL),
    begun AS (
        INSERT INTO trial (study_id, no, bracket, index, params, source, repeat)
        SELECT %(study_id)s, trial, bracket, index, configuration, source, repeat
        FROM page, json_to_recordset(page.whole -> 'trials')
            AS t(trial int, bracket int, index int, configuration jsonb, source text, repeat int)),
    given AS MATERIALIZED (
        SELECT t.* FROM page, json_to_recordset(page.whole -> 'tasks')
            AS t(trial int, level int, budget_from bigint, decay_from bigint, budget_to bigint, state task_state,
                 holder text, incarnation text, secret text, project text, vetoed bigint)),
    made AS (
        INSERT INTO task (study_id, trial_no, level, budget_from, decay_from, budget_to, state, epoch, ended_at)
        SELECT %(study_id)s, trial, level, budget_from, decay_from, budget_to, state, (holder IS NOT NULL)::int,
               CASE WHEN vetoed IS NOT NULL THEN now() END
        FROM given RETURNING id, trial_no AS trial, level, epoch),
    granted AS MATERIALIZED (
        SELECT id, epoch, holder, incarnation, secret, project FROM made JOIN given USING (trial, level) WHERE holder IS NOT NULL),
    attempted AS (INSERT INTO attempt (task_id, epoch, worker_id) SELECT id, epoch, holder FROM granted),
    leased AS (
        INSERT INTO lease (task_id, study_id, epoch, worker_id, incarnation, secret_hash, expires_at)
        SELECT id, %(study_id)s, epoch, holder, incarnation, sha256((secret || project)::bytea), now() + %(ttl)s FROM granted),
    vetoed AS (
        INSERT INTO result (task_id, study_id, epoch, status, "values", decided_seq)
        SELECT id, %(study_id)s, NULL, 'cancelled', '{}'::jsonb, vetoed FROM made JOIN given USING (trial, level)
        WHERE vetoed IS NOT NULL)
    SELECT trial, level, id FROM made"""


async def write(conn: Conn, study_id: StudyId, page: Page, ttl: timedelta) -> Cursor:
    """Write a page, perhaps in a pipeline; leases among its tasks last ``ttl`` from now on. ``ids`` are to be read after that.

    What is not finite becomes null in JSON, which ranks last as it does.
    """
    body = {
        "events": [{"seq": seq, "body": body, "decisions": decisions} for seq, body, decisions in page.events],
        "decided": [
            {"task_id": task_id, "seq": seq, "score": score, "worth": worth} for task_id, seq, score, worth in page.decided
        ],
        "trials": page.trials,
        "tasks": [
            {
                "trial": new.task.trial, "level": new.task.level, "budget_from": new.task.budget_from,
                "decay_from": new.task.decay_from, "budget_to": new.task.budget_to, "state": new.state,
                "holder": new.holder, "incarnation": new.incarnation, "secret": new.secret, "project": new.project, "vetoed": new.vetoed,
            }
            for new in page.tasks
        ],
    }  # fmt: skip
    given = {"study_id": study_id, "ttl": ttl, "page": msgspec.json.encode(body).decode()}
    return await conn.execute(WRITE, given)


async def ids(written: Cursor) -> dict[tuple[int, int], TaskId]:
    """The ids of a page's tasks by (trial, level)."""
    return {(row[0], row[1]): TaskId(row[2]) for row in await written.fetchall()}


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
    conn: Conn, study_id: StudyId, *, after: int = 0, limit: int | None = None
) -> list[tuple[int, str, dict[str, Any], list[dict[str, Any]]]]:
    """Events after a cursor, all or the first of them: (seq, kind, body, decisions)."""
    rows = await conn.execute(EVENTS, {"study_id": study_id, "after": after, "limit": limit})
    return [(r[0], r[1], r[2], r[3]) for r in await rows.fetchall()]


SNAPSHOT: Final[LiteralString] = "SELECT body, seq FROM snapshot WHERE study_id = %(study_id)s"
SAVE_SNAPSHOT: Final[LiteralString] = """
    INSERT INTO snapshot (study_id, seq, body) SELECT id, %(seq)s, %(body)s FROM study WHERE id = %(study_id)s
    ON CONFLICT (study_id) DO UPDATE SET seq = excluded.seq, body = excluded.body WHERE snapshot.seq < excluded.seq"""


async def snapshot(conn: Conn, study_id: StudyId) -> tuple[bytes | None, int]:
    """The cached fold, ``packed``, and the seq it stands at."""
    row = await (await conn.execute(SNAPSHOT, {"study_id": study_id})).fetchone()
    return (row[0], row[1]) if row else (None, 0)


async def save_snapshot(conn: Conn, study_id: StudyId, seq: int, body: bytes) -> None:
    """Cache the fold; the ledger stays the truth."""
    await conn.execute(SAVE_SNAPSHOT, {"study_id": study_id, "seq": seq, "body": body})


def packed(body: Mapping[str, Any]) -> bytes:
    """A fold as it is stored."""
    return zlib.compress(msgspec.json.encode(body), 1)


def unpacked(body: bytes) -> dict[str, Any]:
    """A fold as it was before it was stored."""
    found: dict[str, Any] = msgspec.json.decode(zlib.decompress(body))
    return found
