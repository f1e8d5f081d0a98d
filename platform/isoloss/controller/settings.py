"""Settings: each is a flag, an environment variable and a key of one optional TOML file, in that order."""

from __future__ import annotations

import os
import tomllib
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta, Struct

from isoloss.client.locate import home
from isoloss.errors import InvalidSpec

PREFIX: Final = "ISOLOSS_"
LOOPBACK: Final = ("127.0.0.1", "localhost", "[::1]")


class Settings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a controller is started with; ``dsn`` empty means the embedded Postgres below ``home``."""

    home: str
    dsn: str = ""
    listen: str = "127.0.0.1:7070"
    dash: str = "127.0.0.1:7071"
    lease_seconds: Annotated[float, Meta(gt=0)] = 30.0
    pg_major: Literal[16, 18] = 18
    fsync: bool = True
    tls_cert: str = ""  # PEM files: what the controller shows …
    tls_key: str = ""
    tls_client_ca: str = ""  # … and whose certificates clients have to show, if any
    calls_per_second: Annotated[float, Meta(ge=0)] = 1000.0  # of one token; 0: as many as it likes
    tokens: bool = False  # whether every call has to show a token; always with TLS

    @property
    def authenticated(self) -> bool:
        """Whether calls have to show a token."""
        return self.tokens or bool(self.tls_cert)


def load(**flags: Any) -> Settings:
    """Settings from flags, then environment, then the TOML file, then defaults; ``InvalidSpec`` names what is wrong."""
    values: dict[str, Any] = {"home": str(home())}
    file = Path(os.environ.get("ISOLOSS_CONFIG", str(home() / "isoloss.toml")))
    if file.exists():
        try:
            values |= tomllib.loads(file.read_text())
        except tomllib.TOMLDecodeError as error:
            raise InvalidSpec(f"{file} is no TOML file: {error}.") from None
    for name in Settings.__struct_fields__:
        if (text := os.environ.get(PREFIX + name.upper())) is not None:
            values[name] = text
    values |= {name: value for name, value in flags.items() if value is not None}
    values["home"] = str(Path(str(values["home"])).expanduser().absolute())
    try:
        settings = msgspec.convert(values, Settings, strict=False)
    except msgspec.ValidationError as error:
        raise InvalidSpec(f"settings: {error}.") from None
    check_listener(settings)
    return settings


def check_listener(settings: Settings) -> None:
    """Raise ``InvalidSpec`` for a listener that strangers could reach; the page has no login and stays on loopback."""
    if bool(settings.tls_cert) != bool(settings.tls_key) or (settings.tls_client_ca and not settings.tls_cert):
        raise InvalidSpec(
            "tls_cert, tls_key and tls_client_ca are set in part; accepted is a certificate with its key, and a client CA "
            "only beside them."
        )
    for field in ("tls_cert", "tls_key", "tls_client_ca"):
        if (file := getattr(settings, field)) and not os.access(file, os.R_OK):
            raise InvalidSpec(f"{field} is {file!r}; accepted is a PEM file that can be read.")
    host, _ = split_address(settings.listen, "--listen")
    if host not in LOOPBACK and not settings.tls_cert:
        raise InvalidSpec(
            f"--listen is {settings.listen!r} without TLS; accepted beyond loopback is it with tls_cert and tls_key.",
            hint="`isoloss up --listen` makes them, `isoloss certs` by hand; or use an SSH tunnel to loopback.",
        )
    host, _ = split_address(settings.dash, "--dash")
    if host not in LOOPBACK:
        raise InvalidSpec(
            f"--dash is {settings.dash!r}; accepted is a loopback address, since the page has no login.",
            hint="From elsewhere: ssh -L 7071:127.0.0.1:7071 this-machine.",
        )


def is_loopback(address: str) -> bool:
    """Whether nobody but this machine reaches a listener there."""
    return split_address(address, "--listen")[0] in LOOPBACK


def split_address(address: str, field: str) -> tuple[str, int]:
    """Host and port of ``127.0.0.1:7070``; ``InvalidSpec`` names the field."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or int(port) > 65535:
        raise InvalidSpec(f"{field} is {address!r}; accepted is host:port such as 127.0.0.1:7070.")
    return host, int(port)
