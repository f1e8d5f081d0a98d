"""A pool of workers on a Ray cluster: one detached actor each, which holds our agent.

Ray gives processes, GPUs and restarts, nothing else: no code is uploaded (isoloss and the trainer are in the cluster's
environment), and what a worker holds is a lease of the controller's, whatever Ray believes. An actor begins to work in its
constructor, since a restart by Ray repeats the constructor and no call; it comes back under its name, so the controller
leases again at once what it held. The token stays in a file on the cluster's nodes: a constructor's arguments lie in Ray's store.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import grpc

from isoloss.errors import InvalidSpec, NotAllowed, Unreachable
from isoloss_worker.building import built, configure_logs, parser

if TYPE_CHECKING:
    from isoloss_worker.agent import Agent

NAMESPACE: Final = "isoloss"
LEAVE_SECONDS: Final = 120.0  # beyond the grace of any worker
AGAIN_SECONDS: Final = 10.0  # between two attempts to join
CALLS: Final = 4  # of an actor at a time: one that waits for the worker to join, one that tells it to leave
PROBE_SECONDS: Final = 5.0
AUTH: Final = "RAY_AUTH_MODE"
ALIVE: Final = "/ray.rpc.NodeInfoGcsService/CheckAlive"


class Worker:
    """The actor. Its agent has a thread of its own, whose children die with it; Ray's calls only look on."""

    def __init__(self, words: Sequence[str], join: str) -> None:
        import ray

        configure_logs(json=True)
        if join:
            os.environ["ISOLOSS_JOIN"] = join  # a path: its file has to be on this node
            for name in ("ISOLOSS_TOKEN", "ISOLOSS_TOKEN_FILE"):
                os.environ.pop(name, None)
        gpu_ids = ray.get_runtime_context().get_accelerator_ids().get("GPU", [])
        self._flags = parser().parse_args([*words, "--gpus", ",".join(gpu_ids) or "none"])
        self._joined, self._over = threading.Event(), threading.Event()
        self._agent: tuple[asyncio.AbstractEventLoop, Agent] | None = None
        self._error = ""
        self._is_told = False
        threading.Thread(target=self._work, name="isoloss-agent", daemon=True).start()

    def joined(self, seconds: float) -> str | None:
        """Wait until the controller knows this worker, or it is clear why not (told); ``None`` when neither came in time."""
        return self._error if self._joined.wait(seconds) else None

    def leave(self) -> None:
        """Give the tasks back, with what their trainers save, and leave."""
        self._is_told = True
        self._joined.wait()
        if self._agent is not None:
            loop, agent = self._agent
            if not self._over.is_set():
                loop.call_soon_threadsafe(agent.leave, "release")
        self._over.wait()

    def _work(self) -> None:
        try:
            with built(self._flags) as build:
                asyncio.run(self._run(build))
        except Exception as error:  # noqa: BLE001 - told to whoever waits; nobody else hears a thread
            self._error = f"{type(error).__name__}: {error}"
            print(self._error, file=sys.stderr)
        self._over.set()
        if self._joined.is_set():
            if not self._is_told:  # drained, or long without a controller: its GPUs are others' now
                _remove_me()
            return
        self._joined.set()
        time.sleep(AGAIN_SECONDS)  # whoever waits hears why; else Ray begins again, and so it joins when it can
        os._exit(1)

    async def _run(self, build: Any) -> None:
        agent = build()
        self._agent = asyncio.get_running_loop(), agent
        await agent.run(self._joined.set)


def _remove_me() -> None:
    import ray

    ray.kill(ray.get_runtime_context().current_actor, no_restart=True)


def scale(words: Sequence[str]) -> int:
    """``isoloss worker ray``: the pool has so many workers afterwards; gives the exit code."""
    flags, rest = _flags().parse_known_args(list(words))
    if flags.workers < 0 or flags.ray_gpus < 0 or flags.cpus < 0:
        raise InvalidSpec(
            f"--workers is {flags.workers}, --gpus {flags.ray_gpus}, --cpus {flags.cpus}; accepted are numbers from 0."
        )
    parser().parse_args(rest)  # what is wrong with a worker's own words is said here, not on the cluster
    ray = _connected(flags.cluster, insecure=flags.insecure)
    wanted = [f"{flags.pool}-{number}" for number in range(flags.workers)]
    there = sorted(
        actor["name"] for actor in ray.util.list_named_actors(all_namespaces=True)
        if actor["namespace"] == NAMESPACE and actor["name"].rpartition("-")[0] == flags.pool
    )  # fmt: skip
    left = _end(ray, [name for name in there if name not in wanted])
    made = {name: _begin(ray, name, flags, rest) for name in wanted}
    refused, waiting = _joining(ray, made, flags.patience)
    report = {
        "pool": flags.pool, "joined": [name for name in wanted if name not in waiting and name not in refused],
        "waiting": waiting, "left": left, "refused": refused,
    }  # fmt: skip
    print(json.dumps(report) if flags.json else _told(report))
    return 1 if refused else 0


