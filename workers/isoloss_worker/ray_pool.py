"""A pool's workers on a Ray cluster: one detached actor each, which holds our agent.

Ray gives processes, GPUs and restarts, nothing else: no code is uploaded (isoloss and the trainer are in the cluster's
environment), and what a worker holds is a lease of the controller's, whatever Ray believes. An actor begins to work in its
constructor, since a restart by Ray repeats the constructor and no call; it comes back under its name, so the controller
leases again at once what it held. The token stays in a file on the cluster's nodes: a constructor's arguments lie in Ray's store.
"""

from __future__ import annotations

import asyncio
import os
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from isoloss_worker.building import built, configure_logs, parser

if TYPE_CHECKING:
    from isoloss_worker.agent import Agent

NAMESPACE: Final = "isoloss"
AGAIN_SECONDS: Final = 10.0  # between two attempts to join
CALLS: Final = 4  # of an actor at a time: one that waits for the worker to join, one that tells it to leave


class Worker:
    """The actor. Its agent has a thread of its own, whose children die with it; Ray's calls only look on."""

    def __init__(self, words: Sequence[str], join: str) -> None:
        import ray

        configure_logs(json=True)
        join_by(join)
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

    def idle(self) -> float | None:
        """For how many seconds it had nothing to do, 0 before it joined; ``None`` at work."""
        return self._agent[1].idle_seconds if self._agent and self._joined.is_set() else 0.0

    def rest(self, seconds: float) -> None:
        """Leave, if it had nothing to do for so long, and be gone without anybody who waits for it."""
        if self._agent is not None and not self._over.is_set():
            loop, agent = self._agent
            loop.call_soon_threadsafe(agent.leave_idle, seconds)

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


def join_by(join: str) -> None:
    """From now on this process joins by that file, which has to be on this node, and by no other token."""
    if join:
        os.environ["ISOLOSS_JOIN"] = join
        for name in ("ISOLOSS_TOKEN", "ISOLOSS_TOKEN_FILE"):
            os.environ.pop(name, None)


def own_environment() -> dict[str, Any]:
    """What an actor is to have of this process's environment."""
    return {"env_vars": {key: os.environ[key] for key in ("ISOLOSS_HOME",) if key in os.environ}}


@dataclass(frozen=True, slots=True, kw_only=True)
class Pool:
    """What the workers of a pool have in common: the words of each, and what it takes of the cluster."""

    name: str
    words: tuple[str, ...]
    gpus: int
    cpus: float
    join: str

    def worker(self, number: int) -> str:
        """The name of one."""
        return f"{self.name}-{number}"

    def standing(self) -> list[str]:
        """The names of those that are there, in the order of their numbers; some may wait for room."""
        import ray

        found = (one["name"].rpartition("-") for one in ray.util.list_named_actors(all_namespaces=True)
                 if one["namespace"] == NAMESPACE)  # fmt: skip
        return [self.worker(number) for number in sorted(int(last) for pool, _, last in found if pool == self.name)]

    def begin(self, number: int) -> Any:
        """The worker of this number, made if it is not there."""
        import ray

        actor = ray.remote(Worker).options(
            name=self.worker(number), namespace=NAMESPACE, lifetime="detached", get_if_exists=True, num_cpus=self.cpus,
            num_gpus=self.gpus, max_restarts=-1, max_task_retries=-1, max_concurrency=CALLS, scheduling_strategy="SPREAD",
            runtime_env=own_environment(),
        )  # fmt: skip
        return actor.remote([*self.words, "--name", f"ray-{self.worker(number)}"], self.join)
