"""Joules of an attempt: the difference of the GPUs' own counters, or nothing. Never an estimate. And how busy a worker is.

The counter is a device's, so it is read for an attempt only where every slot has GPUs of its own.
"""

from __future__ import annotations

from typing import Any

from isoloss.v1 import work_pb2
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


class Gauge:
    """How busy a worker's GPUs are, or its machine where it has none."""

    def __init__(self, gpu_ids: gpus.GpuIds) -> None:
        self._gpu_ids = gpu_ids
        self._begun = gpus.millijoules(gpu_ids)
        self._psutil = _psutil()
        if self._psutil is not None:
            self._psutil.cpu_percent()  # from now to the first reading

    def read(self) -> work_pb2.Load | None:
        """The utilisation and memory of this moment, the joules since the worker began where they are measured; ``None`` for neither."""
        load = gpus.load(self._gpu_ids)
        if load is None and self._psutil is None:
            return None
        if load is None:
            memory = self._psutil.virtual_memory()
            load = self._psutil.cpu_percent() / 100, float(memory.total - memory.available), float(memory.total)
        message = work_pb2.Load(utilisation=load[0], memory_bytes=load[1], memory_total_bytes=load[2])
        now = gpus.millijoules(self._gpu_ids)
        if now is not None and self._begun is not None:
            message.joules, message.energy_source = (now - self._begun) / 1000, "nvml"
        return message


def _psutil() -> Any:
    """It comes with the worker's extra; an agent runs without."""
    try:
        import psutil
    except ModuleNotFoundError:
        return None
    return psutil
