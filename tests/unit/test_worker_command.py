"""The contract with a user's own program: placeholders, environment, metrics file, exit codes."""

from __future__ import annotations

import json
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from isoloss.errors import InvalidSpec, TrainableFailed
from isoloss_worker.job import Diverged, Failed, Job, Preempted, Reporter, Values
from isoloss_worker.trainables.command import fill, judge_exit, run_command
from isoloss_worker.trainables.measured import Measured

PARAMS = {"lr": 1e-05, "batch": 16, "name": "adam w", "nesterov": True}


class News:
    """A reporter that remembers."""

    def __init__(self) -> None:
        self.points: list[tuple[int, Values]] = []
        self.saved: list[int] = []
        self.reporter = Reporter(lambda step, values: self.points.append((step, values)), self.saved.append)


def job(tmp_path: Path, code: str = "", *, command: list[str] | None = None, **changes: Any) -> Job:
    run = {"command": command or [sys.executable, "-c", textwrap.dedent(code)], **changes.pop("run", {})}
    values: dict[str, Any] = {
        "study": "p/s", "trial": 4, "level": 1, "params": PARAMS, "budget_from": 3, "decay_from": 8, "budget_to": 9,
        "save_to": str(tmp_path / "save"), "resume_from": str(tmp_path / "resume"), "seed": 5, "metrics": ("val_loss",),
    }  # fmt: skip
    return Job(**(values | changes), run=run)


REPORT = """
    import json, os
    def report(**row):
        with open(os.environ["ISOLOSS_METRICS"], "a") as file: file.write(json.dumps(row) + "\\n")
"""


def test_every_word_of_the_contract_is_replaced_in_a_command(tmp_path: Path) -> None:
    words = [
        "--lr={lr}",
        "{batch}",
        "{name}",
        "{nesterov}",
        "{budget_from}-{decay_from}-{budget_to}",
        "{seed}",
        "{gpus}",
    ]
    filled = fill([*words, "{resume_from}", "{save_to}", '{{"a": 1}}'], job(tmp_path, run={"gpus": 8}), tmp_path)
    assert filled[:7] == ["--lr=1e-05", "16", "adam w", "true", "3-8-9", "5", "8"]
    assert filled[7:] == [str(tmp_path / "resume"), str(tmp_path / "save"), '{"a": 1}']


def test_an_unknown_placeholder_is_refused_with_those_there_are(tmp_path: Path) -> None:
    with pytest.raises(InvalidSpec, match=r"run.command has \{lrr\}; accepted are batch, .*lr.*params_file:yaml"):
        fill(["{lrr}"], job(tmp_path), tmp_path)


def test_a_program_reads_the_same_from_files_and_environment(tmp_path: Path) -> None:
    code = (
        REPORT
        + """
    import shutil, sys
    shutil.copy(sys.argv[1], "seen.json"); shutil.copy(sys.argv[2], "seen.yaml")
    json.dump({k: v for k, v in os.environ.items() if k.startswith(("ISOLOSS_", "OWN"))}, open("env.json", "w"))
    report(step=9, val_loss=1.5)
    """
    )
    command = [sys.executable, "-c", textwrap.dedent(code), "{params_file}", "{params_file:yaml}"]
    news = News()
    values = run_command(job(tmp_path, command=command, run={"cwd": str(tmp_path), "env": {"OWN": "1"}}), news.reporter)
    assert values == {"val_loss": 1.5}
    assert json.loads((tmp_path / "seen.json").read_text()) == PARAMS
    assert yaml.safe_load((tmp_path / "seen.yaml").read_text()) == PARAMS
    seen = json.loads((tmp_path / "env.json").read_text())
    assert json.loads(seen["ISOLOSS_PARAMS"]) == PARAMS
    assert (seen["ISOLOSS_LR"], seen["ISOLOSS_NAME"], seen["OWN"]) == ("1e-05", "adam w", "1")
    assert (seen["ISOLOSS_BUDGET_FROM"], seen["ISOLOSS_DECAY_FROM"], seen["ISOLOSS_BUDGET_TO"]) == ("3", "8", "9")
    assert (seen["ISOLOSS_SAVE_TO"], seen["ISOLOSS_SEED"]) == (str(tmp_path / "save"), "5")


