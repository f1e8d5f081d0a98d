"""``isoloss worker``: start one here, list them, ask one to leave."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, Parameter

from isoloss.cli.connection import Address, client
from isoloss.cli.output import Output, Table, number, show
from isoloss.cli.worker_templates import template
from isoloss.client.join import read_join
from isoloss.client.locate import find_address

app = App(name="worker", help="Workers: start, list, drain, templates for clusters.")
app.command(template)
Join = Annotated[str | None, Parameter(help="A file `isoloss up` wrote: address, CA and token; mode 600.")]


@Parameter(name="*")
@dataclass(frozen=True, slots=True)
class Work:
    """What every worker can be told."""

    slots: Annotated[str, Parameter(help="Tasks at once: a number, or auto (the GPUs, else one).")] = "auto"
    allow: Annotated[
        tuple[str, ...], Parameter(help="A function this worker may run: module:name.", consume_multiple=False)
    ] = ()
    allow_command: Annotated[
        tuple[str, ...], Parameter(help="A command prefix this worker may run.", consume_multiple=False)
    ] = ()
    allow_everything: Annotated[bool, Parameter(negative="", help="Run whatever this user's own specs name.")] = False
    store: Annotated[
        str | None,
        Parameter(
            help="Where checkpoints go, instead of the disk: a URL of fsspec, s3://bucket/prefix; or ISOLOSS_STORE."
        ),
    ] = None
    quota: Annotated[
        str | None,
        Parameter(
            help="How much its home's checkpoints may take: 200GB, 1.5TiB; or ISOLOSS_QUOTA. Beyond it go those least missed; "
            "when nothing more may go, it takes no new tasks."
        ),
    ] = None
    grace: Annotated[str, Parameter(help="How long trainers may save when the worker is told to leave.")] = "30s"
    begin_again: Annotated[
        bool, Parameter(negative="", help="Begin a trial again whose checkpoint is on another machine's disk.")
    ] = False

    @property
    def words(self) -> list[str]:
        """The same for the worker's own command line."""
        words = ["--slots", self.slots, "--grace", self.grace]
        words += [word for function in self.allow for word in ("--allow", function)]
        words += [word for prefix in self.allow_command for word in ("--allow-command", prefix)]
        words += ["--allow-everything"] if self.allow_everything else []
        words += ["--store", self.store] if self.store else []
        words += [f"--quota={self.quota}"] if self.quota is not None else []
        return words + (["--begin-again"] if self.begin_again else [])


@app.command
def start(
    *,
    gpus: Annotated[
        str, Parameter(help="Its GPUs: auto (those it sees), none, or names: 0,1 or GPU-… or MIG-….")
    ] = "auto",
    name: Annotated[str | None, Parameter(help="The worker's name; otherwise host and pid.")] = None,
    nodes: Annotated[int, Parameter(help="Nodes that one task may span: those of the Slurm job it is started in.")] = 1,
    leave_after: Annotated[
        str | None, Parameter(help="Leave when there was nothing to do for so long (90s, 10m); without it, never.")
    ] = None,
    work: Work = Work(),
    join: Join = None,
    address: Address = None,
) -> None:
    """Run a worker here until Ctrl-C or SIGTERM, which let its tasks be given back. The built-in GPT is always allowed."""
    if join is not None:
        address = address or read_join(join).address  # what is wrong with the file is said here
        os.environ["ISOLOSS_JOIN"] = str(Path(join).expanduser().absolute())
        for name_ in ("ISOLOSS_TOKEN", "ISOLOSS_TOKEN_FILE"):
            os.environ.pop(name_, None)
    command = [sys.executable, "-m", "isoloss_worker", "--address", find_address(address), "--gpus", gpus]
    command += ["--nodes", str(nodes), *(["--name", name] if name else []), *work.words]
    command += [f"--leave-after={leave_after}"] if leave_after is not None else []
    os.execv(sys.executable, command)  # noqa: S606 - from here on this process is the worker


