"""The SDK, async: the same names as ``isoloss`` itself."""

from __future__ import annotations

from isoloss.client.aio import Campaign, Client, Study, connect
from isoloss.client.current import current_trial, report
from isoloss.client.held import Trial
from isoloss.client.words import (
    IDHB,
    Categorical,
    Fixed,
    Float,
    Int,
    Larger,
    Ordinal,
    Smaller,
    Target,
    maximize,
    minimize,
)

__all__ = [
    "IDHB", "Campaign", "Categorical", "Client", "Fixed", "Float", "Int", "Larger", "Ordinal", "Smaller", "Study",
    "Target", "Trial", "connect", "current_trial", "maximize", "minimize", "report",
]  # fmt: skip
