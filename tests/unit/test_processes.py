"""Processes for fits: one that is killed takes its work with it, and nothing else."""

from __future__ import annotations

import math
import os
import signal
import time
from concurrent.futures import BrokenExecutor

from isoloss.controller.processes import Processes


def test_a_killed_process_does_not_end_the_fits_that_come_later() -> None:
    with Processes() as processes:
        os.kill(processes.submit(os.getpid).result(), signal.SIGKILL)
        deadline, broke = time.monotonic() + 20, False
        while not broke and time.monotonic() < deadline:
            try:
                processes.submit(math.sqrt, 4.0).result()
            except BrokenExecutor:
                broke = True
        assert broke, "what was under way is lost"
        assert processes.submit(math.sqrt, 9.0).result() == 3.0