def _flags() -> argparse.ArgumentParser:
    flags = argparse.ArgumentParser(prog="isoloss-worker ray", allow_abbrev=False)
    add = flags.add_argument
    add("--pool", default="pool", help="the pool's name, with which its workers' begin")
    add("--workers", type=int, required=True, help="how many it has afterwards; 0 ends it")
    add("--ray-gpus", type=int, default=0, help="GPUs of each")
    add("--cpus", type=float, default=1.0, help="CPUs of each, as Ray counts them")
    add("--cluster", default="auto", help="Ray's address, host:port; auto: of the one on this machine")
    add("--insecure", action="store_true", help="also on a Ray that asks nobody for a token")
    add("--patience", type=float, default=60.0, help="seconds to wait for the workers to join")
    add("--join-file", default="", help="the join file's path on the cluster's nodes")
    add("--json", action="store_true")
    return flags


def _connected(cluster: str, *, insecure: bool) -> Any:
    """Ray, connected; ``NotAllowed`` when anybody who reaches it may run what they like there."""
    os.environ.setdefault(AUTH, "token")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ModuleNotFoundError:
        raise InvalidSpec("Ray is not installed; accepted is: pip install 'isoloss[ray]'.") from None
    try:
        if cluster != "auto":  # Ray itself would wait for minutes
            host, _, port = cluster.rpartition(":")
            socket.create_connection((host.strip("[]"), int(port)), PROBE_SECONDS).close()
        ray.init(address=cluster, namespace=NAMESPACE, log_to_driver=False, logging_level="ERROR")
    except Exception as error:  # noqa: BLE001 - Ray has no base class for what goes wrong here
        said = str(error).strip().splitlines()
        raise Unreachable(
            f"There is no Ray at {cluster!r} that would have us: {said[0] if said else type(error).__name__}",
            hint="--cluster names another; `ray start --head` starts one; RAY_AUTH_TOKEN or ~/.ray/auth_token holds its token.",
        ) from None
    if not insecure and _asks_nobody(ray.get_runtime_context().gcs_address):
        raise NotAllowed(
            "This Ray asks for no token: whoever reaches it may run anything on its nodes, where the join file lies.",
            hint="Start it with RAY_AUTH_MODE=token on every node, or say --insecure where nobody else can reach it.",
        )
    return ray


def _asks_nobody(address: str) -> bool:
    """Whether a stranger is answered; one who cannot speak to it at all, for its TLS, is not."""
    with grpc.insecure_channel(address) as channel:
        try:
            channel.unary_unary(ALIVE, request_serializer=bytes, response_deserializer=bytes)(
                b"", timeout=PROBE_SECONDS
            )
        except grpc.RpcError as error:
            return bool(error.code() not in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.UNAVAILABLE))
    return True


def _begin(ray: Any, name: str, flags: argparse.Namespace, words: Sequence[str]) -> Any:
    """The worker of this name, made if it is not there."""
    environment = {key: os.environ[key] for key in ("ISOLOSS_HOME",) if key in os.environ}
    actor = ray.remote(Worker).options(
        name=name, namespace=NAMESPACE, lifetime="detached", get_if_exists=True, num_cpus=flags.cpus, num_gpus=flags.ray_gpus,
        max_restarts=-1, max_task_retries=-1, max_concurrency=CALLS, scheduling_strategy="SPREAD",
        runtime_env={"env_vars": environment},
    )  # fmt: skip
    return actor.remote([*words, "--name", f"ray-{name}"], flags.join_file)


def _joining(ray: Any, made: dict[str, Any], patience: float) -> tuple[dict[str, str], list[str]]:
    """Who did not join, and why; and who has not yet: those begin when the cluster has room."""
    calls = {actor.joined.remote(patience): name for name, actor in made.items()}
    done, late = ray.wait(list(calls), num_returns=len(calls), timeout=patience) if calls else ([], [])
    refused, waiting = {}, [calls[call] for call in late]
    for call in done:
        try:
            why = ray.get(call)
        except ray.exceptions.RayError as error:
            why = str(error).strip().splitlines()[-1]
        if why is None:
            waiting.append(calls[call])
        elif why:
            refused[calls[call]] = why
            ray.kill(made[calls[call]], no_restart=True)
    return refused, waiting


def _end(ray: Any, names: Sequence[str]) -> list[str]:
    """Tell them to leave, and end those that do not."""
    actors = [ray.get_actor(name, namespace=NAMESPACE) for name in names]
    calls = [actor.leave.remote() for actor in actors]
    if calls:
        ray.wait(calls, num_returns=len(calls), timeout=LEAVE_SECONDS)
    for actor in actors:
        ray.kill(actor, no_restart=True)
    return list(names)


def _told(report: dict[str, Any]) -> str:
    lines = [f"pool {report['pool']}: {len(report['joined'])} joined"]
    if report["left"]:
        lines.append(f"left: {', '.join(report['left'])}")
    if report["waiting"]:
        lines.append(f"waiting for room on the cluster: {', '.join(report['waiting'])}")
    lines += [f"refused: {name}: {why}" for name, why in report["refused"].items()]
    return "\n".join(lines)
