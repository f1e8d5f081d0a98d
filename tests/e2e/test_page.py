"""The page and the report in a real headless Chromium, over a database as a campaign leaves it."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import re
import shutil
from collections.abc import Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from isoloss.cli.report import write_report
from isoloss.client import answers
from isoloss.controller import fitter
from isoloss.controller.campaign_service import describe
from isoloss.dash.boards import BOARDS, BY_ID
from isoloss.store import campaigns
from isoloss.store.migrate import migrate
from isoloss.store.pool import Pool
from isoloss.testing.page import CHROMIUM_FLAGS, postgres, serving
from isoloss.testing.showcase import populate

EVIL = '<img src=x onerror="window.caught=1">'


@pytest.fixture(scope="module")
def full() -> Iterator[str]:
    """A database with a finished campaign, in which names that a spec would refuse try to be markup."""
    with postgres() as dsn:
        aside(prepare(dsn))
        with psycopg.connect(dsn, autocommit=True) as conn:
            conn.execute("UPDATE worker SET host = %s, device = %s WHERE id = 'gpu-1'", (EVIL, EVIL))
            conn.execute("UPDATE study SET name = %s WHERE name = 'tiny-lr'", (EVIL,))
            conn.execute("UPDATE study SET name = 'all-' || %s WHERE name = 'small-and-good'", (EVIL,))
            conn.execute("UPDATE study SET size = %s WHERE size = '60m'", (EVIL,))
            conn.execute("UPDATE trial SET params = params || jsonb_build_object('activation', %s::text)", (EVIL,))
            conn.execute("UPDATE attempt SET message = %s WHERE outcome = 'diverged'", (EVIL,))
            conn.execute("CREATE DATABASE nothing")
        yield dsn


def aside(body: Coroutine[Any, Any, None]) -> None:
    """Run a coroutine in a thread: Playwright's own loop holds this one."""
    with ThreadPoolExecutor(1) as thread:
        thread.submit(asyncio.run, body).result()


async def prepare(dsn: str) -> None:
    async with Pool(dsn, size=4) as pool:
        await migrate(pool)
        await populate(pool, refit_every=40)


@pytest.fixture(scope="module")
def address(full: str) -> Iterator[str]:
    with serving(full) as found:
        yield found


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    api = pytest.importorskip("playwright.sync_api")
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    with api.sync_playwright() as playwright:
        if program is None and not Path(playwright.chromium.executable_path).exists():
            pytest.skip("no Chromium: apt-get install chromium, or playwright install chromium")
        browser = playwright.chromium.launch(executable_path=program, args=list(CHROMIUM_FLAGS))
        yield browser
        browser.close()


class Visit:
    """A page, what its console said and what it asked for."""

    def __init__(self, browser: Any, **given: Any) -> None:
        self.page = browser.new_context(viewport={"width": 1600, "height": 1000}, **given).new_page()
        self.said: list[str] = []
        self.asked: list[str] = []
        self.page.on("console", lambda message: self.said.append(f"{message.type}: {message.text}"))
        self.page.on("pageerror", lambda error: self.said.append(f"error: {error}"))
        self.page.on("request", lambda request: self.asked.append(request.url))

    def all_drawn(self, n: int) -> None:
        self.page.locator("section.panel[data-ready]").nth(n - 1).wait_for(state="attached", timeout=30_000)
        assert self.page.locator("section.panel").count() == n
        failed = self.page.locator('section.panel[data-ready="error"]')
        assert failed.count() == 0, failed.all_inner_texts()

    def clean(self) -> None:
        assert [said for said in self.said if said.startswith(("error", "warning"))] == []
        assert {urlsplit(url).hostname for url in self.asked if not url.startswith("data:")} <= {"127.0.0.1"}
        assert self.page.evaluate("() => window.caught === undefined")
        self.page.context.close()


@pytest.mark.browser
@pytest.mark.parametrize("board", BOARDS, ids=lambda board: board.id)
def test_every_panel_is_drawn_without_an_error_and_names_stay_text(chromium: Any, address: str, board: Any) -> None:
    visit = Visit(chromium)
    visit.page.goto(
        f"{address}/#board={board.id}&study={ {'studies': EVIL, 'preference': f'all-{EVIL}'}.get(board.id, '') }"
    )
    visit.all_drawn(len(board.panels))
    assert visit.page.locator("section.panel img").count() == 0
    assert visit.page.get_by_text(EVIL).count() > 0
    charts = sum(panel.kind in ("xy", "basin", "timeseries", "parallel") for panel in board.panels)
    assert visit.page.locator("section.panel canvas").count() >= charts
    visit.clean()


