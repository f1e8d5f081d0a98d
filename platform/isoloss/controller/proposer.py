"""The proposer: models run outside every lock, in a process of their own, and their proposals wait in the ledger."""

from __future__ import annotations

import asyncio
from concurrent.futures import Executor
from typing import Any, Final

from isoloss.controller.decider import Decider
from isoloss.domain.spec import StudySpec, decode_study
from isoloss.domain.study import StudyState
from isoloss.search.answers import ProposalRequest
from isoloss.search.events import Proposed
from isoloss.store import studies
from isoloss.store.pool import Pool


class Proposer:
    """Keeps a small buffer of proposals ahead of every study that has a model."""

    name: Final = "proposer"
    seconds: Final = 1.0

    def __init__(self, pool: Pool, decider: Decider, executor: Executor) -> None:
        self.pool = pool
        self.decider = decider
        self.executor = executor

    async def once(self) -> int:
        """Propose for every study that wants proposals; returns how many were made."""
        async with self.pool.connection() as conn:
            rows = [
                row for row in await studies.listed(conn)
                if row.state == StudyState.ACTIVE and decode_study(row.spec).method.sampler not in ("random", "sobol")
            ]  # fmt: skip
        made = 0
        for row in rows:
            request = (await self.decider.search(row.id)).proposal_request()
            if request is None:
                continue
            proposed = await asyncio.get_running_loop().run_in_executor(self.executor, compute, row.spec, request)
            await self.decider.decide(row.id, events=[proposed])
            made += len(proposed.configurations)
        return made


def compute(mapping: dict[str, Any], request: ProposalRequest) -> Proposed:
    """The model's proposals; runs in the process pool."""
    from isoloss.search.proposals import propose

    spec: StudySpec = decode_study(mapping)
    return propose(spec, request)