def test_reports_arrive_while_it_runs_under_our_names(tmp_path: Path) -> None:
    code = (
        REPORT
        + """
    report(step=4, **{"eval/loss": 2.0, "note": "text is no metric"})
    open(os.environ["ISOLOSS_METRICS"], "a").write("no json\\n")
    report(step=9, **{"eval/loss": 1.0, "extra": 7})
    """
    )
    news = News()
    values = run_command(job(tmp_path, code, run={"metrics": {"val_loss": "eval/loss"}}), news.reporter)
    assert news.points == [(4, {"val_loss": 2.0}), (9, {"val_loss": 1.0, "extra": 7.0})]
    assert values == {"val_loss": 1.0, "extra": 7.0}


def test_done_registers_the_trunk_before_the_program_ends(tmp_path: Path) -> None:
    code = (
        REPORT
        + """
    import pathlib, time
    save = pathlib.Path(os.environ["ISOLOSS_SAVE_TO"]); (save / "state").write_text("x"); (save / "DONE").touch()
    time.sleep(0.5)
    report(step=9, val_loss=1.0)
    """
    )
    news = News()
    run_command(job(tmp_path, code), news.reporter)
    assert news.saved == [8]


@pytest.mark.parametrize(("code", "how"), [(3, "exited with 3"), (1, "exited with 1")])
def test_any_other_exit_code_is_a_failure_that_is_tried_again(tmp_path: Path, code: int, how: str) -> None:
    with pytest.raises(Failed, match=how) as caught:
        run_command(job(tmp_path, f"raise SystemExit({code})"), News().reporter)
    assert caught.value.retryable


def test_a_program_that_a_signal_killed_is_said_to_be(tmp_path: Path) -> None:
    with pytest.raises(Failed, match="was killed by SIGSEGV"):
        run_command(job(tmp_path, "import os; os.kill(os.getpid(), 11)"), News().reporter)


@pytest.mark.parametrize("code", [-15, 1])
def test_who_was_told_to_leave_after_the_last_step_has_not_failed(tmp_path: Path, code: int) -> None:
    run = job(tmp_path)
    measured = Measured(run, News().reporter)
    measured.take(run.budget_to, {"val_loss": 1.0})
    with pytest.raises(Preempted):
        judge_exit(code, run, measured, asked=True)
    assert judge_exit(0, run, measured, asked=True) == {"val_loss": 1.0}
    with pytest.raises(Failed):
        judge_exit(code, run, measured, asked=False)


def test_75_is_preempted_and_saved_at_the_last_report(tmp_path: Path) -> None:
    code = (
        REPORT
        + """
    report(step=6, val_loss=2.0)
    open(os.path.join(os.environ["ISOLOSS_SAVE_TO"], "state"), "w").write("x")
    raise SystemExit(75)
    """
    )
    with pytest.raises(Preempted) as caught:
        run_command(job(tmp_path, code), News().reporter)
    assert caught.value.saved == 6


def test_75_at_the_step_that_done_names(tmp_path: Path) -> None:
    code = """
    import os
    open(os.path.join(os.environ["ISOLOSS_SAVE_TO"], "DONE"), "w").write("7")
    raise SystemExit(75)
    """
    with pytest.raises(Preempted) as caught:
        run_command(job(tmp_path, code), News().reporter)
    assert caught.value.saved == 7


def test_75_without_anything_saved_is_a_failure_and_no_endless_loop(tmp_path: Path) -> None:
    with pytest.raises(Failed, match="saved nothing"):
        run_command(job(tmp_path, "raise SystemExit(75)"), News().reporter)


