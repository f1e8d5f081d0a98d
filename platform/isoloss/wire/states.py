"""States across the wire: the same words in domain, Postgres and proto, compared by a test."""

from __future__ import annotations

from isoloss.domain.study import CampaignState, StudyState
from isoloss.v1 import campaign_pb2, common_pb2, study_pb2


def to_study_state(state: StudyState) -> study_pb2.StudyState.ValueType:
    """A study's state as the proto enum."""
    return study_pb2.StudyState.Value(f"STUDY_STATE_{state.name}")


def from_study_state(value: int) -> StudyState:
    """A study's state of the proto enum."""
    return StudyState[study_pb2.StudyState.Name(value).removeprefix("STUDY_STATE_")]  # type: ignore[arg-type]


def to_campaign_state(state: CampaignState) -> campaign_pb2.CampaignState.ValueType:
    """A campaign's state as the proto enum."""
    return campaign_pb2.CampaignState.Value(f"CAMPAIGN_STATE_{state.name}")


def from_campaign_state(value: int) -> CampaignState:
    """A campaign's state of the proto enum."""
    return CampaignState[campaign_pb2.CampaignState.Name(value).removeprefix("CAMPAIGN_STATE_")]  # type: ignore[arg-type]


VERDICTS = {
    "accepted": common_pb2.VERDICT_ACCEPTED,
    "stale": common_pb2.VERDICT_STALE,
    "already_done": common_pb2.VERDICT_ALREADY_DONE,
    "cancelling": common_pb2.VERDICT_CANCELLING,
}
