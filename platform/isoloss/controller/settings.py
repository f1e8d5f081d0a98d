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


class Settings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a controller is started with; ``dsn`` empty means the embedded Postgres below ``home``."""

    home: str
    dsn: str = ""
    listen: str = "127.0.0.1:7070"
    dash: str = "127.0.0.1:7071"
    lease_seconds: Annotated[float, Meta(gt=0)] = 30.0
    pg_major: Literal[16, 18] = 18
    fsync: bool = True


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
        return msgspec.convert(values, Settings, strict=False)
    except msgspec.ValidationError as error:
        raise InvalidSpec(f"settings: {error}.") from None


def split_address(address: str, field: str) -> tuple[str, int]:
    """Host and port of ``127.0.0.1:7070``; ``InvalidSpec`` names the field, and refuses to listen beyond loopback."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or int(port) > 65535:
        raise InvalidSpec(f"{field} is {address!r}; accepted is host:port such as 127.0.0.1:7070.")
    if host not in ("127.0.0.1", "localhost", "[::1]"):
        raise InvalidSpec(
            f"{field} is {address!r}; accepted is a loopback address, since this version has no TLS and no tokens.",
            hint="Reach it from elsewhere through an SSH tunnel.",
        )
    return host, int(port)