def test_a_nan_objective_ends_the_program_and_is_a_divergence(tmp_path: Path) -> None:
    code = (
        REPORT
        + """
    import time
    report(step=4, val_loss=2.0, other=1.0); report(step=5, val_loss=float("nan"))
    time.sleep(60)
    """
    )
    with pytest.raises(Diverged) as caught:
        run_command(job(tmp_path, code), News().reporter)
    assert caught.value.step == 5
    assert caught.value.values["other"] == 1.0


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"command": ["no-such-program-here"]}, "cannot run .*No such file.*accepted is a program"),
        ({"run": {"cwd": "/no/such/folder"}}, "run.cwd is '/no/such/folder'"),
    ],
)
def test_what_cannot_run_here_is_refused_and_not_tried_again(
    tmp_path: Path, changes: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(InvalidSpec, match=sentence):
        run_command(job(tmp_path, **changes), News().reporter)


def test_python_is_the_workers_own_where_the_path_has_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    code = textwrap.dedent(REPORT) + "report(step=9, val_loss=1.0)"
    assert run_command(job(tmp_path, command=["python", "-c", textwrap.dedent(code)]), News().reporter) == {
        "val_loss": 1.0
    }


def test_what_a_program_leaves_running_ends_with_it(tmp_path: Path) -> None:
    code = (
        REPORT
        + """
    import subprocess, sys
    left = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    report(step=9, val_loss=1.0, pid=left.pid)
    """
    )
    pid = int(run_command(job(tmp_path, code), News().reporter)["pid"])
    status = Path(f"/proc/{pid}/stat")
    deadline = time.monotonic() + 5  # a killed process takes a moment to be gone
    while (
        alive := status.exists() and status.read_text().split()[2] not in ("Z", "X")
    ) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not alive


def test_a_command_that_ignores_its_budget_is_ended_and_not_tried_again(tmp_path: Path) -> None:
    code = (
        textwrap.dedent(REPORT)
        + "import time\nfor step in range(4, 100): report(step=step, val_loss=1 / step); time.sleep(0.05)"
    )
    news, begun = News(), time.monotonic()
    with pytest.raises(TrainableFailed, match="reported step 10, and its budget_to is 9; accepted are steps up to"):
        run_command(job(tmp_path, code), news.reporter)
    assert [step for step, _ in news.points] == [4, 5, 6, 7, 8, 9]
    assert time.monotonic() - begun < 4.5, "it is not left to run on"


@pytest.mark.parametrize("lines", [1, 3])
def test_a_metrics_file_written_anew_is_read_anew_and_no_step_counts_twice(
    tmp_path: Path, lines: int, capfd: pytest.CaptureFixture[str]
) -> None:
    code = f"""
        import json, os, time
        rows = []
        for step in range(4, 10):
            rows.append(json.dumps({{"step": step, "val_loss": 1 / step}}) + "\\n")
            open(os.environ["ISOLOSS_METRICS"], "w").write("".join(rows[-{lines}:]))
            time.sleep(0.5)
    """
    news = News()
    assert run_command(job(tmp_path, code), news.reporter) == {"val_loss": 1 / 9}
    assert [step for step, _ in news.points] == [4, 5, 6, 7, 8, 9]
    assert capfd.readouterr().out.count("was written anew: append to it") == 1


def test_lines_of_ten_megabytes_and_bytes_that_are_no_text_disturb_nothing(tmp_path: Path) -> None:
    code = (
        REPORT
        + """
    open(os.environ["ISOLOSS_METRICS"], "ab").write(b"\\xff\\xfe loss=3\\n")
    report(step=8, val_loss=2.0, note="x" * 10_000_000)
    open(os.environ["ISOLOSS_METRICS"], "ab").write(b"y" * 10_000_000 + b"\\n")
    report(step=9, val_loss=1.0)
    """
    )
    news = News()
    assert run_command(job(tmp_path, code), news.reporter) == {"val_loss": 1.0}
    assert news.points == [(8, {"val_loss": 2.0}), (9, {"val_loss": 1.0})]
