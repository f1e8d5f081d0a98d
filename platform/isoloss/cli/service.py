"""The controller of this machine: ``up`` in the foreground, ``status``, ``down``."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable

from isoloss.cli.output import Output, Table, number, say, show
from isoloss.client.locate import find_local, home
from isoloss.errors import Unreachable, WrongState

DOWN_SECONDS = 20.0


def up(
    *, dsn: str | None = None, listen: str | None = None, dash: str | None = None, workers: int = 0,
    lease_seconds: float | None = None, tls_cert: str | None = None, tls_key: str | None = None,
    tls_client_ca: str | None = None, tokens: bool | None = None, output: Output = Output(),  # noqa: B008
) -> None:  # fmt: skip
    """Run a controller here, in the foreground, until Ctrl-C or SIGTERM.

    Parameters
    ----------
    dsn
        A Postgres of 16 or newer; without it, an embedded one below ISOLOSS_HOME.
    listen
        Address of the gRPC service; a stated port that is taken is an error, port 0 takes a free one.
    dash
        Address of the dashboard.
    workers
        Local worker processes to run beside it, each with one slot.
    lease_seconds
        How long a worker may be silent before its task is leased again.
    tls_cert
        The controller's certificate (PEM): needed to listen beyond loopback. `isoloss certs` makes one.
    tls_key
        Its private key.
    tls_client_ca
        Whose certificates clients have to show, if they have to.
    tokens
        Whether every call has to show a token; always with TLS. `isoloss token` makes them.
    """
    os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")  # nothing forks without exec here; silences gRPC's warning
    from isoloss.controller.server import configure_logs
    from isoloss.controller.settings import load

    if (local := find_local()) is not None:
        raise WrongState(
            f"Your controller runs already at {local.address} (pid {local.pid}).", hint="`isoloss down` ends it."
        )
    configure_logs(json=not sys.stderr.isatty())
    settings = load(
        dsn=dsn, listen=listen, dash=dash, lease_seconds=lease_seconds, tls_cert=tls_cert, tls_key=tls_key,
        tls_client_ca=tls_client_ca, tokens=tokens,
    )  # fmt: skip
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        runner.run(_up(settings, workers, output))


def loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """Uvloop's where it is there (not on Windows): a call costs a fifth less of the controller's CPU."""
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop


async def _up(settings: object, workers: int, output: Output) -> None:
    from isoloss.controller.server import running

    stop = asyncio.Event()
    for number_ in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number_, stop.set)
    async with running(settings) as local, _workers(local.address, workers):  # type: ignore[arg-type]
        show(output, {"address": local.address, "dash": local.dash, "pid": local.pid},
             f"controller at {local.address} · dashboard at {local.dash} · Ctrl-C ends it")  # fmt: skip
        sys.stdout.flush()
        await stop.wait()


@contextlib.asynccontextmanager
async def _workers(address: str, n: int) -> AsyncIterator[None]:
    """Local workers of the same user, who may run whatever this user's specs name."""
    command = [sys.executable, "-m", "isoloss_worker", "--address", address, "--slots", "1", "--allow-everything"]
    processes = [subprocess.Popen([*command, "--name", f"local-{i}"]) for i in range(n)]
    try:
        yield
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                await asyncio.to_thread(process.wait, 10)


def status(*, output: Output = Output()) -> None:  # noqa: B008
    """Whether a controller runs, with its studies and workers in numbers."""
    from isoloss.client.blocking import connect

    local = find_local()
    if local is None and "ISOLOSS_ADDRESS" not in os.environ:
        raise Unreachable(f"No controller of yours runs (looked in {home()}).", hint="`isoloss up` starts one.")
    with connect(start=False, patience=5.0) as client:
        studies, workers, address = client.studies(), client.workers(), client.transport.address
    live = [worker for worker in workers if worker["seen_seconds_ago"] < 60]
    mine = local if local and local.address == address else None
    value = {
        "address": address, "dash": mine.dash if mine else None, "pid": mine.pid if mine else None,
        "studies": len(studies), "active": sum(study.state == "active" for study in studies), "workers": len(live),
    }  # fmt: skip
    table = Table(("", ""), [(name, "–" if item is None else item) for name, item in value.items()])
    show(output, value, table)


def down(*, output: Output = Output()) -> None:  # noqa: B008
    """End this user's controller; everything stays in Postgres, and `up` goes on where it was."""
    local = find_local()
    if local is None:
        raise Unreachable(f"No controller of yours runs (looked in {home()}).")
    os.kill(local.pid, signal.SIGTERM)
    begun = time.monotonic()
    while local.alive:
        if time.monotonic() - begun > DOWN_SECONDS:
            raise WrongState(f"The controller (pid {local.pid}) did not end within {DOWN_SECONDS:.0f} s.")
        time.sleep(0.05)
    seconds = time.monotonic() - begun
    say("the controller has ended")
    show(output, {"pid": local.pid, "seconds": seconds}, f"ended in {number(seconds, 2)} s")
