"""Projects: their weight among each other, and how many tasks each may run at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, LiteralString

from psycopg.rows import class_row

from isoloss.store.pool import Conn


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """What a project gets of the slots: by ``weight``, at most ``most`` at once (``None``: no bound); ``running`` now."""

    name: str
    weight: float = 1.0
    most: int | None = None
    running: int = 0


SHARES: Final[LiteralString] = """
    SELECT coalesce(project.name, busy.name) AS name, coalesce(weight, 1.0) AS weight, most, coalesce(busy.n, 0) AS running
    FROM project FULL JOIN (
        SELECT study.project AS name, count(*) AS n
        FROM lease JOIN study ON study.id = lease.study_id GROUP BY study.project
    ) AS busy ON busy.name = project.name ORDER BY 1"""


async def shares(conn: Conn) -> list[Share]:
    """Every project that has a share of its own, or runs something."""
    async with conn.cursor(row_factory=class_row(Share)) as cursor:
        await cursor.execute(SHARES)
        return await cursor.fetchall()


SET: Final[LiteralString] = """
    INSERT INTO project (name, weight, most) VALUES (%(name)s, %(weight)s, %(most)s)
    ON CONFLICT (name) DO UPDATE SET weight = excluded.weight, most = excluded.most"""


async def set_share(conn: Conn, name: str, *, weight: float, most: int | None) -> None:
    """Give a project its share from now on; what runs goes on."""
    await conn.execute(SET, {"name": name, "weight": weight, "most": most})