@pytest.mark.browser
def test_the_page_follows_what_happens_without_being_loaded_again(chromium: Any, full: str, address: str) -> None:
    visit = Visit(chromium)
    visit.page.goto(f"{address}/#board=workers")
    visit.all_drawn(len(BY_ID["workers"].panels))
    with psycopg.connect(full, autocommit=True) as conn:
        conn.execute(
            "INSERT INTO worker (id, incarnation, host, slots, device, allowed) VALUES ('newcomer', '1', 'h', 1, 'cpu', '{}')"
        )
    visit.page.get_by_text("newcomer").wait_for(timeout=15_000)
    loads = [url for url in visit.asked if urlsplit(url).path == "/"]
    assert len(loads) == 1
    visit.clean()


@pytest.mark.browser
def test_an_empty_database_says_what_to_do_next(chromium: Any, full: str) -> None:
    dsn = make_conninfo(full, dbname="nothing")

    async def prepare_nothing() -> None:
        async with Pool(dsn, size=1) as pool:
            await migrate(pool)

    aside(prepare_nothing())
    with serving(dsn) as address:
        visit = Visit(chromium)
        visit.page.goto(address)
        visit.page.get_by_text("isoloss demo").wait_for(timeout=15_000)
        visit.page.get_by_text("Workers", exact=True).first.click()
        visit.all_drawn(len(BY_ID["workers"].panels))
        visit.clean()


@pytest.mark.browser
def test_the_report_opens_without_a_network_and_without_errors(chromium: Any, full: str, tmp_path: Path) -> None:
    async def write() -> None:
        async with Pool(full, size=2) as pool, pool.connection() as conn:
            row = (await campaigns.listed(conn))[0]
            info = answers.campaign(await describe(conn, row))
            seen = await fitter.observations(conn, row)
        write_report(tmp_path / "report.html", info, seen)

    aside(write())
    visit = Visit(chromium, offline=True)
    visit.page.goto((tmp_path / "report.html").as_uri())
    visit.page.locator('body[data-ready="drawn"]').wait_for(timeout=15_000)
    assert visit.page.locator("canvas").count() >= 3
    assert visit.page.get_by_text(EVIL).count() > 0
    assert [url for url in visit.asked if not url.startswith(("file:", "data:"))] == []
    assert [said for said in visit.said if said.startswith(("error", "warning"))] == []
    visit.page.context.close()


@contextlib.contextmanager
def ask(address: str, path: str, host: str | None = None) -> Iterator[http.client.HTTPResponse]:
    parts = urlsplit(address)
    with contextlib.closing(http.client.HTTPConnection(str(parts.hostname), parts.port, timeout=10)) as connection:
        connection.putrequest("GET", path, skip_host=True)
        connection.putheader("Host", parts.netloc if host is None else host)
        connection.endheaders()
        with connection.getresponse() as answer:
            yield answer


@pytest.mark.parametrize("host", ["evil.example", "evil.example:7071", "127.0.0.1.evil.example", "", "10.0.0.7:7071"])
def test_a_name_that_is_not_loopbacks_is_refused(address: str, host: str) -> None:
    with ask(address, "/stream?board=campaign", host) as answer:
        assert answer.status == 421
        assert b"dash" not in answer.read()


@pytest.mark.parametrize("host", ["localhost", "localhost:1", "127.0.0.1", "[::1]:7071"])
def test_loopbacks_own_names_are_answered(address: str, host: str) -> None:
    with ask(address, "/healthz", host) as answer:
        assert (answer.status, answer.read()) == (200, b"ok\n")


def test_every_answer_says_what_a_browser_may_do(address: str) -> None:
    for path in ("/", "/boards", "/static/app.js", "/favicon.ico", "/nowhere"):
        with ask(address, path) as answer:
            policy = answer.headers["content-security-policy"]
            assert policy.startswith("default-src 'self'; style-src 'self' 'unsafe-inline'")
            assert answer.headers["x-content-type-options"] == "nosniff"
            assert "access-control-allow-origin" not in answer.headers
            assert not re.search(rb"https?://(?!127\.|localhost|www\.w3\.org)", answer.read() if path == "/" else b"")


def test_an_unknown_board_is_named(address: str) -> None:
    with ask(address, "/stream?board=nowhere") as answer:
        assert answer.status == 404
        assert b"campaign, studies, preference, workers" in answer.read()
