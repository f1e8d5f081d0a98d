"""A rung: the results of one bracket at one level, in order, and who was promoted out of it.

The order is total: finite before failed, lower score first, and of equals the earlier index. Results and candidates are
kept sorted, so that a result or a promotion costs a bisection.
"""

from __future__ import annotations

import math
from bisect import bisect_left, insort

Key = tuple[bool, float, int]  # (failed, score, index within the bracket)


def rank_key(score: float | None, index: int) -> Key:
    """Where a result ranks; ``None``, NaN and infinities are failures and rank last."""
    if score is None or not math.isfinite(score):
        return (True, 0.0, index)
    return (False, score, index)


class Rung:
    """Results at one level of a bracket, and the promotions out of it.

    ``members`` is the rung's synchronous member set once it is known (the rung is *settled*); ``due`` are the members
    of the next rung that were not promoted yet, worst first, once the next rung is settled.
    """

    __slots__ = ("due", "members", "quota", "ranked", "results", "sent", "unsent")

    def __init__(self, quota: int) -> None:
        self.quota = quota
        self.results: dict[int, Key] = {}
        self.ranked: list[Key] = []
        self.unsent: list[Key] = []
        self.sent: set[int] = set()
        self.members: frozenset[int] | None = None
        self.due: list[Key] | None = None

    def record(self, key: Key) -> None:
        """Take a result in."""
        self.results[key[2]] = key
        insort(self.ranked, key)
        if not key[0] and key[2] not in self.sent:
            insort(self.unsent, key)

    def promote(self, key: Key) -> None:
        """Note that this result's trial goes on to the next rung."""
        self.sent.add(key[2])
        del self.unsent[bisect_left(self.unsent, key)]
        if self.due and self.due[-1] == key:
            self.due.pop()

    def optimistic(self, eta: int, next_quota: int) -> Key | None:
        """The best result not promoted yet, if it is in the best 1/eta of those known and the next rung has room.

        The promotion rule of ASHA (Li et al. 2020, Algorithm 2), under Hyperband's quota.
        """
        if not self.unsent or len(self.sent) >= next_quota:
            return None
        best = self.unsent[0]
        return best if bisect_left(self.ranked, best) < len(self.ranked) // eta else None

    def best_finite(self, count: int) -> list[Key]:
        """The best finite results of the rung's members, at most ``count``, best first."""
        chosen: list[Key] = []
        for key in self.ranked:
            if key[0] or len(chosen) == count:
                break
            if self.members is None or key[2] in self.members:
                chosen.append(key)
        return chosen

    def settle_next(self, chosen: list[Key]) -> None:
        """From now on only the members of the next rung go up."""
        self.due = [key for key in reversed(chosen) if key[2] not in self.sent]

    def unsettle(self) -> None:
        """The quota grew: who belongs here, and who goes on, is open again."""
        self.members = self.due = None
