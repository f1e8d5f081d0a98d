"""What a token costs in floating-point operations, and what a GPU could do at most."""

from __future__ import annotations

import re
from typing import Final

# Dense bf16 without sparsity, by the name the driver gives. Other forms of the same chip (PCIe, NVL, MIG slices) have
# other clocks and peaks: a name that is not here has no MFU.
PEAKS: Final = (
    (re.compile(r"NVIDIA H100 80GB HBM3|NVIDIA H200"), 989e12),
    (re.compile(r"NVIDIA A100-(SXM4|SXM|PCIE|PCIe)-\d+GB|NVIDIA A100 80GB PCIe"), 312e12),
)


def flops_per_token(*, width: int, depth: int, context: int, vocabulary: int) -> int:
    """Training FLOPs a token: 6 · (12 · depth · width² + width · vocabulary) + 12 · depth · width · context.

    Every matrix that multiplies, the readout among them, counts two operations forward and four backward; attention
    counts in full, though half of it is masked; the embedding is a look-up and counts nothing.
    """
    return 6 * (12 * depth * width**2 + width * vocabulary) + 12 * depth * width * context


def peak_flops(device: str) -> float | None:
    """Bf16 operations a second of a GPU by its name; ``None`` where it is not known."""
    return next((peak for name, peak in PEAKS if name.fullmatch(device)), None)
