"""The controller of this machine: ``up`` in the foreground, ``status``, ``down``."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isoloss.cli.output import Output, Table, number, say, show
from isoloss.client.locate import Local, find_local, home
from isoloss.errors import Unreachable, WrongState

if TYPE_CHECKING:
    from isoloss.controller.settings import Settings

DOWN_SECONDS = 20.0


def up(
    *, dsn: str | None = None, listen: str | None = None, dash: str | None = None, workers: int = 0,
    lease_seconds: float | None = None, tls_cert: str | None = None, tls_key: str | None = None,
    tls_client_ca: str | None = None, tokens: bool | None = None, calls_per_second: float | None = None,
    reached_as: str = "", output: Output = Output(),  # noqa: B008
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
        Tasks to run at once on this machine: a local worker with so many slots, which share out its GPUs.
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
    calls_per_second
        How often one token may call, its leases and reports apart; 0 for as often as it likes.
    reached_as
        The name by which workers reach this machine, when it is not its host name.

    Beyond loopback without a certificate of yours, a CA, a certificate and files by which workers join are made below
    ISOLOSS_HOME, and the line for a worker is printed.
    """
    os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")  # nothing forks without exec here; silences gRPC's warning
    from isoloss.controller.joining import prepare
    from isoloss.controller.server import configure_logs
    from isoloss.controller.settings import is_loopback, load

    if (local := find_local()) is not None:
        raise WrongState(
            f"Your controller runs already at {local.address} (pid {local.pid}).", hint="`isoloss down` ends it."
        )
    configure_logs(json=not sys.stderr.isatty())
    # Folds of long histories are millions of objects without a cycle, made in half the time when they are looked at less.
    gc.set_threshold(50_000, 20, 100)
    joins = listen is not None and tls_cert is None and "ISOLOSS_TLS_CERT" not in os.environ and not is_loopback(listen)
    if joins:
        made = prepare(home(), listen or "", reached_as)
        tls_cert, tls_key = made["tls_cert"], made["tls_key"]
    settings = load(
        dsn=dsn, listen=listen, dash=dash, lease_seconds=lease_seconds, tls_cert=tls_cert, tls_key=tls_key,
        tls_client_ca=tls_client_ca, tokens=tokens, calls_per_second=calls_per_second,
    )  # fmt: skip
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        runner.run(_up(settings, workers, output, reached_as if joins else None))


def loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """Uvloop's where it is there (not on Windows): a call costs a fifth less of the controller's CPU."""
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop


async def _up(settings: Settings, workers: int, output: Output, reached_as: str | None) -> None:
    """Run until a signal; ``reached_as`` is ``None`` unless files to join by are handed out."""
    from isoloss.controller.server import running

    stop = asyncio.Event()
    for number_ in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number_, stop.set)
    async with running(settings) as local, contextlib.AsyncExitStack() as stack:
        value = {"address": local.address, "dash": local.dash, "pid": local.pid}
        lines = [f"controller at {local.address} · dashboard at {local.dash} · Ctrl-C ends it"]
        join = None
        if reached_as is not None:
            join, more = await _handed_out(local, reached_as)
            value |= more
            lines += [
                f"a worker joins:   isoloss worker start --join {more['worker_join']}     (copy the file, mode 600)",
                f"you, elsewhere:   export ISOLOSS_JOIN={more['admin_join']}",
                f"the dashboard:    ssh -L {more['dash_port']}:{local.dash.removeprefix('http://')} {more['host']}",
            ]
        await stack.enter_async_context(_workers(local.address, workers, join))
        show(output, value, *lines)
        sys.stdout.flush()
        await stop.wait()


async def _handed_out(local: Local, reached_as: str) -> tuple[Path, dict[str, Any]]:
    from isoloss.client.join import read_join
    from isoloss.controller.joining import hand_out
    from isoloss.domain.access import Role
    from isoloss.store.pool import Pool

    async with Pool(local.dsn, size=1, name="isoloss up") as pool, pool.connection() as conn:
        files = await hand_out(conn, home(), local.address, reached_as)
    join = read_join(str(files[Role.WORKER]))
    return files[Role.WORKER], {
        "worker_join": str(files[Role.WORKER]), "admin_join": str(files[Role.ADMIN]), "ca_fingerprint": join.fingerprint,
        "host": join.address.rpartition(":")[0], "dash_port": int(local.dash.rpartition(":")[2]),
    }  # fmt: skip


@contextlib.asynccontextmanager
async def _workers(address: str, n: int, join: Path | None) -> AsyncIterator[None]:
    """A local worker of so many slots, which may run whatever this user's specs name; its slots share out the GPUs."""
    if not n:
        yield
        return
    where = f"127.0.0.1:{address.rpartition(':')[2]}" if join else address
    command = [sys.executable, "-m", "isoloss_worker", "--address", where, "--slots", str(n), "--allow-everything"]
    environment = {**os.environ, "ISOLOSS_JOIN": str(join)} if join else None
    process = subprocess.Popen([*command, "--name", "local"], env=environment)
    try:
        yield
    finally:
        process.terminate()
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
