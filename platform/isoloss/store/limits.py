"""What studies and campaigns have used, and whose limit is reached; all by the database's clock."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, LiteralString

from psycopg.rows import class_row, dict_row

from isoloss.domain.campaign import CampaignLimits
from isoloss.domain.ids import CampaignId, StudyId
from isoloss.domain.pace import Use, hours_per_flop, pace
from isoloss.domain.spec import StudySpec
from isoloss.store.pool import Conn
from isoloss.store.studies import StudyRow


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


@dataclass(slots=True, kw_only=True)
class Room:
    """What a limit leaves to tasks that are not there yet, in its own ``unit``."""

    limit: str
    left: float
    held: float = 0.0  # what others have reserved of it and may give back
    price: Callable[[float], float] = float  # what a task of so much budget takes
    unit: str = ""  # of what is foreseen from the rows, and not known beforehand
    shared: bool = True  # time is not: what runs beside a task takes none of its own

    def fits(self, budget: float, *, freed: bool = False) -> bool:
        """Whether a task of so much budget may begin, or may once the others have given back what they hold."""
        return self.price(budget) <= self.left + (self.held if freed else 0.0)

    def take(self, budget: float) -> None:
        """A task of so much budget has been created."""
        self.left -= self.price(budget) if self.shared else 0.0

    def holds(self, budget: float, most: int) -> int:
        """How many tasks of so much budget fit, of ``most``."""
        if (price := self.price(budget)) <= 0 or not self.shared:
            return most if self.fits(budget) else 0
        return max(0, min(most, int(self.left // price)))

    def exceeded(self, budget: float) -> str:
        """That a task of so much budget does not fit, in words."""
        foreseen = (
            f": {max(0.0, self.left):.3g} {self.unit} are left, and a task is foreseen to take {self.price(budget):.3g}"
        )
        return f"{self.limit} would be exceeded{foreseen if self.unit else ''}"


USE: Final[LiteralString] = """
    SELECT study_use.study_id, flops_per_unit, coalesce(hours, 0) AS hours, done, mean_hours, mean_budget, slope, open
    FROM study_use LEFT JOIN LATERAL (
        SELECT sum(hours) AS hours, count(*) FILTER (WHERE state = 'done') AS done,
               avg(hours) FILTER (WHERE state = 'done') AS mean_hours, avg(budget) FILTER (WHERE state = 'done') AS mean_budget,
               regr_slope(hours, budget) FILTER (WHERE state = 'done') AS slope,
               coalesce(json_agg(json_build_array(budget, hours)) FILTER (WHERE state IN ('ready', 'leased')), '[]'::json) AS open
        FROM task_use WHERE task_use.study_id = study_use.study_id) AS told ON true
    WHERE study_use.study_id = %(study_id)s OR campaign_id = %(campaign_id)s"""


async def uses(conn: Conn, study_id: StudyId | None, campaign_id: CampaignId | None = None) -> list[Use]:
    """What a study's tasks have taken of the machines, and those of every study of a campaign."""
    async with conn.cursor(row_factory=class_row(Use)) as cursor:
        await cursor.execute(USE, {"study_id": study_id, "campaign_id": campaign_id})
        return await cursor.fetchall()


AGE: Final[LiteralString] = "SELECT extract(epoch FROM now() - created_at)::float8 FROM study WHERE id = %(study_id)s"

LOCK_LIMITS: Final[LiteralString] = """
    SELECT name, (spec #>> '{limits,flops}')::float8, (spec #>> '{limits,gpu_hours}')::float8,
           pg_advisory_xact_lock('study_use'::regclass::integer, id::integer)
    FROM campaign
    WHERE id = %(campaign_id)s AND coalesce(spec #>> '{limits,flops}', spec #>> '{limits,gpu_hours}') IS NOT NULL"""

