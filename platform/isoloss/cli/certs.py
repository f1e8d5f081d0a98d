"""``isoloss certs``: a CA of one's own, for a cluster without one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from isoloss.cli.output import Output, show

app = App(name="certs", help="Certificates: a development CA, and what it signs.")
Folder = Annotated[Path | None, Parameter(name="--in", help="The CA's folder; otherwise certs below ISOLOSS_HOME.")]


@app.command
def ca(*, folder: Folder = None, output: Output = Output()) -> None:  # noqa: B008 - frozen
    """Make the CA. Clients trust ca.pem (ISOLOSS_CA); ca.key stays here."""
    from isoloss.controller.certs import make_ca

    made = make_ca(_folder(folder))
    show(output, made, f"{made['cert']}\nISOLOSS_CA={made['cert']} is what clients and workers need.")


@app.command
def server(hosts: tuple[str, ...], *, folder: Folder = None, output: Output = Output()) -> None:  # noqa: B008 - frozen
    """Make the controller's certificate, for the names and addresses by which it is reached."""
    from isoloss.controller.certs import make_leaf

    made = make_leaf(_folder(folder), "server", hosts)
    show(
        output,
        made,
        f"{made['cert']}\nisoloss up --listen 0.0.0.0:7070 --tls-cert {made['cert']} --tls-key {made['key']}",
    )


@app.command
def client(name: str, *, folder: Folder = None, output: Output = Output()) -> None:  # noqa: B008 - frozen
    """Make a client's or worker's certificate, for a controller with --tls-client-ca."""
    from isoloss.controller.certs import make_leaf

    made = make_leaf(_folder(folder), name, ())
    show(output, made, f"ISOLOSS_CERT={made['cert']} ISOLOSS_KEY={made['key']}")


def _folder(stated: Path | None) -> Path:
    from isoloss.client.locate import home

    return stated or home() / "certs"
