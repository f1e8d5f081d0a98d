"""Curves: a report's points become one chunk a metric; delivered twice or out of order they give the same curve."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, LiteralString

from isoloss.domain.lease import LeaseKey
from isoloss.store.pool import Conn

ADD_CHUNK: Final[LiteralString] = """
    INSERT INTO metric_chunk (task_id, epoch, metric, step0, steps, "values")
    SELECT lease.task_id, lease.epoch, %(metric)s, %(step0)s, %(steps)s, %(values)s FROM lease
    WHERE lease.task_id = %(task_id)s AND lease.epoch = %(epoch)s AND lease.secret_hash = sha256(%(secret)s::bytea)
    ON CONFLICT (task_id, epoch, metric, step0) DO UPDATE SET steps = excluded.steps, "values" = excluded."values"
    WHERE cardinality(excluded.steps) > cardinality(metric_chunk.steps)"""

CURVE: Final[LiteralString] = """
    SELECT DISTINCT ON (step) step, value FROM metric_chunk
    JOIN task ON task.id = metric_chunk.task_id,
    LATERAL unnest(steps, "values") AS point(step, value)
    WHERE task.study_id = %(study_id)s AND task.trial_no = %(trial_no)s AND metric = %(metric)s
    ORDER BY step, task.level DESC, metric_chunk.epoch DESC"""


Batch = tuple[LeaseKey, Sequence[tuple[int, dict[str, float]]]]  # the points of a lease: (step, values by metric)


async def add_points(conn: Conn, batches: Sequence[Batch]) -> None:
    """Store points under current leases; those of a stale one are not stored."""
    chunks = [
        {
            "task_id": key.task_id, "epoch": key.epoch, "secret": key.secret, "metric": metric, "step0": series[0][0],
            "steps": [step for step, _ in series], "values": [value for _, value in series],
        }
        for key, points in sorted(batches, key=lambda batch: batch[0].task_id)
        for metric in sorted({name for _, values in points for name in values})
        if (series := [(step, values[metric]) for step, values in points if metric in values])
    ]  # fmt: skip
    async with conn.cursor() as cursor:
        await cursor.executemany(ADD_CHUNK, chunks)


async def curve(conn: Conn, study_id: int, trial_no: int, metric: str) -> list[tuple[int, float]]:
    """The trial's curve over all its levels: at each step the highest level's newest attempt."""
    rows = await conn.execute(CURVE, {"study_id": study_id, "trial_no": trial_no, "metric": metric})
    return [(row[0], row[1]) for row in await rows.fetchall()]
