"""The search: pure, deterministic, the same object for the controller, the notebook and the replay."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from isoloss.search.driver import Ask, Best, Driver

__all__ = ["Ask", "Best", "Driver"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from isoloss.search import driver

        return getattr(driver, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
