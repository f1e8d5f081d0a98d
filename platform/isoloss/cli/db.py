"""``isoloss db``: the database under the controller, with the tools that came with it."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, Parameter

from isoloss.cli.output import Output, Table, show
from isoloss.client.locate import find_local
from isoloss.errors import Unreachable

app = App(name="db", help="The database: status, migrate, dump, archive, restore, psql.")
Dsn = Annotated[str | None, Parameter(help="The database; otherwise ISOLOSS_DSN, otherwise the running controller's.")]


@app.command
def status(*, dsn: Dsn = None, output: Output = Output()) -> None:  # noqa: B008 - frozen
    """Show server, size and applied migrations."""
    value = asyncio.run(_status(find_dsn(dsn)))
    show(output, value, Table(("", ""), list(value.items())))


@app.command
def migrate(*, dsn: Dsn = None, output: Output = Output()) -> None:  # noqa: B008 - frozen
    """Apply the migrations that are missing; a controller does the same when it starts."""
    applied = asyncio.run(_migrate(find_dsn(dsn)))
    show(output, {"applied": applied}, ", ".join(applied) or "nothing to apply")


@app.command
def dump(out: Path, *, dsn: Dsn = None, output: Output = Output()) -> None:  # noqa: B008 - frozen
    """Write everything into one file that `pg_restore` reads."""
    import subprocess

    command = [str(_tool("pg_dump")), "--format=custom", f"--file={out}", f"--dbname={find_dsn(dsn)}"]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        raise Unreachable(f"pg_dump failed: {done.stderr.strip().splitlines()[-1]}")
    show(output, {"out": str(out), "bytes": out.stat().st_size}, f"{out.stat().st_size} bytes in {out}")


@app.command
def archive(
    name: str,
    file: Path,
    *,
    project: Annotated[str, Parameter(help="The study's or campaign's.")] = "default",
    keep: Annotated[bool, Parameter(help="Leave the rows where they are.", negative="")] = False,
    dsn: Dsn = None,
    output: Output = Output(),  # noqa: B008 - frozen
) -> None:
    """Move a stopped study, or a campaign with its studies, out of the database into a file.

    Ledger, results, curves, forecasts: everything but the files of its checkpoints, which stay where they are. The file is
    whole before a row goes; `isoloss db restore` brings it back. Whoever needs it no more deletes the file.
    """
    contents = asyncio.run(_archive(find_dsn(dsn), project, name, file, remove=not keep))
    _show_contents(output, contents, file, f"{'Copied' if keep else 'Moved'} {contents.kind} {name} into {file}")


@app.command(name="archive-old")
def archive_old(
    folder: Path,
    *,
    older_than: Annotated[str, Parameter(help="For how long nothing has happened in it: 90d.")],
    dsn: Dsn = None,
    output: Output = Output(),  # noqa: B008 - frozen
) -> None:
    """Move every study and campaign that is stopped, and has been for long, into a file each of a folder; for a daily timer."""
    from isoloss.domain.quantity import parse_duration

    folder.mkdir(parents=True, exist_ok=True)
    moved = asyncio.run(_archive_old(find_dsn(dsn), folder, parse_duration(older_than, "--older-than")))
    rows = [(one.project, one.kind, one.name, sum(one.rows.values()), file.name) for one, file in moved]
    value = [{"project": one.project, "kind": one.kind, "name": one.name, "file": str(file)} for one, file in moved]
    show(output, {"moved": value}, Table(("project", "", "name", "rows", "file"), rows))


@app.command
def restore(file: Path, *, dsn: Dsn = None, output: Output = Output()) -> None:  # noqa: B008 - frozen
    """Bring back what `isoloss db archive` has moved into a file, into this database or another."""
    contents = asyncio.run(_restore(find_dsn(dsn), file))
    _show_contents(output, contents, file, f"{contents.kind} {contents.name} is back from {file}")


def _show_contents(output: Output, contents: Any, file: Path, said: str) -> None:
    rows = {table: n for table, n in contents.rows.items() if n}
    value = {"project": contents.project, "name": contents.name, "kind": contents.kind, "file": str(file), "rows": rows}
    show(
        output,
        value | {"bytes": file.stat().st_size},
        f"{said}: {sum(rows.values())} rows, {file.stat().st_size} bytes.",
    )


@app.command
def psql(*, dsn: Dsn = None) -> None:
    """Open psql on the database."""
    program = str(_tool("psql"))
    os.execv(program, [program, find_dsn(dsn)])  # noqa: S606


def find_dsn(stated: str | None) -> str:
    """The database meant: a flag, the environment, or the running controller's."""
    if found := stated or os.environ.get("ISOLOSS_DSN"):
        return found
    if (local := find_local()) is not None:
        return local.dsn
    raise Unreachable("No database: no --dsn, no ISOLOSS_DSN, and no controller of yours runs.", hint="`isoloss up`.")


def _tool(name: str) -> Path:
    from isoloss.client.locate import home
    from isoloss.store.embedded import Embedded

    return Embedded(home=home() / "postgres").binaries() / name


async def _status(dsn: str) -> dict[str, Any]:
    from isoloss.store.migrate import APPLIED
    from isoloss.store.pool import Pool

    async with Pool(dsn, size=1, name="isoloss db") as pool, pool.connection() as conn:
        row = await (await conn.execute("SELECT version(), pg_database_size(current_database())")).fetchone()
        ledger = await (await conn.execute("SELECT to_regclass('migration') IS NOT NULL")).fetchone()
        applied = await (await conn.execute(APPLIED)).fetchall() if ledger and ledger[0] else []
    version, size = row or ("", 0)
    return {"dsn": dsn, "server": version.split(",")[0], "bytes": size, "migrations": [name for _, name, _ in applied]}


async def _migrate(dsn: str) -> list[str]:
    from isoloss.store.migrate import migrate as apply
    from isoloss.store.pool import Pool

    async with Pool(dsn, size=1, name="isoloss db") as pool:
        return await apply(pool)


async def _archive(dsn: str, project: str, name: str, file: Path, *, remove: bool) -> Any:
    from isoloss.store.archive import save
    from isoloss.store.pool import Pool

    async with Pool(dsn, size=1, name="isoloss db") as pool, pool.connection() as conn:
        return await save(conn, project, name, file, remove=remove)


async def _archive_old(dsn: str, folder: Path, seconds: float) -> list[tuple[Any, Path]]:
    from isoloss.store.archive import file_of, old, save
    from isoloss.store.pool import Pool

    moved = []
    async with Pool(dsn, size=1, name="isoloss db") as pool:
        async with pool.connection() as conn:
            found = await old(conn, seconds)
        for project, name in found:  # a transaction each: what is moved is moved
            file = file_of(folder, project, name)
            async with pool.connection() as conn:
                moved.append((await save(conn, project, name, file), file))
    return moved


async def _restore(dsn: str, file: Path) -> Any:
    from isoloss.store.archive import restore as bring_back
    from isoloss.store.pool import Pool

    async with Pool(dsn, size=1, name="isoloss db") as pool, pool.connection() as conn:
        return await bring_back(conn, file)
