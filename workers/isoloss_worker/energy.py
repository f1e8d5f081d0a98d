"""Joules of an attempt: the difference of the GPUs' own counters, or nothing. Never an estimate.

The counter is a device's, so it is read only where every slot has GPUs of its own.
"""

from __future__ import annotations

from isoloss_worker import gpus

METRIC = "joules"


class Meter:
    """Reads the counters of a slot's GPUs at the start and at the end of an attempt."""

    def __init__(self, gpu_ids: gpus.GpuIds) -> None:
        self._gpu_ids = gpu_ids
        self._begun = gpus.millijoules(gpu_ids)

    def values(self) -> dict[str, float]:
        """``joules`` since the start, where it was measured."""
        now = gpus.millijoules(self._gpu_ids)
        return {} if self._begun is None or now is None else {METRIC: (now - self._begun) / 1000}
