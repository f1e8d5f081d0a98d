"""What a trainer saves in mid-run, registered one after another; while a store takes one, only the newest waits."""

from __future__ import annotations

import asyncio
from functools import partial

import structlog

from isoloss.client.pulse import Pulse
from isoloss.domain.lease import LeaseKey
from isoloss_worker.attempt import Attempt
from isoloss_worker.messages import Saved

log = structlog.get_logger()


class Saving:
    """The saves of one attempt."""

    def __init__(self, attempt: Attempt, key: LeaseKey, pulse: Pulse) -> None:
        self._attempt, self._key, self._pulse = attempt, key, pulse
        self._newest: Saved | None = None
        self._task: asyncio.Task[None] | None = None

    def take(self, message: Saved) -> None:
        """Register this one, in its turn."""
        if self._attempt.objects is None:
            self._register(message)
            return
        self._newest = message
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._publish(), name=f"saves of task {self._key.task_id}")

    async def settle(self) -> None:
        """Until nothing is under way."""
        if self._task is not None:
            await self._task

    async def _publish(self) -> None:
        while (message := self._newest) is not None:
            self._newest = None
            told = not self._pulse.waiting(self._key)
            await asyncio.to_thread(partial(self._register, message, told=told))

    def _register(self, message: Saved, *, told: bool = False) -> None:
        try:
            found = self._attempt.saved(message, told=told)
        except OSError as error:  # the disk is full: the run goes on, and may save again
            log.warning("checkpoint.missed", error=str(error))
            return
        if found is not None:
            self._pulse.report(self._key, [], found)
