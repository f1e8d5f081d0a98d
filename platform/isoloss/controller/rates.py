"""How often a token may call: a bucket of calls each, filled at a steady rate, so that no script's loop starves the others."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

from isoloss.errors import Busy

BURST_SECONDS: Final = 2.0  # what a bucket holds: calls saved up while nobody called
MOST: Final = 10_000  # buckets; one that is forgotten is full again


class Rates:
    """The buckets of a controller; ``calls_per_second`` 0 lets everybody call as they like."""

    def __init__(self, calls_per_second: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate = calls_per_second
        self._most = max(1.0, calls_per_second * BURST_SECONDS)
        self._clock = clock
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()  # calls left, and when that was

    def take(self, token_id: str) -> None:
        """Count a call; ``Busy`` says when to come again. Who shows no token is alone on a loopback, and is not counted."""
        if not self._rate or not token_id:
            return
        now = self._clock()
        left, then = self._buckets.pop(token_id, (self._most, now))
        left = min(self._most, left + (now - then) * self._rate)
        self._buckets[token_id] = left - (left >= 1), now
        if len(self._buckets) > MOST:
            self._buckets.popitem(last=False)
        if left < 1:
            raise Busy(
                f"The token {token_id} makes more than {self._rate:g} calls a second; accepted are so many.",
                hint="`isoloss up --calls-per-second` allows more.",
                retry_seconds=(1 - left) / self._rate,
            )
