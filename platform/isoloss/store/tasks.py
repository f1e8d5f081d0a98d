"""Tasks and leases. Every transition is guarded by state, epoch and secret inside the statement that makes it.

Lock order is always study, then task by id, then lease, then result.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import timedelta
from typing import Any, Final, LiteralString, NamedTuple

import msgspec
from psycopg.rows import class_row
from psycopg.types.json import Jsonb

from isoloss.domain.ids import StudyId, TaskId
from isoloss.domain.lease import Checkpoint, Ending, LeaseKey, Move, judge
from isoloss.domain.task import TERMINAL, AttemptOutcome, TaskState
from isoloss.store import curves
from isoloss.store.pool import Conn, Cursor


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
    resume_host: str
    spec: dict[str, Any]
    spec_version: int
    repeat: int  # added to the spec's seed


@dataclass(frozen=True, slots=True, kw_only=True)
class Want:
    """Somebody who can run up to ``n`` tasks, perhaps once it has said how others ended.

    It holds some: what was granted and it does not know of is sent ``again``. A caller of one ``project`` is granted
    leases that are worth nothing in the hands of another's.
    """

    holder: str
    incarnation: str = ""
    n: int = 1
    holding: Sequence[int] = ()
    again: bool = False
    project: str = ""
    said: Sequence[tuple[LeaseKey, Ending]] = ()


LEASE_NEXT: Final[LiteralString] = """
    WITH slot AS MATERIALIZED (
        SELECT want.holder, want.incarnation, want.project, row_number() OVER (ORDER BY want.place, k) AS place
        FROM unnest(%(holders)s::text[], %(incarnations)s::text[], %(projects)s::text[], %(ns)s::int[]) WITH ORDINALITY
            AS want(holder, incarnation, project, n, place), generate_series(1, want.n) AS k),
    next AS MATERIALIZED (
        SELECT id FROM task WHERE study_id = ANY(%(study_ids)s) AND state = 'ready' AND not_before <= now()
        ORDER BY level DESC, id LIMIT (SELECT count(*) FROM slot) FOR UPDATE SKIP LOCKED),
    given AS MATERIALIZED (
        SELECT next.id, holder, incarnation, project, gen_random_uuid()::text AS secret
        FROM (SELECT id, row_number() OVER () AS place FROM next) AS next JOIN slot USING (place)),
    leased AS (
        UPDATE task SET state = 'leased', epoch = epoch + 1 FROM given WHERE task.id = given.id
        RETURNING task.id, task.study_id, task.epoch),
    granted AS MATERIALIZED (
        SELECT id, study_id, epoch, holder, incarnation, project, secret FROM leased JOIN given USING (id)),
    attempted AS (INSERT INTO attempt (task_id, epoch, worker_id) SELECT id, epoch, holder FROM granted),
    held AS (
        INSERT INTO lease (task_id, study_id, epoch, worker_id, incarnation, secret_hash, expires_at)
        SELECT id, study_id, epoch, holder, incarnation, sha256((secret || project)::bytea), now() + %(ttl)s FROM granted)
    SELECT id, secret, holder FROM granted"""

RECLAIM: Final[LiteralString] = """
    WITH secret AS MATERIALIZED (
        SELECT task_id AS id, worker_id AS holder, want.project, gen_random_uuid()::text AS secret
        FROM lease JOIN unnest(%(holders)s::text[], %(incarnations)s::text[], %(projects)s::text[])
            AS want(holder, incarnation, project)
            ON worker_id = want.holder AND lease.incarnation = want.incarnation
        JOIN study ON study.id = lease.study_id AND state IN ('active', 'idle')
        WHERE NOT task_id = ANY(%(holding)s) AND (%(study_ids)s::bigint[] IS NULL OR study_id = ANY(%(study_ids)s::bigint[]))
        ORDER BY task_id FOR UPDATE OF lease),
    renewed AS (
        UPDATE lease SET secret_hash = sha256((secret.secret || secret.project)::bytea), expires_at = now() + %(ttl)s
        FROM secret WHERE lease.task_id = secret.id)
    SELECT id, secret, holder FROM secret"""

DESCRIBE: Final[LiteralString] = """
    SELECT task.id AS task_id, task.epoch, given.secret, study.project, study.name AS study, study.id AS study_id,
           task.trial_no, task.level, coalesce(checkpoint.step, 0) AS budget_from, task.decay_from, task.budget_to,
           trial.params, coalesce(checkpoint.path, '') AS resume_from, coalesce(checkpoint.host, '') AS resume_host,
           study.spec, study.spec_version, trial.repeat
    FROM unnest(%(ids)s::bigint[], %(secrets)s::text[]) AS given(id, secret)
    JOIN task ON task.id = given.id
    JOIN study ON study.id = task.study_id
    JOIN trial ON trial.study_id = task.study_id AND trial.no = task.trial_no
    LEFT JOIN LATERAL (
        SELECT c.step, c.path, worker.host FROM checkpoint c JOIN task earlier ON earlier.id = c.task_id
        JOIN attempt ON attempt.task_id = c.task_id AND attempt.epoch = c.epoch LEFT JOIN worker ON worker.id = attempt.worker_id
        WHERE earlier.study_id = task.study_id AND earlier.trial_no = task.trial_no
          AND c.step <= task.decay_from AND c.step < task.budget_to AND c.dropped_at IS NULL
          AND (earlier.id = task.id OR study.spec #>> '{fidelity,mode}' IS DISTINCT FROM 'fresh')
        ORDER BY c.step DESC, c.at DESC LIMIT 1) AS checkpoint ON true
    ORDER BY task.id"""


Granted = list[tuple[TaskId, str, str]]  # (task, secret, holder)


async def lease_next(conn: Conn, study_ids: Sequence[StudyId], wants: Sequence[Want], ttl: timedelta) -> Granted:
    """Lease ready tasks nearest the top to those who want some, in their order; never waits for another's row."""
    given = _wanted(study_ids, wants, ttl)
    return [(TaskId(row[0]), row[1], row[2]) for row in await (await conn.execute(LEASE_NEXT, given)).fetchall()]


async def reclaim(conn: Conn, study_ids: Sequence[StudyId] | None, wants: Sequence[Want], ttl: timedelta) -> Granted:
    """The leases, of some studies or of all, that those who want some do not know of (their reply was lost), under a new secret."""
    given = _wanted(study_ids, wants, ttl) | {"holding": [task_id for want in wants for task_id in want.holding]}
    return [(TaskId(row[0]), row[1], row[2]) for row in await (await conn.execute(RECLAIM, given)).fetchall()]


def _wanted(study_ids: Sequence[StudyId] | None, wants: Sequence[Want], ttl: timedelta) -> dict[str, Any]:
    return {
        "study_ids": study_ids and list(study_ids), "holders": [want.holder for want in wants], "ns": [want.n for want in wants],
        "incarnations": [want.incarnation for want in wants], "projects": [want.project for want in wants], "ttl": ttl,
    }  # fmt: skip


async def describe(conn: Conn, granted: Granted) -> list[Lease]:
    """What whoever runs these tasks has to know, in the order of their ids."""
    if not granted:
        return []
    async with conn.cursor(row_factory=class_row(Lease)) as cursor:
        await cursor.execute(DESCRIBE, {"ids": [g[0] for g in granted], "secrets": [g[1] for g in granted]})
        return await cursor.fetchall()


HEARTBEAT: Final[LiteralString] = """
    WITH held AS MATERIALIZED (
        SELECT lease.task_id, said.* FROM lease
        JOIN unnest(%(ids)s::bigint[], %(epochs)s::int[], %(secrets)s::text[]) AS said(id, epoch, secret)
            ON lease.task_id = said.id AND lease.epoch = said.epoch AND lease.secret_hash = sha256(said.secret::bytea)
        ORDER BY lease.task_id FOR UPDATE OF lease)
    UPDATE lease SET expires_at = now() + %(ttl)s FROM held JOIN task ON task.id = held.task_id
    WHERE lease.task_id = held.task_id RETURNING held.id, held.epoch, held.secret, task.state::text"""


async def heartbeat(conn: Conn, keys: Sequence[LeaseKey], *, ttl: timedelta) -> dict[LeaseKey, TaskState]:
    """Renew; returns the state of every task still held. A key that is missing in the answer has lost its lease."""
    await conn.execute("SET LOCAL synchronous_commit = off")
    rows = await (await conn.execute(HEARTBEAT, _columns(keys) | {"ttl": ttl})).fetchall()
    return {LeaseKey(task_id=TaskId(r[0]), epoch=r[1], secret=r[2]): TaskState(r[3]) for r in rows}


TAILS: Final[LiteralString] = """
    UPDATE attempt SET tail = said.tail FROM unnest(%(ids)s::bigint[], %(epochs)s::int[], %(secrets)s::text[], %(tails)s::text[])
        AS said(id, epoch, secret, tail)
    JOIN lease ON lease.task_id = said.id AND lease.epoch = said.epoch AND lease.secret_hash = sha256(said.secret::bytea)
    WHERE attempt.task_id = lease.task_id AND attempt.epoch = lease.epoch"""


async def keep_tails(conn: Conn, tails: Sequence[tuple[LeaseKey, str]]) -> None:
    """What the trainers of these leases printed last; of a lease that is lost nothing is kept."""
    await conn.execute(TAILS, _columns([key for key, _ in tails]) | {"tails": [tail for _, tail in tails]})


HELD: Final[LiteralString] = """
    SELECT said.id, said.epoch, said.secret, task.study_id, study.spec_version, task.state::text, task.failures,
           task.infra_failures, task.trial_no, task.level, (task.budget_to - task.budget_from)::float8
    FROM unnest(%(ids)s::bigint[], %(epochs)s::int[], %(secrets)s::text[]) AS said(id, epoch, secret)
    JOIN lease ON lease.task_id = said.id AND lease.epoch = said.epoch AND lease.secret_hash = sha256(said.secret::bytea)
    JOIN task ON task.id = lease.task_id JOIN study ON study.id = task.study_id
    ORDER BY task.id FOR UPDATE OF task, lease"""

END_ATTEMPTS: Final[LiteralString] = """
    WITH said AS MATERIALIZED (
        SELECT * FROM json_to_recordset(%(moves)s::json)
            AS said(id bigint, state task_state, outcome attempt_outcome, status result_status, "values" jsonb, step bigint,
                    failures int, infra_failures int, delay_seconds float8, message text, final boolean, code text, tail text)),
    freed AS (DELETE FROM lease USING said WHERE lease.task_id = said.id RETURNING lease.task_id, lease.epoch),
    moved AS (
        UPDATE task SET state = said.state, failures = task.failures + said.failures,
               infra_failures = task.infra_failures + said.infra_failures, not_before = now() + make_interval(secs => said.delay_seconds),
               ended_at = CASE WHEN said.final THEN now() END
        FROM said JOIN freed ON freed.task_id = said.id
        WHERE task.id = said.id AND task.epoch = freed.epoch AND task.state IN ('leased', 'cancelling')
        RETURNING task.id, task.study_id, task.epoch),
    ended AS (
        UPDATE attempt SET ended_at = now(), outcome = said.outcome, message = said.message, code = said.code,
               tail = coalesce(nullif(said.tail, ''), attempt.tail)
        FROM moved JOIN said USING (id) WHERE attempt.task_id = moved.id AND attempt.epoch = moved.epoch)
    INSERT INTO result (task_id, study_id, epoch, status, "values", step)
    SELECT moved.id, study_id, epoch, said.status, said."values", said.step FROM moved JOIN said USING (id)
    WHERE said.status IS NOT NULL"""

LOSE: Final[LiteralString] = """
    UPDATE checkpoint SET dropped_at = now() FROM task AS earlier JOIN task USING (study_id, trial_no)
    WHERE task.id = %(task_id)s AND checkpoint.task_id = earlier.id AND path = %(path)s AND dropped_at IS NULL"""

STORED: Final[LiteralString] = """
    SELECT attempt.task_id, attempt.epoch, attempt.outcome::text, result."values", study.id, study.spec_version
    FROM unnest(%(ids)s::bigint[], %(epochs)s::int[]) AS said(id, epoch)
    JOIN attempt ON attempt.task_id = said.id AND attempt.epoch = said.epoch
    JOIN task ON task.id = attempt.task_id JOIN study ON study.id = task.study_id
    LEFT JOIN result ON result.task_id = attempt.task_id AND result.epoch = attempt.epoch"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """A task whose current lease was shown, locked until the end of the transaction."""

    study_id: StudyId
    spec_version: int
    state: TaskState
    failures: int
    infra_failures: int
    trial_no: int
    level: int
    cost: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Undecided:
    """A result that no event has taken up yet."""

    task_id: TaskId
    trial_no: int
    level: int
    status: str
    values: dict[str, Any]
    cost: float


# Of a move as it is written; `asdict` would copy the values too, for a tenth of all that an ending takes.
MOVES: Final = tuple(one.name for one in fields(Move))


class Ended(NamedTuple):
    """What was answered to each ending, in their order (``accepted``, ``stale`` or ``already_done``), and its results by study.

    A study without a result is among them too: a task of it may wait again.
    """

    verdicts: list[str]
    results: dict[StudyId, list[Undecided]]


Said = tuple[LeaseKey, Ending]
Owed = Callable[[Conn, StudyId, int], Awaitable[Sequence[str]]]  # the metrics a study of this spec version owes


async def hold(conn: Conn, endings: Sequence[Said]) -> Cursor:
    """Lock the tasks that are about to end and store the last points of their curves, in a pipeline; ``held`` reads which."""
    await curves.add(conn, [(key, ending.series) for key, ending in endings if ending.series])
    return await conn.execute(HELD, _columns([key for key, _ in endings]))


async def held(holding: Cursor) -> dict[LeaseKey, Held]:
    """The tasks that are locked now, by the current keys that were shown."""
    return {
        LeaseKey(task_id=TaskId(row[0]), epoch=row[1], secret=row[2]): Held(
            study_id=StudyId(row[3]), spec_version=row[4], state=TaskState(row[5]), failures=row[6],
            infra_failures=row[7], trial_no=row[8], level=row[9], cost=row[10],
        )
        for row in await holding.fetchall()
    }  # fmt: skip


async def finish(
    conn: Conn, endings: Sequence[Said], owed: Owed, locked: Mapping[LeaseKey, Held] | None = None
) -> Ended:
    """End attempts, whose tasks the transaction may have ``locked`` already; durable when it commits.

    A key that is not current changes no row. What is told is known before it is written, which is the last thing done: in
    a pipeline of the caller's the writing waits for nobody.
    """
    if locked is None:
        async with conn.pipeline():  # with the BEGIN before it
            holding = await hold(conn, endings)
        locked = await held(holding)
    moves: dict[TaskId, tuple[Move, Ending]] = {}
    results: dict[StudyId, list[Undecided]] = {task.study_id: [] for task in locked.values()}
    late = []
    for place, (key, ending) in enumerate(endings):
        if (task := locked.get(key)) is None or key.task_id in moves:
            late.append(place)
            continue
        needed = await owed(conn, task.study_id, task.spec_version)
        move = judge(
            ending, state=task.state, failures=task.failures, infra_failures=task.infra_failures, needed=needed
        )
        moves[key.task_id] = move, ending
        if move.status is not None:
            result = Undecided(
                task_id=key.task_id, trial_no=task.trial_no, level=task.level, status=move.status.value, values=dict(move.values),
                cost=task.cost,
            )  # fmt: skip
            results[task.study_id].append(result)
        if ending.checkpoint is not None:
            await add_checkpoint(conn, key, ending.checkpoint)
        if ending.lost:
            await conn.execute(LOSE, {"task_id": key.task_id, "path": ending.lost})
    verdicts = ["accepted"] * len(endings)
    await _end(conn, moves)
    if late:
        for place, verdict in zip(late, await _repeated(conn, [endings[place] for place in late], owed), strict=True):
            verdicts[place] = verdict
    return Ended(verdicts, results)


async def _end(conn: Conn, moves: Mapping[TaskId, tuple[Move, Ending]]) -> None:
    """Make the moves of tasks that are locked."""
    if not moves:
        return
    said = [
        {"id": task_id, "step": ending.step, "code": ending.code, "tail": ending.tail, "final": move.state in TERMINAL}
        | {name: getattr(move, name) for name in MOVES}
        for task_id, (move, ending) in moves.items()
    ]
    await conn.execute(END_ATTEMPTS, {"moves": msgspec.json.encode(said).decode()})


async def _repeated(conn: Conn, endings: Sequence[Said], owed: Owed) -> list[str]:
    """An ending that came twice is acknowledged as it was; one that came too late is told so."""
    rows = await (await conn.execute(STORED, _columns([key for key, _ in endings]))).fetchall()
    stored, verdicts = {row[:2]: row[2:] for row in rows}, []
    for key, ending in endings:
        outcome, values, study_id, version = stored.get((key.task_id, key.epoch), (None, None, 0, 0))
        needed = await owed(conn, StudyId(study_id), version) if outcome and ending.kind == "complete" else ()
        move = judge(ending, state=TaskState.LEASED, failures=0, infra_failures=0, needed=needed)
        same = outcome == move.outcome and values in (None, dict(move.values))
        if same or outcome == AttemptOutcome.CANCELLED:  # whatever was said of it
            verdicts.append("accepted")
        else:
            verdicts.append("stale" if values is None else "already_done")
    return verdicts


EXPIRED: Final[LiteralString] = """
    SELECT task.id, task.study_id, task.state::text, task.infra_failures, EXISTS (
        SELECT FROM checkpoint AS mine WHERE mine.task_id = task.id AND mine.epoch = task.epoch AND NOT EXISTS (
            SELECT FROM checkpoint AS before JOIN task AS earlier ON earlier.id = before.task_id
            WHERE earlier.study_id = task.study_id AND earlier.trial_no = task.trial_no AND before.step >= mine.step
              AND (before.task_id <> task.id OR before.epoch < task.epoch))) AS went_on
    FROM task JOIN lease ON lease.task_id = task.id WHERE lease.expires_at < now()
    ORDER BY task.id LIMIT 500 FOR UPDATE OF task, lease SKIP LOCKED"""

EXPIRE_FORMER: Final[LiteralString] = """
    WITH former AS MATERIALIZED (
        SELECT task_id FROM lease WHERE worker_id = %(worker_id)s AND incarnation <> %(incarnation)s
        ORDER BY task_id FOR UPDATE)
    UPDATE lease SET expires_at = now() - interval '1 second' FROM former WHERE lease.task_id = former.task_id"""


async def reap(conn: Conn) -> list[StudyId]:
    """End the leases that are past their deadline; returns the study of each."""
    rows = await (await conn.execute(EXPIRED)).fetchall()
    moves: dict[TaskId, tuple[Move, Ending]] = {}
    for task_id, _, state, infra_failures, went_on in rows:
        ending = Ending(kind="expire", went_on=went_on)
        move = judge(ending, state=TaskState(state), failures=0, infra_failures=infra_failures, needed=())
        moves[TaskId(task_id)] = move, ending
    await _end(conn, moves)
    return [StudyId(row[1]) for row in rows]


async def end_former(conn: Conn, worker_id: str, incarnation: str) -> int:
    """A restarted worker lost what its former process held: count it as expired at once."""
    return (await conn.execute(EXPIRE_FORMER, {"worker_id": worker_id, "incarnation": incarnation})).rowcount


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
    WITH known AS (
    INSERT INTO checkpoint (task_id, epoch, step, path, manifest, dropped_at)
    SELECT lease.task_id, lease.epoch, %(step)s, %(path)s, %(manifest)s,
           CASE WHEN study.state = 'stopped' AND study.spec #>> '{fidelity,keep}' IN ('needed', 'planned') THEN now() END
    FROM lease JOIN task ON task.id = lease.task_id JOIN study ON study.id = task.study_id
    WHERE lease.task_id = %(task_id)s AND lease.epoch = %(epoch)s AND lease.secret_hash = sha256(%(secret)s::bytea)
    ON CONFLICT (task_id, epoch, step) DO NOTHING RETURNING task_id, epoch, path)
    DELETE FROM upload USING known WHERE upload.path = known.path AND upload.task_id = known.task_id AND upload.epoch = known.epoch"""


async def add_checkpoint(conn: Conn, key: LeaseKey, checkpoint: Checkpoint) -> None:
    """Register a complete checkpoint, which is no mere upload any more; nothing happens unless the lease is current.

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
