"""A figure that was published, ours beside it, and the table that says whether they agree."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Check:
    """One figure: ours, the published one, and how far apart they may be (or ours at most, when ``most``)."""

    name: str
    ours: float
    figure: float
    tolerance: float
    most: bool = False

    @property
    def passed(self) -> bool:
        if self.most:
            return self.ours <= self.figure
        return abs(self.ours - self.figure) <= self.tolerance


def show(checks: Iterable[Check]) -> bool:
    """Print every check as it comes; true when all passed."""
    sys.stdout.write(f"{'':<58} {'published':>16} {'ours':>16} {'tolerance':>10}\n")
    passed = True
    for check in checks:
        bound = "at most" if check.most else f"{check.tolerance:.2g}"
        verdict = "ok" if check.passed else "MISSED"
        sys.stdout.write(f"{check.name:<58} {check.figure:>16.10g} {check.ours:>16.10g} {bound:>10}  {verdict}\n")
        sys.stdout.flush()
        passed &= check.passed
    return passed
