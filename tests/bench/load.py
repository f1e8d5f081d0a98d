"""Closed-loop load: client processes that do one thing over and over, and the CPU that it costs everybody.

Clients are started fresh (gRPC does not survive a fork), join, wait for each other, and run for so many seconds. CPU is
read from the kernel's own books, of the clients, of a server's process tree and of Postgres', over the same window.
"""

from __future__ import annotations

import multiprocessing
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

TICK: Final = os.sysconf("SC_CLK_TCK")
SPAWN: Final = multiprocessing.get_context("spawn")
Latencies = dict[str, list[float]]
Cycle = Callable[[Latencies], int]  # one turn, which did so many cycles


@dataclass(frozen=True, kw_only=True)
class Load:
    """What a run did: cycles a second, CPU milliseconds a cycle by whom, latencies in milliseconds, errors."""

    cycles: int
    seconds: float
    cpu_ms: Mapping[str, float]
    latencies: Mapping[str, Sequence[float]]
    first_ms: float  # what the median client paid for its first cycle
    errors: tuple[str, ...]

    @property
    def rate(self) -> float:
        """Cycles a second, of all clients."""
        return self.cycles / self.seconds

    @property
    def cpu(self) -> float:
        """CPU milliseconds a cycle, of everybody."""
        return sum(self.cpu_ms.values())

    def latency(self, name: str, quantile: float) -> float:
        """A quantile of a latency, in milliseconds; NaN where there is none."""
        found = sorted(self.latencies.get(name, ()))
        return 1e3 * found[min(len(found) - 1, int(quantile * len(found)))] if found else float("nan")


def timed(latencies: Latencies, name: str, call: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
    """Call, and note how long it took."""
    begun = time.perf_counter()
    answer = call(*arguments, **named)
    latencies.setdefault(name, []).append(time.perf_counter() - begun)
    return answer


def cpu_seconds(pid: int) -> dict[int, float]:
    """User and system seconds of a process and of its descendants, by pid; what has ended is not seen."""
    parents, spent = {}, {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            try:
                fields = (folder / "stat").read_text().rsplit(")", 1)[1].split()
            except OSError:
                continue
            parents[int(folder.name)] = int(fields[1])
            spent[int(folder.name)] = (int(fields[11]) + int(fields[12])) / TICK
    tree, fresh = {pid}, {pid}
    while fresh:
        fresh = {child for child, parent in parents.items() if parent in fresh} - tree
        tree |= fresh
    return {one: spent[one] for one in tree if one in spent}


def closed_loop(
    make: Callable[..., Cycle], arguments: Sequence[Any], *, clients: int, seconds: float, watch: Mapping[str, int]
) -> Load:
    """Run ``make(number, *arguments)`` in so many processes and its cycles for so long; ``watch`` names process trees."""
    barrier, end = SPAWN.Barrier(clients + 1), SPAWN.Value("d", 0.0)
    pipes, processes = [], []
    for number in range(clients):
        here, there = SPAWN.Pipe(duplex=False)
        process = SPAWN.Process(target=_client, args=(make, number, tuple(arguments), barrier, end, there), daemon=True)
        process.start()
        pipes.append(here)
        processes.append(process)
    before: dict[str, dict[int, float]] = {}
    after, begun, wall, errors = dict(before), time.monotonic(), seconds, []
    try:
        barrier.wait(120)
        before = {name: cpu_seconds(pid) for name, pid in watch.items()}
        begun = time.monotonic()
        end.value = begun + seconds
        barrier.wait(120)
        barrier.wait(seconds + 120)
        wall = time.monotonic() - begun
        after = {name: cpu_seconds(pid) for name, pid in watch.items()}
        barrier.wait(120)
    except Exception as error:  # noqa: BLE001 - a broken barrier: the clients say why
        errors.append(repr(error))
    told = [pipe.recv() if pipe.poll(60) else (0, {}, 0.0, 0.0, "silent") for pipe in pipes]
    for process in processes:
        process.join(10)
    cycles = sum(one[0] for one in told)
    latencies: Latencies = {}
    for one in told:
        for name, values in one[1].items():
            latencies.setdefault(name, []).extend(values)
    cpu = {"client": 1e3 * sum(one[3] for one in told) / max(cycles, 1)}
    for name, spent in after.items():
        used = sum(value - before[name].get(pid, 0.0) for pid, value in spent.items())
        cpu[name] = 1e3 * used / max(cycles, 1)
    return Load(
        cycles=cycles, seconds=wall, cpu_ms=cpu, latencies=latencies, first_ms=1e3 * statistics.median(o[2] for o in told),
        errors=(*errors, *(one[4] for one in told if one[4])),
    )  # fmt: skip


def _client(
    make: Callable[..., Cycle], number: int, arguments: tuple[Any, ...], barrier: Any, end: Any, told: Any
) -> None:
    try:
        cycle = make(number, *arguments)
        begun = time.perf_counter()
        cycle({})
        first = time.perf_counter() - begun
        barrier.wait()
        barrier.wait()
        latencies: Latencies = {}
        cycles, spent = 0, time.process_time()
        while cycles == 0 or time.monotonic() < end.value:
            cycles += cycle(latencies)
        spent = time.process_time() - spent
        barrier.wait()  # the servers' CPU is read while all connections are open
        barrier.wait()
        told.send((cycles, latencies, first, spent, ""))
    except BaseException as error:  # noqa: BLE001 - a broken client must not hang the others
        barrier.abort()
        told.send((0, {}, 0.0, 0.0, repr(error)))
