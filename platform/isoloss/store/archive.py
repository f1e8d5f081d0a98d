"""Studies that leave the database: all their rows in one file, and back, here or in another database.

A file is a zip of one COPY text a table, with its columns named, so that a later release with more columns reads it.
Rows come back under their own ids, or under others where those are taken: nothing outside the rows knows them but the
names of checkpoints' folders, which no worker removes any more then.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Mapping, Sequence
from itertools import chain, count
from pathlib import Path
from typing import IO, Any, Final, LiteralString

import msgspec
from psycopg import sql
from psycopg.errors import UniqueViolation

from isoloss.domain.study import CampaignState, StudyState
from isoloss.errors import AlreadyExists, InvalidSpec, NotFound, WrongState
from isoloss.store.pool import Conn

FORMAT: Final = 1
CONTENTS: Final = "contents.json"
CHUNK: Final = 1 << 20
OF: Final[dict[str, dict[str, str]]] = {  # tables in the order of their references: column → the table whose id it is
    "campaign": {"id": "campaign"},
    "fit": {"id": "fit", "campaign_id": "campaign"},
    "forecast": {"id": "forecast", "campaign_id": "campaign"},
    "study": {"id": "study", "campaign_id": "campaign"},
    "snapshot": {"study_id": "study"},
    "preference": {"study_id": "study"},
    "event": {"study_id": "study"},
    "trial": {"study_id": "study"},
    "task": {"id": "task", "study_id": "study"},
    "attempt": {"task_id": "task"},
    "checkpoint": {"task_id": "task"},
    "upload": {"task_id": "task"},
    "metric_chunk": {"task_id": "task"},
    "result": {"task_id": "task", "study_id": "study"},
}


class Contents(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a file holds: what was archived, and of every table its columns and how many rows."""

    format: int
    project: str
    name: str
    kind: str  # "study" or "campaign"
    columns: dict[str, list[str]]
    rows: dict[str, int]


FIND: Final[LiteralString] = """
    SELECT 'campaign', id, state::text, NULL FROM campaign WHERE project = %(project)s AND name = %(name)s
    UNION ALL
    SELECT 'study', study.id, study.state::text, campaign.name FROM study LEFT JOIN campaign ON campaign.id = campaign_id
    WHERE study.project = %(project)s AND study.name = %(name)s"""
OLD: Final[LiteralString] = """
    SELECT campaign.project, campaign.name FROM campaign WHERE state = 'stopped' AND NOT EXISTS (
        SELECT FROM study JOIN dash_name ON study_id = study.id
        WHERE campaign_id = campaign.id AND (study.state <> 'stopped' OR last_at > now() - make_interval(secs => %(seconds)s)))
      AND created_at < now() - make_interval(secs => %(seconds)s)
    UNION ALL
    SELECT study.project, study.name FROM study JOIN dash_name ON study_id = study.id
    WHERE campaign_id IS NULL AND study.state = 'stopped' AND last_at < now() - make_interval(secs => %(seconds)s) ORDER BY 1, 2"""
LOCK: Final[LiteralString] = """
    SELECT study.id, study.name, study.state::text, EXISTS (
        SELECT FROM lease WHERE study_id = study.id) AS runs
    FROM study WHERE study.id = %(study)s OR campaign_id = %(campaign)s ORDER BY study.id FOR UPDATE OF study"""
COLUMNS: Final[LiteralString] = """
    SELECT table_name::text, array_agg(column_name::text ORDER BY ordinal_position) FROM information_schema.columns
    WHERE table_schema = current_schema() AND table_name = ANY(%(tables)s) AND is_generated = 'NEVER' GROUP BY 1"""
RESERVE: Final[LiteralString] = "SELECT setval(pg_get_serial_sequence(%(table)s, 'id'), %(highest)s)"
UNHURRIED: Final[LiteralString] = "SET LOCAL statement_timeout = 0; SET LOCAL idle_in_transaction_session_timeout = 0"


