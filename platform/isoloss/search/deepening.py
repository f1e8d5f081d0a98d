"""A bracket that never waits, can be deepened at any moment, and still ends where Hyperband from scratch would.

While a rung lacks results, its best are promoted optimistically (ASHA's rule) under the quota. When the last member of
a rung has its result the next rung is *settled*: its synchronous member set is computed, every member not yet promoted
is due, and optimistic promotion ends there. So wrong early promotions cost budget and never the decision. Deepening
(Brandt, Wever et al., arXiv 2302.00511) raises the quotas and adds a rung; settlement starts again from the bottom.
"""

from __future__ import annotations

from collections.abc import Sequence

from isoloss.search.rung import Key, Rung

Candidate = tuple[int, Key]  # (minus the level to leave, key): the smallest is promoted first


class Bracket:
    """One bracket: its rungs by level, and how far it is settled.

    ``frontier`` is the highest settled level whose members' results are being awaited, ``missing`` how many of them;
    at the lowest level the members are the first configurations, started or not.
    """

    def __init__(self, number: int, eta: int, quotas: Sequence[int]) -> None:
        self.number = number
        self.eta = eta
        self.trials: list[int] = []  # index -> trial
        self.rungs: dict[int, Rung] = {}
        self.deepen(quotas)

    @property
    def top(self) -> int:
        """The highest level."""
        return self.number + len(self.rungs) - 1

    @property
    def has_room(self) -> bool:
        """Whether a configuration is still to be started."""
        return len(self.trials) < self.rungs[self.number].quota

    def deepen(self, quotas: Sequence[int]) -> None:
        """Set the quotas, lowest level first; they never shrink, and there may be more levels than before."""
        for level, count in enumerate(quotas, self.number):
            rung = self.rungs.setdefault(level, Rung(count))
            rung.quota = count
            rung.unsettle()
        lowest = self.rungs[self.number]
        self.frontier, self.missing = self.number, lowest.quota - len(lowest.results)
        self._settle()

    def start(self, trial: int) -> None:
        """Begin the next configuration as ``trial``."""
        self.trials.append(trial)

    def record(self, level: int, key: Key) -> None:
        """Take a result in, and settle what it completes."""
        rung = self.rungs[level]
        rung.record(key)
        if level == self.frontier and (rung.members is None or key[2] in rung.members):
            self.missing -= 1
        self._settle()

    def promote(self, candidate: Candidate) -> None:
        """Send a candidate up."""
        self.rungs[-candidate[0]].promote(candidate[1])
        self._find()

    def candidate(self, *, settled: bool) -> Candidate | None:
        """The next promotion: highest level first, then best; with ``settled`` only into settled rungs."""
        return self._due if settled else self._any

    def members(self, level: int) -> tuple[int, ...] | None:
        """The trials of the synchronous member set at ``level``, or ``None`` while it is unknown."""
        if level == self.number:
            return None if self.has_room else tuple(self.trials)
        known = self.rungs[level].members
        return None if known is None else tuple(self.trials[index] for index in sorted(known))

    def _settle(self) -> None:
        while self.missing == 0 and self.frontier < self.top:
            rung, following = self.rungs[self.frontier], self.rungs[self.frontier + 1]
            chosen = rung.best_finite(following.quota)
            rung.settle_next(chosen)
            following.members = frozenset(key[2] for key in chosen)
            self.frontier += 1
            self.missing = sum(index not in following.results for index in following.members)
        self._find()

    def _find(self) -> None:
        """Keep the next promotion at hand: it changes only when this bracket does."""
        self._due: Candidate | None = None
        self._any: Candidate | None = None
        for level in range(self.top - 1, self.number - 1, -1):
            rung = self.rungs[level]
            if rung.due is not None:
                key = rung.due[-1] if rung.due else None
                self._due = self._due or (key and (-level, key))
            else:
                key = rung.optimistic(self.eta, self.rungs[level + 1].quota)
            self._any = self._any or (key and (-level, key))
