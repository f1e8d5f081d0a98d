"""A file by which a worker joins a controller: where it is, whom to trust, and what to show. For its owner's eyes only."""

from __future__ import annotations

import hashlib
import os
import ssl
from pathlib import Path
from typing import Any

import msgspec

from isoloss.errors import InvalidSpec


class Join(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``ca`` is PEM text, ``fingerprint`` its SHA-256 in hex, ``token`` ``id.secret``."""

    address: str
    ca: str
    fingerprint: str
    token: str

    def write(self, path: Path) -> None:
        """Write the file, mode 0600 from its first byte."""
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_name(f".{path.name}.{os.getpid()}")
        with os.fdopen(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            file.write(msgspec.json.encode(self))
        beside.replace(path)


def read_join(name: str) -> Join:
    """The file's content; ``InvalidSpec`` for one that others can read, that is none, or whose CA is not as it was written."""
    path = Path(name).expanduser()
    try:
        mode, body = path.stat().st_mode, path.read_bytes()
    except OSError as error:
        raise InvalidSpec(f"join file {name!r}: {error.strerror}; accepted is one that `isoloss up` wrote.") from None
    if mode & 0o077:
        raise InvalidSpec(
            f"join file {name!r} can be read by others (mode {mode & 0o777:o}); accepted is mode 600.",
            hint=f"It holds a token: chmod 600 {name}",
        )
    try:
        found = msgspec.json.decode(body, type=Join)
        fingerprint = fingerprint_of(found.ca)
    except (msgspec.DecodeError, ValueError) as error:
        raise InvalidSpec(f"join file {name!r} is none ({error}); accepted is one that `isoloss up` wrote.") from None
    if fingerprint != found.fingerprint:
        raise InvalidSpec(
            f"join file {name!r} has a CA of another fingerprint; accepted is the file as it was written."
        )
    return found


def fingerprint_of(pem: str) -> str:
    """The SHA-256 of a certificate in hex; ``ValueError`` when the text is none."""
    return hashlib.sha256(ssl.PEM_cert_to_DER_cert(pem.strip() + "\n")).hexdigest()


def joined() -> Join | None:
    """What ISOLOSS_JOIN names, if it is set."""
    name: Any = os.environ.get("ISOLOSS_JOIN")
    return read_join(name) if name else None
