"""Studies: rows that hold a spec, a state and the budget; what happened to them is in the ledger."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Final, LiteralString

from psycopg.rows import class_row, dict_row
from psycopg.types.json import Jsonb

from isoloss.domain.ids import CampaignId, StudyId
from isoloss.domain.study import StudyState
from isoloss.errors import NotFound
from isoloss.store.pool import Conn


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyRow:
    """A study as it is stored; budgets are in the study's unit."""

    id: StudyId
    project: str
    name: str
    campaign_id: CampaignId | None
    size: str | None
    n_params: float | None
    spec: dict[str, Any]
    spec_version: int
    trainable: str
    state: str
    max_budget: int
    next_seq: int
    cap: float | None
    reserved: float
    spent: float
    startable: int  # tasks that an ask would begin, limits aside, as the last decision left it


INSERT: Final[LiteralString] = """
    INSERT INTO study (project, name, campaign_id, size, n_params, spec, trainable, max_budget, cap, startable)
    VALUES (%(project)s, %(name)s, %(campaign_id)s, %(size)s, %(n_params)s, %(spec)s, %(trainable)s, %(max_budget)s, %(cap)s,
            %(startable)s)
    ON CONFLICT (project, name) DO NOTHING
    RETURNING id, project, name, campaign_id, size, n_params, spec, spec_version, trainable, state::text, max_budget, next_seq, cap,
              reserved, spent, startable"""


async def insert(
    conn: Conn, spec: dict[str, Any], *, trainable: str, max_budget: int, startable: int, campaign_id: CampaignId | None = None,
    size: str | None = None, n_params: float | None = None, cap: float | None = None,
) -> StudyRow | None:  # fmt: skip
    """Create a study, whose tasks take ``cap`` of budget at most; ``None`` when the name is taken in its project."""
    given = {
        "project": spec["project"], "name": spec["name"], "campaign_id": campaign_id, "size": size, "n_params": n_params,
        "spec": Jsonb(spec), "trainable": trainable, "max_budget": max_budget, "cap": cap, "startable": startable,
    }  # fmt: skip
    async with conn.cursor(row_factory=class_row(StudyRow)) as cursor:
        await cursor.execute(INSERT, given)
        return await cursor.fetchone()


ROW: Final[LiteralString] = """
    SELECT id, project, name, campaign_id, size, n_params, spec, spec_version, trainable, state::text, max_budget, next_seq,
           cap, reserved, spent, startable
    FROM study"""

BY_NAME: Final[LiteralString] = ROW + " WHERE project = %(project)s AND name = %(name)s"


async def by_name(conn: Conn, project: str, name: str) -> StudyRow:
    """The study of that name, or ``NotFound`` with the names that come near."""
    async with conn.cursor(row_factory=class_row(StudyRow)) as cursor:
        await cursor.execute(BY_NAME, {"project": project, "name": name})
        row = await cursor.fetchone()
    if row is None:
        names = [r[0] for r in await (await conn.execute(NAMES, {"project": project})).fetchall()]
        hint = f"There are: {', '.join(names[:8])}." if names else "There is none yet."
        raise NotFound(f"There is no study {name!r} in project {project!r}.", hint=hint)
    return row


NAMES: Final[LiteralString] = "SELECT name FROM study WHERE project = %(project)s ORDER BY id DESC LIMIT 8"

LIST: Final[LiteralString] = (
    ROW
    + """ WHERE (%(project)s = '' OR project = %(project)s)
      AND (%(campaign_id)s::bigint IS NULL OR campaign_id = %(campaign_id)s) ORDER BY id"""
)


async def listed(conn: Conn, *, project: str = "", campaign_id: CampaignId | None = None) -> list[StudyRow]:
    """The studies of a project, or of a campaign, in the order of creation."""
    async with conn.cursor(row_factory=class_row(StudyRow)) as cursor:
        await cursor.execute(LIST, {"project": project, "campaign_id": campaign_id})
        return await cursor.fetchall()


