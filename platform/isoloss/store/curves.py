"""Curves: a report's points become one chunk a metric; delivered twice or out of order they give the same curve."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import Final, LiteralString

from isoloss.domain.curve import Series
from isoloss.domain.lease import LeaseKey
from isoloss.store.pool import Conn

ADD_CHUNK: Final[LiteralString] = """
    INSERT INTO metric_chunk (task_id, epoch, metric, step0, stride, steps, "values")
    SELECT lease.task_id, lease.epoch, %(metric)s, %(step0)s, %(stride)s, %(steps)s, %(values)s FROM lease
    WHERE lease.task_id = %(task_id)s AND lease.epoch = %(epoch)s AND lease.secret_hash = sha256(%(secret)s::bytea)
    ON CONFLICT (task_id, epoch, metric, step0)
    DO UPDATE SET stride = excluded.stride, steps = excluded.steps, "values" = excluded."values"
    WHERE cardinality(excluded."values") > cardinality(metric_chunk."values")"""

CURVES: Final[LiteralString] = """
    SELECT DISTINCT ON (step, metric) step, metric, value FROM metric_chunk
    JOIN task ON task.id = metric_chunk.task_id,
    LATERAL unnest(chunk_steps(step0, stride, steps, cardinality("values")), "values") AS point(step, value)
    WHERE task.study_id = %(study_id)s AND task.trial_no = %(trial_no)s AND step >= %(from_step)s
      AND coalesce(steps[cardinality("values")], step0 + stride * (cardinality("values") - 1)) >= %(from_step)s
    ORDER BY step, metric, task.level DESC, metric_chunk.epoch DESC LIMIT %(most)s"""
MOST: Final = 20_000  # points of a page


Batch = tuple[LeaseKey, Sequence[Series]]


async def add(conn: Conn, batches: Sequence[Batch]) -> None:
    """Store curves under current leases; those of a stale one are not stored."""
    chunks = [
        {
            "task_id": key.task_id, "epoch": key.epoch, "secret": key.secret, "metric": one.metric, "step0": one.first,
            "stride": None if one.steps else one.stride, "steps": one.steps or None, "values": array("f", one.values).tolist(),  # what 32 bits do not hold is infinite or 0, and not refused
        }
        for key, series in sorted(batches, key=lambda batch: batch[0].task_id)
        for one in series
    ]  # fmt: skip
    async with conn.cursor() as cursor:
        await cursor.executemany(ADD_CHUNK, chunks)


async def page(
    conn: Conn, study_id: int, trial_no: int, from_step: int = 0, most: int = MOST
) -> tuple[list[tuple[int, dict[str, float]]], bool]:
    """A trial's metrics at each step over all its levels, the newest attempt of the highest level, and whether there is more.

    A page ends between two steps, not within one.
    """
    given = {"study_id": study_id, "trial_no": trial_no, "from_step": from_step, "most": most + 1}
    rows = await (await conn.execute(CURVES, given)).fetchall()
    found: dict[int, dict[str, float]] = {}
    for step, metric, value in rows:
        found.setdefault(step, {})[metric] = value
    if len(rows) > most and len(found) > 1:
        found.popitem()
    return list(found.items()), len(rows) > most
