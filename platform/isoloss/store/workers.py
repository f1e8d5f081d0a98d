"""Workers: who is there, what they may run, and whether they were asked to leave."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, LiteralString

from psycopg.rows import class_row
from psycopg.types.json import Jsonb

from isoloss.errors import NotFound, WrongState
from isoloss.store.pool import Conn


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerRow:
    """A worker as it was last heard of; its ``leases`` have ``taken`` so many of its slots."""

    id: str
    incarnation: str
    host: str
    slots: int
    device: str
    allowed: dict[str, Any]
    draining: bool
    seen_seconds_ago: float
    leases: int
    taken: int
    load: dict[str, Any]
    full: dict[str, Any] | None = None  # its disk, when that is over the quota and nothing more may go


REGISTER: Final[LiteralString] = """
    INSERT INTO worker (id, incarnation, host, slots, device, allowed)
    VALUES (%(id)s, %(incarnation)s, %(host)s, %(slots)s, %(device)s, %(allowed)s)
    ON CONFLICT (id) DO UPDATE SET incarnation = excluded.incarnation, host = excluded.host, slots = excluded.slots,
        device = excluded.device, allowed = excluded.allowed, draining = false, seen_at = now(), disk_id = NULL, quota_bytes = NULL"""


async def register(
    conn: Conn, *, worker_id: str, incarnation: str, host: str, slots: int, device: str, allowed: Mapping[str, Any]
) -> None:
    """A worker process began."""
    given = {
        "id": worker_id, "incarnation": incarnation, "host": host, "slots": slots, "device": device,
        "allowed": Jsonb(dict(allowed)),
    }  # fmt: skip
    await conn.execute(REGISTER, given)


SEEN: Final[LiteralString] = """
    WITH called AS MATERIALIZED (SELECT id FROM worker WHERE id = ANY(%(ids)s) ORDER BY id FOR NO KEY UPDATE)
    UPDATE worker SET seen_at = now() FROM called WHERE worker.id = called.id
    RETURNING worker.id, incarnation, draining, allowed, EXISTS (SELECT FROM disk WHERE disk.id = disk_id AND is_full)"""


@dataclass(frozen=True, slots=True)
class Known:
    """What is known of a worker that calls."""

    incarnation: str
    draining: bool
    allowed: dict[str, Any]
    full: bool = False  # its disk is over the quota, and nothing more may go


async def seen(conn: Conn, worker_ids: Sequence[str]) -> dict[str, Known]:
    """Workers called; one that is missing has to register."""
    rows = await (await conn.execute(SEEN, {"ids": list(worker_ids)})).fetchall()
    return {row[0]: Known(*row[1:]) for row in rows}


def replaced(worker_id: str) -> WrongState:
    """What a worker hears whose name another process has registered since."""
    return WrongState(
        f"Worker {worker_id!r} was registered by another process since; accepted is one process a name.",
        hint="Give each its own --name.",
    )


def unknown(worker_id: str) -> NotFound:
    """What a worker hears that is not registered."""
    return NotFound(f"There is no worker {worker_id!r}.", hint="Register first.")


LIST: Final[LiteralString] = """
    SELECT id, incarnation, host, slots, device, allowed, draining,
           extract(epoch FROM now() - seen_at)::float8 AS seen_seconds_ago,
           held.leases, held.taken, load, (SELECT to_jsonb(disk) FROM disk WHERE disk.id = disk_id AND is_full) AS "full"
    FROM worker, LATERAL (
        SELECT count(*)::int AS leases, coalesce(sum(greatest(1, ceil(
            coalesce((study.spec #>> '{run,gpus}')::numeric, 0) / nullif((worker.allowed ->> 'gpus')::int, 0)))), 0)::int AS taken
        FROM lease JOIN task ON task.id = lease.task_id JOIN study ON study.id = task.study_id
        WHERE lease.worker_id = worker.id) AS held
    ORDER BY seen_at DESC"""


async def listed(conn: Conn) -> list[WorkerRow]:
    """All workers, the most recently heard of first."""
    async with conn.cursor(row_factory=class_row(WorkerRow)) as cursor:
        await cursor.execute(LIST)
        return await cursor.fetchall()


LOADED: Final[LiteralString] = "UPDATE worker SET load = %(load)s WHERE id = %(id)s"


async def loaded(conn: Conn, worker_id: str, load: Mapping[str, Any]) -> None:
    """How busy a worker said it is."""
    await conn.execute(LOADED, {"id": worker_id, "load": Jsonb(dict(load))})


DRAIN: Final[LiteralString] = "UPDATE worker SET draining = true WHERE id = %(id)s RETURNING id"


async def drain(conn: Conn, worker_id: str) -> None:
    """Ask a worker to finish what it holds and leave."""
    if await (await conn.execute(DRAIN, {"id": worker_id})).fetchone() is None:
        raise NotFound(f"There is no worker {worker_id!r}.", hint="`isoloss worker ls` shows them.")
