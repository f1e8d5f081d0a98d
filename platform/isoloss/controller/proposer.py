"""The proposer: models run outside every lock, in a process of their own, and their proposals wait in the ledger."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Mapping
from concurrent.futures import BrokenExecutor, Executor
from typing import Any, Final

import structlog
from msgspec.structs import replace

from isoloss.controller.decider import Decider
from isoloss.controller.recent import Recent
from isoloss.domain.ids import StudyId
from isoloss.domain.prior import Prior, check_prior, nearest
from isoloss.domain.spec import StudySpec, decode_study
from isoloss.errors import IsolossError
from isoloss.search.events import Proposed
from isoloss.search.judging import informed
from isoloss.search.proposals import learns_outcomes, propose
from isoloss.search.search import Search
from isoloss.search.streams import STREAMS
from isoloss.store import campaigns, studies
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
    pause: Final = 0.01

    def __init__(self, pool: Pool, decider: Decider, executor: Executor) -> None:
        self.pool = pool
        self.decider = decider
        self.executor = executor
        self._failed = Recent[StudyId, tuple[int, float]]()  # how often in a row, and when to ask again
        self._rows: list[StudyRow] = []
        self._looked, self._opened = -math.inf, 0

    async def once(self) -> int:
        """Propose for every study that wants proposals; returns how many were made."""
        async with asyncio.TaskGroup() as group:
            served = [group.create_task(self._serve(row)) for row in await self._modelled()]
        return sum(task.result() for task in served)

    async def _modelled(self) -> list[StudyRow]:
        """The studies that have a model: looked for when one is decided for the first time, and once a second."""
        now = time.monotonic()
        if now - self._looked >= self.seconds or self.decider.opened != self._opened:
            self._looked, self._opened = now, self.decider.opened
            async with self.pool.connection() as conn:
                self._rows = await studies.modelled(conn, STREAMS)
        return self._rows

    async def _serve(self, row: StudyRow) -> int:
        """The proposals made for one study; a failure is said and remembered, and is nobody else's."""
        now = asyncio.get_running_loop().time()
        times, again = self._failed.get(row.id, (0, now))
        if now < again:
            return 0
        try:
            made = await self._propose(row)
        except (IsolossError, BrokenExecutor) as error:  # broken: the process was killed, perhaps for its memory
            pause = min(LONGEST_PAUSE, 2.0 ** (times + 1))
            self._failed[row.id] = (times + 1, asyncio.get_running_loop().time() + pause)
            sampler = decode_study(row.spec).method.sampler
            log.warning("proposer.failed", study=row.name, sampler=sampler, error=str(error), asked_again_in=pause)
            return 0
        self._failed.pop(row.id, None)
        return made

    async def _propose(self, row: StudyRow) -> int:
        search = await self.decider.search(row.id)
        request = search.proposal_request()
        if request is None:
            return 0
        loop, spec = asyncio.get_running_loop(), search.spec
        if spec.method.sampler == "law" and (learned := await self._learned(row, search)):
            spec = replace(spec, method=replace(spec.method, prior=learned))
        if learns_outcomes(spec):
            async with self.pool.connection() as conn:
                request = informed(request, search, await studies.outcomes(conn, row.id))
        proposed: Proposed = await loop.run_in_executor(self.executor, propose, spec, request)
        await self.decider.decide(row.id, events=[proposed])
        return len(proposed.configurations)

    async def _learned(self, row: StudyRow, search: Search) -> dict[str, Prior]:
        """What a campaign's laws foretell for the top column of one of its sizes; nothing before the first fit."""
        if row.campaign_id is None or row.n_params is None:
            return {}
        async with self.pool.connection() as conn:
            found = await campaigns.newest_fit(conn, row.campaign_id, "lr-batch")
        if found is None:
            return {}
        top = search.ladder.budget(search.ladder.top)
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self.executor, learned_prior, search.spec, found[1], row.n_params, float(top))


def learned_prior(spec: StudySpec, fit: Mapping[str, Any], n_params: float, n_tokens: float) -> dict[str, Prior]:
    """The forecast of a cell's optimum as priors of the space's parameters; runs in the process pool."""
    from isoloss.laws.evidence import Fit
    from isoloss.laws.surface import prior_at

    believed = prior_at(Fit.from_mapping(fit), n_params, n_tokens)
    within = {
        name: Prior(center=float(nearest(spec.space[name], center)), spread=spread)
        for name, (center, spread) in believed.items()
        if name in spec.space
    }
    check_prior(spec.space, within)
    return within
