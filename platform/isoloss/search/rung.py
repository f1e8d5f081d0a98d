"""A rung: the results of one bracket at one level, in order, and who was promoted out of it.

The order is total: finite before failed, lower score first, and of equals the earlier index. Results and candidates are
kept sorted, so that a result, a promotion or a rank costs O(log n).
"""

from __future__ import annotations

import math
from collections.abc import Container
from copy import copy
from itertools import islice
from typing import Self

from sortedcontainers import SortedList

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
        self.ranked: SortedList[Key] = SortedList()
        self.unsent: SortedList[Key] = SortedList()
        self.sent: set[int] = set()
        self.members: frozenset[int] | None = None
        self.due: list[Key] | None = None

    def copy(self) -> Self:
        """An equal rung that goes its own way."""
        other = copy(self)
        other.results, other.sent = dict(self.results), set(self.sent)
        other.ranked, other.unsent = self.ranked.copy(), self.unsent.copy()
        other.due = None if self.due is None else list(self.due)
        return other

    def record(self, key: Key) -> None:
        """Take a result in, in place of the one the trial had here, if it had one."""
        if (old := self.results.get(key[2])) is not None:
            self.ranked.remove(old)
            self.unsent.discard(old)
        self.results[key[2]] = key
        self.ranked.add(key)
        if not key[0] and key[2] not in self.sent:
            self.unsent.add(key)

    def promote(self, key: Key) -> None:
        """Note that this result's trial goes on to the next rung."""
        self.sent.add(key[2])
        self.unsent.remove(key)
        if self.due and self.due[-1] == key:
            self.due.pop()

    def optimistic(self, eta: int, next_quota: int) -> Key | None:
        """The best result not promoted yet, if it is in the best 1/eta of those known and the next rung has room.

        The promotion rule of ASHA (Li et al. 2020, Algorithm 2), under Hyperband's quota.
        """
        if not self.unsent or len(self.sent) >= next_quota:
            return None
        best: Key = self.unsent[0]
        return best if self.ranked.bisect_left(best) < len(self.ranked) // eta else None

    def optimistic_now(self, eta: int, next_quota: int) -> int:
        """How many ``optimistic`` would give one after the other, if no result came meanwhile."""
        cut = len(self.ranked) // eta
        among = self.unsent.bisect_left(self.ranked[cut]) if cut < len(self.ranked) else len(self.unsent)
        return max(0, min(among, next_quota - len(self.sent)))

    def best_finite(self, count: int, within: Container[int] | None = None) -> list[Key]:
        """The best finite results, at most ``count``, best first; with ``within`` only of these trials."""
        finite = (key for key in self.ranked if not key[0] and (within is None or key[2] in within))
        return list(islice(finite, count))

    def settle_next(self, chosen: list[Key]) -> None:
        """From now on only these go up, best first, who have not gone yet."""
        self.due = [key for key in reversed(chosen) if key[2] not in self.sent]

    def unsettle(self) -> None:
        """A quota grew or a score changed: who belongs here, and who goes on, is open again."""
        self.members = self.due = None
