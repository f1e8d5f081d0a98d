"""A call that is made twice happens once: the reply is stored in the transaction of its effect."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from google.protobuf.message import Message

from isoloss.controller.access import PRINCIPAL
from isoloss.store import dedup
from isoloss.store.pool import Conn, Pool

M = TypeVar("M", bound=Message)


async def once(pool: Pool, request: Any, reply_type: type[M], effect: Callable[[Conn], Awaitable[M]]) -> M:
    """Run ``effect`` in one transaction, unless the request's key was used: then answer what was answered.

    Raises ``AlreadyExists`` when the key was used for a different request.
    """
    key, method = request.idempotency.key, type(request).__name__
    async with pool.connection() as conn:
        if not key:
            return await effect(conn)
        key = f"{PRINCIPAL.get().project}/{key}"  # nobody is answered what another project was
        body = request.SerializeToString(deterministic=True)
        stored = await dedup.stored_reply(conn, method, key, body)
        if stored is not None:
            return reply_type.FromString(stored)
        reply = await effect(conn)
        await dedup.keep_reply(conn, method, key, body, reply.SerializeToString())
        return reply
