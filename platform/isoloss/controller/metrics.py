"""What a controller can be watched by: Prometheus' text format, at ``/metrics`` beside the page."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, LiteralString

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from isoloss.controller.dispatch import Dispatcher
from isoloss.errors import IsolossError
from isoloss.store.pool import Pool

SECONDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0, 30.0)
COUNTED: Final[LiteralString] = """
    SELECT (SELECT count(*) FROM lease)::float8 AS leases,
           (SELECT count(*) FROM lease WHERE expires_at < now())::float8 AS leases_expired,
           (SELECT count(*) FROM task WHERE state = 'ready')::float8 AS tasks_ready,
           (SELECT count(*) FROM result WHERE decided_seq IS NULL)::float8 AS results_undecided,
           (SELECT count(*) FROM worker WHERE seen_at > now() - interval '60 seconds')::float8 AS workers,
           (SELECT extract(epoch FROM now() - beat_at) FROM control_plane)::float8 AS beat_seconds_ago,
           (SELECT coalesce(max(age(backend_xmin)), 0) FROM pg_stat_activity
            WHERE datname = current_database())::float8 AS oldest_snapshot_xids"""
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

    def __init__(self, pool: Pool) -> None:
        self.pool = pool
        self.dispatcher: Dispatcher | None = None
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
                row = await (await conn.execute(COUNTED)).fetchone()
            for name, value in zip(ABOUT, row or (), strict=True):
                self._gauges[name].set(value or 0.0)
            self._up.set(1)
        except IsolossError:
            self._up.set(0)
        for state, count in self.pool.stats().items():
            self._connections.labels(state).set(count)
        for line, count in self.dispatcher.standing().items() if self.dispatcher else ():
            self._waiting.labels(line).set(count)
        return generate_latest(self._registry)

    async def ready(self) -> bool:
        """Whether calls can be served now: Postgres answers, and nobody has asked the controller to leave."""
        if self.dispatcher is None or self.dispatcher.draining:
            return False
        try:
            async with self.pool.connection() as conn:
                await conn.execute("SELECT 1")
        except IsolossError:
            return False
        return True
