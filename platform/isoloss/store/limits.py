"""What studies and campaigns have used, and whose limit is reached; all by the database's clock."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, LiteralString

from psycopg.rows import class_row

from isoloss.domain.ids import StudyId
from isoloss.store.pool import Conn


@dataclass(frozen=True, slots=True, kw_only=True)
class Reached:
    """A study that has used what its spec allows: ``limits.<name>`` is ``most``."""

    study_id: StudyId
    name: str
    used: float
    most: float

    @property
    def reason(self) -> str:
        """Why the study stops."""
        return said(self.name, self.used, self.most)


def said(name: str, used: float, most: float) -> str:
    """A limit that is reached, in words."""
    return f"limits.{name}: {used:.4g} of {most:.4g}{' seconds' if name == 'wall' else ''} used"


# Attempts are summed for those alone that limit them: CASE keeps the sum from being made.
REACHED: Final[LiteralString] = """
    SELECT DISTINCT ON (study.id) study.id AS study_id, one.name, used, most
    FROM study JOIN study_use ON study_use.study_id = study.id
    CROSS JOIN LATERAL (SELECT study.spec -> 'limits' AS limits) AS stated
    CROSS JOIN LATERAL (VALUES
        ('wall', (limits ->> 'wall')::float8, extract(epoch FROM now() - study.created_at)::float8),
        ('gpu_hours', (limits ->> 'gpu_hours')::float8, CASE WHEN limits ->> 'gpu_hours' IS NOT NULL THEN gpu_hours END),
        ('flops', (limits ->> 'flops')::float8, flops)) AS one(name, most, used)
    WHERE study.state <> 'stopped' AND used >= most ORDER BY study.id"""


async def reached(conn: Conn) -> list[Reached]:
    """The studies that are to stop."""
    async with conn.cursor(row_factory=class_row(Reached)) as cursor:
        await cursor.execute(REACHED)
        return await cursor.fetchall()
