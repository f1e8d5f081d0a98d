"""The demo as a newcomer meets it: interrupted, resumed, and shown again."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from isoloss.testing.controller import temporary_home

COMMAND = [sys.executable, "-m", "isoloss.cli", "demo", "--quick", "--json"]


def demo(home: Path) -> subprocess.Popen[str]:
    env = {**os.environ, "ISOLOSS_HOME": str(home)}
    env.pop("ISOLOSS_ADDRESS", None)
    return subprocess.Popen(COMMAND, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env)


def left_behind(home: Path) -> list[str]:
    """Processes that still name the demo's home, 5 s after it ended: Python's own resource tracker sees its owner go,
    and goes a moment later."""
    deadline = time.monotonic() + 5
    while (found := of_home(home)) and time.monotonic() < deadline:
        time.sleep(0.05)
    return found


def of_home(home: Path) -> list[str]:
    found = []
    for process in psutil.process_iter(["pid", "cmdline"]):
        try:
            if process.pid != os.getpid() and str(home) in process.environ().get("ISOLOSS_HOME", ""):
                found.append(" ".join(process.info["cmdline"] or []))
        except psutil.Error:
            continue
    return found


@pytest.mark.long
def test_the_demo_survives_ctrl_c_resumes_the_same_campaign_and_then_shows_its_report() -> None:
    with temporary_home() as home:
        first = demo(home)
        begun = time.monotonic()
        assert first.stderr is not None
        seen = ""
        while "runs done" not in seen or time.monotonic() - begun < 25:
            seen += (line := first.stderr.readline())
            assert line, f"the demo ended early: {seen}"
            if "dashboard http" in line:
                assert time.monotonic() - begun < 15, "the address comes at once (3 s on an idle machine)"
        first.send_signal(signal.SIGINT)
        first.communicate(timeout=60)
        assert first.returncode == 130
        assert left_behind(home) == []

        second = demo(home)
        out, err = second.communicate(timeout=300)
        assert second.returncode == 0, err
        told: dict[str, Any] = json.loads(out.splitlines()[-1])
        assert told["deepened"] == 1 and len(told["neighbours"]) == 2 and told["trials"] >= 40
        assert told["forecast"]["loss_interval"][0] < told["forecast"]["loss"] < told["forecast"]["loss_interval"][1]
        assert any("too little data" in text for text in told["forecast"]["warnings"])
        assert left_behind(home) == []

        report = Path(told["report"]).read_text()
        assert report.count("<html") == 1 and not re.search(r'(src|href)="(https?:|[\w./]+")', report), "one file"
        begun = time.monotonic()
        third, _ = demo(home).communicate(timeout=60)
        assert json.loads(third.splitlines()[-1]) == told and time.monotonic() - begun < 15
