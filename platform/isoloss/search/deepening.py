"""A bracket that can be deepened and widened at any moment, synchronous or never waiting.

Two switches make every variant. ``kept`` says what a rung's member set is made of when the rung below is complete:

``none``      the best of the members below, as if nothing had been promoted before (discarding; asynchronous: settled)
``pool``      the best of everything ever measured at the level below (preserving)
``promoted``  everything promoted so far, filled up with the best of the rest (efficient: it costs exactly the quota)

``barrier`` on, a rung is filled only then: synchronous successive halving. Off, while a rung is incomplete its best are
promoted optimistically (ASHA's rule) under the quota; when the last awaited result is there the next rung is *settled*:
its member set is computed, every member not yet promoted is due, and optimistic promotion ends there. So with ``none``
wrong early promotions cost budget and never the decision. Deepening (Brandt, Wever et al., arXiv 2302.00511) raises the
quotas and adds a rung, widening raises the quotas; settlement starts again from the bottom.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from copy import copy
from typing import Literal, Self

from isoloss.search.rung import Key, Rung

Candidate = tuple[int, Key]  # (minus the level to leave, key): the smallest is promoted first
Kept = Literal["none", "pool", "promoted"]


class Bracket:
    """One bracket: its rungs by level, and how far it is settled.

    ``frontier`` is the highest settled level whose results are being awaited, ``missing`` how many of them; at the
    lowest level the members are the first configurations, started or not.
    """

    def __init__(
        self, number: int, eta: int, quotas: Sequence[int], *, kept: Kept = "none", barrier: bool = False
    ) -> None:
        self.number = number
        self.eta = eta
        self.kept = kept
        self.barrier = barrier
        self.trials: list[int] = []  # index -> trial
        self.rungs: dict[int, Rung] = {}
        self.adopt(quotas)

    def copy(self) -> Self:
        """An equal bracket that goes its own way."""
        other = copy(self)
        other.trials = list(self.trials)
        other.rungs = {level: rung.copy() for level, rung in self.rungs.items()}
        return other

    @property
    def top(self) -> int:
        """The highest level."""
        return self.number + len(self.rungs) - 1

    @property
    def room(self) -> int:
        """How many configurations are still to be started."""
        return self.rungs[self.number].quota - len(self.trials)

    @property
    def has_room(self) -> bool:
        """Whether one is."""
        return self.room > 0

    def adopt(self, quotas: Sequence[int]) -> None:
        """Set the quotas, lowest level first; they never shrink, and there may be more levels than before."""
        for level, count in enumerate(quotas, self.number):
            self.rungs.setdefault(level, Rung(count)).quota = count
        self._settle_anew()

    def start(self, trial: int) -> None:
        """Begin the next configuration as ``trial``."""
        self.trials.append(trial)

    def record(self, level: int, key: Key) -> None:
        """Take a first result in, and settle what it completes."""
        self.rungs[level].record(key)
        if level == self.frontier and (level == self.number or key[2] in self.awaited):
            self.missing -= 1
        self._settle()

    def rescore(self, keys: Iterable[tuple[int, Key]]) -> None:
        """Replace results, given as (level, key): promotions made stand, member sets are computed anew."""
        for level, key in keys:
            self.rungs[level].record(key)
        self._settle_anew()

    def promote(self, candidate: Candidate) -> None:
        """Send a candidate up."""
        self.rungs[-candidate[0]].promote(candidate[1])
        self._find()

    def candidate(self, *, settled: bool) -> Candidate | None:
        """The next promotion: highest level first, then best; with ``settled`` only into settled rungs."""
        return self._due if settled else self._any

    def promotable(self) -> int:
        """How many candidates there are now, if no result came meanwhile."""
        found = 0
        for level in range(self.number, self.top):
            rung = self.rungs[level]
            if rung.due is not None:
                found += len(rung.due)
            elif not self.barrier:
                found += rung.optimistic_now(self.eta, self.rungs[level + 1].quota)
        return found

    def members(self, level: int) -> tuple[int, ...] | None:
        """The trials of the synchronous member set at ``level``, or ``None`` while it is unknown."""
        if level == self.number:
            return None if self.has_room else tuple(self.trials)
        known = self.rungs[level].members
        return None if known is None else tuple(self.trials[index] for index in sorted(known))

    def _settle_anew(self) -> None:
        for rung in self.rungs.values():
            rung.unsettle()
        lowest = self.rungs[self.number]
        self.frontier, self.missing = self.number, lowest.quota - len(lowest.results)
        self.awaited: frozenset[int] = frozenset()  # above the lowest level: whose results are awaited
        self._settle()

    def _settle(self) -> None:
        while self.missing == 0 and self.frontier < self.top:
            rung, following = self.rungs[self.frontier], self.rungs[self.frontier + 1]
            if self.kept == "promoted":
                rung.settle_next(list(rung.unsent[: max(0, following.quota - len(rung.sent))]))
                following.members = frozenset(rung.sent.union(key[2] for key in rung.due or ()))
            else:
                chosen = rung.best_finite(following.quota, within=rung.members if self.kept == "none" else None)
                rung.settle_next(chosen)
                following.members = frozenset(key[2] for key in chosen)
            running = rung.sent if self.kept == "pool" else frozenset()  # what is measured here competes here
            self.frontier += 1
            self.awaited = (following.members | running).difference(following.results)
            self.missing = len(self.awaited)
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
                key = None if self.barrier else rung.optimistic(self.eta, self.rungs[level + 1].quota)
            self._any = self._any or (key and (-level, key))
