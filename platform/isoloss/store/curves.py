"""Curves: a report's points become one chunk a metric; delivered twice or out of order they give the same curve."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Final, LiteralString

from isoloss.domain.lease import LeaseKey
from isoloss.store.pool import Conn

ADD_CHUNK: Final[LiteralString] = """
    INSERT INTO metric_chunk (task_id, epoch, metric, step0, stride, steps, "values")
    SELECT lease.task_id, lease.epoch, %(metric)s, %(step0)s, %(stride)s, %(steps)s, %(values)s FROM lease
    WHERE lease.task_id = %(task_id)s AND lease.epoch = %(epoch)s AND lease.secret_hash = sha256(%(secret)s::bytea)
    ON CONFLICT (task_id, epoch, metric, step0)
    DO UPDATE SET stride = excluded.stride, steps = excluded.steps, "values" = excluded."values"
    WHERE cardinality(excluded."values") > cardinality(metric_chunk."values")"""

CURVE: Final[LiteralString] = """
    SELECT DISTINCT ON (step) step, value FROM metric_chunk
    JOIN task ON task.id = metric_chunk.task_id,
    LATERAL unnest(chunk_steps(step0, stride, steps, cardinality("values")), "values") AS point(step, value)
    WHERE task.study_id = %(study_id)s AND task.trial_no = %(trial_no)s AND metric = %(metric)s
    ORDER BY step, task.level DESC, metric_chunk.epoch DESC"""


REAL: Final = 3.4e38  # beyond it a 32-bit number is infinite
Batch = tuple[LeaseKey, Sequence[tuple[int, dict[str, float]]]]  # the points of a lease: (step, values by metric)


async def add_points(conn: Conn, batches: Sequence[Batch]) -> None:
    """Store points under current leases; those of a stale one are not stored."""
    chunks = [
        {"task_id": key.task_id, "epoch": key.epoch, "secret": key.secret, "metric": metric} | _chunk(series)
        for key, points in sorted(batches, key=lambda batch: batch[0].task_id)
        for metric in sorted({name for _, values in points for name in values})
        if (series := [(step, values[metric]) for step, values in points if metric in values])
    ]  # fmt: skip
    async with conn.cursor() as cursor:
        await cursor.executemany(ADD_CHUNK, chunks)


def _chunk(series: Sequence[tuple[int, float]]) -> dict[str, Any]:
    """The columns of a chunk: its steps as first and stride where they are even."""
    steps = [step for step, _ in series]
    stride = steps[1] - steps[0] if len(steps) > 1 else 0
    even = all(later - earlier == stride for earlier, later in pairwise(steps))
    # what is infinite, or would become it, is told apart from NaN and from what is large
    values = [value if abs(value) <= REAL or value != value else math.copysign(math.inf, value) for _, value in series]  # noqa: PLR0124
    return {"step0": steps[0], "stride": stride if even else None, "steps": None if even else steps, "values": values}


async def curve(conn: Conn, study_id: int, trial_no: int, metric: str) -> list[tuple[int, float]]:
    """The trial's curve over all its levels: at each step the highest level's newest attempt."""
    rows = await conn.execute(CURVE, {"study_id": study_id, "trial_no": trial_no, "metric": metric})
    return [(row[0], row[1]) for row in await rows.fetchall()]
