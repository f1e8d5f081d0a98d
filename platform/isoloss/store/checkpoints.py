"""Checkpoints that go: dropped where that is decided, removed once a worker says that their files are gone.

A folder belongs to one attempt, whatever it registered in it on the way, so it goes as a whole. A row stays when its
files are gone: it says what there was. Nothing resumes from a dropped one (``tasks.DESCRIBE``).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Final, LiteralString

from psycopg.rows import class_row

from isoloss.domain.ids import StudyId
from isoloss.store.pool import Conn

MOST: Final = 100  # folders a worker is told of in one heartbeat


@dataclass(frozen=True, slots=True, kw_only=True)
class Folder:
    """Where an attempt saved."""

    task_id: int
    epoch: int
    path: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Tally:
    """A study's checkpoints in numbers: kept and dropped, with the bytes of their manifests.

    Of the dropped ones ``to_remove`` still lie there, and ``for_room`` went because of a worker's quota.
    """

    kept: int
    kept_bytes: int
    dropped: int
    dropped_bytes: int
    to_remove: int
    for_room: int = 0


DROP: Final[LiteralString] = """
    UPDATE checkpoint SET dropped_at = now(), for_room = %(for_room)s FROM task
    CROSS JOIN LATERAL (SELECT EXISTS (SELECT FROM unnest(%(best_trials)s::bigint[], %(best_levels)s::int[]) AS best(trial, level)
                                       WHERE best.trial = task.trial_no AND best.level = task.level)) AS one(is_best)
    WHERE task.id = checkpoint.task_id AND task.study_id = %(study_id)s AND dropped_at IS NULL
      AND (task.trial_no = ANY(%(trials)s) AND NOT is_best OR (%(all)s OR (checkpoint.task_id, checkpoint.epoch) IN (
          SELECT * FROM unnest(%(ids)s::bigint[], %(epochs)s::int[]))) AND EXISTS (
          SELECT FROM checkpoint AS later JOIN task AS after ON after.id = later.task_id
          WHERE after.study_id = task.study_id AND after.trial_no = task.trial_no AND after.state = 'done'
            AND later.dropped_at IS NULL AND later.path <> checkpoint.path
            AND (later.step, later.at) > (checkpoint.step, checkpoint.at) AND (after.id = task.id OR NOT is_best)))"""


async def drop(
    conn: Conn, study_id: StudyId, *, trials: Sequence[int], best: Collection[tuple[int, int]],
    superseded: Sequence[tuple[int, int]] | None = None, for_room: bool = False,
) -> None:  # fmt: skip
    """Drop what these trials left, and whatever a later checkpoint of the same trial supersedes, among these (task, epoch) if given.

    Of ``best``, the (trial, level) that stay, the last stays: what an attempt left that was lost on the way goes too. What runs, waits or failed supersedes nothing: it may begin again from below.
    """
    given = {
        "study_id": study_id, "trials": list(trials), "best_trials": [trial for trial, _ in best],
        "best_levels": [level for _, level in best], "for_room": for_room, "all": superseded is None,
        "ids": [task for task, _ in superseded or ()], "epochs": [epoch for _, epoch in superseded or ()],
    }  # fmt: skip
    await conn.execute(DROP, given)


TO_REMOVE: Final[LiteralString] = """
    SELECT DISTINCT gone.task_id, gone.epoch, gone.path
    FROM checkpoint AS gone JOIN attempt USING (task_id, epoch) JOIN worker ON worker.id = attempt.worker_id
    JOIN worker AS me ON me.id = %(worker_id)s AND (me.host = worker.host OR me.disk_id = worker.disk_id OR starts_with(gone.path, %(root)s) AND gone.path LIKE '%%://%%')
    JOIN task ON task.id = gone.task_id JOIN study ON study.id = task.study_id AND %(project)s IN ('', study.project)
    WHERE gone.dropped_at IS NOT NULL AND gone.removed_at IS NULL AND starts_with(gone.path, %(root)s)
      AND NOT EXISTS (SELECT FROM checkpoint AS kept WHERE kept.task_id = gone.task_id AND kept.epoch = gone.epoch
                      AND kept.path = gone.path AND kept.dropped_at IS NULL)
    ORDER BY 1, 2 LIMIT %(most)s"""


async def to_remove(conn: Conn, worker_id: str, root: str, project: str = "") -> list[Folder]:
    """The dropped folders below ``root`` that workers of this one's host wrote, or anybody into a store, of the project it is held to."""
    async with conn.cursor(row_factory=class_row(Folder)) as cursor:
        await cursor.execute(TO_REMOVE, {"worker_id": worker_id, "root": root, "most": MOST, "project": project})
        return await cursor.fetchall()


REMOVED: Final[LiteralString] = """
    UPDATE checkpoint SET removed_at = now()
    FROM unnest(%(ids)s::bigint[], %(epochs)s::int[], %(paths)s::text[]) AS gone(task_id, epoch, path)
    JOIN task ON task.id = gone.task_id JOIN study ON study.id = task.study_id AND %(project)s IN ('', study.project)
    WHERE checkpoint.task_id = gone.task_id AND checkpoint.epoch = gone.epoch AND checkpoint.path = gone.path AND dropped_at IS NOT NULL
      AND removed_at IS NULL"""


async def removed(conn: Conn, gone: Sequence[Folder], project: str = "") -> None:
    """The files of these folders are gone.

    Saying so twice, of what was never dropped, or of another project than one is held to changes nothing.
    """
    given = {
        "ids": [one.task_id for one in gone], "epochs": [one.epoch for one in gone], "paths": [one.path for one in gone],
        "project": project,
    }  # fmt: skip
    await conn.execute(REMOVED, given)


TALLY: Final[LiteralString] = """
    WITH folder AS (
        SELECT bool_and(dropped_at IS NOT NULL) AS dropped, bool_and(removed_at IS NOT NULL) AS gone, bool_or(for_room) AS for_room,
               max((SELECT coalesce(sum(size::bigint), 0) FROM jsonb_each_text(manifest) AS file(name, size))) AS bytes
        FROM checkpoint JOIN task ON task.id = checkpoint.task_id WHERE study_id = %(study_id)s
        GROUP BY task_id, checkpoint.epoch)
    SELECT count(*) FILTER (WHERE NOT dropped) AS kept,
           coalesce(sum(bytes) FILTER (WHERE NOT dropped), 0)::bigint AS kept_bytes,
           count(*) FILTER (WHERE dropped) AS dropped,
           coalesce(sum(bytes) FILTER (WHERE dropped), 0)::bigint AS dropped_bytes,
           count(*) FILTER (WHERE dropped AND NOT gone) AS to_remove, count(*) FILTER (WHERE dropped AND for_room) AS for_room
    FROM folder"""


async def tally(conn: Conn, study_id: StudyId) -> Tally:
    """How many checkpoints a study has and had, and their bytes as far as manifests say."""
    async with conn.cursor(row_factory=class_row(Tally)) as cursor:
        await cursor.execute(TALLY, {"study_id": study_id})
        row = await cursor.fetchone()
    assert row is not None, "an aggregate has one row"  # noqa: S101
    return row
