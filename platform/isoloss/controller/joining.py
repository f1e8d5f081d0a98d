"""What a listener beyond loopback needs before the first worker: a CA, a certificate, and files by which others join."""

from __future__ import annotations

import contextlib
import socket
from datetime import timedelta
from pathlib import Path
from typing import Final

from isoloss.client.join import Join, fingerprint_of, read_join
from isoloss.client.locate import ADMIN_JOIN
from isoloss.controller.certs import make_ca, make_leaf
from isoloss.controller.settings import split_address
from isoloss.domain.access import Role
from isoloss.errors import InvalidSpec
from isoloss.store import tokens
from isoloss.store.pool import Conn

FILES: Final = {Role.WORKER: "worker.join", Role.ADMIN: ADMIN_JOIN}
LASTS: Final = timedelta(days=90)
ANY: Final = ("0.0.0.0", "[::]")  # noqa: S104 - compared, not bound


def prepare(home: Path, listen: str, reached_as: str) -> dict[str, str]:
    """Settings of TLS with a CA in ``home``, made when there is none, and a certificate for the names of this machine."""
    folder = home / "certs"
    if not (folder / "ca.key").exists():
        make_ca(folder)
    host, _ = split_address(listen, "--listen")
    own = [] if host in ANY else [host]
    names = {"localhost", "127.0.0.1", socket.gethostname(), socket.getfqdn(), reached_as, *own}
    with contextlib.suppress(OSError):
        names |= {str(info[4][0]) for info in socket.getaddrinfo(socket.gethostname(), None)}
    make_leaf(folder, "server", sorted(names - {""}))
    return {"tls_cert": str(folder / "server.pem"), "tls_key": str(folder / "server.key")}


async def hand_out(conn: Conn, home: Path, address: str, reached_as: str) -> dict[Role, Path]:
    """The files by which a worker, and this user from elsewhere, join; a file whose token still lives is kept."""
    host, port = split_address(address, "address")
    reached = f"{reached_as or (socket.gethostname() if host in ANY else host)}:{port}"
    ca = (home / "certs" / "ca.pem").read_text()
    found = {role: home / name for role, name in FILES.items()}
    for role, path in found.items():
        token = await _kept(conn, path)
        if token is None:
            token = await tokens.create(conn, role=role, note=f"{path.name} of {reached}", lasts=LASTS)
        Join(address=reached, ca=ca, fingerprint=fingerprint_of(ca), token=token).write(path)
    return found


async def _kept(conn: Conn, path: Path) -> str | None:
    """The token of a file that is there, if it lives."""
    with contextlib.suppress(InvalidSpec):
        token = read_join(str(path)).token
        token_id, _, secret = token.partition(".")
        row = await tokens.find(conn, token_id)
        return token if row is not None and row.alive and row.is_shown_by(secret) else None
    return None
