"""How commands reach the controller: ``--address``, else ``ISOLOSS_ADDRESS``, else the local one; never started silently."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

if TYPE_CHECKING:
    from isoloss.client.blocking import Client

Address = Annotated[str | None, Parameter(help="The controller's address; otherwise ISOLOSS_ADDRESS, otherwise yours.")]
Set = Annotated[tuple[str, ...], Parameter(name="--set", help="Change the spec: path=value.", consume_multiple=False)]
Project = Annotated[str, Parameter(help="The project the name belongs to.")]
PATIENCE_SECONDS = 10.0


def client(address: str | None) -> Client:
    """A client of the controller; ``Unreachable`` when there is none."""
    from isoloss.client.blocking import connect

    return connect(address, start=False, patience=PATIENCE_SECONDS)


def launched(connection: Client, spec: Path, sets: Iterable[str]) -> dict[str, Any]:
    """The spec in a file, for this controller: one of this machine runs what lies beside the file, wherever it was started."""
    from isoloss.client.locate import find_local
    from isoloss.files.spec import beside, load_spec

    local, body = find_local(), load_spec(spec, sets)
    ours = local is not None and local.address == connection.transport.address
    return beside(body, spec.parent) if ours else body
