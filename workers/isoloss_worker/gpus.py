"""The GPUs of this machine, through NVML where it is there: how many, their names, the energy they have used."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any


def visible(environment: Mapping[str, str] = os.environ) -> tuple[int, ...]:
    """The GPUs this worker may use, by NVML's numbers (without NVML, by those of the devices there are)."""
    with _nvml() as nvml:
        count = int(nvml.nvmlDeviceGetCount()) if nvml else len(list(Path("/dev").glob("nvidia[0-9]*")))
    stated = environment.get("CUDA_VISIBLE_DEVICES")
    if stated is None:
        return tuple(range(count))
    return tuple(int(word) for word in stated.split(",") if word.strip().isdecimal() and int(word) < count)


def describe(gpu_ids: tuple[int, ...]) -> str:
    """The device as people name it: ``2 × NVIDIA H200``, or ``cpu``."""
    if not gpu_ids:
        return "cpu"
    with _nvml() as nvml:
        if nvml is None:
            return f"{len(gpu_ids)} × GPU"
        names = [_text(nvml.nvmlDeviceGetName(nvml.nvmlDeviceGetHandleByIndex(gpu))) for gpu in gpu_ids]
    kinds = sorted(set(names))
    return ", ".join(kind if names.count(kind) == 1 else f"{names.count(kind)} × {kind}" for kind in kinds)


def millijoules(gpu_ids: tuple[int, ...]) -> int | None:
    """Energy the devices have used since their driver was loaded, together; ``None`` where it is not measured."""
    with _nvml() as nvml:
        if nvml is None or not gpu_ids:
            return None
        handles = [nvml.nvmlDeviceGetHandleByIndex(gpu) for gpu in gpu_ids]
        try:
            return sum(int(nvml.nvmlDeviceGetTotalEnergyConsumption(handle)) for handle in handles)
        except nvml.NVMLError:
            return None


@contextlib.contextmanager
def _nvml() -> Iterator[ModuleType | None]:
    try:
        import pynvml
    except ImportError:
        yield None
        return
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        yield None
        return
    try:
        yield pynvml
    finally:
        pynvml.nvmlShutdown()


def _text(name: Any) -> str:
    return name.decode() if isinstance(name, bytes) else str(name)
