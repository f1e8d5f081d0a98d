"""The steward: who makes room where a worker's disk is over its quota, and lets go what is least missed first.

The order: what was dropped already; what a later checkpoint of the same trial supersedes; what stopped studies left, but
for their best; then trials of studies that go on, as ``retention.expendable`` says. Within each the oldest study goes first.
No folder more goes than is needed. Where nothing more may go, and nothing is on its way, the disk is full: its workers
are given no new task until a later measurement finds room.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import structlog

from isoloss.controller.decider import Decider
from isoloss.controller.duty import Bell
from isoloss.domain.ids import StudyId
from isoloss.errors import IsolossError
from isoloss.search.retention import Regret, bests, expendable
from isoloss.search.search import Search
from isoloss.store import disks
from isoloss.store.disks import Disk, Lying
from isoloss.store.pool import Pool

log = structlog.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """What a study's search says of its checkpoints."""

    bests: Collection[tuple[int, int]]
    expendable: Sequence[tuple[Regret, int]]

    @classmethod
    def of(cls, search: Search) -> Standing:
        """As the search stands now."""
        return cls(bests=bests(search), expendable=tuple(expendable(search)))


@dataclass(slots=True)
class Going:
    """What goes of one study: folders, and the trials that none is left of."""

    folders: dict[Lying, None] = field(default_factory=dict)
    trials: list[int] = field(default_factory=list)


def chosen(lying: Sequence[Lying], standing: Mapping[StudyId, Standing], lacking: int) -> dict[StudyId, Going]:
    """What goes, in order, until as much as is lacking does; the folders of a trial go together."""
    found = defaultdict[StudyId, Going](Going)
    for study_id, trial, folders in _in_order([one for one in lying if not one.dropped], standing):
        if lacking <= 0:
            break
        going = found[study_id]
        lacking -= sum(one.bytes for one in folders if one not in going.folders)
        going.folders |= dict.fromkeys(folders)
        going.trials += [] if trial is None else [trial]
    return found


def _in_order(
    lying: Sequence[Lying], standing: Mapping[StudyId, Standing]
) -> Iterator[tuple[StudyId, int | None, list[Lying]]]:
    """Superseded folders one by one, then trials with all that lies there of them."""
    of_trial = defaultdict[tuple[StudyId, int], list[Lying]](list)
    for one in sorted(lying, key=lambda one: (one.study_id, one.task_id, one.epoch)):
        if one.study_id in standing:
            if one.repeated or (one.passed and (one.trial, one.level) not in standing[one.study_id].bests):
                yield one.study_id, None, [one]
            of_trial[one.study_id, one.trial].append(one)
    ranked = sorted(
        (regret, study_id, place, trial)
        for study_id, one in standing.items()
        for place, (regret, trial) in enumerate(one.expendable)
    )
    for _, study_id, _, trial in ranked:
        if folders := of_trial.get((study_id, trial)):
            yield study_id, trial, folders


class Steward:
    """Makes room, once for every measurement of a disk."""

    name: Final = "steward"
    seconds: Final = 0.0
    pause: Final = 1.0  # a clock's work: no ring makes it due

    def __init__(self, pool: Pool, bell: Bell, decider: Decider) -> None:
        self.pool = pool
        self.bell = bell
        self.decider = decider

    async def once(self) -> int:
        """Look at what was measured; always 0, since the next measurement is to come."""
        async with self.pool.connection() as conn:
            found = await disks.crowded(conn)
        for disk in found:
            await self._weigh(disk)
        return 0

    async def _weigh(self, disk: Disk) -> None:
        async with self.pool.connection() as conn:
            lying = await disks.lying(conn, disk.id)
        lacking, leaving = disk.over - sum(one.bytes for one in lying if one.dropped), 0
        if lacking > 0:
            standing = {
                one: await self._standing(one) for one in sorted({one.study_id for one in lying if not one.dropped})
            }
            going = chosen(lying, {one: said for one, said in standing.items() if said is not None}, lacking)
            leaving += sum([await self._drop(disk, study_id, one) for study_id, one in going.items()])
        leaving += sum(one.bytes for one in lying if one.leaving)
        if (full := disk.over > leaving) != disk.is_full:
            log.warning(
                "disk.full" if full else "disk.has_room", host=disk.host, used=disk.used_bytes, quota=disk.quota_bytes
            )
            async with self.pool.connection() as conn:
                await disks.set_full(conn, disk.id, full=full)
            self.bell.ring()

    async def _standing(self, study_id: StudyId) -> Standing | None:
        try:
            return Standing.of(await self.decider.search(study_id))
        except IsolossError as error:  # one study's trouble is not the others'
            log.warning("study.not_decided", study_id=study_id, error=error.message)
            return None

    async def _drop(self, disk: Disk, study_id: StudyId, going: Going) -> int:
        """Drop what goes of a study; how many bytes that will free."""
        folders, freed = [(one.task_id, one.epoch) for one in going.folders], sum(one.bytes for one in going.folders)
        try:
            await self.decider.make_room(study_id, folders, going.trials)
        except IsolossError as error:
            log.warning("study.not_decided", study_id=study_id, error=error.message)
            return 0
        log.warning(
            "checkpoints.dropped_for_room", host=disk.host, study_id=study_id, folders=len(folders), bytes=freed
        )
        return freed
