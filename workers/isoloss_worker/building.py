"""From the words of a command line to an agent, for whoever holds one: a process of its own, or an actor of a pool."""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import socket
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING

from isoloss.errors import InvalidSpec

if TYPE_CHECKING:
    from isoloss_worker.agent import Agent
    from isoloss_worker.gpus import GpuIds


def parser() -> argparse.ArgumentParser:
    """The words of a worker."""
    words = argparse.ArgumentParser(
        prog="isoloss-worker",
        description="Runs leased tasks in warm child processes. `try < spec.json` tries a spec instead, `ray` makes a pool.",
    )
    add = words.add_argument
    add("--address", help="the controller; otherwise ISOLOSS_ADDRESS, otherwise this user's local one")
    add("--slots", default="auto", help="tasks at once: a number, or auto (the GPUs, else one)")
    add("--gpus", default="auto", help="the GPUs it shares out to its slots: auto (those it sees), none, or names: 0,1")
    add("--name", help="the worker's name; otherwise host and pid")
    add("--allow", action="append", default=[], metavar="MODULE:FUNCTION", help="a function it may run")
    add("--allow-command", action="append", default=[], metavar="PREFIX", help="what commands it may run begin with")
    add("--allow-everything", action="store_true", help="run whatever this user's own specs name")
    add("--nodes", type=int, default=1, help="nodes that one task may span: those of the Slurm job it is started in")
    add(
        "--store",
        default=os.environ.get("ISOLOSS_STORE", ""),
        help="where checkpoints go: a URL of fsspec, s3://bucket/prefix",
    )
    add(
        "--quota",
        type=quota_of,
        default=os.environ.get("ISOLOSS_QUOTA") or None,
        help="how much its home's checkpoints may take, 200GB: what is least missed goes first, else it takes no more tasks",
    )
    add("--grace", default="30s", help="how long trainers may save when the worker is told to leave")
    add("--leave-after", default="", help="leave when there was nothing to do for so long; without it, never")
    add("--begin-again", action="store_true", help="begin a trial again whose checkpoint is on another machine's disk")
    return words


@contextlib.contextmanager
def built(flags: argparse.Namespace) -> Iterator[Callable[[], Agent]]:
    """How to build the agent, inside the loop, where gRPC wants its channel made; its GPUs are held against other workers."""
    from isoloss.client.locate import find_address
    from isoloss.domain.quantity import parse_duration
    from isoloss_worker import gpus
    from isoloss_worker.agent import Agent
    from isoloss_worker.allow import AllowList
    from isoloss_worker.objects import Objects
    from isoloss_worker.quota import Quota
    from isoloss_worker.slots import Slot

    address, gpu_ids = find_address(flags.address), gpus.chosen(flags.gpus)
    nodes = spanned(flags.nodes, gpu_ids, os.environ)
    grace = parse_duration(flags.grace, "--grace")
    leave_after = parse_duration(flags.leave_after, "--leave-after") if flags.leave_after else math.inf
    if leave_after <= 0:
        raise InvalidSpec(f"--leave-after is {flags.leave_after}; accepted is a duration above 0.")
    slots = [Slot(number, share, grace) for number, share in enumerate(shares(gpu_ids, slots_of(flags.slots, gpu_ids)))]
    allowed = AllowList(
        functions=tuple(flags.allow), command_prefixes=tuple(flags.allow_command), everything=flags.allow_everything
    )
    name = flags.name or f"{socket.gethostname()}-{os.getpid()}"
    objects = Objects(flags.store) if flags.store else None
    quota = Quota(flags.quota) if flags.quota else None
    with gpus.held(tuple(dict.fromkeys(gpu_ids))):
        yield lambda: Agent(
            address,
            name=name,
            slots=slots,
            allowed=allowed,
            begin_again=flags.begin_again,
            nodes=nodes,
            objects=objects,
            quota=quota,
            leave_after=leave_after,
        )


def spanned(nodes: int, gpu_ids: GpuIds, environment: Mapping[str, str]) -> int:
    """How many nodes a task may span; ``InvalidSpec`` unless it is one, or all of the Slurm job this runs in."""
    job = environment.get("SLURM_JOB_NUM_NODES", "none: this is no Slurm job")
    if nodes != 1 and str(nodes) != job:
        raise InvalidSpec(f"--nodes is {nodes}; accepted is 1, or the nodes of the Slurm job it is started in ({job}).")
    if nodes > 1 and not all(gpu.isdecimal() for gpu in gpu_ids):
        raise InvalidSpec(
            f"--gpus are {', '.join(gpu_ids)}; accepted with --nodes are numbers, which mean the same on each."
        )
    return nodes


def quota_of(text: str) -> int:
    """The quota in bytes; ``InvalidSpec`` unless it is a size."""
    from isoloss.domain.quantity import parse_bytes

    return parse_bytes(text, "--quota (or ISOLOSS_QUOTA)")


def slots_of(text: str, gpu_ids: GpuIds) -> int:
    """How many tasks at once; ``InvalidSpec`` unless it is ``auto`` or a number from 1."""
    if text == "auto":
        return max(1, len(gpu_ids))
    if not text.isdecimal() or int(text) < 1:
        raise InvalidSpec(f"--slots is {text!r}; accepted is auto or a number from 1.")
    return int(text)


def shares(gpu_ids: GpuIds, slots: int) -> list[GpuIds]:
    """The GPUs dealt to the slots, as many to each; with more slots than GPUs they share."""
    each = len(gpu_ids) // slots
    if gpu_ids and not each:
        return [(gpu_ids[number % len(gpu_ids)],) for number in range(slots)]
    return [gpu_ids[number * each : (number + 1) * each] for number in range(slots)]


def configure_logs(*, json: bool) -> None:
    """Structured logs on stderr: JSON in a service, readable at a terminal."""
    import logging

    import structlog

    from isoloss.client.logs import STDERR

    renderer = structlog.processors.JSONRenderer() if json else structlog.dev.ConsoleRenderer()
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars, structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True), structlog.processors.format_exc_info, renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.PrintLoggerFactory(STDERR),
    )  # fmt: skip

    class Through(logging.Handler):
        """What libraries log, the client's among them, in the same shape."""

        def emit(self, record: logging.LogRecord) -> None:
            structlog.get_logger().log(record.levelno, record.getMessage(), logger=record.name)

    logging.basicConfig(handlers=[Through()], level=logging.WARNING, force=True)