MODELLED: Final[LiteralString] = (
    ROW + " WHERE state = 'active' AND spec #>> '{method,sampler}' <> ALL(%(streams)s) ORDER BY id"
)


async def modelled(conn: Conn, streams: Sequence[str]) -> list[StudyRow]:
    """Active studies whose sampler is a model, and none of these."""
    async with conn.cursor(row_factory=class_row(StudyRow)) as cursor:
        await cursor.execute(MODELLED, {"streams": list(streams)})
        return await cursor.fetchall()


FIND: Final[LiteralString] = ROW + " WHERE id = %(study_id)s"


async def find(conn: Conn, study_id: StudyId) -> StudyRow | None:
    """The study's row as it is at this moment, if it is there."""
    async with conn.cursor(row_factory=class_row(StudyRow)) as cursor:
        await cursor.execute(FIND, {"study_id": study_id})
        return await cursor.fetchone()


LOCK: Final[LiteralString] = FIND + " FOR NO KEY UPDATE"


async def lock(conn: Conn, study_id: StudyId) -> StudyRow:
    """The study's row, locked until the end of the transaction: whoever holds it decides.

    NO KEY: a result that references the study is inserted under its task's row alone and must not wait for the decider.
    """
    async with conn.cursor(row_factory=class_row(StudyRow)) as cursor:
        await cursor.execute(LOCK, {"study_id": study_id})
        row = await cursor.fetchone()
    if row is None:
        raise NotFound(f"There is no study with id {study_id}.")
    return row


UPDATE: Final[LiteralString] = """
    UPDATE study SET state = %(state)s, next_seq = %(next_seq)s, max_budget = %(max_budget)s, reserved = %(reserved)s,
           spent = %(spent)s, startable = %(startable)s
    WHERE id = %(study_id)s"""


async def update(
    conn: Conn, study_id: StudyId, *, state: StudyState, next_seq: int, max_budget: int, reserved: float, spent: float,
    startable: int,
) -> None:  # fmt: skip
    """Write what a decision changed; only under ``lock``."""
    given = {
        "study_id": study_id, "state": state, "next_seq": next_seq, "max_budget": max_budget, "reserved": reserved,
        "spent": spent, "startable": startable,
    }  # fmt: skip
    await conn.execute(UPDATE, given)


SET_STATE: Final[LiteralString] = "UPDATE study SET state = %(state)s WHERE id = %(study_id)s"


async def set_state(conn: Conn, study_id: StudyId, state: StudyState) -> None:
    """Pause or resume; only under ``lock``."""
    await conn.execute(SET_STATE, {"study_id": study_id, "state": state})


