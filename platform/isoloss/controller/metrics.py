"""What a controller can be watched by: Prometheus' text format, at ``/metrics`` beside the page."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from isoloss.controller.dispatch import Dispatcher
from isoloss.errors import IsolossError
from isoloss.store import gauges

SECONDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0, 30.0)
ABOUT: Final = {
    "leases": "Leases that are held.",
    "leases_expired": "Leases past their deadline and not reaped yet.",
    "tasks_ready": "Tasks that wait for a slot.",
    "results_undecided": "Durable results that no event has taken up yet.",
    "workers": "Workers heard of in the last minute.",
    "beat_seconds_ago": "Seconds since any controller's reaper made its pass.",
    "oldest_snapshot_xids": "Transactions since the oldest open snapshot; a large number slows leasing down.",
}


class Metrics:
    """Counters of one controller, and gauges read when they are asked for."""

    def __init__(self, dispatcher: Dispatcher) -> None:
        self.dispatcher = dispatcher
        self.pool = dispatcher.pool
        self._registry = CollectorRegistry()
        self._calls = Counter("isoloss_calls", "Calls answered.", ("method", "code"), registry=self._registry)
        self._seconds = Histogram(
            "isoloss_call_seconds", "Seconds a call took; those that wait for work include the wait.", ("method",),
            buckets=SECONDS, registry=self._registry,
        )  # fmt: skip
        self._gauges = {name: Gauge(f"isoloss_{name}", about, registry=self._registry) for name, about in ABOUT.items()}
        self._up = Gauge("isoloss_database_up", "Whether Postgres answers.", registry=self._registry)
        self._waiting = Gauge(
            "isoloss_calls_waiting", "Calls that stand in a line.", ("line",), registry=self._registry
        )
        self._wanted = Gauge(
            "isoloss_slots_wanted", "Slots, of a GPU each or of none, that what runs and what waits would take.",
            ("project", "trainable", "gpus"), registry=self._registry,
        )  # fmt: skip
        self._connections = Gauge("isoloss_pool", "Connections to Postgres.", ("state",), registry=self._registry)

    @contextmanager
    def call(self, method: str) -> Iterator[list[str]]:
        """Count a call by the code that the block leaves in the list; ``OK`` when it leaves none."""
        code, begun = ["OK"], time.perf_counter()
        try:
            yield code
        except BaseException:
            code[0] = "CANCELLED" if code[0] == "OK" else code[0]
            raise
        finally:
            name = method.rpartition("/")[2]
            self._calls.labels(name, code[0]).inc()
            self._seconds.labels(name).observe(time.perf_counter() - begun)

    async def text(self) -> bytes:
        """Everything, as Prometheus reads it."""
        try:
            async with self.pool.connection() as conn:
                found = await gauges.read(conn)
            for name, gauge in self._gauges.items():
                gauge.set(found[name] or 0.0)
            wanted = await self.dispatcher.demand.slots()
            self._wanted.clear()
            for (project, trainable, gpus), slots in wanted.items():
                self._wanted.labels(project, trainable, gpus).set(slots)
            self._up.set(1)
        except IsolossError:
            self._up.set(0)
        for state, count in self.pool.stats().items():
            self._connections.labels(state).set(count)
        for line, count in self.dispatcher.standing().items():
            self._waiting.labels(line).set(count)
        return generate_latest(self._registry)

    async def ready(self) -> bool:
        """Whether calls can be served now: Postgres answers and takes what is written, and nobody has asked the controller to leave."""
        try:
            async with self.pool.connection() as conn:
                await gauges.read(conn)
        except IsolossError:
            return False
        return not self.dispatcher.draining and not self.pool.refused
