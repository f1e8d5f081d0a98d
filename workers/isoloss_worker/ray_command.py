"""``isoloss worker ray``: makes, changes and ends a pool of workers on a Ray cluster, and says what became of it."""

from __future__ import annotations

import argparse
import json
import os
import socket
from collections.abc import Sequence
from typing import Any, Final

import grpc

from isoloss.errors import InvalidSpec, NotAllowed, Unreachable
from isoloss_worker import ray_keeper
from isoloss_worker.building import parser
from isoloss_worker.ray_pool import NAMESPACE, Pool

LEAVE_SECONDS: Final = 120.0  # beyond the grace of any worker
PROBE_SECONDS: Final = 5.0
AUTH: Final = "RAY_AUTH_MODE"
ALIVE: Final = "/ray.rpc.NodeInfoGcsService/CheckAlive"


def scale(words: Sequence[str]) -> int:
    """The pool has so many workers afterwards, or from now on as many as there is work for; gives the exit code."""
    flags, rest = _flags().parse_known_args(list(words))
    least, most = _bounds(flags)
    parser().parse_args(rest)  # what is wrong with a worker's own words is said here, not on the cluster
    ray = _connected(flags.cluster, insecure=flags.insecure)
    pool = Pool(name=flags.pool, words=tuple(rest), gpus=flags.ray_gpus, cpus=flags.cpus, join=flags.join_file)
    ray_keeper.end(pool.name)  # first: it would make what is ended here
    left = _end(ray, [name for name in pool.standing() if int(name.rpartition("-")[2]) >= most])
    made = {pool.worker(number): pool.begin(number) for number in range(least)}
    refused, waiting = _joining(ray, made, flags.patience)
    report: dict[str, Any] = {
        "pool": flags.pool, "joined": [name for name in made if name not in waiting and name not in refused],
        "waiting": waiting, "left": left, "refused": refused,
    }  # fmt: skip
    if flags.max is not None and not refused:
        report |= {"min": least, "max": most}
        if why := ray_keeper.begin(pool, ray_keeper.Bounds(least, most, flags.idle), flags.patience):
            refused[f"keeper of {pool.name}"] = why
    print(json.dumps(report) if flags.json else _told(report))
    return 1 if refused else 0


def _bounds(flags: argparse.Namespace) -> tuple[int, int]:
    """How many workers there are at least, and at most; ``InvalidSpec`` unless that is said once."""
    if flags.ray_gpus < 0 or flags.cpus < 0:
        raise InvalidSpec(f"--gpus is {flags.ray_gpus}, --cpus {flags.cpus}; accepted are numbers from 0.")
    if (flags.workers is None) is (flags.max is None) or (flags.min is not None and flags.max is None):
        said = ", ".join(f"--{name} {value}" for name in ("workers", "min", "max") if (value := vars(flags)[name]) is not None)  # fmt: skip
        raise InvalidSpec(f"The pool's size is {said or 'not said'}; accepted is --workers N, or --min A --max B.")
    least, most = (flags.min or 0, flags.max) if flags.workers is None else (flags.workers, flags.workers)
    if flags.workers is not None and least < 0:
        raise InvalidSpec(f"--workers is {least}; accepted is a number from 0.")
    if flags.workers is None and not 0 <= least <= most >= 1:
        raise InvalidSpec(f"--min is {least}, --max {most}; accepted are a number from 0 and one from 1, not below it.")
    if not flags.idle > 0:
        raise InvalidSpec(f"--idle is {flags.idle:g}; accepted are seconds above 0.")
    return least, most


def _flags() -> argparse.ArgumentParser:
    flags = argparse.ArgumentParser(prog="isoloss-worker ray", allow_abbrev=False)
    add = flags.add_argument
    add("--pool", default="pool", help="the pool's name, with which its workers' begin")
    add("--workers", type=int, help="how many it has afterwards; 0 ends it")
    add("--min", type=int, help="instead: how many there are without any work; 0 unless said")
    add("--max", type=int, help="and how many at most, while there is work for them")
    add("--idle", type=float, default=300.0, help="seconds without work after which one leaves")
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
    between = f", from now on {report['min']} to {report['max']}" if "max" in report else ""
    lines = [f"pool {report['pool']}: {len(report['joined'])} joined{between}"]
    if report["left"]:
        lines.append(f"left: {', '.join(report['left'])}")
    if report["waiting"]:
        lines.append(f"waiting for room on the cluster: {', '.join(report['waiting'])}")
    lines += [f"refused: {name}: {why}" for name, why in report["refused"].items()]
    return "\n".join(lines)
