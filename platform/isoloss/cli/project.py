"""``isoloss project``: shares of the workers' slots. On the machine that reaches the database, as for tokens."""

from __future__ import annotations

import asyncio
import math
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

from cyclopts import App, Parameter

from isoloss.cli.db import Dsn, find_dsn
from isoloss.cli.output import Output, Table, show

if TYPE_CHECKING:
    from isoloss.store.projects import Share

app = App(name="project", help="Projects: weight and quota.")


@app.command(name="set")
def set_(
    name: str,
    *,
    weight: Annotated[
        float, Parameter(help="Its slots beside other projects' when all want some; 1 unless set.")
    ] = 1.0,
    most: Annotated[int | None, Parameter(help="Tasks that may run at once; without it, no bound.")] = None,
    dsn: Dsn = None,
    output: Output = Output(),  # noqa: B008 - frozen
) -> None:
    """Set what a project gets of the workers' slots, from now on; what runs goes on."""
    from isoloss.domain.spec import check_name
    from isoloss.errors import InvalidSpec

    check_name(name, "name")
    if not 0 < weight < math.inf:
        raise InvalidSpec(f"--weight is {weight!r}; accepted is a finite number above 0.")
    if most is not None and most < 0:
        raise InvalidSpec(f"--most is {most}; accepted is a whole number from 0.")
    asyncio.run(_set(find_dsn(dsn), name, weight, most))
    bound = "no bound" if most is None else f"at most {most} tasks at once"
    show(output, {"name": name, "weight": weight, "most": most}, f"{name}: weight {weight:g}, {bound}")


@app.command
def ls(*, dsn: Dsn = None, output: Output = Output()) -> None:  # noqa: B008 - frozen
    """List projects that have a share of their own or run something."""
    rows = asyncio.run(_shares(find_dsn(dsn)))
    lines = [(row.name, f"{row.weight:g}", "" if row.most is None else row.most, row.running) for row in rows]
    show(output, {"projects": [asdict(row) for row in rows]}, Table(("project", "weight", "most", "running"), lines))


async def _set(dsn: str, name: str, weight: float, most: int | None) -> None:
    from isoloss.store import projects
    from isoloss.store.pool import Pool

    async with Pool(dsn, size=1, name="isoloss project") as pool, pool.connection() as conn:
        await projects.set_share(conn, name, weight=weight, most=most)


async def _shares(dsn: str) -> list[Share]:
    from isoloss.store import projects
    from isoloss.store.pool import Pool

    async with Pool(dsn, size=1, name="isoloss project") as pool, pool.connection() as conn:
        return await projects.shares(conn)
