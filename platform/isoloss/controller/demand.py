"""What waits for a slot, seen from outside: for pools that grow by themselves, and for the autoscalers of others.

A task is created against demand, so a fleet without a free slot sees few that are ready: what a study would create
if it were asked waits as well, which its row says. How much of it fits below a limit costs a look at its search under its
lock, so it is kept for as long as the ledger stands, and for a few seconds only: a campaign's budget may change without a
word in it.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from typing import Any, Final

from isoloss.controller.book import MOST_STARTABLE
from isoloss.controller.deal import wanted
from isoloss.controller.decider import Decider
from isoloss.controller.why import slots_for
from isoloss.domain.ids import StudyId
from isoloss.store import projects, studies
from isoloss.store.studies import Hungry

KEPT_SECONDS: Final = 10.0
Kind = tuple[str, str, int]  # project, trainable, GPUs


class Demand:
    """How much work there is for slots that are not there, and for all."""

    def __init__(self, decider: Decider) -> None:
        self.decider = decider
        self.pool = decider.pool
        self._startable: dict[StudyId, tuple[int, float, int]] = {}  # (seq, when, tasks)

    async def workers(self, allowed: Mapping[str, Any], slots: int, project: str) -> int:
        """How many more workers that allow so much would get work now; those of a project, its work."""
        waiting = await self._waiting()
        async with self.pool.connection() as conn:
            shares = {share.name: share for share in await projects.shares(conn)}
        takes = {
            study: each for study in waiting if project in ("", study.project)
            and (each := slots_for(allowed, study.trainable, study.gpus, study.nodes))
        }  # fmt: skip
        return wanted(slots, takes, {study.id: tasks_ for study, tasks_ in waiting.items()}, shares)

    async def slots(self) -> dict[Kind, int]:
        """How many slots of a GPU, or of none, all that runs and all that waits would take, for each kind of work."""
        found = Counter[Kind]()
        for study, tasks_ in (await self._waiting()).items():
            each = max(1, study.gpus) * study.nodes
            found[study.project, study.trainable, study.gpus] += (study.leased + tasks_) * each
        return found

    async def _waiting(self) -> dict[Hungry, int]:
        """The active studies that workers run, each with how many of its tasks a free slot would get."""
        async with self.pool.connection() as conn:
            found = await studies.demand(conn)
        there = {study.id for study in found}
        self._startable = {study_id: kept for study_id, kept in self._startable.items() if study_id in there}
        return {
            study: one.ready
            + (await self._created(study.id, one.next_seq) if one.bound and one.startable else one.startable)
            for study, one in found.items()
        }

    async def _created(self, study_id: StudyId, seq: int) -> int:
        """How many tasks the study would create below its limits if it were asked."""
        known, at, tasks_ = self._startable.get(study_id, (-1, 0.0, 0))
        if known != seq or time.monotonic() - at > KEPT_SECONDS:
            tasks_ = await self.decider.startable(study_id, MOST_STARTABLE)
            self._startable[study_id] = seq, time.monotonic(), tasks_
        return tasks_
