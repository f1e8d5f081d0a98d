"""The proposer: models run outside every lock, in a process of their own, and their proposals wait in the ledger."""

from __future__ import annotations

import asyncio
from concurrent.futures import Executor
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

log = structlog.get_logger()


class Proposer:
    """Keeps a small buffer of proposals ahead of every study that has a model.

    A model that fails stops nobody: its study goes on with its stream, and it is asked again once its ledger is longer.
    """

    name: Final = "proposer"
    seconds: Final = 1.0

    def __init__(self, pool: Pool, decider: Decider, executor: Executor) -> None:
        self.pool = pool
        self.decider = decider
        self.executor = executor
        self._failed: dict[StudyId, int] = {}  # at which seq

    async def once(self) -> int:
        """Propose for every study that wants proposals; returns how many were made."""
        async with self.pool.connection() as conn:
            rows = [
                row for row in await studies.listed(conn)
                if row.state == StudyState.ACTIVE and is_model(decode_study(row.spec).method.sampler)
            ]  # fmt: skip
        made = 0
        for row in rows:
            if self._failed.get(row.id) == row.next_seq:
                continue
            try:
                made += await self._propose(row.id)
            except IsolossError as error:
                self._failed[row.id] = row.next_seq
                log.warning("proposer.failed", study=row.name, error=error.message)
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
