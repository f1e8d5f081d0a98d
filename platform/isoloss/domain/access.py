"""Who calls: a role, and the one project it may see unless it may see all."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final


class Role(StrEnum):
    """What a token is for; the same words as the Postgres enum ``role``."""

    ADMIN = "admin"
    CLIENT = "client"
    WORKER = "worker"
    VIEWER = "viewer"


@dataclass(frozen=True, slots=True, kw_only=True)
class Principal:
    """A caller; ``project`` is empty for one that may see them all."""

    id: str
    role: Role
    project: str = ""

    def sees(self, project: str) -> bool:
        """Whether the project is there at all, as far as this caller can tell."""
        return self.project in ("", project)


LOCAL: Final = Principal(id="", role=Role.ADMIN)  # whoever reaches a loopback listener without tokens
