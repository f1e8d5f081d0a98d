"""The proposer: models run outside every lock, in a process of their own, and their proposals wait in the ledger."""

from __future__ import annotations

import asyncio
from concurrent.futures import BrokenExecutor, Executor
from typing import Final

import structlog

from isoloss.controller.decider import Decider
from isoloss.domain.ids import StudyId
from isoloss.domain.spec import decode_study
from isoloss.domain.study import StudyState
from isoloss.errors import IsolossError
from isoloss.search.events import Proposed
from isoloss.search.proposals import propose
from isoloss.search.streams import is_model
from isoloss.store import studies
from isoloss.store.pool import Pool
from isoloss.store.studies import StudyRow

log = structlog.get_logger()
LONGEST_PAUSE: Final = 300.0


class Proposer:
    """Keeps a small buffer of proposals ahead of every study that has a model.

    A model that fails stops nobody: the other studies are served in the same pass, its own goes on with its stream, and
    it is asked again after a while, twice as long each time.
    """

    name: Final = "proposer"
    seconds: Final = 1.0

    def __init__(self, pool: Pool, decider: Decider, executor: Executor) -> None:
        self.pool = pool
        self.decider = decider
        self.executor = executor
        self._failed: dict[StudyId, tuple[int, float]] = {}  # how often in a row, and when to ask again

    async def once(self) -> int:
        """Propose for every study that wants proposals; returns how many were made."""
        async with self.pool.connection() as conn:
            rows = [
                row for row in await studies.listed(conn)
                if row.state == StudyState.ACTIVE and is_model(decode_study(row.spec).method.sampler)
            ]  # fmt: skip
        async with asyncio.TaskGroup() as group:
            served = [group.create_task(self._serve(row)) for row in rows]
        return sum(task.result() for task in served)

    async def _serve(self, row: StudyRow) -> int:
        """The proposals made for one study; a failure is said and remembered, and is nobody else's."""
        now = asyncio.get_running_loop().time()
        times, again = self._failed.get(row.id, (0, now))
        if now < again:
            return 0
        try:
            made = await self._propose(row.id)
        except (IsolossError, BrokenExecutor) as error:  # broken: the process was killed, perhaps for its memory
            pause = min(LONGEST_PAUSE, 2.0 ** (times + 1))
            self._failed[row.id] = (times + 1, asyncio.get_running_loop().time() + pause)
            sampler = decode_study(row.spec).method.sampler
            log.warning("proposer.failed", study=row.name, sampler=sampler, error=str(error), asked_again_in=pause)
            return 0
        self._failed.pop(row.id, None)
        return made

    async def _propose(self, study_id: StudyId) -> int:
        search = await self.decider.search(study_id)
        request = search.proposal_request()
        if request is None:
            return 0
        loop = asyncio.get_running_loop()
        proposed: Proposed = await loop.run_in_executor(self.executor, propose, search.spec, request)
        await self.decider.decide(study_id, events=[proposed])
        return len(proposed.configurations)
