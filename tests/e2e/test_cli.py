"""The command line as a user types it: JSON, exit codes, one sentence for an error, never a traceback."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import isoloss
from isoloss.client.locate import Local
from isoloss.testing.controller import controller, temporary_home

SPEC = """
name: {name}
space: {{lr: {{type: float, low: 1e-4, high: 1e-1, log: true}}}}
objective: {{metric: val_loss}}
method: {{name: idhb, min_budget: 1, max_budget: 81, brackets: all}}
budget: {{unit: epochs}}
"""


@pytest.fixture(scope="module")
def local() -> Iterator[Local]:
    with temporary_home(), controller() as found:
        yield found


def run(*words: str, address: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, **environment} | ({"ISOLOSS_ADDRESS": address} if address else {})
    return subprocess.run(
        [sys.executable, "-m", "isoloss.cli", *words], check=False, capture_output=True, text=True, env=env
    )


def answer(*words: str, address: str = "") -> Any:
    done = run(*words, "--json", address=address)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture
def spec(tmp_path: Path) -> Path:
    file = tmp_path / "spec.yaml"
    file.write_text(SPEC.format(name=tmp_path.name))
    return file


def test_preview_needs_no_service_and_gives_the_published_figures(spec: Path) -> None:
    told = answer("study", "preview", str(spec), "--deepen", "243")
    assert [b["rungs"][0]["configurations"] for b in told["brackets"]] == [243, 98, 41, 18, 9, 6]
    assert (told["tasks"], told["total_budget"], told["resumed_budget"]) == (611, 8457, 6831)
    assert (told["added_tasks"], told["added_resumed_budget"], told["restart_resumed_budget"]) == (405, 5250, 8412)


def test_a_study_is_launched_shown_deepened_and_stopped(local: Local, spec: Path) -> None:
    name = spec.parent.name
    assert answer("study", "launch", str(spec), address=local.address)["state"] == "active"
    assert answer("study", "show", name, address=local.address)["next_deepening"]["max_budget"] == 243
    assert "deepen" in run("study", "show", name, address=local.address).stdout
    assert answer("study", "deepen", name, "--max-budget", "243", address=local.address)["max_budget"] == 243
    assert "ask" in answer("study", "why", name, address=local.address)["sentences"][0]
    assert name in [s["name"] for s in answer("study", "ls", address=local.address)["studies"]]
    assert answer("study", "replay", name, address=local.address)["same"]
    assert answer("study", "stop", name, address=local.address)["state"] == "stopped"
    refused = run("study", "deepen", name, "--max-budget", "729", address=local.address)
    assert refused.returncode == 4 and "is stopped" in refused.stderr and "Traceback" not in refused.stderr


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("study", "show", "nope"), 3, "There is no study 'nope'"),
        (("campaign", "show", "nope"), 3, "There is no campaign 'nope'"),
        (("study", "best", "nope"), 3, "There is no study"),
        (("worker", "drain", "nope"), 3, "There is no worker 'nope'"),
        (("study", "deepen", "nope", "--max-budget", "many"), 3, "nope"),
        (("study", "shwo"), 2, "shwo"),
        (("study", "launch", "/no/such/file.yaml"), 3, "file.yaml"),
    ],
)  # fmt: skip
def test_an_error_is_one_sentence_with_its_exit_code_and_stdout_stays_empty(
    local: Local, words: tuple[str, ...], code: int, said: str
) -> None:
    done = run(*words, "--json", address=local.address)
    assert (done.returncode, done.stdout) == (code, ""), done.stderr
    assert said in done.stderr and "Traceback" not in done.stderr


def test_logs_are_followed_until_nothing_more_can_come(local: Local) -> None:
    def explode(trial: isoloss.Trial) -> None:
        raise RuntimeError("out of cheese")

    with isoloss.connect(local.address) as client:
        study = client.create_study(
            "followed", space={"lr": isoloss.Float(1e-4, 1e-1, log=True)}, objective=isoloss.minimize("val_loss"),
            method=isoloss.Fixed(budget=1), limits={"trials": 2},
        )  # fmt: skip
        study.optimize(explode)
    lines = run("study", "logs", "followed", "1", "--follow", "--json", address=local.address).stdout.splitlines()
    said = [json.loads(line) for line in lines]
    assert [(one["trial"], one["attempt"], one["state"]) for one in said] == [(1, n, "failed") for n in (1, 2, 3)]
    assert all("out of cheese" in one["text"] for one in said)
    assert answer("study", "logs", "followed", address=local.address)["logs"][0]["trial"] == 0
    assert "has no trial 2; it has 2" in run("study", "logs", "followed", "2", address=local.address).stderr


def test_without_a_controller_it_says_how_to_get_one(tmp_path: Path) -> None:
    done = run("study", "ls", ISOLOSS_HOME=str(tmp_path))
    assert done.returncode == 5 and "`isoloss up` starts one" in done.stderr


def test_status_says_whom_it_asked_and_a_ledger_without_events_replays(local: Local, spec: Path) -> None:
    assert answer("status", address=local.address)["address"] == local.address
    assert answer("study", "launch", str(spec), address=local.address)["seq"] == 0
    assert answer("study", "replay", spec.parent.name, address=local.address) == {"events": 0, "same": True}


def test_a_database_without_migrations_has_a_status(local: Local) -> None:
    import psycopg

    with psycopg.connect(local.dsn, autocommit=True) as conn:
        conn.execute("CREATE DATABASE fresh")
    dsn = psycopg.conninfo.make_conninfo(local.dsn, dbname="fresh")
    assert answer("db", "status", "--dsn", dsn)["migrations"] == []


def test_a_stated_port_in_use_is_an_error_and_so_is_the_open_network(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        done = run("up", "--listen", f"127.0.0.1:{taken.getsockname()[1]}", ISOLOSS_HOME=str(tmp_path))
    assert done.returncode == 2 and "a port in use; accepted is a free port" in done.stderr
    done = run("up", ISOLOSS_HOME=str(tmp_path), ISOLOSS_LISTEN="0.0.0.0:7070")  # only the flag makes certificates
    assert done.returncode == 2 and "without TLS" in done.stderr
    done = run(
        "up", "--dsn", "nonsense here", "--listen", "127.0.0.1:0", "--dash", "127.0.0.1:0", ISOLOSS_HOME=str(tmp_path)
    )
    assert done.returncode == 5 and "no connection string" in done.stderr and "Traceback" not in done.stderr


def test_watch_prints_one_object_a_line(local: Local, spec: Path) -> None:
    name = spec.parent.name
    answer(
        "study",
        "launch",
        str(spec),
        "--set",
        "limits.trials=0",
        "--set",
        "method.brackets=first:1",
        address=local.address,
    )
    answer("study", "deepen", name, "--max-budget", "243", address=local.address)
    done = run("study", "watch", name, "--until-idle", "--json", address=local.address)
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert [event["kind"] for event in events] == ["deepened"]


def test_a_study_is_changed_explained_and_replayed_from_the_command_line(local: Local, tmp_path: Path) -> None:
    def say(*words: str) -> Any:
        return answer("study", *words, address=local.address)

    spec = tmp_path / "small.yaml"
    spec.write_text(SPEC.format(name="changed").replace("max_budget: 81, brackets: all", "max_budget: 9"))
    say("launch", str(spec))
    rows = tmp_path / "known.csv"
    rows.write_text("lr\n0.003\n")
    say("enqueue", "changed", str(rows))
    with isoloss.connect(local.address) as client:
        client.study("changed").optimize(lambda trial: {"val_loss": abs(trial.params["lr"] - 0.003)})
    assert say("widen", "changed", "--dry-run")["added_tasks"] == 13
    assert say("deepen", "changed", "--max-budget", "27", "--dry-run")["added_tasks"] == 27
    assert say("show", "changed")["width"] == 1
    assert say("best", "changed", "--settled")["params"]["lr"] == 0.003
    assert say("widen", "changed")["width"] == 2
    wider = tmp_path / "wider.yaml"
    wider.write_text("space: {lr: {type: float, low: 1e-6, high: 1, log: true}}")
    assert say("space", "changed", str(wider))["width"] == 2
    done = run("study", "best", "changed", "--settled", address=local.address)  # widening opened every rung
    assert done.returncode == 3
    told = say("why", "changed", "0")
    assert [reason["code"] for reason in told["trials"]] == ["at_top"]
    other = say("replay", "changed", "--method", "asha")
    assert other["same"] and other["other"]["method"] == "asha settled" and other["other"]["best"]["score"] == 0.0
    done = run("study", "retry", "changed", address=local.address)
    assert done.returncode == 2 and "accepted is one of the two" in done.stderr
    done = run("study", "retry", "changed", "7", address=local.address)
    assert done.returncode == 4 and "did not fail" in done.stderr


def test_a_preference_is_changed_from_the_command_line(local: Local, tmp_path: Path) -> None:
    wish = "desirability: {{val_loss: {{shape: smaller, target: 0, limit: {limit}}}}}"
    spec, other = tmp_path / "wish.yaml", tmp_path / "other.yaml"
    spec.write_text(
        SPEC.format(name="wish").replace("objective: {metric: val_loss}", wish.format(limit=9)).replace("81", "9")
    )
    other.write_text(wish.format(limit=1e-9))
    answer("study", "launch", str(spec), address=local.address)
    with isoloss.connect(local.address) as client:
        client.study("wish").optimize(lambda trial: {"val_loss": abs(trial.params["lr"] - 0.003) + 1})
    told = answer("study", "best", "wish", address=local.address)
    assert told["near"][0]["number"] == told["number"] and told["preference"]["vetoed"] == 0
    shown = run("study", "best", "wish", address=local.address).stdout
    assert "near: trial" in shown and "100% of the space is worth something" in shown
    done = run("study", "prefer", "wish", str(other), address=local.address)
    assert done.returncode == 0 and "veto 100%" in done.stdout + done.stderr
    assert answer("study", "show", "wish", address=local.address)["preference"]["version"] == 2
    assert answer("study", "replay", "wish", address=local.address)["same"]
    other.write_text("space: {}")
    done = run("study", "prefer", "wish", str(other), address=local.address)
    assert done.returncode == 2 and "has no desirability" in done.stderr


def test_preview_simulates_the_time_and_warns(tmp_path: Path) -> None:
    spec = tmp_path / "w.yaml"
    spec.write_text(SPEC.format(name="timed") + "fixed: {warmup_epochs: 5}\n")
    told = answer("study", "preview", str(spec), "--workers", "8", "--seconds-per-unit", "2")
    assert told["wall"]["interval"][0] <= told["wall"]["seconds"] <= told["wall"]["interval"][1]
    assert "still warming up" in told["warnings"][0]
    smaller = tmp_path / "smaller.yaml"
    smaller.write_text(SPEC.format(name="smaller").replace("81", "27"))
    beside = answer("study", "preview", str(spec), "--against", str(smaller))
    assert (beside["tasks"], beside["against"]["tasks"]) == (206, 69)
    done = run("study", "preview", str(spec), "--set", "method.width=auto", "--workers", "8")
    assert done.returncode == 2 and "no end" in done.stderr
