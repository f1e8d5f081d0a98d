"""States across the wire: the same words in domain, Postgres and proto, compared by a test."""

from __future__ import annotations

from typing import Any

from isoloss.domain.study import CampaignState, StudyState
from isoloss.v1 import campaign_pb2, common_pb2, study_pb2


def to_study_state(state: StudyState) -> study_pb2.StudyState.ValueType:
    """A study's state as the proto enum."""
    return study_pb2.StudyState.Value(f"STUDY_STATE_{state.name}")


def to_campaign_state(state: CampaignState) -> campaign_pb2.CampaignState.ValueType:
    """A campaign's state as the proto enum."""
    return campaign_pb2.CampaignState.Value(f"CAMPAIGN_STATE_{state.name}")


def word(enum: Any, value: int) -> str:
    """A value of a proto enum as everybody else says it; of one that only a newer controller knows, the number."""
    known = enum.DESCRIPTOR.values_by_number
    prefix = known[0].name.removesuffix("UNSPECIFIED")
    return known[value].name.removeprefix(prefix).lower() if value in known else f"unknown ({value})"


VERDICTS = {
    "accepted": common_pb2.VERDICT_ACCEPTED,
    "stale": common_pb2.VERDICT_STALE,
    "already_done": common_pb2.VERDICT_ALREADY_DONE,
    "cancelling": common_pb2.VERDICT_CANCELLING,
}
