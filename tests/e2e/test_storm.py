"""A short kill storm; `poe storm` is the long one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.long
STORM = Path(__file__).parents[1] / "storm" / "storm.py"


def test_nothing_that_was_acknowledged_is_lost_in_a_storm() -> None:
    command = [sys.executable, str(STORM), "--rounds", "10", "--seed", "11", "--busy"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    assert "lost: 0" in done.stdout and "violations: []" in done.stdout
