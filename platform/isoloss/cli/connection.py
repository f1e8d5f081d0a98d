"""How commands reach the controller: ``--address``, else ``ISOLOSS_ADDRESS``, else the local one; never started silently."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

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
