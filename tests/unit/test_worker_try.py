"""`study try`: a trainer that keeps the contract passes, and each way of breaking it has its own ✗."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

TRAINERS = """
    import time
    def begin(trial):
        return int((trial.resume_from / "state").read_text()) if trial.resume_from else 0
    def good(trial):
        print("prints do not disturb")
        at = begin(trial)
        assert at == trial.budget_from
        for step in trial.steps():
            time.sleep(0.02)
            trial.report(step, val_loss=trial.params["lr"] + 1 / step)
        (trial.save_to / "state").write_text(str(trial.budget_to))
    def from_the_start(trial):
        for step in range(1, trial.budget_to + 1):
            trial.report(step, val_loss=trial.params["lr"] + 1 / step)
        (trial.save_to / "state").write_text("x")
    def forgetful(trial):
        for n, step in enumerate(trial.steps(), 1):
            trial.report(step, val_loss=trial.params["lr"] + trial.level + 1 / n)
        (trial.save_to / "state").write_text("x")
    def deaf(trial):
        for step in trial.steps(): trial.report(step, val_loss=1 / step)
        (trial.save_to / "state").write_text("x")
    def saves_nothing(trial):
        for step in trial.steps(): trial.report(step, val_loss=trial.params["lr"] + 1 / step)
    def mute(trial):
        (trial.save_to / "state").write_text("x")
        return {"accuracy": trial.params["lr"]}
    def raises(trial): raise RuntimeError("out of luck")
"""


def tried(tmp_path: Path, name: str) -> tuple[int, dict[str, dict[str, Any]]]:
    (tmp_path / "trainers.py").write_text(textwrap.dedent(TRAINERS))
    spec = {
        "name": "t", "space": {"lr": {"type": "float", "low": 1e-4, "high": 1e-1}}, "objective": {"metric": "val_loss"},
        "method": {"min_budget": 6, "max_budget": 18}, "run": {"function": f"trainers:{name}"},
    }  # fmt: skip
    command = [sys.executable, "-m", "isoloss_worker", "try"]
    done = subprocess.run(command, input=json.dumps(spec), cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode in (0, 1), done.stderr
    return done.returncode, {check["what"]: check for check in json.loads(done.stdout)["checks"]}


def test_a_trainer_that_keeps_the_contract_passes_every_check(tmp_path: Path) -> None:
    code, checks = tried(tmp_path, "good")
    assert code == 0
    assert all(check["ok"] for check in checks.values())
    assert checks["it survives a kill in mid-run"]["detail"].startswith("killed at ")
    assert "steps" in checks["price of the plan"]["detail"]


@pytest.mark.parametrize(
    ("name", "what", "detail"),
    [
        ("from_the_start", "the curve continues over the resume", "it reported step 1, outside 7 to 18"),
        ("forgetful", "the curve continues over the resume", "val_loss"),
        ("deaf", "parameters arrive", "gave equal metrics"),
        ("saves_nothing", "save_to is complete", "nothing was saved"),
        ("mute", "metrics come", "val_loss is missing"),
        ("raises", "it runs to its end", "RuntimeError: out of luck"),
    ],
)
def test_each_way_of_breaking_the_contract_has_its_own_cross(tmp_path: Path, name: str, what: str, detail: str) -> None:
    code, checks = tried(tmp_path, name)
    assert code == 1
    assert [check["what"] for check in checks.values() if not check["ok"]] == [what]
    assert detail in checks[what]["detail"]


@pytest.mark.parametrize(("text", "sentence"), [("{", "stdin is no JSON"), ('{"name": "x"}', "space")])
def test_a_spec_that_cannot_be_read_is_wrong_usage(text: str, sentence: str) -> None:
    command = [sys.executable, "-m", "isoloss_worker", "try"]
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert sentence in done.stderr
