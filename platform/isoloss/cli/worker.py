"""``isoloss worker``: start one here, list them, ask one to leave."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from isoloss.cli.connection import Address, client
from isoloss.cli.output import Output, Table, number, show
from isoloss.cli.worker_templates import template
from isoloss.client.join import read_join
from isoloss.client.locate import find_address

app = App(name="worker", help="Workers: start, list, drain, templates for clusters.")
app.command(template)
Allow = Annotated[
    tuple[str, ...], Parameter(help="A function this worker may run: module:name.", consume_multiple=False)
]
AllowCommand = Annotated[
    tuple[str, ...], Parameter(help="A command prefix this worker may run.", consume_multiple=False)
]


@app.command
def start(
    *,
    slots: Annotated[str, Parameter(help="Tasks at once: a number, or auto (the GPUs, else one).")] = "auto",
    gpus: Annotated[
        str, Parameter(help="Its GPUs: auto (those it sees), none, or names: 0,1 or GPU-… or MIG-….")
    ] = "auto",
    name: Annotated[str | None, Parameter(help="The worker's name; otherwise host and pid.")] = None,
    allow: Allow = (),
    allow_command: AllowCommand = (),
    allow_everything: Annotated[bool, Parameter(negative="", help="Run whatever this user's own specs name.")] = False,
    nodes: Annotated[int, Parameter(help="Nodes that one task may span: those of the Slurm job it is started in.")] = 1,
    begin_again: Annotated[
        bool, Parameter(negative="", help="Begin a trial again whose checkpoint is on another machine's disk.")
    ] = False,
    join: Annotated[str | None, Parameter(help="A file `isoloss up` wrote: address, CA and token; mode 600.")] = None,
    address: Address = None,
) -> None:
    """Run a worker here until Ctrl-C or SIGTERM, which let its tasks be given back. The built-in GPT is always allowed."""
    if join is not None:
        address = address or read_join(join).address  # what is wrong with the file is said here
        os.environ["ISOLOSS_JOIN"] = str(Path(join).expanduser().absolute())
        for name_ in ("ISOLOSS_TOKEN", "ISOLOSS_TOKEN_FILE"):
            os.environ.pop(name_, None)
    command = [sys.executable, "-m", "isoloss_worker", "--address", find_address(address), "--slots", slots]
    command += ["--gpus", gpus]
    command += ["--name", name] if name else []
    command += [word for function in allow for word in ("--allow", function)]
    command += [word for prefix in allow_command for word in ("--allow-command", prefix)]
    command += ["--allow-everything"] if allow_everything else []
    command += ["--nodes", str(nodes)]
    command += ["--begin-again"] if begin_again else []
    os.execv(sys.executable, command)  # noqa: S606 - from here on this process is the worker


@app.command(name="ls")
def list_(*, address: Address = None, output: Output = Output()) -> None:  # noqa: B008 - frozen
    """List workers, the most recently heard of first."""
    with client(address) as connection:
        found = connection.workers()
    rows = [
        (
            w["worker_id"],
            w["host"],
            w["device"],
            w["leases"],
            f"{w['taken']}/{w['slots']}",
            number(w["seen_seconds_ago"], 3),
            "draining" if w["draining"] else f"cools {w['cools_seconds']:.0f} s" if w["cools_seconds"] else "",
        )
        for w in found
    ]
    show(
        output,
        {"workers": found},
        Table(("worker", "host", "device", "tasks", "slots taken", "seen s ago", ""), rows),
    )


@app.command
def drain(worker_id: str, *, address: Address = None, output: Output = Output()) -> None:  # noqa: B008 - frozen
    """Ask a worker to finish what it holds and leave."""
    with client(address) as connection:
        connection.drain_worker(worker_id)
    show(output, {"worker": worker_id, "draining": True}, f"{worker_id} finishes what it holds and leaves")
