"""The composition root: store, services and duties become one process, and end together.

Start: Postgres (embedded unless a DSN is given), migrations, gRPC, the page, duties. End (SIGTERM, SIGINT): no new
leases, calls under way end, duties stop, Postgres stops if nobody else uses it. Killed instead, nothing is lost: every
acknowledged thing is in Postgres, which goes on and is adopted by the next controller.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

import grpc
import msgspec
import structlog
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as health

from isoloss.client.locate import CONTROLLER_FILE, Local
from isoloss.client.logs import STDERR
from isoloss.controller.access import Gate
from isoloss.controller.campaign_service import CampaignService, LawService
from isoloss.controller.campaigner import Campaigner
from isoloss.controller.certs import server_credentials
from isoloss.controller.decider import Decider
from isoloss.controller.dispatch import Dispatcher
from isoloss.controller.duty import Bell, Duty, run
from isoloss.controller.fitter import Fitter
from isoloss.controller.interceptor import Guarded
from isoloss.controller.janitor import Janitor
from isoloss.controller.keeper import Keeper
from isoloss.controller.limiter import Limiter
from isoloss.controller.metrics import Metrics
from isoloss.controller.processes import Processes
from isoloss.controller.proposer import Proposer
from isoloss.controller.rates import of_tokens
from isoloss.controller.reaper import Reaper
from isoloss.controller.settings import Settings, check_listener, split_address
from isoloss.controller.steward import Steward
from isoloss.controller.study_service import StudyService
from isoloss.controller.work_service import TrialService, WorkerService
from isoloss.errors import InvalidSpec
from isoloss.search.streams import prepare
from isoloss.store import studies
from isoloss.store.embedded import Embedded
from isoloss.store.migrate import migrate
from isoloss.store.pool import Pool
from isoloss.v1 import campaign_pb2_grpc, study_pb2_grpc, work_pb2_grpc

log = structlog.get_logger()
OPTIONS: Final = (
    ("grpc.so_reuseport", 0),
    ("grpc.max_receive_message_length", 4 << 20),
    ("grpc.http2.min_ping_interval_without_data_ms", 5000),
    ("grpc.keepalive_permit_without_calls", 1),
)
GRACE_SECONDS: Final = 3.0
MOST_CALLS: Final = 20_000  # at a time, of which most wait for something to run


@contextlib.asynccontextmanager
async def running(settings: Settings) -> AsyncIterator[Local]:
    """A controller for as long as the block lasts; yields where it is to be found."""
    check_listener(settings)
    listen, dash = _listener(settings.listen, "--listen"), _listener(settings.dash, "--dash")
    async with contextlib.AsyncExitStack() as stack:
        keeper = None if settings.dsn else await stack.enter_async_context(_postgres(settings))
        dsn = settings.dsn if keeper is None else keeper.embedded.dsn
        pool = await stack.enter_async_context(Pool(dsn))
        await migrate(pool)
        async with pool.connection() as conn:
            if await studies.any_active(conn):  # what its callers wait for, while they find this controller
                preparing = asyncio.create_task(asyncio.to_thread(prepare))
                stack.push_async_callback(lambda: preparing)
        executor = stack.enter_context(Processes())
        bell, ttl = Bell(), timedelta(seconds=settings.lease_seconds)
        decider, fitter = Decider(pool, bell, ttl), Fitter(pool, bell, executor)
        dispatcher = Dispatcher(pool, decider, bell, ttl)
        duties: list[Duty] = [
            decider, Proposer(pool, decider, executor), Reaper(pool, bell, ttl), Limiter(pool, decider), fitter,
            Campaigner(pool, bell, decider, fitter), Steward(pool, bell, decider), Janitor(pool), *([keeper] if keeper else []),
        ]  # fmt: skip
        metrics = Metrics(dispatcher)
        guarded = Guarded(Gate(pool, tokens=settings.authenticated), of_tokens(settings.calls_per_second), metrics)
        address = await stack.enter_async_context(
            _serving(_services(guarded, decider, dispatcher, fitter), listen, settings)
        )
        page = await stack.enter_async_context(_page(dash, dsn, metrics))
        group = await stack.enter_async_context(asyncio.TaskGroup())
        loops = [group.create_task(run(duty, bell), name=duty.name) for duty in duties]
        local = Local(address=address, dash=page, pid=os.getpid(), dsn=dsn)
        file = Path(settings.home) / CONTROLLER_FILE
        local.write(file)
        log.info("controller.started", address=address, dash=page)
        try:
            yield local
        finally:
            dispatcher.drain()
            bell.ring()
            for loop in loops:
                loop.cancel()
            file.unlink(missing_ok=True)
            log.info("controller.stopped")


@contextlib.asynccontextmanager
async def _postgres(settings: Settings) -> AsyncIterator[Keeper]:
    embedded = Embedded(home=Path(settings.home) / "postgres", major=settings.pg_major, fsync=settings.fsync)
    keeper = await asyncio.to_thread(Keeper, embedded)
    try:
        yield keeper
    finally:
        await asyncio.shield(asyncio.to_thread(keeper.stop))


def _services(guarded: Guarded, decider: Decider, dispatcher: Dispatcher, fitter: Fitter) -> grpc.aio.Server:
    pool, bell = dispatcher.pool, dispatcher.bell
    server = grpc.aio.server(interceptors=[guarded], options=OPTIONS, maximum_concurrent_rpcs=MOST_CALLS)
    study_pb2_grpc.add_StudyServiceServicer_to_server(StudyService(pool, decider, bell, dispatcher.health), server)
    work_pb2_grpc.add_WorkerServiceServicer_to_server(WorkerService(dispatcher), server)
    work_pb2_grpc.add_TrialServiceServicer_to_server(TrialService(dispatcher), server)
    campaign_pb2_grpc.add_CampaignServiceServicer_to_server(CampaignService(pool, decider, bell), server)
    campaign_pb2_grpc.add_LawServiceServicer_to_server(LawService(pool, fitter), server)
    return server


@contextlib.asynccontextmanager
async def _serving(server: grpc.aio.Server, listen: socket.socket, settings: Settings) -> AsyncIterator[str]:
    host, port = listen.getsockname()[:2]
    listen.close()  # it only reserved the port: gRPC binds by itself
    healthy = health.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(healthy, server)
    await healthy.set("", health_pb2.HealthCheckResponse.SERVING)
    if settings.tls_cert:
        server.add_secure_port(f"{host}:{port}", server_credentials(settings))
    else:
        server.add_insecure_port(f"{host}:{port}")
    await server.start()
    try:
        yield f"{host}:{port}"
    finally:
        await healthy.enter_graceful_shutdown()
        await server.stop(GRACE_SECONDS)


@contextlib.asynccontextmanager
async def _page(listen: socket.socket, dsn: str, metrics: Metrics) -> AsyncIterator[str]:
    """The dashboard, on the controller's own loop, and what watches the controller beside it."""
    import uvicorn

    from isoloss.dash.page import build

    async with build(dsn, metrics=metrics.text, ready=metrics.ready) as app:
        config = uvicorn.Config(app, log_config=None, access_log=False, lifespan="off", timeout_graceful_shutdown=1)
        server = uvicorn.Server(config)
        server.install_signal_handlers = lambda: None  # type: ignore[attr-defined]
        listen.listen()  # who comes before the page is up waits for it, and is not refused
        serving = asyncio.create_task(_serve_page(server, listen), name="page")
        host, port = listen.getsockname()[:2]
        try:
            yield f"http://{host}:{port}"
        finally:
            app.state.close()
            server.should_exit = True
            await serving


async def _serve_page(server: Any, listen: socket.socket) -> None:
    with contextlib.suppress(asyncio.CancelledError):
        await server._serve(sockets=[listen])  # noqa: SLF001  # serve() would take the signals


def _listener(address: str, field: str) -> socket.socket:
    """A bound socket; port 0 takes a free one. A stated port that is taken is the user's to resolve."""
    host, port = split_address(address, field)
    listener = socket.socket(socket.AF_INET6 if host == "[::1]" else socket.AF_INET)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host.strip("[]"), port))
    except OSError:
        listener.close()
        raise InvalidSpec(f"{field} is {address!r}, a port in use; accepted is a free port, or 0 for any.") from None
    return listener


def configure_logs(*, json: bool) -> None:
    """Structured logs on stderr: JSON in a service, readable at a terminal."""
    import logging

    renderer: Any = structlog.processors.JSONRenderer(
        serializer=lambda v, **_: msgspec.json.encode(v, enc_hook=str).decode()
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars, structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True), structlog.processors.format_exc_info,
            renderer if json else structlog.dev.ConsoleRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.PrintLoggerFactory(STDERR),
    )  # fmt: skip
