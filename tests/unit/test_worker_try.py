"""`study try`: a trainer that keeps the contract passes, and each way of breaking it has its own ✗."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from isoloss_worker.rehearsal import rehearse_stdin

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


PROGRAM = """
    import json, os, pathlib, signal, subprocess, sys, time
    names = ("BUDGET_FROM", "BUDGET_TO", "RESUME_FROM", "SAVE_TO", "METRICS", "LR")
    low, high, resume, save, metrics, lr = (os.environ[f"ISOLOSS_{name}"] for name in names)
    low, high, lr, what = int(low), int(high), float(lr), sys.argv[1]
    def report(step, mode="a", **row):
        with open(metrics, mode) as file: file.write(json.dumps({"step": step, **row}) + "\\n")
    def keep(step): (pathlib.Path(save) / "state").write_text(str(step))
    def leave(*_):
        keep(at); sys.exit(75)
    if what == "saves_when_asked":
        signal.signal(signal.SIGTERM, leave)
        assert not resume or int((pathlib.Path(resume) / "state").read_text()) == low
    if what == "crashes": print("out of luck", file=sys.stderr); sys.exit(3)
    for at in range(low + 1, (high if what != "ignores_its_budget" else 99) + 1):
        if what == "garbage": open(metrics, "ab").write(b"\\xff loss=3\\n")
        elif what == "nan": report(at, val_loss=float("nan"))
        elif what == "rewrites": report(at, "w", val_loss=lr + 1 / at); time.sleep(0.25)
        elif what == "long_lines":
            report(at, val_loss=lr + 1 / at, note="x" * 10_000_000); print("y" * 10_000_000, file=sys.stderr)
        elif what != "silent": report(at, val_loss=lr + 1 / at)
        time.sleep(0.3 if what == "saves_when_asked" else 0.05)
    if what == "forks":
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True)
    if what != "saves_nothing": keep(high)
    if what == "never_exits": time.sleep(600)
