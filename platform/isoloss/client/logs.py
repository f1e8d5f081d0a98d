"""Where the lines of a service's log go: stderr, except that a line it does not take ends nobody.

It is often a file, and its disk may be full: whoever logs that must live to see room again.
"""

from __future__ import annotations

import contextlib
import sys
from typing import TextIO, cast


class _Stderr:
    def write(self, text: str) -> int:
        with contextlib.suppress(OSError):
            sys.stderr.write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            sys.stderr.flush()


STDERR = cast("TextIO", _Stderr())
