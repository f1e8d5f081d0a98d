"""Training that does not fit: what counts as out of memory, and the outcome when nothing smaller is left to try."""

from __future__ import annotations

from typing import Final

import torch

from isoloss_worker.job import Failed

SENTENCES: Final = ("DefaultCPUAllocator: can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED")


class OutOfMemory(Failed):
    """The model does not fit; ``micro_batch`` is the last that was tried. The same device would fail again."""

    def __init__(self, micro_batch: int, *, what: str, device: str) -> None:
        super().__init__(
            f"OutOfMemory: {what} does not fit into {device}, at last with micro_batch {micro_batch}; accepted is a smaller "
            "model or context, or a larger device.",
            retryable=False,
        )
        self.micro_batch = micro_batch


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed: torch's own on a GPU has a class, the CPU's and cuBLAS's only a sentence."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and any(sentence in str(error) for sentence in SENTENCES)
    )
