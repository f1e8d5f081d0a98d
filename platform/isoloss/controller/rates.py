"""How often somebody may do something: a bucket each, filled at a steady rate, so that nobody's loop starves the others."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from isoloss.controller.recent import Recent
from isoloss.errors import Busy

BURST_SECONDS: Final = 2.0  # what a bucket holds: saved up while nobody called
GUESSES_PER_SECOND: Final = 5.0  # a whole cluster with an old token may stand behind one address


class Rates:
    """The buckets of a controller; a rate of 0 lets everybody do as they like. ``said`` is why, with ``who`` and ``rate``."""

    def __init__(
        self, per_second: float, said: str, hint: str = "", clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._rate = per_second
        self._said, self._hint = said, hint
        self._most = max(1.0, per_second * BURST_SECONDS)
        self._clock = clock
        self._buckets = Recent[
            str, tuple[float, float]
        ]()  # what is left, and when that was; one that is forgotten is full

    def take(self, who: str) -> None:
        """Count once; ``Busy`` says when to come again. Who has no name is alone on a loopback, and is not counted."""
        if not self._rate or not who:
            return
        left = self._left(who)
        self._buckets[who] = left - (left >= 1), self._clock()
        self._refuse(who, left)

    def check(self, who: str) -> None:
        """Raise ``Busy`` as the next ``take`` would, without counting."""
        if self._rate and who:
            self._refuse(who, self._left(who))

    def _left(self, who: str) -> float:
        left, then = self._buckets.get(who, (self._most, self._clock()))
        return min(self._most, left + (self._clock() - then) * self._rate)

    def _refuse(self, who: str, left: float) -> None:
        if left < 1:
            said = self._said.format(who=who, rate=f"{self._rate:g}")
            raise Busy(said, hint=self._hint, retry_seconds=(1 - left) / self._rate)


def of_tokens(calls_per_second: float, clock: Callable[[], float] = time.monotonic) -> Rates:
    """How often one token may call."""
    return Rates(
        calls_per_second, "The token {who} makes more than {rate} calls a second; accepted are so many.",
        "`isoloss up --calls-per-second` allows more.", clock,
    )  # fmt: skip


def of_guesses(clock: Callable[[], float] = time.monotonic) -> Rates:
    """How often one host may show tokens that nobody knows."""
    return Rates(
        GUESSES_PER_SECOND, "{who} shows more than {rate} unknown tokens a second; accepted are so many.", clock=clock
    )
