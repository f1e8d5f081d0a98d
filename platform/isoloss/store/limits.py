"""What studies and campaigns have used, and whose limit is reached; all by the database's clock."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, LiteralString

from psycopg.rows import class_row, dict_row

from isoloss.domain.ids import CampaignId, StudyId
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


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Room:
    """What a limit leaves to a study, in its unit; ``held`` is what others have reserved of it and may give back."""

    left: float
    limit: str
    held: float = 0.0


LOCK_FLOPS: Final[LiteralString] = """
    SELECT name, (spec #>> '{limits,flops}')::float8, pg_advisory_xact_lock('study_use'::regclass::integer, id::integer)
    FROM campaign WHERE id = %(campaign_id)s AND spec #>> '{limits,flops}' IS NOT NULL"""

OTHERS: Final[LiteralString] = """
    SELECT coalesce(sum(flops), 0), coalesce(sum(flops_reserved), 0) FROM study_use
    WHERE campaign_id = %(campaign_id)s AND study_id <> %(study_id)s"""


async def campaign_rooms(conn: Conn, campaign_id: CampaignId, study_id: StudyId, flops_per_unit: float) -> list[Room]:
    """What the campaign's FLOPs leave to one of its studies, if they are limited.

    Until the end of the transaction no other study of it reserves: two would take the same room. The lock is not the campaign's row,
    which whoever moves the campaign on holds while they lock its studies.
    """
    given = {"campaign_id": campaign_id, "study_id": study_id}
    limited = await (await conn.execute(LOCK_FLOPS, given)).fetchone()
    if limited is None:
        return []
    spent, held = await (await conn.execute(OTHERS, given)).fetchone() or (0.0, 0.0)
    name, most, _ = limited
    left = (most - spent - held) / flops_per_unit
    return [Room(left=left, limit=f"campaign {name}: limits.flops: {most:.4g}", held=held / flops_per_unit)]


REFUSED: Final[LiteralString] = """
    SELECT event.body ->> 'reason' FROM study JOIN event ON event.study_id = study.id AND event.kind = 'stopped'
    WHERE study.campaign_id = %(campaign_id)s AND event.body ->> 'reason' LIKE 'campaign %%: limits.flops%%'
      AND NOT EXISTS (SELECT FROM study WHERE campaign_id = %(campaign_id)s AND state NOT IN ('idle', 'stopped'))
    LIMIT 1"""


async def refused(conn: Conn, campaign_id: CampaignId) -> str:
    """Why a study of the campaign could go on no more, once all of them are at rest; empty when none was refused."""
    row = await (await conn.execute(REFUSED, {"campaign_id": campaign_id})).fetchone()
    return row[0].partition(": ")[2] if row else ""


USED: Final[LiteralString] = """
    SELECT coalesce(sum(gpu_hours), 0) AS gpu_hours, coalesce(sum(flops), 0) AS flops
    FROM study_use WHERE campaign_id = %(campaign_id)s"""


async def used(conn: Conn, campaign_id: CampaignId) -> dict[str, float]:
    """Device hours and FLOPs of all studies of a campaign, the target's among them."""
    async with conn.cursor(row_factory=dict_row) as cursor:
        await cursor.execute(USED, {"campaign_id": campaign_id})
        return await cursor.fetchone() or {"gpu_hours": 0.0, "flops": 0.0}
