"""Campaigns, their observations, fits and forecasts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, LiteralString

from psycopg.rows import class_row, dict_row
from psycopg.types.json import Jsonb

from isoloss.domain.ids import CampaignId
from isoloss.domain.study import CampaignState
from isoloss.errors import NotFound
from isoloss.store.pool import Conn


@dataclass(frozen=True, slots=True, kw_only=True)
class CampaignRow:
    """A campaign as it is stored; budgets are tokens."""

    id: CampaignId
    project: str
    name: str
    spec: dict[str, Any]
    state: str
    max_tokens: int
    deepened: int
    deepened_tokens: float
    restart_tokens: float
    confirm: bool
    reason: str


INSERT: Final[LiteralString] = """
    INSERT INTO campaign (project, name, spec, max_tokens, confirm, observations)
    VALUES (%(project)s, %(name)s, %(spec)s, %(max_tokens)s, %(confirm)s, %(observations)s)
    ON CONFLICT (project, name) DO NOTHING
    RETURNING id, project, name, spec, state::text, max_tokens, deepened, deepened_tokens, restart_tokens, confirm, reason"""


async def insert(
    conn: Conn, spec: dict[str, Any], *, max_tokens: int, confirm: bool, own: Sequence[Mapping[str, Any]] = ()
) -> CampaignRow | None:
    """Create a campaign with the runs its user owned before; ``None`` when the name is taken in its project."""
    given = {
        "project": spec["project"], "name": spec["name"], "spec": Jsonb(spec), "max_tokens": max_tokens, "confirm": confirm,
        "observations": Jsonb(list(own)),
    }  # fmt: skip
    async with conn.cursor(row_factory=class_row(CampaignRow)) as cursor:
        await cursor.execute(INSERT, given)
        return await cursor.fetchone()


BY_NAME: Final[LiteralString] = """
    SELECT id, project, name, spec, state::text, max_tokens, deepened, deepened_tokens, restart_tokens, confirm, reason
    FROM campaign WHERE project = %(project)s AND name = %(name)s"""


async def by_name(conn: Conn, project: str, name: str) -> CampaignRow:
    """The campaign of that name, or ``NotFound``."""
    async with conn.cursor(row_factory=class_row(CampaignRow)) as cursor:
        await cursor.execute(BY_NAME, {"project": project, "name": name})
        row = await cursor.fetchone()
    if row is None:
        raise NotFound(
            f"There is no campaign {name!r} in project {project!r}.", hint="`isoloss campaign ls` shows them."
        )
    return row


LOCK: Final[LiteralString] = """
    SELECT id, project, name, spec, state::text, max_tokens, deepened, deepened_tokens, restart_tokens, confirm, reason
    FROM campaign WHERE id = %(campaign_id)s FOR NO KEY UPDATE"""


async def lock(conn: Conn, campaign_id: CampaignId) -> CampaignRow:
    """The campaign's row, locked until the end of the transaction."""
    async with conn.cursor(row_factory=class_row(CampaignRow)) as cursor:
        await cursor.execute(LOCK, {"campaign_id": campaign_id})
        row = await cursor.fetchone()
    if row is None:
        raise NotFound(f"There is no campaign with id {campaign_id}.")
    return row


LIST: Final[LiteralString] = """
    SELECT id, project, name, spec, state::text, max_tokens, deepened, deepened_tokens, restart_tokens, confirm, reason
    FROM campaign WHERE (%(project)s = '' OR project = %(project)s) AND (NOT %(live)s OR state IN ('searching', 'confirming'))
    ORDER BY id"""


async def listed(conn: Conn, *, project: str = "", live: bool = False) -> list[CampaignRow]:
    """Campaigns in the order of creation; ``live`` keeps those that may still move."""
    async with conn.cursor(row_factory=class_row(CampaignRow)) as cursor:
        await cursor.execute(LIST, {"project": project, "live": live})
        return await cursor.fetchall()


DEEPENED: Final[LiteralString] = """
    UPDATE campaign SET max_tokens = %(max_tokens)s, deepened = deepened + 1, state = 'searching', reason = '',
           deepened_tokens = deepened_tokens + %(added)s, restart_tokens = restart_tokens + %(restart)s
    WHERE id = %(campaign_id)s AND max_tokens < %(max_tokens)s"""


async def set_deepened(conn: Conn, campaign_id: CampaignId, *, max_tokens: int, added: float, restart: float) -> None:
    """The campaign bought another column; ``added`` and ``restart`` are tokens, as planned."""
    given = {"campaign_id": campaign_id, "max_tokens": max_tokens, "added": added, "restart": restart}
    await conn.execute(DEEPENED, given)


SET_STATE: Final[LiteralString] = """
    UPDATE campaign SET state = %(state)s, confirm = confirm OR %(confirm)s, reason = %(reason)s WHERE id = %(campaign_id)s"""


async def set_state(
    conn: Conn, campaign_id: CampaignId, state: CampaignState, *, confirm: bool = False, reason: str = ""
) -> None:
    """Move the campaign on; ``confirm`` also asks for the target's cell, ``reason`` is the limit that ended it."""
    given = {"campaign_id": campaign_id, "state": state, "confirm": confirm, "reason": reason}
    await conn.execute(SET_STATE, given)


OWN: Final[LiteralString] = "SELECT observations FROM campaign WHERE id = %(campaign_id)s"


async def own(conn: Conn, campaign_id: CampaignId) -> list[dict[str, Any]]:
    """The runs the campaign's user owned before it."""
    row = await (await conn.execute(OWN, {"campaign_id": campaign_id})).fetchone()
    return row[0] if row else []


