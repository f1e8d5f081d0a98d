"""What training costs as it runs: tokens a second, MFU, memory and energy, each only where it is measured."""

from __future__ import annotations

import time
from typing import NamedTuple

import torch

from isoloss_worker.energy import METRIC, Meter
from isoloss_worker.job import Values
from isoloss_worker.trainables.gpt.flops import peak_flops


class Mark(NamedTuple):
    """A moment of a run: how far it was, when, and the energy meter that began there."""

    tokens: int
    seconds: float
    meter: Meter


class Cost:
    """Measures one attempt on one device; ``gpu_ids`` are those whose energy is the attempt's alone.

    Rates are over the steps after the first one, which compiles and allocates; over all where there is one alone.
    """

    def __init__(self, device: torch.device, gpu_ids: tuple[str, ...], tokens: int) -> None:
        self._device = device
        self._gpu_ids = gpu_ids
        self._cpu_seconds = time.process_time()
        self._first = self._mark = Mark(tokens, time.perf_counter(), Meter(gpu_ids))
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)

    def first_step_done(self, tokens: int) -> None:
        """Count from here; the device has finished the step."""
        self._mark = Mark(tokens, time.perf_counter(), Meter(self._gpu_ids))

    def values(self, tokens: int, *, flops_per_token: int, bf16: bool) -> Values:
        """The metrics at the end of training; the device has finished."""
        cpu_seconds = time.process_time() - self._cpu_seconds
        since = self._mark if tokens > self._mark.tokens else self._first
        trained = max(1, tokens - since.tokens)
        rate = trained / (time.perf_counter() - since.seconds)
        found = {
            "cpu_us_per_token": 1e6 * cpu_seconds / max(1, tokens - self._first.tokens),
            "tokens_per_second": rate,
        }
        joules = since.meter.values().get(METRIC)
        if joules is not None:
            found["joules_per_token"] = joules / trained
        if self._device.type == "cuda":
            found["peak_bytes"] = float(torch.cuda.max_memory_allocated(self._device))
            peak = peak_flops(torch.cuda.get_device_name(self._device))
            if peak is not None and bf16:
                found["mfu"] = flops_per_token * rate / peak
        return found