async def save(conn: Conn, project: str, name: str, file: Path, *, remove: bool = True) -> Contents:
    """Write a stopped study, or an ended campaign with its studies, into a file; then its rows are removed.

    The file is whole on the disk before any row goes. Raises ``NotFound``, ``WrongState`` for what is not over,
    ``AlreadyExists`` for a file that is there, and ``InvalidSpec`` for one that cannot be written.
    """
    _check_free(file)
    await conn.execute(UNHURRIED)
    kind, among = await _locked(conn, project, name)
    found = await _columns(conn)
    columns = {table: found[table] for table in OF}
    draft, rows = file.with_name(f".{file.name}.{os.getpid()}"), {}
    try:
        with zipfile.ZipFile(draft, "w", zipfile.ZIP_DEFLATED) as pack:
            for table in OF:
                with pack.open(f"{table}.copy", "w", force_zip64=True) as sink:
                    rows[table] = await _copy_out(conn, table, columns[table], among, sink)
            contents = Contents(format=FORMAT, project=project, name=name, kind=kind, columns=columns, rows=rows)
            pack.writestr(CONTENTS, msgspec.json.encode(contents))
        _check_free(file)
        _sync(draft)
        draft.replace(file)
        _sync(file.parent)  # its name is as durable as its bytes before a row goes
    except OSError as error:
        raise InvalidSpec(f"{file} cannot be written ({error}); accepted is a place with room for it.") from None
    finally:
        draft.unlink(missing_ok=True)
    for table in reversed(OF) if remove else ():
        await conn.execute(sql.SQL("DELETE FROM {} WHERE {}").format(sql.Identifier(table), _mine(table)), among)
    return contents


def file_of(folder: Path, project: str, name: str) -> Path:
    """Where one of many goes: another file for each that went under that name."""
    names = (f"{project}.{name}{suffix}.isoloss" for suffix in chain([""], (f".{n}" for n in count(2))))
    return next(file for file in (folder / name for name in names) if not file.exists())


async def old(conn: Conn, seconds: float) -> list[tuple[str, str]]:
    """The (project, name) of what is over and in which nothing has happened for so long."""
    return await (await conn.execute(OLD, {"seconds": seconds})).fetchall()


async def restore(conn: Conn, file: Path) -> Contents:
    """Bring back what a file holds. Raises ``InvalidSpec`` for another file, ``AlreadyExists`` where the name is taken."""
    await conn.execute(UNHURRIED)
    try:
        with zipfile.ZipFile(file) as pack:
            contents = msgspec.json.decode(pack.read(CONTENTS), type=Contents)
            await _check(conn, contents, file)
            shifts: dict[str, int] = {}
            for table, columns in contents.columns.items():
                with pack.open(f"{table}.copy") as source:
                    await _copy_in(conn, table, columns, source, shifts)
    except (OSError, KeyError, zipfile.BadZipFile, msgspec.MsgspecError) as error:
        raise InvalidSpec(
            f"{file} cannot be read ({error}); accepted is what `isoloss db archive` has written."
        ) from None
    except UniqueViolation as error:  # a study of the campaign, or an id that was taken this very moment
        raise AlreadyExists(f"{error.diag.message_detail} Nothing was restored; accepted are free names.") from None
    return contents


async def _locked(conn: Conn, project: str, name: str) -> tuple[str, dict[str, Any]]:
    """What the name means and the ids below it, locked, once nothing of it can change any more."""
    row = await (await conn.execute(FIND, {"project": project, "name": name})).fetchone()
    if row is None:
        raise NotFound(f"There is no study and no campaign {name!r} in project {project!r}.")
    kind, number, state, campaign = row
    if campaign is not None:
        raise WrongState(f"Study {name!r} is of campaign {campaign!r}; accepted is the campaign, with all its studies.")
    if kind == "campaign" and state != CampaignState.STOPPED:
        raise WrongState(
            f"Campaign {name!r} is {state}; accepted is one that is stopped.", hint=f"`isoloss campaign stop {name}`."
        )
    given = {"study": number if kind == "study" else None, "campaign": number if kind == "campaign" else None}
    studies = await (await conn.execute(LOCK, given)).fetchall()
    for _, one, state_, runs in studies:
        if state_ != StudyState.STOPPED:
            raise WrongState(
                f"Study {one!r} is {state_}; accepted is one that is stopped.", hint=f"`isoloss study stop {one}`."
            )
        if runs:
            raise WrongState(
                f"Study {one!r} is stopped and its last attempts have not ended; accepted is a moment later."
            )
    return kind, {"campaigns": [number] if kind == "campaign" else [], "studies": [row[0] for row in studies]}


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _check_free(file: Path) -> None:
    if file.exists():
        raise AlreadyExists(f"{file} exists; accepted is a file that does not.")


