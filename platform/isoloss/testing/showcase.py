"""A database as a campaign leaves it: the real decider, campaigner and fitter, over losses from a known law.

Tests, screenshots and anybody who wants to look at the dashboards without a GPU fill a database with it. Nothing is
trained: a lease is finished at once with the loss that Chinchilla's law and a basin give, and at the end all times are
stretched over ``minutes``, one result after the other.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Final, LiteralString

import numpy as np

from isoloss.controller import decider as deciding
from isoloss.controller.campaigner import Campaigner
from isoloss.controller.decider import Decider
from isoloss.controller.duty import Bell
from isoloss.controller.fitter import Fitter
from isoloss.domain.campaign import campaign_mapping, decode_campaign, study_of
from isoloss.domain.curve import series_of
from isoloss.domain.ids import StudyId
from isoloss.domain.lease import Ending, LeaseKey
from isoloss.domain.spec import decode_study, encode
from isoloss.domain.study import StudyState
from isoloss.laws.basin import TYPICAL
from isoloss.search.geometry import plan_of
from isoloss.store import campaigns, curves, studies, tasks, workers
from isoloss.store.pool import Conn, Pool
from isoloss.store.tasks import Lease, Want

CAMPAIGN: Final[dict[str, Any]] = {
    "name": "our-1b",
    "target": {"n_params": "1B", "n_tokens": "40B", "schedule": "wsd"},
    "sizes": [
        {"name": "60m", "n_params": "60M"}, {"name": "120m", "n_params": "120M"}, {"name": "250m", "n_params": "250M"}
    ],
    "tokens": {"min": 2**30, "max": 3 * 2**30, "eta": 3, "deepen_to": 9 * 2**30},
    "space": {
        "lr": {"type": "float", "low": 3e-4, "high": 3e-2, "log": True},
        "batch_tokens": {"type": "ordinal", "choices": [65536, 131072, 262144, 524288, 1048576]},
    },
    "recipe": {"parameterization": "sp", "optimizer": "adamw"},
    "run": {"function": "train:main"},
    "confirm": True,
    "seed": 3,
}  # fmt: skip
STUDY: Final[dict[str, Any]] = {
    "name": "tiny-lr",
    "space": {
        "lr": {"type": "float", "low": 1e-4, "high": 1e-1, "log": True},
        "dropout": {"type": "float", "low": 0.0, "high": 0.3},
        "activation": {"type": "categorical", "choices": ["gelu", "swiglu"]},
    },
    "objective": {"metric": "val_loss", "goal": "minimize"},
    "method": {"name": "idhb", "min_budget": 1, "max_budget": 27, "brackets": "first:2"},
    "budget": {"unit": "epochs"},
}  # fmt: skip
WISHES: Final[dict[str, Any]] = {
    "name": "small-and-good",
    "space": {
        "lr": {"type": "float", "low": 1e-4, "high": 1e-1, "log": True},
        "width": {"type": "int", "low": 128, "high": 1024, "log": True},
    },
    "desirability": {
        "val_loss": {"shape": "smaller", "target": 4.5, "limit": 9.0},
        "joules": {"shape": "smaller", "target": 300, "limit": 3000, "kind": "cumulative", "importance": 0.5},
        "parameters": {"shape": "smaller", "target": "1M", "limit": "10M", "kind": "static", "formula": "12 * width**2"},
    },
    "method": {"name": "idhb", "min_budget": 1, "max_budget": 27, "brackets": "first:3", "sampler": "random"},
    "budget": {"unit": "epochs"},
}  # fmt: skip
LEASE: Final = timedelta(seconds=60)
NOISE: Final = 0.003
POINTS: Final = 40


@dataclass
class Showcase:
    """The controller's parts, driven by hand."""

    pool: Pool
    executor: Executor
    bell: Bell = field(default_factory=Bell)
    rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(7))

    def __post_init__(self) -> None:
        self.decider = Decider(self.pool, self.bell)
        self.fitter = Fitter(self.pool, self.bell, self.executor)
        self.campaigner = Campaigner(self.pool, self.bell, self.decider, self.fitter)

    async def campaign(self, source: dict[str, Any], *, refit_every: int) -> None:
        """One campaign from its launch to its outcome."""
        spec = decode_campaign(source)
        ladder = plan_of(study_of(spec, spec.sizes[0])).ladder
        async with self.pool.connection() as conn:
            row = await campaigns.insert(
                conn, campaign_mapping(spec), max_tokens=ladder.budget(ladder.top), confirm=spec.confirm
            )
        assert row is not None, "an empty database"  # noqa: S101
        finished = 0
        while True:
            moved = await self.campaigner.advance(row.id)
            async with self.pool.connection() as conn:
                ids = [study.id for study in await studies.listed(conn, campaign_id=row.id)]
            before, worked = finished, await self.work(ids)
            finished += worked
            async with self.pool.connection() as conn:
                rows = await studies.listed(conn, campaign_id=row.id)
            idle = all(study.state == StudyState.IDLE for study in rows)
            if idle or before // refit_every != finished // refit_every:
                await self.fitter.refit(row)
            if not moved and not worked:
                return

    async def study(self, source: dict[str, Any], *, rounds: int) -> StudyId:
        """One study of its own, left in the middle of its work with two leases running."""
        spec = decode_study(source)
        async with self.pool.connection() as conn:
            row = await deciding.create(conn, spec, mapping=encode(spec), trainable="")
        assert row is not None, "an empty database"  # noqa: S101
        for _ in range(rounds):
            await self.work([row.id])
        await self.decider.decide(row.id, ask=2)
        for lease in await self._lease([row.id], 2):
            await self._report(lease, upto=0.6)
        return row.id

    async def work(self, ids: Sequence[StudyId], n: int = 4) -> int:
        """Lease up to ``n`` tasks and finish them; returns how many."""
        for study_id in ids:
            await self.decider.decide(study_id, ask=2)
        leases = await self._lease(ids, n)
        for lease in leases:
            loss = await self._report(lease)
            joules = lease.budget_to * lease.params.get("width", 512) ** 2 / 3e3
            ending = Ending(kind="complete", values={"val_loss": loss, "joules": joules})
            if not math.isfinite(loss):
                ending = Ending(kind="diverge", step=lease.budget_to // 3, message="loss is nan")
            async with self.pool.connection() as conn:
                await tasks.finish(conn, [(_key(lease), ending)], _owed)
        self.decider.mark(ids)
        await self.decider.once()
        return len(leases)

    async def _lease(self, ids: Sequence[StudyId], n: int) -> list[Lease]:
        name = f"gpu-{int(self.rng.integers(2))}"
        async with self.pool.connection() as conn:
            wants = [Want(holder=name, incarnation="1", n=n)]
            return await tasks.describe(conn, await tasks.lease_next(conn, ids, wants, LEASE))

    async def _report(self, lease: Lease, upto: float = 1.0) -> float:
        """Store the task's curve up to a part of it; returns the last loss, NaN when it diverges."""
        async with self.pool.connection() as conn:
            n_params = next(row.n_params for row in await studies.listed(conn) if row.id == lease.study_id)
            size = n_params or 12.0 * lease.params.get("width", 1290) ** 2
            last = loss_of(lease.params, size, lease.budget_to * (1.0 if n_params else 3e8))
            last *= math.exp(NOISE * self.rng.standard_normal())
            ends = np.linspace(lease.budget_from, lease.budget_to, POINTS + 1)[1 : int(POINTS * upto) + 1]
            falling = (lease.budget_to / ends) ** 0.08 * np.exp(0.004 * self.rng.standard_normal(len(ends)))
            if math.isfinite(last):
                points = {int(step): float(last * part) for step, part in zip(ends, falling, strict=True) if step >= 1}
                await curves.add(
                    conn, [(_key(lease), series_of([(step, {"val_loss": y}) for step, y in points.items()]))]
                )
        return last

    async def workers(self) -> None:
        """Two workers with a GPU each, and one that went silent."""
        async with self.pool.connection() as conn:
            for name, host in (("gpu-0", "node-a"), ("gpu-1", "node-b"), ("gpu-2", "node-c")):
                await workers.register(
                    conn, worker_id=name, incarnation="1", host=host, slots=4, device="H100", allowed={}
                )
            await conn.execute(
                "UPDATE worker SET seen_at = now() + interval '1 hour'"
            )  # they stay for as long as it is shown
            await conn.execute("UPDATE worker SET seen_at = now() - interval '9 minutes' WHERE id = 'gpu-2'")


def loss_of(params: dict[str, Any], n_params: float, n_tokens: float) -> float:
    """The known law: Chinchilla's loss times a basin around the Step Law's optimum; NaN far above it."""
    best_lr = 1.79 * n_params**-0.713 * n_tokens**0.307
    best_batch = 0.58 * n_tokens**0.571
    du = math.log2(params["lr"] / best_lr)
    dv = math.log2(params.get("batch_tokens", best_batch) / best_batch)
    if du - 0.4 * dv > 3.2:
        return math.nan
    least = 1.69 + 406.4 / n_params**0.34 + 410.7 / n_tokens**0.28
    return float(least * math.exp(TYPICAL.excess(np.array(du), np.array(dv))))


async def _owed(conn: Conn, study_id: StudyId, version: int) -> tuple[str, ...]:  # noqa: ARG001 - every study of it owes the same
    return ("val_loss",)


def _key(lease: Lease) -> LeaseKey:
    return LeaseKey(task_id=lease.task_id, epoch=lease.epoch, secret=lease.secret)


SPREAD: Final[tuple[LiteralString, ...]] = (
    """CREATE TEMP TABLE beat ON COMMIT DROP AS SELECT received_at AS at FROM result ORDER BY received_at""",
    """CREATE FUNCTION pg_temp.spread(moment timestamptz) RETURNS timestamptz LANGUAGE sql STRICT AS $$
        SELECT now() - make_interval(secs => %(seconds)s * (1 - (SELECT count(*) FROM beat WHERE at <= moment)::float8
            / greatest((SELECT count(*) FROM beat), 1)) + 0.2) $$""",
    "UPDATE attempt SET started_at = pg_temp.spread(started_at), ended_at = pg_temp.spread(ended_at)",
    "UPDATE task SET created_at = pg_temp.spread(created_at), ended_at = pg_temp.spread(ended_at)",
    "UPDATE event SET at = pg_temp.spread(at)",
    "UPDATE fit SET at = pg_temp.spread(at)",
    "UPDATE forecast SET at = pg_temp.spread(at)",
    "UPDATE study SET created_at = pg_temp.spread(created_at)",
    "UPDATE campaign SET created_at = pg_temp.spread(created_at)",
    "UPDATE result SET received_at = pg_temp.spread(received_at)",
    "DROP FUNCTION pg_temp.spread(timestamptz)",
)


async def populate(pool: Pool, *, minutes: float = 30.0, refit_every: int = 12) -> None:
    """Fill a migrated, empty database: one campaign with its outcome, a study of several wishes, one at work, three workers."""
    with ThreadPoolExecutor(1) as executor:
        showcase = Showcase(pool, executor)
        await showcase.workers()
        await showcase.campaign(CAMPAIGN, refit_every=refit_every)
        await showcase.study(WISHES, rounds=60)
        await showcase.study(STUDY, rounds=14)
    async with pool.connection() as conn:
        for statement in SPREAD:
            text = statement.replace("%(seconds)s", str(float(60 * minutes)))
            await conn.execute(text.encode())
        await conn.execute("UPDATE lease SET expires_at = now() + interval '1 hour'")
