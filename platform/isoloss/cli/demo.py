"""``isoloss demo``: the whole story on this machine, from nothing to a forecast and its outcome.

The demo is a client like any other: it starts a controller with a local worker of two slots in a home of its own, launches one
campaign and one study, and watches. Ctrl-C ends controller and workers; everything is in Postgres, and the next
``isoloss demo`` goes on where this one was.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from isoloss.cli.demo_spec import BATCHES, FULL, QUICK, TRADE, Scale, campaign, trade
from isoloss.cli.output import Output, dumps, say
from isoloss.cli.story import progress, story, summary
from isoloss.client.locate import Local, find_local, home, start_local
from isoloss.errors import NotFound, StoreUnavailable

if TYPE_CHECKING:
    from isoloss.client.blocking import Campaign, Client, Study

WORKERS = 2
TICK_SECONDS = 1.0
STOP_SECONDS = 30.0
RESULT = "demo.json"
REPORT = "report.html"


def demo(
    *,
    quick: Annotated[
        bool, Parameter(negative="", help="Less than 90 s: proves the machinery, too little data to believe.")
    ] = False,
    fresh: Annotated[bool, Parameter(negative="", help="Forget an earlier demo and start anew.")] = False,
    output: Output = Output(),  # noqa: B008 - frozen
) -> None:
    """Search, deepen, fit, forecast and confirm, on real text, on this machine, in minutes."""
    folder = home() / ("demo-quick" if quick else "demo")
    os.environ["ISOLOSS_HOME"] = str(folder)
    os.environ.pop("ISOLOSS_ADDRESS", None)
    if fresh:
        _forget(folder)
    if not (folder / RESULT).exists():
        _run(QUICK if quick else FULL, folder)
    result = json.loads((folder / RESULT).read_text())
    for sentence in story(result):
        say(sentence)
    if output.json:
        print(dumps(result["summary"]))


def _run(scale: Scale, folder: Path) -> None:
    begun = time.monotonic()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # both end the demo as Ctrl-C does: cleanly
    with _controller() as local:
        say(f"dashboard {local.dash}   (Ctrl-C stops everything; the next `isoloss demo` goes on from here)")
        from isoloss.client.blocking import connect

        with connect(local.address) as client:
            study = client.launch_study(trade(scale), load_if_exists=True)
            run = client.launch_campaign(campaign(scale), load_if_exists=True)
            _watch(client, run, study, begun)
            _finish(run, study, folder, local, time.monotonic() - begun)


def _watch(client: Client, run: Campaign, study: Study, begun: float) -> None:
    """Show progress until the campaign is done and the study idle."""
    from rich.console import Console
    from rich.live import Live

    console = Console(stderr=True)
    said = ""
    with Live(console=console, refresh_per_second=4, transient=True) if console.is_terminal else _silent() as live:
        while True:
            info, trades = run.info(), study.info()
            panel, line = progress(info, trades, time.monotonic() - begun)
            if live is not None:
                live.update(panel)
            elif line != said:
                said = line
                say(line)
            if info["state"] == "done" and trades.state == "idle":
                return
            if info["state"] == "stopped":
                raise NotFound(f"Campaign {info['name']!r} was stopped.", hint="`isoloss demo --fresh` starts anew.")
            _check_workers(client, begun)
            time.sleep(TICK_SECONDS)


def _check_workers(client: Client, begun: float) -> None:
    """Workers that never came, or all left, would keep the demo waiting for ever: say so instead."""
    if time.monotonic() - begun > 60 and not any(w["seen_seconds_ago"] < 60 for w in client.workers()):
        raise StoreUnavailable("No worker of the demo is alive.", hint=f"See {home() / 'controller.log'}.")


def _finish(run: Campaign, study: Study, folder: Path, local: Local, seconds: float) -> None:
    """Write the report and the result; from now on the demo only shows them."""
    from isoloss.cli.report import write_report

    info, best, trials = run.info(), study.best_trial, study.info().trials
    report = folder / REPORT
    value = summary(info, best, trials=trials, seconds=seconds, dashboard=local.dash, report=str(report))
    write_report(report, info, list(run.observations()))
    draft = folder / f"{RESULT}.{os.getpid()}"
    draft.write_text(dumps({"summary": value, "campaign": info, "batches": list(BATCHES), "trade": TRADE}))
    draft.replace(folder / RESULT)


@contextlib.contextmanager
def _controller() -> Iterator[Local]:
    """The demo's own controller and workers, for as long as the block lasts; adopted if they run already."""
    say("starting Postgres, a controller and a worker …")
    local = start_local("--workers", str(WORKERS), "--lease-seconds", "10")
    try:
        yield local
    finally:
        say("stopping …")
        _stop(local)


def _stop(local: Local) -> None:
    if local.alive:  # a pid that went to somebody else is left alone
        os.kill(local.pid, signal.SIGTERM)
    begun = time.monotonic()
    while local.alive and time.monotonic() - begun < STOP_SECONDS:
        with contextlib.suppress(KeyboardInterrupt):  # a second Ctrl-C does not leave workers behind
            time.sleep(0.05)


def _forget(folder: Path) -> None:
    if (local := find_local()) is not None:
        _stop(local)
    shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _silent() -> Iterator[Any]:
    """No live display: the reader of stderr is no terminal."""
    sys.stderr.flush()
    yield None
