"""``isoloss token``: who may call. On the machine that reaches the database, since whoever makes tokens owns everything."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import App, Parameter

from isoloss.cli.db import Dsn, find_dsn
from isoloss.cli.output import Output, Table, show

if TYPE_CHECKING:
    from isoloss.store.tokens import TokenRow

app = App(name="token", help="Tokens: create, list, revoke.")


@app.command
def create(
    role: Literal["admin", "client", "worker", "viewer"],
    *,
    project: Annotated[str, Parameter(help="The only project it sees; without it, all. An admin sees all.")] = "",
    lasts: Annotated[str, Parameter(help="How long it is accepted: 12h, 90d.")] = "90d",
    note: Annotated[str, Parameter(help="What it is for.")] = "",
    dsn: Dsn = None,
    output: Output = Output(),  # noqa: B008 - frozen
) -> None:
    """Make a token and show it, this once: `id.secret`, for ISOLOSS_TOKEN."""
    token = asyncio.run(_create(find_dsn(dsn), role, project, lasts, note))
    value = {"token": token, "id": token.partition(".")[0], "role": role, "project": project or None, "lasts": lasts}
    show(output, value, token)


@app.command
def ls(*, dsn: Dsn = None, output: Output = Output()) -> None:  # noqa: B008 - frozen
    """List the tokens; never their secrets."""
    rows = asyncio.run(_listed(find_dsn(dsn)))
    value = {"tokens": [_described(row) for row in rows]}
    columns = ("id", "role", "project", "state", "expires", "last_used", "note")
    show(output, value, Table(columns, [[t[c] or "" for c in columns] for t in value["tokens"]]))


@app.command
def revoke(token_id: str, *, dsn: Dsn = None, output: Output = Output()) -> None:  # noqa: B008 - frozen
    """Accept a token no more, from five seconds on."""
    token_id = token_id.partition(".")[0]
    asyncio.run(_revoke(find_dsn(dsn), token_id))
    show(output, {"revoked": token_id}, f"{token_id} is not accepted any more")


def _described(row: TokenRow) -> dict[str, Any]:
    state = "live" if row.alive else "revoked" if row.revoked_at else "expired"
    return {
        "id": row.id, "role": row.role, "project": row.project, "state": state, "note": row.note,
        "expires": row.expires_at and row.expires_at.isoformat(timespec="minutes"),
        "last_used": row.last_used_at and row.last_used_at.isoformat(timespec="minutes"),
    }  # fmt: skip


async def _create(dsn: str, role: str, project: str, lasts: str, note: str) -> str:
    from datetime import timedelta

    from isoloss.domain.access import Role
    from isoloss.domain.quantity import parse_duration
    from isoloss.errors import InvalidSpec
    from isoloss.store import tokens
    from isoloss.store.pool import Pool

    seconds = parse_duration(lasts, "--lasts")
    if seconds <= 0:
        raise InvalidSpec(f"--lasts is {lasts!r}; accepted is a time from now on, such as 12h or 90d.")
    if role == Role.ADMIN and project:
        raise InvalidSpec(f"--project is {project!r}; accepted is an admin of all projects, or another role.")
    async with Pool(dsn, size=1, name="isoloss token") as pool, pool.connection() as conn:
        return await tokens.create(
            conn, role=Role(role), project=project, note=note, lasts=timedelta(seconds=seconds)
        )  # fmt: skip


async def _listed(dsn: str) -> list[TokenRow]:
    from isoloss.store import tokens
    from isoloss.store.pool import Pool

    async with Pool(dsn, size=1, name="isoloss token") as pool, pool.connection() as conn:
        return await tokens.listed(conn)


async def _revoke(dsn: str, token_id: str) -> None:
    from isoloss.store import tokens
    from isoloss.store.pool import Pool

    async with Pool(dsn, size=1, name="isoloss token") as pool, pool.connection() as conn:
        await tokens.revoke(conn, token_id)
