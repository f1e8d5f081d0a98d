"""The pictures of README and guide: `python tests/bench/screenshots.py [--dash URL --report FILE] [--study NAME]`.

Both come from what ran: the page of a running controller, and a report that `isoloss campaign report` or the demo
wrote. Without them the showcase campaign is put into a fresh database and shown instead.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from playwright.sync_api import sync_playwright

from isoloss.cli.report import write_report
from isoloss.client import answers
from isoloss.controller import fitter
from isoloss.controller.campaign_service import describe
from isoloss.store import campaigns
from isoloss.store.migrate import migrate
from isoloss.store.pool import Pool
from isoloss.testing.page import CHROMIUM_FLAGS, postgres, serving
from isoloss.testing.showcase import populate

IMAGES = Path(__file__).parents[2] / "platform" / "docs" / "images"


async def fill(dsn: str, report: Path) -> None:
    """A showcase campaign in the database, and its report."""
    async with Pool(dsn, size=4) as pool:
        await migrate(pool)
        await populate(pool)
        async with pool.connection() as conn:
            row = (await campaigns.listed(conn))[0]
            info = answers.campaign(await describe(conn, row))
            seen = await fitter.observations(conn, row)
    write_report(report, info, seen)


@contextlib.contextmanager
def sources(dash: str | None, report: Path | None) -> Iterator[tuple[str, Path]]:
    """The page's address and the report's file: those given, else of a showcase."""
    if dash and report:
        yield dash, report
        return
    with tempfile.TemporaryDirectory() as folder, postgres() as dsn:
        made = Path(folder) / "report.html"
        asyncio.run(fill(dsn, made))
        with serving(dsn) as address:
            yield dash or address, report or made


def take(browser: Any, dash: str, report: Path, study: str, out: Path) -> None:
    """Dashboards as they fill a screen, and the basin of the report alone."""
    for board in ("campaign", "studies", "preference", "workers"):
        page = browser.new_page(viewport={"width": 1600, "height": 1290}, device_scale_factor=1)
        page.goto(f"{dash}/#board={board}&study={study}")
        page.locator("section.panel[data-ready]").first.wait_for(state="attached")
        page.locator("section.panel:not([data-ready])").first.wait_for(state="detached")
        page.screenshot(path=out / ("dashboard.png" if board == "campaign" else f"{board}.png"))
        page.close()
    page = browser.new_page(viewport={"width": 1000, "height": 900}, device_scale_factor=1.5)
    page.goto(report.resolve().as_uri())
    page.locator('body[data-ready="drawn"]').wait_for(state="attached")
    page.locator(".figures .wide").first.screenshot(path=out / "basin.png")
    page.close()


def main() -> None:
    """Take the pictures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dash", help="address of a running controller's page")
    parser.add_argument("--report", type=Path, help="a report's HTML file")
    parser.add_argument("--study", default="our-1b-120m", help="the study to show; the newest if there is none of it")
    parser.add_argument("--out", type=Path, default=IMAGES)
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    with sources(given.dash, given.report) as (dash, report), sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=list(CHROMIUM_FLAGS))
        take(browser, dash.rstrip("/"), report, given.study, given.out)
        browser.close()


if __name__ == "__main__":
    main()
