"""What attempts write into an object store before they can register it: named first, so that nothing lies there that nobody knows.

A worker names the place before it writes there. When the checkpoint is registered the row goes; what is left of an attempt
that has ended can never be registered any more, since its epoch has passed, and the workers of that store remove it: ten
minutes after its end, since a worker that was cut off may write on for a while before it hears that its lease is lost.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, LiteralString

from psycopg.rows import class_row

from isoloss.domain.lease import LeaseKey
from isoloss.store.checkpoints import MOST, Folder
from isoloss.store.pool import Conn

NAME: Final[LiteralString] = """
    INSERT INTO upload (path, task_id, epoch) SELECT %(path)s, lease.task_id, lease.epoch FROM lease
    WHERE lease.task_id = %(task_id)s AND lease.epoch = %(epoch)s AND lease.secret_hash = sha256(%(secret)s::bytea)
      AND NOT EXISTS (SELECT FROM checkpoint WHERE checkpoint.task_id = lease.task_id AND checkpoint.epoch = lease.epoch
                      AND checkpoint.path = %(path)s)
    ON CONFLICT (path) DO NOTHING"""


async def name(conn: Conn, key: LeaseKey, path: str) -> None:
    """An attempt is about to write there; nothing happens unless the lease is current, or for what is registered already."""
    await conn.execute(NAME, {"path": path, "task_id": key.task_id, "epoch": key.epoch, "secret": key.secret})


LEFT: Final[LiteralString] = """
    SELECT upload.task_id, upload.epoch, upload.path FROM upload JOIN attempt USING (task_id, epoch)
    JOIN task ON task.id = upload.task_id JOIN study ON study.id = task.study_id AND %(project)s IN ('', study.project)
    WHERE starts_with(upload.path, %(root)s) AND attempt.ended_at < now() - interval '10 minutes'
    ORDER BY attempt.ended_at, upload.path LIMIT %(most)s"""


async def left(conn: Conn, root: str, project: str = "") -> list[Folder]:
    """What ended attempts of the project may have left below ``root``, to be removed."""
    async with conn.cursor(row_factory=class_row(Folder)) as cursor:
        await cursor.execute(LEFT, {"root": root, "most": MOST, "project": project})
        return await cursor.fetchall()


REMOVED: Final[LiteralString] = """
    DELETE FROM upload USING attempt, task, study
    WHERE path = ANY(%(paths)s) AND attempt.task_id = upload.task_id AND attempt.epoch = upload.epoch AND attempt.ended_at IS NOT NULL
      AND task.id = upload.task_id AND study.id = task.study_id AND %(project)s IN ('', study.project)"""


async def removed(conn: Conn, paths: Sequence[str], project: str = "") -> None:
    """Nothing lies there any more; of what is still being written, or of another project, that says nothing."""
    await conn.execute(REMOVED, {"paths": list(paths), "project": project})