# Those that nobody runs are read off an index, kind by kind, in their order; the others are as many as there are leases at most, or
# have something that no ask has to begin.
HUNGRY: Final[LiteralString] = """
    WITH RECURSIVE kinds AS (
        (SELECT kind FROM study WHERE state = 'active' AND hungry AND trainable <> '' ORDER BY kind LIMIT 1)
        UNION ALL
        SELECT (SELECT kind FROM study WHERE state = 'active' AND hungry AND trainable <> '' AND kind > kinds.kind ORDER BY kind LIMIT 1)
        FROM kinds WHERE kind IS NOT NULL),
    busy AS MATERIALIZED (SELECT study_id, count(*) AS leased FROM lease GROUP BY study_id),
    vain AS MATERIALIZED (
        SELECT study.id FROM study JOIN unnest(%(vain)s::bigint[], %(seqs)s::bigint[]) AS asked(id, next_seq) USING (id, next_seq)),
    found AS (
        SELECT free.* FROM kinds, LATERAL (
            SELECT id, project, trainable, gpus, nodes, weight, 0 AS leased FROM study
            WHERE state = 'active' AND hungry AND trainable <> '' AND kind = kinds.kind
                AND id NOT IN (SELECT study_id FROM busy) AND id NOT IN (SELECT id FROM vain)
            ORDER BY weight DESC, id LIMIT %(most)s) AS free
        UNION ALL
        SELECT id, project, trainable, gpus, nodes, weight, leased FROM (
            SELECT *, row_number() OVER (PARTITION BY kind ORDER BY (leased + 1) / weight, id) AS place FROM (
                SELECT id, kind, project, trainable, gpus, nodes, weight, leased FROM study JOIN busy ON study_id = id
                WHERE state = 'active' AND hungry AND trainable <> ''
                UNION ALL
                SELECT id, kind, project, trainable, gpus, nodes, weight, coalesce(leased, 0) FROM study LEFT JOIN busy ON study_id = id
                WHERE state = 'active' AND NOT hungry AND trainable <> '' AND id IN (
                    SELECT study_id FROM task WHERE state = 'ready' AND not_before <= now()
                    UNION ALL SELECT study_id FROM result WHERE decided_seq IS NULL)) AS other
            WHERE id NOT IN (SELECT id FROM vain)) AS placed
        WHERE place <= %(most)s)
    SELECT id, project, trainable, gpus, nodes, weight, leased, CASE WHEN gpus > 1 THEN (
               SELECT extract(epoch FROM now() - min(greatest(created_at, not_before)))::float8 FROM task
               WHERE study_id = found.id AND state = 'ready' AND not_before <= now()) END AS waits
    FROM found ORDER BY leased, id"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hungry:
    """A study that may have a task for a free slot; ``gpus`` on each of ``nodes`` is what each takes, ``weight`` its share of its project's slots.

    ``waits`` is the seconds that a task of several GPUs has been ready; ``None`` when none is.
    """

    id: StudyId
    project: str
    trainable: str
    gpus: int
    nodes: int
    leased: int
    weight: float
    waits: float | None = None


async def hungry(conn: Conn, most: int, vain: Mapping[StudyId, int]) -> list[Hungry]:
    """Studies that may have a task for a free slot, those with the fewest leases first: of each kind as many as ``most`` slots can serve.

    Who was asked in ``vain`` at this point of its ledger is passed over.
    """
    given = {"most": most, "vain": list(vain), "seqs": list(vain.values())}
    async with conn.cursor(row_factory=class_row(Hungry)) as cursor:
        await cursor.execute(HUNGRY, given)
        return await cursor.fetchall()


DEMAND: Final[LiteralString] = """
    SELECT id, project, trainable, gpus, nodes, weight, coalesce(leased, 0) AS leased, next_seq, startable, coalesce(n, 0) AS ready,
           cap IS NOT NULL OR campaign_id IS NOT NULL OR coalesce(spec #>> '{limits,gpu_hours}', spec #>> '{limits,wall}') IS NOT NULL AS bound
    FROM study
    LEFT JOIN (SELECT study_id, count(*) AS leased FROM lease GROUP BY study_id) AS busy ON busy.study_id = id
    LEFT JOIN (SELECT study_id, count(*) AS n FROM task WHERE state = 'ready' AND not_before <= now() GROUP BY study_id) AS there
        ON there.study_id = id
    WHERE state = 'active' AND trainable <> ''"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiting:
    """What waits in a study: tasks that are ``ready``, and those an ask would begin, which may be ``bound`` by a limit."""

    next_seq: int
    ready: int
    startable: int
    bound: bool


async def demand(conn: Conn) -> dict[Hungry, Waiting]:
    """Of each active study that workers run what waits in it."""
    async with conn.cursor(row_factory=dict_row) as cursor:
        await cursor.execute(DEMAND)
        rows = await cursor.fetchall()
    told = [Waiting(**{one.name: row.pop(one.name) for one in fields(Waiting)}) for row in rows]
    return {Hungry(**row): waiting for row, waiting in zip(rows, told, strict=True)}


ANY_ACTIVE: Final[LiteralString] = "SELECT EXISTS (SELECT FROM study WHERE state = 'active')"


async def any_active(conn: Conn) -> bool:
    """Whether a study may have something to run."""
    row = await (await conn.execute(ANY_ACTIVE)).fetchone()
    return bool(row and row[0])


SPEC: Final[LiteralString] = "SELECT spec FROM study WHERE id = %(study_id)s"


async def spec_of(conn: Conn, study_id: StudyId) -> dict[str, Any]:
    """The spec of a study as it is stored."""
    row = await (await conn.execute(SPEC, {"study_id": study_id})).fetchone()
    if row is None:
        raise NotFound(f"There is no study with id {study_id}.")
    return dict(row[0])


COUNTS: Final[LiteralString] = """
    SELECT (SELECT coalesce(max(no) + 1, 0) FROM trial WHERE study_id = %(study_id)s) AS trials,
           coalesce((SELECT jsonb_object_agg(state, n) FROM (
               SELECT CASE WHEN status IN ('ok', 'diverged') THEN 'done' ELSE status::text END AS state, sum(n) AS n
               FROM (SELECT status, count(*) AS n FROM result WHERE study_id = %(study_id)s GROUP BY status) AS ended GROUP BY 1
               UNION ALL
               SELECT 'ready', count(*) FROM task WHERE study_id = %(study_id)s AND state = 'ready' HAVING count(*) > 0
               UNION ALL
               SELECT task.state::text, count(*) FROM lease JOIN task ON task.id = lease.task_id
               WHERE lease.study_id = %(study_id)s GROUP BY 1) AS counted), '{}'::jsonb) AS tasks"""


async def counts(conn: Conn, study_id: StudyId) -> tuple[int, dict[str, int]]:
    """The number of trials, and of tasks by state; of what has ended by its result, which an index counts."""
    row = await (await conn.execute(COUNTS, {"study_id": study_id})).fetchone()
    return (row[0], row[1]) if row else (0, {})


SET_RUNGS: Final[LiteralString] = "UPDATE study SET rungs = %(rungs)s WHERE id = %(study_id)s"


async def set_rungs(conn: Conn, study_id: StudyId, rungs: Sequence[dict[str, Any]]) -> None:
    """What the study plans, rung by rung, for whoever draws it."""
    await conn.execute(SET_RUNGS, {"study_id": study_id, "rungs": Jsonb(list(rungs))})


WAITING: Final[LiteralString] = "SELECT count(*) FROM task WHERE study_id = %(study_id)s AND state = 'ready'"


async def waiting(conn: Conn, study_id: StudyId) -> int:
    """How many tasks wait for a slot."""
    row = await (await conn.execute(WAITING, {"study_id": study_id})).fetchone()
    return int(row[0]) if row else 0


TRIALS: Final[LiteralString] = """
    SELECT trial.no, trial.bracket, trial.index, trial.source, trial.params, trial.repeat, task.level, task.budget_to AS budget,
           coalesce(result.status::text, task.state::text) AS state, coalesce(result."values", '{}'::jsonb) AS "values",
           result.score, coalesce(last.message, '') AS message
    FROM trial JOIN task ON task.study_id = trial.study_id AND task.trial_no = trial.no
    LEFT JOIN result ON result.task_id = task.id
    LEFT JOIN LATERAL (SELECT message FROM attempt WHERE attempt.task_id = task.id ORDER BY epoch DESC LIMIT 1) last ON true
    WHERE trial.study_id = %(study_id)s ORDER BY trial.no, task.level"""


async def trials(conn: Conn, study_id: StudyId) -> list[dict[str, Any]]:
    """One row a task, with its trial, its state and what it measured."""
    async with conn.cursor(row_factory=dict_row) as cursor:
        await cursor.execute(TRIALS, {"study_id": study_id})
        return await cursor.fetchall()


MOST_LOGS: Final = 200

LOGS: Final[LiteralString] = """
    SELECT * FROM (
        SELECT task.trial_no AS trial, task.level, attempt.epoch AS attempt, attempt.worker_id AS worker,
               coalesce(attempt.outcome::text, 'running') AS state, coalesce(nullif(attempt.message, ''), attempt.tail) AS text,
               attempt.started_at, attempt.task_id
        FROM attempt JOIN task ON task.id = attempt.task_id
        WHERE task.study_id = %(study_id)s AND (%(trial)s::int IS NULL OR task.trial_no = %(trial)s)
          AND (attempt.message <> '' OR attempt.tail <> '')
        ORDER BY attempt.started_at DESC, attempt.task_id DESC LIMIT %(most)s) AS newest
    ORDER BY started_at, task_id"""


async def logs(conn: Conn, study_id: StudyId, trial: int | None = None) -> list[dict[str, Any]]:
    """What the newest attempts said, of one trial or of all, in the order in which they began."""
    async with conn.cursor(row_factory=dict_row) as cursor:
        await cursor.execute(LOGS, {"study_id": study_id, "trial": trial, "most": MOST_LOGS})
        return [
            {name: value for name, value in row.items() if name not in ("started_at", "task_id")}
            for row in await cursor.fetchall()
        ]


OUTCOMES: Final[LiteralString] = """
    SELECT task.trial_no, task.level, result."values" FROM task JOIN result ON result.task_id = task.id
    WHERE task.study_id = %(study_id)s AND result.status = 'ok' AND result.decided_seq IS NOT NULL
    ORDER BY result.decided_seq"""


async def outcomes(conn: Conn, study_id: StudyId) -> dict[tuple[int, int], dict[str, float]]:
    """What the decided tasks that ended ok measured, by (trial, level) in the ledger's order."""
    rows = await (await conn.execute(OUTCOMES, {"study_id": study_id})).fetchall()
    return {(row[0], row[1]): row[2] for row in rows}


OBSTACLES: Final[LiteralString] = """
    SELECT task.state::text AS state, count(*) AS n, min(extract(epoch FROM task.not_before - now()))::float8 AS wait,
           count(*) FILTER (WHERE task.failures + task.infra_failures > 0) AS retried
    FROM task WHERE study_id = %(study_id)s AND state IN ('ready', 'leased', 'cancelling') GROUP BY task.state"""


CODES: Final[LiteralString] = """
    SELECT code, count(*) FROM attempt JOIN task ON task.id = attempt.task_id
    WHERE task.study_id = %(study_id)s AND code <> '' GROUP BY code"""


async def codes(conn: Conn, study_id: StudyId) -> dict[str, int]:
    """Attempts by the version of the code they ran."""
    rows = await (await conn.execute(CODES, {"study_id": study_id})).fetchall()
    return {row[0]: row[1] for row in rows}


GIVEN_BACK: Final[LiteralString] = """
    SELECT task.trial_no, attempt.message
    FROM task JOIN attempt ON attempt.task_id = task.id AND attempt.epoch = task.epoch
    WHERE task.study_id = %(study_id)s AND task.state = 'ready' AND attempt.outcome = 'released' AND attempt.message <> ''
    ORDER BY task.id LIMIT 3"""


async def given_back(conn: Conn, study_id: StudyId) -> list[tuple[int, str]]:
    """Trials that wait because a worker could not run them, with what it said; the first few."""
    rows = await (await conn.execute(GIVEN_BACK, {"study_id": study_id})).fetchall()
    return [(row[0], row[1]) for row in rows]


async def open_tasks(conn: Conn, study_id: StudyId) -> Sequence[dict[str, Any]]:
    """Open tasks by state, with the shortest wait of those that back off."""
    async with conn.cursor(row_factory=dict_row) as cursor:
        await cursor.execute(OBSTACLES, {"study_id": study_id})
        return await cursor.fetchall()
