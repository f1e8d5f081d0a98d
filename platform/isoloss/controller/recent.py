"""What a controller remembers without a row: as much as fits, the newest of it."""

from __future__ import annotations

from typing import Final, TypeVar

K = TypeVar("K")
V = TypeVar("V")
MOST: Final = 10_000


class Recent(dict[K, V]):
    """A mapping that forgets what was set longest ago, once it holds more than ``most`` (10,000).

    Only by ``memory[key] = value`` is something set: ``setdefault`` and ``update`` of a dict would pass it by.
    """

    def __init__(self, most: int | None = None) -> None:
        super().__init__()
        self._most = most or MOST

    def __setitem__(self, key: K, value: V) -> None:
        self.pop(key, None)
        super().__setitem__(key, value)
        if len(self) > self._most:
            del self[next(iter(self))]
