"""``isoloss dash``: where the page is, and the same panels for a Grafana of one's own."""

from __future__ import annotations

import os
import shutil
import sys
import webbrowser
from pathlib import Path
from typing import Annotated, Final

from cyclopts import App, Parameter

from isoloss.cli.output import Output, show
from isoloss.client.locate import find_local, home
from isoloss.errors import InvalidSpec, Unreachable

app = App(name="dash", help="Dashboards: the built-in page, and Grafana's.")
MADE: Final = Path(__file__).parents[1] / "dash" / "grafana"


@app.command(name="open")
def open_(
    *,
    browser: Annotated[bool, Parameter(help="Open it in a browser as well, where there is a screen.")] = True,
    output: Output = Output(),  # noqa: B008 - frozen
) -> None:
    """Show the address of your controller's page, and open it."""
    local = find_local()
    if local is None:
        raise Unreachable(f"No controller of yours runs (looked in {home()}).", hint="`isoloss up` starts one.")
    show(output, {"dash": local.dash}, local.dash)
    if browser and not output.json and _has_screen():
        webbrowser.open(local.dash)


@app.command
def grafana(
    folder: Annotated[Path, Parameter(help="Where to: the dashboards, and provisioning/ beside them.")],
    *,
    output: Output = Output(),  # noqa: B008 - frozen
) -> None:
    """Write Grafana's dashboards, and the files that provision them with a Postgres data source."""
    if folder.exists() and not folder.is_dir():
        raise InvalidSpec(f"DIR is {str(folder)!r}, a file; accepted is a folder.")
    written = []
    for source in sorted(p for p in MADE.rglob("*") if p.suffix in (".json", ".yaml")):
        target = folder / source.relative_to(MADE)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
        written.append(str(target))
    hint = f"set ISOLOSS_DASHBOARDS={folder.resolve()} and ISOLOSS_PG_HOST, _USER, _PASSWORD, _DATABASE, _SSLMODE for Grafana"
    show(output, {"written": written}, *written, hint)


def _has_screen() -> bool:
    return sys.platform in ("darwin", "win32") or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
