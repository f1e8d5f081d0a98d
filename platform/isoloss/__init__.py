"""isoloss: tune small, predict big.

The names here are the SDK; importing them costs nothing until one is used (PEP 562).
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from isoloss import aio, errors, search
    from isoloss.client.blocking import Campaign, Client, Study, connect
    from isoloss.client.current import current_trial, report
    from isoloss.client.held import Trial
    from isoloss.client.words import (
        ASHA,
        IDHB,
        Box,
        Categorical,
        Category,
        Fixed,
        Float,
        Group,
        Harrington,
        HarringtonTwoSided,
        Hyperband,
        Int,
        Larger,
        Ordinal,
        Smaller,
        Table,
        Target,
        maximize,
        minimize,
    )

__version__ = "0.1.0"
WHERE: Final = {
    **dict.fromkeys(("Campaign", "Client", "Study", "connect"), "isoloss.client.blocking"),
    **dict.fromkeys(("current_trial", "report"), "isoloss.client.current"),
    "Trial": "isoloss.client.held",
    **dict.fromkeys(
        (
            "ASHA",
            "IDHB",
            "Box",
            "Categorical",
            "Category",
            "Fixed",
            "Float",
            "Group",
            "Harrington",
            "HarringtonTwoSided",
            "Hyperband",
            "Int",
            "Larger",
            "Ordinal",
            "Smaller",
            "Table",
            "Target",
            "maximize",
            "minimize",
        ),
        "isoloss.client.words",
    ),
}
__all__ = [
    "ASHA",
    "IDHB",
    "Box",
    "Campaign",
    "Categorical",
    "Category",
    "Client",
    "Fixed",
    "Float",
    "Group",
    "Harrington",
    "HarringtonTwoSided",
    "Hyperband",
    "Int",
    "Larger",
    "Ordinal",
    "Smaller",
    "Study",
    "Table",
    "Target",
    "Trial",
    "aio",
    "callbacks",
    "connect",
    "current_trial",
    "errors",
    "maximize",
    "minimize",
    "report",
    "search",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name in WHERE:
        return getattr(importlib.import_module(WHERE[name]), name)
    if name in ("aio", "callbacks", "errors", "search"):
        return importlib.import_module(f"isoloss.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