OBSERVATIONS: Final[LiteralString] = """
    SELECT study.name || '/' || trial.no || '@' || task.level AS run, study.n_params, study.size,
           task.budget_to::float8 AS n_tokens, trial.params, trial.index, trial.repeat, result.status::text AS status, result."values",
           study.spec
    FROM result JOIN task ON task.id = result.task_id
    JOIN trial ON trial.study_id = task.study_id AND trial.no = task.trial_no
    JOIN study ON study.id = task.study_id
    WHERE study.campaign_id = %(campaign_id)s AND result.decided_seq IS NOT NULL
      AND (result.status IN ('ok', 'diverged') OR (study.size = 'target' AND result.status = 'failed'))
    ORDER BY study.id, trial.no, task.level"""


async def results(conn: Conn, campaign_id: CampaignId) -> list[dict[str, Any]]:
    """Every finished or diverged task of the campaign; of the target's cell the failed ones too."""
    async with conn.cursor(row_factory=dict_row) as cursor:
        await cursor.execute(OBSERVATIONS, {"campaign_id": campaign_id})
        return await cursor.fetchall()


COST: Final[LiteralString] = """
    SELECT coalesce(sum(6 * study.n_params * (task.budget_to - task.budget_from))
                    FILTER (WHERE study.size <> 'target'), 0)::float8 AS searched,
           coalesce(sum(task.budget_to - task.budget_from) FILTER (WHERE study.size <> 'target'), 0)::float8 AS tokens
    FROM task JOIN study ON study.id = task.study_id JOIN result ON result.task_id = task.id
    WHERE study.campaign_id = %(campaign_id)s"""


async def cost(conn: Conn, campaign_id: CampaignId) -> tuple[float, float]:
    """What searching has cost so far: (FLOPs by 6ND, tokens)."""
    row = await (await conn.execute(COST, {"campaign_id": campaign_id})).fetchone()
    return (row[0], row[1]) if row else (0.0, 0.0)


BOUGHT: Final[LiteralString] = """
    SELECT coalesce(sum(6 * study.n_params * (task.budget_to - task.budget_from)), 0)::float8
    FROM task JOIN study ON study.id = task.study_id
    JOIN trial ON trial.study_id = task.study_id AND trial.no = task.trial_no
    WHERE study.campaign_id = %(campaign_id)s AND study.size <> 'target' AND trial.bracket = -1"""


async def bought(conn: Conn, campaign_id: CampaignId) -> float:
    """FLOPs (6ND) of the single runs that were added to the campaign's sizes, finished or not."""
    row = await (await conn.execute(BOUGHT, {"campaign_id": campaign_id})).fetchone()
    return float(row[0]) if row else 0.0


SAVE_FIT: Final[LiteralString] = """
    INSERT INTO fit (campaign_id, form, observation_hash, body)
    VALUES (%(campaign_id)s, %(form)s, %(observation_hash)s, %(body)s)
    ON CONFLICT (campaign_id, form, observation_hash) DO UPDATE SET body = excluded.body WHERE fit.form <> 'confirmed'"""


async def save_fit(
    conn: Conn, campaign_id: CampaignId, form: str, observation_hash: str, body: Mapping[str, Any]
) -> None:
    """Keep a fit with its evidence; the same form on the same observations is kept once, as it was fitted last."""
    given = {"campaign_id": campaign_id, "form": form, "observation_hash": observation_hash, "body": Jsonb(dict(body))}
    await conn.execute(SAVE_FIT, given)


NEWEST_FIT: Final[LiteralString] = """
    SELECT observation_hash, body FROM fit WHERE campaign_id = %(campaign_id)s AND form = %(form)s ORDER BY id DESC LIMIT 1"""


async def newest_fit(conn: Conn, campaign_id: CampaignId, form: str) -> tuple[str, dict[str, Any]] | None:
    """The last fit of a form: (observation hash, body)."""
    row = await (await conn.execute(NEWEST_FIT, {"campaign_id": campaign_id, "form": form})).fetchone()
    return (row[0], row[1]) if row else None


SAVE_FORECAST: Final[LiteralString] = """
    INSERT INTO forecast (campaign_id, n_params, n_tokens, n_observations, observation_hash, body)
    VALUES (%(campaign_id)s, %(n_params)s, %(n_tokens)s, %(n_observations)s, %(observation_hash)s, %(body)s)
    ON CONFLICT (campaign_id, n_params, n_tokens, observation_hash) DO NOTHING"""


async def save_forecast(
    conn: Conn, campaign_id: CampaignId, *, n_params: float, n_tokens: float, n_observations: int, observation_hash: str,
    body: Mapping[str, Any],
) -> None:  # fmt: skip
    """Keep a forecast, so that the page can show it tightening."""
    given = {
        "campaign_id": campaign_id, "n_params": n_params, "n_tokens": n_tokens, "n_observations": n_observations,
        "observation_hash": observation_hash, "body": Jsonb(dict(body)),
    }  # fmt: skip
    await conn.execute(SAVE_FORECAST, given)


NEWEST_FORECAST: Final[LiteralString] = """
    SELECT body, observation_hash FROM forecast
    WHERE campaign_id = %(campaign_id)s AND n_params = %(n_params)s AND n_tokens = %(n_tokens)s ORDER BY id DESC LIMIT 1"""


async def newest_forecast(
    conn: Conn, campaign_id: CampaignId, n_params: float, n_tokens: float
) -> tuple[dict[str, Any], str] | None:
    """The last forecast for a cell: (body, observation hash)."""
    given = {"campaign_id": campaign_id, "n_params": n_params, "n_tokens": n_tokens}
    row = await (await conn.execute(NEWEST_FORECAST, given)).fetchone()
    return (row[0], row[1]) if row else None