OTHERS: Final[LiteralString] = """
    SELECT coalesce(sum(flops), 0), coalesce(sum(flops_reserved), 0) FROM study_use
    WHERE campaign_id = %(campaign_id)s AND study_id <> %(study_id)s"""


async def rooms(conn: Conn, row: StudyRow, spec: StudySpec, mine: float) -> list[Room]:
    """What the limits of a study and of its campaign leave, its tasks taking ``mine`` of budget all together; under its lock.

    Until the end of the transaction no other study of the campaign reserves: two would take the same room. The lock is not the
    campaign's row, which whoever moves the campaign on holds while they lock its studies.
    """
    given = {"study_id": row.id, "campaign_id": row.campaign_id}
    stated, per_unit, found = spec.limits, spec.flops_per_unit(row.n_params), list[Room]()
    if (cap := stated.cap(per_unit)) is not None:
        found.append(Room(limit=cap[1], left=cap[0] - mine))
    name, flops, gpu_hours = "", None, None
    if row.campaign_id is not None:
        name, flops, gpu_hours, _ = await (await conn.execute(LOCK_LIMITS, given)).fetchone() or ("", None, None, None)
    if flops is not None and per_unit is not None:
        spent, held = await (await conn.execute(OTHERS, given)).fetchone() or (0.0, 0.0)
        left = (flops - spent - held) / per_unit - mine
        found.append(Room(limit=f"campaign {name}: limits.flops: {flops:.4g}", left=left, held=held / per_unit))
    if (gpu_hours, stated.gpu_hours, stated.wall) == (None, None, None):
        return found
    used = {use.study_id: use for use in await uses(conn, row.id, row.campaign_id)}
    paces = {study_id: pace(use, [*used.values()]) for study_id, use in used.items()}
    reserved = {study_id: use.reserved(paces[study_id]) for study_id, use in used.items()}
    hours = paces[row.id].hours
    if stated.gpu_hours is not None:
        left = float(stated.gpu_hours) - used[row.id].hours - reserved[row.id]
        found.append(Room(limit=f"limits.gpu_hours: {stated.gpu_hours:g}", left=left, price=hours, unit="device hours"))
    if gpu_hours is not None:
        left = gpu_hours - sum(use.hours for use in used.values()) - sum(reserved.values())
        held = sum(reserved.values()) - reserved[row.id]
        limit = f"campaign {name}: limits.gpu_hours: {gpu_hours:g}"
        found.append(Room(limit=limit, left=left, held=held, price=hours, unit="device hours"))
    if stated.wall is not None:
        (age,) = await (await conn.execute(AGE, given)).fetchone() or (0.0,)
        seconds = 3600 / spec.devices
        limit = f"limits.wall: {stated.wall:g} seconds"
        found.append(
            Room(
                limit=limit,
                left=stated.wall - age,
                price=lambda budget: hours(budget) * seconds,
                unit="seconds",
                shared=False,
            )
        )
    return found


async def left(conn: Conn, campaign_id: CampaignId, stated: CampaignLimits) -> Room:
    """What a campaign's limits leave, in FLOPs: of its device hours as many as its done tasks got out of them."""
    found = await used(conn, campaign_id)
    rooms = [Room(limit="", left=math.inf)]
    if stated.flops is not None:
        rooms.append(Room(limit="limits.flops", left=float(stated.flops) - found["flops"]))
    rate = hours_per_flop(await uses(conn, None, campaign_id)) if stated.gpu_hours is not None else None
    if stated.gpu_hours is not None and rate:
        rooms.append(Room(limit="limits.gpu_hours", left=(float(stated.gpu_hours) - found["gpu_hours"]) / rate))
    return min(rooms, key=lambda room: room.left)


REFUSED: Final[LiteralString] = """
    SELECT event.body ->> 'reason' FROM study JOIN event ON event.study_id = study.id AND event.kind = 'stopped'
    WHERE study.campaign_id = %(campaign_id)s AND event.body ->> 'reason' ~ '^campaign [^ ]+: limits[.]'
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
