"""Idempotency: a reply is stored in the transaction of its effect, and the same key answers it again."""

from __future__ import annotations

import hashlib
from typing import Final, LiteralString

from isoloss.errors import AlreadyExists
from isoloss.store.pool import Conn

TAKE: Final[LiteralString] = """
    SELECT request_hash, reply FROM dedup WHERE method = %(method)s AND idem_key = %(key)s"""
KEEP: Final[LiteralString] = """
    INSERT INTO dedup (method, idem_key, request_hash, reply) VALUES (%(method)s, %(key)s, %(hash)s, %(reply)s)"""
SERIALISE: Final[LiteralString] = "SELECT pg_advisory_xact_lock(hashtextextended(%(name)s, 0))"


async def stored_reply(conn: Conn, method: str, key: str, request: bytes) -> bytes | None:
    """The reply kept under the key, waiting for a first call still under way; ``AlreadyExists`` for another request."""
    await conn.execute(SERIALISE, {"name": f"{method} {key}"})
    row = await (await conn.execute(TAKE, {"method": method, "key": key})).fetchone()
    if row is None:
        return None
    if row[0] != hashlib.sha256(request).digest():
        raise AlreadyExists(f"The idempotency key {key!r} was used for another request of {method}.")
    return bytes(row[1])


async def keep_reply(conn: Conn, method: str, key: str, request: bytes, reply: bytes) -> None:
    """Keep the reply, in the transaction of what it reports."""
    given = {"method": method, "key": key, "hash": hashlib.sha256(request).digest(), "reply": reply}
    await conn.execute(KEEP, given)


FORGET: Final[LiteralString] = """
    DELETE FROM dedup WHERE (method, idem_key) IN (
        SELECT method, idem_key FROM dedup WHERE at < now() - interval '7 days' LIMIT 10000)"""


async def forget(conn: Conn) -> int:
    """Drop the replies of calls older than a week; returns how many."""
    return (await conn.execute(FORGET)).rowcount