async def _columns(conn: Conn) -> dict[str, list[str]]:
    rows: list[tuple[str, list[str]]] = await (await conn.execute(COLUMNS, {"tables": list(OF)})).fetchall()
    return dict(rows)


def _mine(table: str) -> sql.SQL:
    """The rows of a table that belong to some campaigns and studies."""
    columns = OF[table]
    if table in ("campaign", "study"):
        return sql.SQL("id = ANY(%(campaigns)s)" if table == "campaign" else "id = ANY(%(studies)s)")
    if "study_id" in columns:
        return sql.SQL("study_id = ANY(%(studies)s)")
    if "task_id" in columns:
        return sql.SQL("task_id IN (SELECT id FROM task WHERE study_id = ANY(%(studies)s))")
    return sql.SQL("campaign_id = ANY(%(campaigns)s)")


async def _copy_out(conn: Conn, table: str, columns: Sequence[str], among: Mapping[str, Any], sink: IO[bytes]) -> int:
    names = sql.SQL(", ").join(map(sql.Identifier, columns))
    rows = sql.SQL("SELECT {} FROM {} WHERE {}").format(names, sql.Identifier(table), _mine(table))
    async with conn.cursor() as cursor:
        async with cursor.copy(sql.SQL("COPY ({}) TO STDOUT").format(rows), among) as copy:
            async for block in copy:
                sink.write(block)
        return cursor.rowcount


async def _check(conn: Conn, contents: Contents, file: Path) -> None:
    if contents.format != FORMAT or set(contents.columns) - set(OF):
        raise InvalidSpec(f"{file} is of format {contents.format}; accepted is {FORMAT}, or a newer isoloss.")
    found = await _columns(conn)
    lost = [
        f"{table}.{name}" for table, names in contents.columns.items() for name in names if name not in found[table]
    ]
    if lost:
        raise InvalidSpec(
            f"{file} has {lost[0]}, which this database has not; accepted is a file of the same release or an older."
        )
    given = {"project": contents.project, "name": contents.name}
    if await (await conn.execute(FIND, given)).fetchone() is not None:
        raise AlreadyExists(f"{contents.name!r} exists in project {contents.project!r}; accepted is a free name.")


async def _copy_in(conn: Conn, table: str, columns: Sequence[str], source: IO[bytes], shifts: dict[str, int]) -> None:
    """The rows of one table; ids of its own are shifted past those there are when one of them is taken."""
    ours, names = sql.Identifier(table), sql.SQL(", ").join(map(sql.Identifier, columns))
    draft = sql.Identifier(f"archived_{table}")
    await conn.execute(sql.SQL("CREATE TEMP TABLE {} (LIKE {} INCLUDING DEFAULTS) ON COMMIT DROP").format(draft, ours))
    async with conn.cursor() as cursor, cursor.copy(sql.SQL("COPY {} ({}) FROM STDIN").format(draft, names)) as copy:
        while block := source.read(CHUNK):
            await copy.write(block)
    if OF[table].get("id") == table:
        shifts[table] = await _shift(conn, table, draft)
    shifted = [
        sql.SQL("{} + {}").format(sql.Identifier(name), sql.Literal(shifts.get(OF[table][name], 0)))
        if name in OF[table] else sql.Identifier(name) for name in columns
    ]  # fmt: skip
    await conn.execute(
        sql.SQL("INSERT INTO {} ({}) OVERRIDING SYSTEM VALUE SELECT {} FROM {}").format(
            ours, names, sql.SQL(", ").join(shifted), draft
        )
    )


async def _shift(conn: Conn, table: str, draft: sql.Identifier) -> int:
    """How far the ids of a table have to move, 0 where all are free; nobody is given one of them from now on."""
    query = sql.SQL(
        """SELECT min(id), max(id), EXISTS (SELECT FROM {ours} JOIN {draft} USING (id)),
                  nextval(pg_get_serial_sequence(%(table)s, 'id'))
           FROM {draft} HAVING count(*) > 0"""
    ).format(ours=sql.Identifier(table), draft=draft)
    found = await (await conn.execute(query, {"table": table})).fetchone()
    if found is None:
        return 0
    lowest, highest, taken, free = found
    shift = free - lowest if taken else 0
    await conn.execute(RESERVE, {"table": table, "highest": max(free, highest + shift)})
    return int(shift)
