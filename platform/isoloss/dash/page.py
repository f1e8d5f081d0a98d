"""The built-in page."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

from starlette.applications import Starlette


@contextlib.asynccontextmanager
async def build(dsn: str) -> AsyncIterator[Starlette]:
    """The page's application over a database."""
    yield Starlette()
