"""Tokens: what a caller shows. The secret is 256 random bits, so its plain hash is enough and is all that is kept."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final, LiteralString

from psycopg.rows import class_row

from isoloss.domain.access import Principal, Role
from isoloss.errors import NotFound
from isoloss.store.pool import Conn


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenRow:
    """A token as it is stored; ``alive`` by the database's clock."""

    id: str
    secret_hash: bytes
    role: str
    project: str | None
    note: str
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    last_used_at: datetime | None
    alive: bool

    @property
    def principal(self) -> Principal:
        """Who it is."""
        return Principal(id=self.id, role=Role(self.role), project=self.project or "")

    def is_shown_by(self, secret: str) -> bool:
        """Whether the secret is this token's, in constant time."""
        return hmac.compare_digest(hashlib.sha256(secret.encode()).digest(), self.secret_hash)


CREATE: Final[LiteralString] = """
    INSERT INTO token (id, secret_hash, role, project, note, expires_at)
    VALUES (%(id)s, %(hash)s, %(role)s, %(project)s, %(note)s, now() + %(lasts)s)"""


async def create(conn: Conn, *, role: Role, project: str = "", note: str = "", lasts: timedelta | None = None) -> str:
    """Make a token; returns ``id.secret``, which nobody can be told again."""
    token_id, secret = secrets.token_hex(6), secrets.token_urlsafe(32)
    given = {
        "id": token_id, "hash": hashlib.sha256(secret.encode()).digest(), "role": role, "project": project or None,
        "note": note, "lasts": lasts,
    }  # fmt: skip
    await conn.execute(CREATE, given)
    return f"{token_id}.{secret}"


FIND: Final[LiteralString] = """
    UPDATE token SET last_used_at = CASE WHEN last_used_at > now() - interval '1 minute' THEN last_used_at ELSE now() END
    WHERE id = %(id)s
    RETURNING id, secret_hash, role::text, project, note, created_at, expires_at, revoked_at, last_used_at,
              revoked_at IS NULL AND coalesce(expires_at > now(), true) AS alive"""


async def find(conn: Conn, token_id: str) -> TokenRow | None:
    """The token of that id, noted as used, or ``None``."""
    async with conn.cursor(row_factory=class_row(TokenRow)) as cursor:
        await cursor.execute(FIND, {"id": token_id})
        return await cursor.fetchone()


LIST: Final[LiteralString] = """
    SELECT id, secret_hash, role::text, project, note, created_at, expires_at, revoked_at, last_used_at,
           revoked_at IS NULL AND coalesce(expires_at > now(), true) AS alive
    FROM token ORDER BY created_at"""


async def listed(conn: Conn) -> list[TokenRow]:
    """All tokens, the oldest first."""
    async with conn.cursor(row_factory=class_row(TokenRow)) as cursor:
        await cursor.execute(LIST)
        return await cursor.fetchall()


REVOKE: Final[LiteralString] = """
    UPDATE token SET revoked_at = coalesce(revoked_at, now()) WHERE id = %(id)s RETURNING id"""


async def revoke(conn: Conn, token_id: str) -> None:
    """Accept the token no more; ``NotFound`` when there is none of that id."""
    if await (await conn.execute(REVOKE, {"id": token_id})).fetchone() is None:
        raise NotFound(f"There is no token {token_id!r}.", hint="`isoloss token ls` shows them.")
