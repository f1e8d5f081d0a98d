"""Folders of checkpoints with a quota: what workers measured there, what lies there by the manifests, and which are full."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, LiteralString

from psycopg.rows import class_row

from isoloss.domain.ids import StudyId
from isoloss.store.pool import Conn


@dataclass(frozen=True, slots=True, kw_only=True)
class Disk:
    """A folder that is over its quota, or was said to be full."""

    id: str
    host: str
    quota_bytes: int
    used_bytes: int
    is_full: bool

    @property
    def over(self) -> int:
        """By how many bytes it is over its quota."""
        return max(0, self.used_bytes - self.quota_bytes)


@dataclass(frozen=True, slots=True, kw_only=True)
class Lying:
    """An attempt's folder that lay on a disk when that was measured.

    A later checkpoint of its trial supersedes it: of another task (``passed``), which spares the best, or of its own (``repeated``).
    It goes on ``leaving`` when it was dropped lately, or removed since.
    """

    study_id: StudyId
    trial: int
    level: int
    task_id: int
    epoch: int
    bytes: int
    dropped: bool
    leaving: bool
    passed: bool
    repeated: bool


# A disk that is too full when a worker first speaks of it is full until the steward has looked: else it would get a task before.
MEASURED: Final[LiteralString] = """
    WITH me AS (
        SELECT id, host, mine.disk, disk_id IS DISTINCT FROM mine.disk AS is_new, least(%(quota_bytes)s, (
                   SELECT min(quota_bytes) FROM worker AS other
                   WHERE other.disk_id = mine.disk AND other.id <> worker.id AND other.seen_at > now() - interval '60 seconds')) AS quota
        FROM worker, (SELECT CONCAT(%(project)s::text, '/', %(id)s::text) AS disk) AS mine WHERE id = %(worker_id)s),
    said AS (
        INSERT INTO disk (id, project, host, root, quota_bytes, used_bytes, measured_at, is_full)
        SELECT disk, %(project)s, host, %(root)s, quota, %(used_bytes)s, now() - make_interval(secs => %(seconds_ago)s),
               is_new AND %(used_bytes)s > quota
        FROM me
        ON CONFLICT (id) DO UPDATE SET host = excluded.host, root = excluded.root, quota_bytes = excluded.quota_bytes,
            used_bytes = excluded.used_bytes, measured_at = excluded.measured_at, is_full = disk.is_full OR excluded.is_full
            WHERE disk.measured_at < excluded.measured_at)
    UPDATE worker SET disk_id = me.disk, quota_bytes = %(quota_bytes)s FROM me
    WHERE worker.id = me.id AND (worker.disk_id, worker.quota_bytes) IS DISTINCT FROM (me.disk, %(quota_bytes)s)"""


async def measured(
    conn: Conn, worker_id: str, project: str, *, id: str, root: str, quota_bytes: int, used_bytes: int, seconds_ago: float  # noqa: A002
) -> None:  # fmt: skip
    """A worker measured its disk: of what several say of one the latest counts, and the smallest quota of the last minute.

    A project's workers speak of its own alone.
    """
    given = {
        "worker_id": worker_id, "project": project, "id": id, "root": root, "quota_bytes": quota_bytes,
        "used_bytes": used_bytes, "seconds_ago": seconds_ago,
    }  # fmt: skip
    await conn.execute(MEASURED, given)


CROWDED: Final[LiteralString] = """
    UPDATE disk SET weighed_at = measured_at FROM (
        SELECT id FROM disk WHERE weighed_at < measured_at AND (used_bytes > quota_bytes OR is_full) AND EXISTS (
            SELECT FROM worker WHERE disk_id = disk.id AND seen_at > now() - interval '60 seconds')
        ORDER BY id FOR UPDATE SKIP LOCKED) AS one
    WHERE disk.id = one.id RETURNING disk.id, host, quota_bytes, used_bytes, is_full"""


async def crowded(conn: Conn) -> list[Disk]:
    """Disks measured anew that are over their quota or were full, each measurement once, whoever asks."""
    async with conn.cursor(row_factory=class_row(Disk)) as cursor:
        await cursor.execute(CROWDED)
        return await cursor.fetchall()


# What was removed since the disk was measured still is in that number. The minute is what a worker takes to remove something.
LYING: Final[LiteralString] = """
    WITH here AS MATERIALIZED (SELECT * FROM disk WHERE id = %(disk_id)s),
    lies AS MATERIALIZED (
        SELECT checkpoint.* FROM here, checkpoint JOIN attempt USING (task_id, epoch)
        WHERE starts_with(path, root) AND (removed_at IS NULL OR removed_at > measured_at)
          AND worker_id IN (SELECT worker.id FROM worker, here WHERE disk_id = here.id OR worker.host = here.host))
    SELECT task.study_id, task.trial_no AS trial, task.level, one.task_id, one.epoch,
           max((SELECT coalesce(sum(size::bigint), 0) FROM jsonb_each_text(one.manifest) AS file(name, size)))::bigint AS bytes,
           bool_and(dropped_at IS NOT NULL) AS dropped,
           bool_and(coalesce(dropped_at > now() - interval '1 minute' OR removed_at IS NOT NULL, false)) AS leaving,
           bool_and(later.passed OR later.repeated) AS passed, bool_and(later.repeated) AS repeated
    FROM here, lies AS one
    JOIN task ON task.id = one.task_id JOIN study ON study.id = task.study_id
    CROSS JOIN LATERAL (
        SELECT coalesce(bool_or(after.id <> task.id), false) AS passed, coalesce(bool_or(after.id = task.id), false) AS repeated
        FROM checkpoint AS more JOIN task AS after ON after.id = more.task_id
        WHERE after.study_id = task.study_id AND after.trial_no = task.trial_no AND after.state = 'done'
          AND more.dropped_at IS NULL AND more.path <> one.path AND (more.step, more.at) > (one.step, one.at)) AS later
    WHERE here.project IN ('', study.project)
    GROUP BY task.study_id, task.trial_no, task.level, one.task_id, one.epoch ORDER BY one.task_id, one.epoch"""


async def lying(conn: Conn, disk_id: str) -> list[Lying]:
    """What lies on a disk, the oldest first."""
    async with conn.cursor(row_factory=class_row(Lying)) as cursor:
        await cursor.execute(LYING, {"disk_id": disk_id})
        return await cursor.fetchall()


FULL: Final[LiteralString] = "UPDATE disk SET is_full = %(full)s WHERE id = %(disk_id)s"


async def set_full(conn: Conn, disk_id: str, *, full: bool) -> None:
    """Whether its workers take no new task."""
    await conn.execute(FULL, {"disk_id": disk_id, "full": full})
