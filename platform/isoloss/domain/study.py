"""What a study can be; the words are the Postgres enum ``study_state`` and the proto enum as well."""

from __future__ import annotations

from enum import StrEnum


class StudyState(StrEnum):
    """``idle`` has nothing left to do and may be deepened or extended; ``stopped`` is final."""

    ACTIVE = "active"
    PAUSED = "paused"
    IDLE = "idle"
    STOPPED = "stopped"


class CampaignState(StrEnum):
    """``searching`` buys cells, ``confirming`` runs the target's cell, ``done`` has its outcome, ``stopped`` is final."""

    SEARCHING = "searching"
    CONFIRMING = "confirming"
    DONE = "done"
    STOPPED = "stopped"