"""


Tried = Callable[[dict[str, Any]], tuple[int, dict[str, dict[str, Any]]]]


def function(name: str) -> dict[str, Any]:
    return {"function": f"trainers:{name}"}


def program(what: str) -> dict[str, Any]:
    return {"command": [sys.executable, "program.py", what]}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "trainers.py").write_text(textwrap.dedent(TRAINERS))
    (tmp_path / "program.py").write_text(textwrap.dedent(PROGRAM))
    return tmp_path


@pytest.fixture
def tried(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Tried:
    """Try a run as the command does, but in this process: what the command imports costs more than all else."""
    monkeypatch.chdir(folder)

    def do(run: dict[str, Any]) -> tuple[int, dict[str, dict[str, Any]]]:
        monkeypatch.setattr(sys, "stdin", io.StringIO(text_of(run)))
        with capture_logs():
            code = rehearse_stdin("3s")
        return code, read(capsys.readouterr().out)

    return do


def text_of(run: dict[str, Any]) -> str:
    return json.dumps({
        "name": "t", "space": {"lr": {"type": "float", "low": 1e-4, "high": 1e-1}}, "objective": {"metric": "val_loss"},
        "method": {"min_budget": 6, "max_budget": 18}, "run": run,
    })  # fmt: skip


def read(stdout: str) -> dict[str, dict[str, Any]]:
    said = [json.loads(line) for line in stdout.splitlines()]
    checks = {one["what"]: one for one in said if "what" in one}
    assert all(bool(check["change"]) != check["ok"] for check in checks.values()), "every ✗ says what to change"
    return checks | {key: value for one in said if "price" in one for key, value in one.items()}


def test_a_trainer_that_keeps_the_contract_passes_every_check(folder: Path) -> None:
    command = [sys.executable, "-m", "isoloss_worker", "try", "--patience", "3s"]
    text = text_of(function("good"))
    done = subprocess.run(command, input=text, cwd=folder, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    checks = read(done.stdout)
    price = checks.pop("price")
    assert all(check["ok"] for check in checks.values())
    assert (price["tasks"], price["budget"], price["unit"]) == (4, 30, "steps")
    assert price["seconds"] == pytest.approx(30 * price["seconds_per_unit"] + 4 * price["start_seconds"])
    assert price["gpu_hours"] == pytest.approx(price["seconds"] / 3600)
    assert 0.02 <= price["seconds_per_unit"] < 0.1
    assert checks["it survives a kill in mid-run"]["detail"].startswith("killed at ")
    assert "steps" in checks["price of the plan"]["detail"]


@pytest.mark.parametrize(
    ("name", "what", "detail"),
    [
        ("from_the_start", "the curve continues over the resume", "it resumed at 6 and reported step 1"),
        ("forgetful", "the curve continues over the resume", "val_loss"),
        ("deaf", "parameters arrive", "gave equal metrics"),
        ("saves_nothing", "save_to is complete", "nothing was saved"),
        ("mute", "metrics come", "val_loss is missing"),
        ("raises", "it runs to its end", "RuntimeError: out of luck"),
    ],
)
def test_each_way_of_breaking_the_contract_has_its_own_cross(tried: Tried, name: str, what: str, detail: str) -> None:
    code, checks = tried(function(name))
    assert code == 1
    assert [key for key, check in checks.items() if not check.get("ok", True)] == [what]
    assert detail in checks[what]["detail"]


@pytest.mark.parametrize(("text", "sentence"), [("{", "stdin is no JSON"), ('{"name": "x"}', "space")])
def test_a_spec_that_cannot_be_read_is_wrong_usage(text: str, sentence: str) -> None:
    command = [sys.executable, "-m", "isoloss_worker", "try"]
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert sentence in done.stderr


@pytest.mark.parametrize(
    ("word", "what", "detail", "change"),
    [
        ("ignores_its_budget", "it runs to its end", "reported step 7, and its budget_to is 6", "Stop at budget_to"),
        ("silent", "metrics come", "val_loss is missing; 0 reports", '{"step": 6, "val_loss": 1.5}'),
        ("nan", "it runs to its end", "no finite number at step 1", "ranks such a trial last"),
        ("garbage", "metrics come", "a line that is no JSON object of numbers: b'\\xff loss=3'", "Append lines"),
        ("never_exits", "it runs to its end", "said nothing for 3", "End the program at budget_to"),
        ("saves_nothing", "save_to is complete", "nothing was saved", "Save the state at decay_from"),
        ("crashes", "it runs to its end", "exited with 3.\nout of luck", "Mend what its last words name"),
    ],
)
def test_each_bad_program_has_its_own_cross_and_is_told_what_to_change(
    tried: Tried, word: str, what: str, detail: str, change: str
) -> None:
    code, checks = tried(program(word))
    assert code == 1
    assert [key for key, check in checks.items() if not check.get("ok", True)] == [what]
    assert detail in checks[what]["detail"]
    assert change in checks[what]["change"]


@pytest.mark.parametrize("word", ["rewrites", "long_lines", "forks"])
def test_what_the_worker_copes_with_is_no_cross(tried: Tried, word: str) -> None:
    code, checks = tried(program(word))
    assert (code, checks["metrics come"]["detail"].startswith("6 reports")) == (0, True)
    assert ("was written anew" in checks["metrics come"]["detail"]) == (word == "rewrites")


def test_a_program_that_saves_when_asked_goes_on_from_there(tried: Tried) -> None:
    code, checks = tried(program("saves_when_asked"))
    assert code == 0, [check for check in checks.values() if not check.get("ok", True)]
    said = checks["it leaves when asked to"]["detail"].partition(": it saved and exited with 75; begins again at ")
    assert said[0].startswith("SIGTERM at ") and 3 <= int(said[2]) < 6
    assert checks["the curve continues in mid-run"]["detail"].startswith("val_loss ")
