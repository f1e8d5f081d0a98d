"""Keeps a pool on Ray between two numbers of workers: a small detached actor of its own, which outlives whoever made it.

It begins in its constructor, as the workers do, and holds nothing: at each look it asks Ray who is there, each worker
since when it rests, and the controller how many more would get work. So Ray may start it again at any moment. It never
ends a worker. One that rests for long is told so and leaves by itself, unless it got work meanwhile; while the controller
does not answer, nothing changes.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from isoloss.errors import IsolossError
from isoloss_worker.building import configure_logs, parser, shares, slots_of
from isoloss_worker.ray_pool import AGAIN_SECONDS, CALLS, Pool, join_by, own_environment
from isoloss_worker.ray_pool import NAMESPACE as WORKERS

NAMESPACE: Final = "isoloss-keepers"  # a pool's keeper has the pool's name here
LOOK_SECONDS: Final = 2.0
ANSWER_SECONDS: Final = 5.0  # of the workers; one that waits for room has no process to answer


@dataclass(frozen=True, slots=True)
class Bounds:
    """How many workers at least and at most, and after how long without work one leaves."""

    least: int
    most: int
    idle_seconds: float


def change(idle: Mapping[str, float | None], wanted: int, bounds: Bounds) -> tuple[int, list[str]]:
    """How many workers to begin, and which may leave.

    ``idle`` says by name since when each rests, ``None`` at work. Those ``wanted`` get work as they are, or as they come up:
    who rests or begins is counted among them.
    """
    at_work = sum(seconds is None for seconds in idle.values())
    target = min(bounds.most, max(bounds.least, at_work + wanted))
    rested = [name for name, seconds in idle.items() if seconds is not None and seconds >= bounds.idle_seconds]
    spare = max(0, len(idle) - target)
    return max(0, target - len(idle)), rested[-spare:] if spare else []


class Keeper:
    """The actor."""

    def __init__(self, pool: Pool, bounds: Bounds) -> None:
        configure_logs(json=True)
        join_by(pool.join)
        self._pool, self._bounds = pool, bounds
        self._asked: dict[str, Any] = {}  # by worker: the question it has not answered yet
        self._looked = threading.Event()
        self._error = ""
        threading.Thread(target=self._run, name="isoloss-keeper", daemon=True).start()

    def looked(self, seconds: float) -> str | None:
        """Wait until it has asked the controller: why that failed, or nothing; ``None`` when there was no answer in time."""
        return self._error if self._looked.wait(seconds) else None

    def _run(self) -> None:
        before = 0
        try:
            while True:
                try:
                    wanted = self._wanted()
                    self._error = ""
                except IsolossError as error:
                    self._error = str(error)
                    print(self._error, file=sys.stderr)
                else:
                    self._keep(min(before, wanted))  # what a worker is about to take is wanted for a moment too
                    before = wanted
                self._looked.set()
                time.sleep(LOOK_SECONDS)
        except Exception as error:  # noqa: BLE001 - Ray begins it again, and it knows nothing that could be lost
            print(f"{type(error).__name__}: {error}", file=sys.stderr)
            time.sleep(AGAIN_SECONDS)
            os._exit(1)

    def _wanted(self) -> int:
        """How many more such workers would get work, by a channel of this look's own: a join file may have changed."""
        from isoloss.client.locate import find_address
        from isoloss.client.transport import BlockingTransport
        from isoloss.v1 import work_pb2
        from isoloss_worker.allow import AllowList

        flags = parser().parse_args(list(self._pool.words))
        gpu_ids = tuple(map(str, range(self._pool.gpus)))
        slots = slots_of(flags.slots, gpu_ids)
        allowed = AllowList(
            functions=tuple(flags.allow), command_prefixes=tuple(flags.allow_command), everything=flags.allow_everything
        )
        transport = BlockingTransport(find_address(flags.address), patience=ANSWER_SECONDS)
        try:
            request = work_pb2.WantedRequest(allowed=allowed.message(shares(gpu_ids, slots)), slots=slots)
            return int(transport.call(transport.workers.Wanted, request).workers)
        finally:
            transport.close()

    def _keep(self, wanted: int) -> None:
        idle = self._idle()
        more, rested = change(idle, wanted, self._bounds)
        free = [n for n in range(self._bounds.most) if self._pool.worker(n) not in idle]
        for number in free[:more]:
            self._pool.begin(number)
        for name in rested:
            if (worker := _found(name, WORKERS)) is not None:
                worker.rest.remote(self._bounds.idle_seconds)

    def _idle(self) -> dict[str, float | None]:
        """Since when each worker rests; 0 for one that does not answer: it begins, or waits for room."""
        import ray

        names = self._pool.standing()
        for name in names:
            if name not in self._asked and (worker := _found(name, WORKERS)) is not None:
                self._asked[name] = worker.idle.remote()
        asked = {name: self._asked[name] for name in names if name in self._asked}
        done, _ = ray.wait(list(asked.values()), num_returns=len(asked), timeout=ANSWER_SECONDS) if asked else ([], [])
        self._asked = {name: call for name, call in asked.items() if call not in done}
        return {name: _answer(asked[name]) if name in asked and asked[name] in done else 0.0 for name in names}


def _found(name: str, namespace: str) -> Any:
    """The actor of that name, or ``None``: it may have gone just now."""
    import ray

    try:
        return ray.get_actor(name, namespace=namespace)
    except ValueError:
        return None


def _answer(call: Any) -> float | None:
    import ray

    try:
        found: float | None = ray.get(call)
    except ray.exceptions.RayError:  # it is gone, or Ray begins it again
        return 0.0
    return found


def begin(pool: Pool, bounds: Bounds, patience: float) -> str:
    """Make the pool's keeper; why it was not, if the controller did not answer it."""
    import ray

    keeper = (
        ray.remote(Keeper)
        .options(
            name=pool.name, namespace=NAMESPACE, lifetime="detached", get_if_exists=True, num_cpus=0, max_restarts=-1,
            max_task_retries=-1, max_concurrency=CALLS, runtime_env=own_environment(),
        )
        .remote(pool, bounds)
    )  # fmt: skip
    try:
        why: str | None = ray.get(keeper.looked.remote(patience), timeout=patience)
    except ray.exceptions.RayError as error:
        why = str(error).strip().splitlines()[-1]
    if why is None or why:
        ray.kill(keeper, no_restart=True)
    return f"It did not look within {patience:g} s." if why is None else why


def end(name: str) -> None:
    """The pool of that name has no keeper any more."""
    import ray

    if (keeper := _found(name, NAMESPACE)) is not None:
        ray.kill(keeper, no_restart=True)