@app.command
def ray(
    *,
    workers: Annotated[int | None, Parameter(help="How many the pool has afterwards; 0 ends it.")] = None,
    least: Annotated[
        int | None, Parameter(name="--min", help="Instead of --workers: how many there are without any work.")
    ] = None,
    most: Annotated[
        int | None, Parameter(name="--max", help="How many at most, from now on, while there is work for them.")
    ] = None,
    idle: Annotated[str, Parameter(help="After how long without work one leaves, down to --min.")] = "5m",
    pool: Annotated[str, Parameter(help="The pool's name.")] = "pool",
    gpus: Annotated[int, Parameter(help="GPUs of each worker; a trial of several takes them of one.")] = 0,
    cpus: Annotated[float, Parameter(help="CPUs of each, as Ray counts them.")] = 1.0,
    work: Work = Work(),
    join: Annotated[
        str | None, Parameter(help="The file of a worker's join (mode 600); it has to lie there on every node.")
    ] = None,
    cluster: Annotated[str, Parameter(help="Ray's address, host:port; auto: of the one on this machine.")] = "auto",
    insecure: Annotated[
        bool, Parameter(negative="", help="Also on a Ray that asks nobody for a token: then who reaches it owns it.")
    ] = False,
    patience: Annotated[str, Parameter(help="How long to wait for the workers to join.")] = "60s",
    address: Address = None,
    output: Output = Output(),  # noqa: B008 - frozen
) -> None:
    """Workers on a Ray cluster: detached actors, which Ray starts again when they are killed.

    Said again, it changes their number. With --min and --max the pool follows the work there is; nobody has to stay for it.
    """
    from isoloss.domain.quantity import parse_duration

    command = [sys.executable, "-m", "isoloss_worker", "ray", "--pool", pool]
    command += [
        word for name, count in (("--workers", workers), ("--min", least), ("--max", most)) if count is not None
        for word in (name, str(count))
    ]  # fmt: skip
    command += ["--idle", str(parse_duration(idle, "--idle"))]
    command += ["--cluster", cluster, "--ray-gpus", str(gpus), "--cpus", str(cpus)]
    command += ["--patience", str(parse_duration(patience, "--patience"))]
    command += ["--insecure"] if insecure else []
    command += ["--json"] if output.json else []
    if join is not None:
        file = Path(join).expanduser().absolute()
        address = address or read_join(join).address
        command += ["--join-file", str(file)]
    if workers != 0:
        command += ["--address", find_address(address), *work.words]
    os.execv(sys.executable, command)  # noqa: S606 - as above


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
            _load(w.get("load", {})),
            number(w["seen_seconds_ago"], 3),
            _held_back(w),
        )
        for w in found
    ]
    show(
        output,
        {"workers": found},
        Table(("worker", "host", "device", "tasks", "slots taken", "load", "seen s ago", ""), rows),
    )


@app.command
def drain(worker_id: str, *, address: Address = None, output: Output = Output()) -> None:  # noqa: B008 - frozen
    """Ask a worker to finish what it holds and leave."""
    with client(address) as connection:
        connection.drain_worker(worker_id)
    show(output, {"worker": worker_id, "draining": True}, f"{worker_id} finishes what it holds and leaves")


def _held_back(worker: dict[str, Any]) -> str:
    """Why it is given nothing, if so."""
    if worker["draining"]:
        return "draining"
    if worker["full"]:
        return "over its quota"
    return f"cools {worker['cools_seconds']:.0f} s" if worker["cools_seconds"] else ""


def _load(said: dict[str, Any]) -> str:
    """``87 %, 61.2/141 GB, 2.1 MJ (nvml)``; of the GPUs, or of the machine's CPUs."""
    if not said.get("memory_total_bytes"):
        return ""
    used, total = said["memory_bytes"] / 1e9, said["memory_total_bytes"] / 1e9
    energy = f", {number(said['joules'], 3)} J ({said['energy_source']})" if "joules" in said else ""
    return f"{said['utilisation']:.0%}, {used:.3g}/{total:.3g} GB{energy}"
