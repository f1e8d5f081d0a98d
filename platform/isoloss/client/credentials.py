"""What a client shows and whom it trusts: a token, a CA, and for mutual TLS a certificate of its own.

A file of ISOLOSS_JOIN says it all (``isoloss up --listen 0.0.0.0:7070`` writes one). Else each is an environment variable: ``ISOLOSS_TOKEN`` (or ``ISOLOSS_TOKEN_FILE``, a file that holds it), ``ISOLOSS_CA`` (a PEM
file, or ``system``; with it the connection is TLS), ``ISOLOSS_CERT`` and ``ISOLOSS_KEY``. Never a flag: what stands on a
command line is there for every user of the machine to read.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import grpc

from isoloss.client.join import joined
from isoloss.client.locate import LOOPBACK, own_join
from isoloss.errors import InvalidSpec

OPTIONS: Final = (  # who is silent for 20 s is gone: sooner than a lease runs out, on a line that no longer says so itself
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.http2.ping_timeout_ms", 10_000),  # keepalive_timeout_ms alone is waited for no sooner than this, a minute
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.http2.bdp_probe", 0),  # its pings queue behind the data of a slow line, and would be missed
    ("grpc.initial_reconnect_backoff_ms", 200),  # a controller is back within seconds
    ("grpc.max_reconnect_backoff_ms", 1_000),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Credentials:
    """How to open a channel; PEM texts are empty where there is none. The token is never printed."""

    token: str = field(default="", repr=False)
    ca: bytes = b""
    system_ca: bool = False
    cert: bytes = b""
    key: bytes = field(default=b"", repr=False)

    @property
    def tls(self) -> bool:
        """Whether the connection is TLS."""
        return self.system_ca or bool(self.ca)

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """What every call carries."""
        return (("authorization", f"Bearer {self.token}"),) if self.token else ()

    def channel(self, address: str, module: Any = grpc) -> Any:
        """A channel of ``grpc`` or ``grpc.aio``; ``InvalidSpec`` before a token goes over an open network in clear."""
        if self.tls:
            secure = grpc.ssl_channel_credentials(self.ca or None, self.key or None, self.cert or None)
            return module.secure_channel(address, secure, options=OPTIONS)
        if self.token and not address.startswith(LOOPBACK):
            raise InvalidSpec(
                f"address is {address!r} and ISOLOSS_CA is not set; accepted is TLS wherever a token leaves this machine.",
                hint="Set ISOLOSS_CA to the CA's certificate (`isoloss certs`), or to `system`.",
            )
        return module.insecure_channel(address, options=OPTIONS)


def found() -> Credentials:
    """What the environment says."""
    said = os.environ.get
    plain = not any(map(said, ("ISOLOSS_TOKEN", "ISOLOSS_TOKEN_FILE", "ISOLOSS_CA")))
    if plain and (join := joined() or (None if said("ISOLOSS_ADDRESS") else own_join())) is not None:
        return Credentials(
            token=join.token, ca=join.ca.encode(), cert=_read(said("ISOLOSS_CERT", ""), "ISOLOSS_CERT"),
            key=_read(said("ISOLOSS_KEY", ""), "ISOLOSS_KEY"),
        )  # fmt: skip
    token, ca = said("ISOLOSS_TOKEN", ""), said("ISOLOSS_CA", "")
    if not token and (file := said("ISOLOSS_TOKEN_FILE")):
        token = _read(file, "ISOLOSS_TOKEN_FILE").decode().strip()
    return Credentials(
        token=token, system_ca=ca == "system", ca=_read(ca, "ISOLOSS_CA") if ca and ca != "system" else b"",
        cert=_read(said("ISOLOSS_CERT", ""), "ISOLOSS_CERT"), key=_read(said("ISOLOSS_KEY", ""), "ISOLOSS_KEY"),
    )  # fmt: skip


def _read(file: str, name: str) -> bytes:
    try:
        return Path(file).expanduser().read_bytes() if file else b""
    except OSError as error:
        raise InvalidSpec(f"{name} is {file!r} ({error.strerror}); accepted is a file that can be read.") from None
