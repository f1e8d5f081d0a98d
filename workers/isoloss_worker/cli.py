"""``python -m isoloss_worker``: run a worker, a pool of them on Ray, or try a spec without any service."""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from isoloss.errors import IsolossError
from isoloss_worker.building import built, configure_logs, parser

if TYPE_CHECKING:
    from isoloss_worker.agent import Agent


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a worker until it is told to leave; gives the exit code."""
    words = sys.argv[1:] if arguments is None else list(arguments)
    configure_logs(json=not sys.stderr.isatty())
    try:
        if words[:1] == ["try"]:
            from isoloss_worker.rehearsal import PATIENCE, rehearse_stdin

            trying = argparse.ArgumentParser(prog="isoloss-worker try")
            trying.add_argument("--patience", default=PATIENCE, help="how long a run may say nothing")
            return rehearse_stdin(trying.parse_args(words[1:]).patience)
        if words[:1] == ["ray"]:
            from isoloss_worker.ray_command import scale

            return scale(words[1:])
        return _work(parser().parse_args(words))
    except IsolossError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130


def _work(flags: argparse.Namespace) -> int:
    with built(flags) as build:
        asyncio.run(_until_signalled(build))
    return 0


async def _until_signalled(build: Callable[[], Agent]) -> None:
    agent, loop = build(), asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, agent.leave, "release")
    await agent.run()
