"""Preferences: the versions of what a study prefers, and the scores that follow from the newest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, LiteralString

import msgspec
from psycopg.types.json import Jsonb

from isoloss.domain.ids import StudyId
from isoloss.store.pool import Conn

BEGIN: Final[LiteralString] = """
    INSERT INTO preference (study_id, version, desirability, seq, at)
    SELECT id, 1, spec -> 'desirability', 0, created_at FROM study WHERE id = %(study_id)s
    ON CONFLICT DO NOTHING"""
ADD: Final[LiteralString] = """
    INSERT INTO preference (study_id, version, desirability, seq)
    SELECT id, (SELECT max(version) + 1 FROM preference WHERE study_id = study.id), %(desirability)s, next_seq - 1
    FROM study WHERE id = %(study_id)s RETURNING version"""
ADOPT: Final[LiteralString] = """
    UPDATE study SET spec = jsonb_set(spec, '{desirability}', %(desirability)s), spec_version = spec_version + 1
    WHERE id = %(study_id)s"""


async def add(conn: Conn, study_id: StudyId, desirability: Mapping[str, Any]) -> int:
    """Prefer this from now on; only under ``studies.lock``. Returns the version, of which the first is the spec's own."""
    given = {"study_id": study_id, "desirability": Jsonb(dict(desirability))}
    await conn.execute(BEGIN, given)
    row = await (await conn.execute(ADD, given)).fetchone()
    await conn.execute(ADOPT, given)
    return int(row[0]) if row else 1


VERSIONS: Final[LiteralString] = """
    SELECT version, desirability, seq FROM preference WHERE study_id = %(study_id)s ORDER BY version"""


async def versions(conn: Conn, study_id: StudyId) -> list[tuple[int, dict[str, Any], int]]:
    """(version, desirability, the last event before it), oldest first; empty while the spec's own is the only one."""
    return [(r[0], r[1], r[2]) for r in await (await conn.execute(VERSIONS, {"study_id": study_id})).fetchall()]


RESCORE: Final[LiteralString] = """
    UPDATE result SET score = new.score
    FROM unnest(%(trials)s::int[], %(levels)s::int[], %(scores)s::float8[]) AS new (trial_no, level, score)
    JOIN task ON task.study_id = %(study_id)s AND task.trial_no = new.trial_no AND task.level = new.level
    WHERE result.task_id = task.id"""


async def rescore(conn: Conn, study_id: StudyId, scores: Sequence[tuple[int, int, float | None]]) -> None:
    """Write other scores, each (trial, level, score), where the ledger has just said so."""
    trials, levels, values = (list(column) for column in zip(*scores, strict=True)) if scores else ([], [], [])
    await conn.execute(RESCORE, {"study_id": study_id, "trials": trials, "levels": levels, "scores": values})


REWORTH: Final[LiteralString] = """
    UPDATE result SET worth = new.worth
    FROM json_to_recordset(%(worths)s::json) AS new (trial_no int, level int, worth jsonb)
    JOIN task ON task.study_id = %(study_id)s AND task.trial_no = new.trial_no AND task.level = new.level
    WHERE result.task_id = task.id"""


async def reworth(conn: Conn, study_id: StudyId, worths: Sequence[tuple[int, int, Mapping[str, Any] | None]]) -> None:
    """Write what results are worth by the newest preference, each (trial, level, worth)."""
    rows = [{"trial_no": trial, "level": level, "worth": worth} for trial, level, worth in worths]
    await conn.execute(REWORTH, {"study_id": study_id, "worths": msgspec.json.encode(rows).decode()})
