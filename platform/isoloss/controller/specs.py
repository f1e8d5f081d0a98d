"""Specs, decoded once a version: every call that ends or begins a task needs one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from isoloss.controller.recent import Recent
from isoloss.domain.ids import StudyId
from isoloss.domain.spec import StudySpec, decode_study
from isoloss.store import studies
from isoloss.store.pool import Conn


class Specs:
    """The newest version seen of every study's spec, with its run section as JSON."""

    def __init__(self) -> None:
        self._known = Recent[StudyId, tuple[int, StudySpec, str]]()

    def of(self, study_id: StudyId, version: int, mapping: Mapping[str, Any]) -> tuple[StudySpec, str]:
        """The spec of this version, and its run section; ``mapping`` is what is stored."""
        known = self._known.get(study_id)
        if known is None or known[0] != version:
            run = mapping.get("run")
            known = version, decode_study(mapping), msgspec.json.encode(run).decode() if run else ""
            self._known[study_id] = known
        return known[1], known[2]

    def forget(self, study_id: StudyId) -> None:
        """Know nothing of the study: its newest version was seen in a transaction that may never be committed."""
        self._known.pop(study_id, None)

    async def owed(self, conn: Conn, study_id: StudyId, version: int) -> Sequence[str]:
        """The metrics that a finished task of the study owes."""
        known = self._known.get(study_id)
        if known is None or known[0] != version:
            return self.of(study_id, version, await studies.spec_of(conn, study_id))[0].metrics
        return known[1].metrics
