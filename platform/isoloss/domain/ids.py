"""Identifiers as types of their own, so that a trial number never stands where a task id belongs."""

from __future__ import annotations

from typing import NewType

StudyId = NewType("StudyId", int)
CampaignId = NewType("CampaignId", int)
TaskId = NewType("TaskId", int)
TrialNo = NewType("TrialNo", int)  # counted from 0 within one study
WorkerId = NewType("WorkerId", str)
