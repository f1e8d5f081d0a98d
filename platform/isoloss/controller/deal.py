"""Who gets the free slots, and how many more would be of use: a pure rule over what is free, who may run what, and who has how much already."""

from __future__ import annotations

import heapq
import math
from collections.abc import Mapping
from fractions import Fraction

from isoloss.domain.ids import StudyId
from isoloss.store.projects import Share
from isoloss.store.studies import Hungry

Able = Mapping[str, Mapping[Hungry, int]]  # holder → what it may run → how many of its slots a task takes


def squeezed_out(lacking: Mapping[str, int], able: Able) -> list[Hungry]:
    """The studies whose tasks take more slots than anybody who may run them has free."""
    fits = {study.id: False for studies_ in able.values() for study in studies_}
    for holder, studies_ in able.items():
        for study, takes in studies_.items():
            fits[study.id] |= takes <= lacking[holder]
    return list({study.id: study for studies_ in able.values() for study in studies_ if not fits[study.id]}.values())


def kept(lacking: Mapping[str, int], able: Able, shares: Mapping[str, Share], long: float) -> Able:
    """The same, but for each study that takes several slots and has waited for ``long`` seconds one worker is its alone.

    It is the one with the most free slots, so it stays the same while they become more.
    """
    found = dict(able)
    waiting = {
        study.id: study for studies_ in able.values() for study in studies_
        if study.waits is not None and study.waits >= long
        and ((share := shares.get(study.project)) is None or _below(share, share.running))
    }  # fmt: skip
    for study in sorted(waiting.values(), key=lambda s: (-(s.waits or 0.0), s.id)):
        may = [holder for holder, studies_ in found.items() if studies_.get(study, 0) > 1]
        if may:
            holder = max(may, key=lambda name: (lacking[name], name))
            found[holder] = {study: found[holder][study]}
    return found


def deal(lacking: Mapping[str, int], able: Able, shares: Mapping[str, Share]) -> dict[StudyId, dict[str, int]]:
    """Deal slots one task at a time: study → holder → tasks.

    Each goes to the project that has the fewest tasks for its weight and is below its bound, and there to the study that has
    the fewest for its own, of those whose tasks fit into the slots that are left.
    """
    dealt: dict[StudyId, dict[str, int]] = {}
    leased = {study.id: study.leased for studies_ in able.values() for study in studies_}
    running = {name: share.running for name, share in shares.items()}

    def wanting(name: str) -> tuple[float, str]:
        return (running.get(name, 0) + 1) / shares.get(name, Share(name=name)).weight, name

    for holder, studies_ in able.items():
        heaps: dict[str, list[tuple[float, StudyId, float, int]]] = {}
        for study, takes in studies_.items():
            place = ((leased[study.id] + 1) / study.weight, study.id, study.weight, takes)
            heaps.setdefault(study.project, []).append(place)
        for heap in heaps.values():
            heapq.heapify(heap)
        free = lacking[holder]
        while free and (below := [name for name in heaps if _below(shares.get(name), running.get(name, 0))]):
            name = min(below, key=wanting)
            _, study_id, weight, takes = heaps[name][0]
            if takes > free:
                heapq.heappop(heaps[name])
                if not heaps[name]:
                    del heaps[name]
                continue
            free -= takes
            leased[study_id] += 1
            running[name] = running.get(name, 0) + 1
            heapq.heapreplace(heaps[name], ((leased[study_id] + 1) / weight, study_id, weight, takes))
            tasks_ = dealt.setdefault(study_id, {})
            tasks_[holder] = tasks_.get(holder, 0) + 1
    return dealt


def wanted(slots: int, takes: Mapping[Hungry, int], waiting: Mapping[StudyId, int], shares: Mapping[str, Share]) -> int:
    """How many more workers of so many slots would get work now, if a task takes so many of them.

    Workers and not slots, as a task is run by one: four tasks of three slots fill four workers of four.
    """
    left = {name: max(0, share.most - share.running) for name, share in shares.items() if share.most is not None}
    filled = Fraction(0)
    for study, each in takes.items():
        tasks_ = min(waiting.get(study.id, 0), left.get(study.project, math.inf))
        if study.project in left:
            left[study.project] -= int(tasks_)
        if 0 < each <= slots:
            filled += Fraction(int(tasks_), slots // each)
    return math.ceil(filled)


def _below(share: Share | None, running: int) -> bool:
    return share is None or share.most is None or running < share.most
