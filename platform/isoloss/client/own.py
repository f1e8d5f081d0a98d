"""The runs a user owns already, read here: nothing of the user's file system crosses to the controller."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import msgspec

from isoloss.domain.campaign import decode_campaign
from isoloss.domain.spec import encode
from isoloss.errors import InvalidSpec

LARGEST: Final = 3 << 20  # bytes; a controller takes messages of four MiB


def own_runs(spec: Mapping[str, Any], folder: Path) -> list[str]:
    """The rows of the files that a campaign's ``observations`` name, as JSON; ``InvalidSpec`` names file, row, column."""
    if not spec.get("observations"):
        return []
    from isoloss.files.tables import read_own

    rows = [msgspec.json.encode(row).decode() for row in read_own(decode_campaign(encode(spec)), folder)]
    if (size := sum(map(len, rows))) > LARGEST:
        raise InvalidSpec(f"observations hold {len(rows)} runs in {size} bytes; accepted are at most {LARGEST} in all.")
    return rows
