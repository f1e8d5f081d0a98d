"""What a database tells whoever watches it, in one look."""

from __future__ import annotations

from typing import Any, Final, LiteralString

from psycopg.rows import dict_row

from isoloss.store.pool import Conn

GAUGES: Final[LiteralString] = """
    SELECT (SELECT count(*) FROM lease)::float8 AS leases,
           (SELECT count(*) FROM lease WHERE expires_at < now())::float8 AS leases_expired,
           (SELECT count(*) FROM task WHERE state = 'ready')::float8 AS tasks_ready,
           (SELECT count(*) FROM result WHERE decided_seq IS NULL)::float8 AS results_undecided,
           (SELECT count(*) FROM worker WHERE seen_at > now() - interval '60 seconds')::float8 AS workers,
           (SELECT extract(epoch FROM now() - beat_at) FROM control_plane)::float8 AS beat_seconds_ago,
           (SELECT coalesce(max(age(backend_xmin)), 0) FROM pg_stat_activity
            WHERE datname = current_database())::float8 AS oldest_snapshot_xids"""


async def read(conn: Conn) -> dict[str, Any]:
    """Every gauge by name; ``None`` where there is nothing to tell yet."""
    async with conn.cursor(row_factory=dict_row) as cursor:
        await cursor.execute(GAUGES)
        return await cursor.fetchone() or {}
