"""Whole studies with a real controller, real Postgres and real workers: how tasks end, and who may leave when."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import textwrap
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from isoloss.cli import run
from isoloss.client.blocking import Client, Study
from isoloss.files.spec import load_spec
from isoloss.store import projects, tasks
from isoloss.store.pool import Pool
from isoloss.testing.cluster import Cluster, until_idle, wait_until

EXAMPLES = Path(__file__).parents[2] / "platform" / "examples"
TRAINERS = """
    import math, os, sys, time
    def fine(trial):
        for step in trial.steps():
            trial.report(step, val_loss=(math.log10(trial.params["lr"]) + 2) ** 2 + 1 / step)
        (trial.save_to / "state").write_text(str(trial.budget_to))
    def slow(trial):
        for step in trial.steps():
            time.sleep(0.3)
            trial.report(step, val_loss=trial.params["lr"])
    def sleeps(trial):
        trial.report(1, val_loss=1.0)
        time.sleep(60)
    def crashes(trial):
        if trial.number == 0: os._exit(139)
        return 1.0
    def nan(trial): trial.report(2, val_loss=float("nan"))
    def on_a_sound_machine(trial):
        if os.environ.get("BROKEN"): raise RuntimeError("CUDA error: an illegal memory access was encountered")
        time.sleep(0.1)
        return 1.0
    def silent(trial): return {"accuracy": 1.0}
    def talks(trial):
        print("\\0 " + "x" * 20_000)
        for line in range(100): print("line", line)
        while not os.path.exists("enough"): time.sleep(0.05)
        print("the end", file=sys.stderr)
        return 1.0
"""
PROGRAM = """
    import json, os, pathlib, sys, time
    save, resume = pathlib.Path(os.environ["ISOLOSS_SAVE_TO"]), os.environ["ISOLOSS_RESUME_FROM"]
    def report(step, mode="a"):
        with open(os.environ["ISOLOSS_METRICS"], mode) as file:
            file.write(json.dumps({"step": step, "val_loss": 1 / step}) + "\\n")
    if sys.argv[1] == "fails":
        print("the last words", file=sys.stderr); sys.exit(3)
    if sys.argv[1] == "mute": sys.exit(0)
    if sys.argv[1] == "preempted" and not resume:
        report(1); (save / "state").write_text("1"); sys.exit(75)
    start = int((pathlib.Path(resume) / "state").read_text()) if resume else 0
    assert start == int(os.environ["ISOLOSS_BUDGET_FROM"])
    if sys.argv[1] == "never-exits": report(3); (save / "state").write_text("3"); time.sleep(60)
    if sys.argv[1] == "saves-and-waits" and not resume:
        report(1); (save / "state").write_text("1"); (save / "DONE").write_text("1"); time.sleep(0 if pathlib.Path("go").exists() else 60)
    if sys.argv[1] == "shrinks":
        for step in (1, 2, 3): report(step, "w"); time.sleep(0.5)
        sys.exit(0)
    if sys.argv[1] == "long-lines": print("x" * 10_000_000); open(os.environ["ISOLOSS_METRICS"], "a").write("y" * 10_000_000 + "\\n")
    if sys.argv[1] == "past-its-budget":
        for step in range(1, 100): report(step); time.sleep(0.1)
    for step in range(start + 1, int(os.environ["ISOLOSS_BUDGET_TO"]) + 1): report(step)
    (save / "state").write_text(os.environ["ISOLOSS_BUDGET_TO"])
"""


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with Cluster(lease_seconds=3) as cluster:
        (cluster.home / "trainers.py").write_text(textwrap.dedent(TRAINERS))
        (cluster.home / "program.py").write_text(textwrap.dedent(PROGRAM))
        yield cluster


@pytest.fixture
def client(cluster: Cluster) -> Iterator[Client]:
    with cluster.client() as client:
        yield client
    cluster.kill_workers()


def one(client: Client, name: str, run: Mapping[str, Any], *, trials: int = 1, budget: int = 3) -> Study:
    """A study of so many trials at one budget."""
    return client.launch_study(
        {
            "name": name, "space": {"lr": {"type": "float", "low": 1e-4, "high": 1e-1, "log": True}},
            "objective": {"metric": "val_loss"}, "method": {"name": "fixed", "budget": budget}, "run": dict(run),
            "limits": {"trials": trials},
        }
    )  # fmt: skip


def levels(study: Study) -> list[tuple[str, dict[str, float], str]]:
    return [(level.state, dict(level.values), level.message) for trial in study.trials() for level in trial.levels]


def test_what_no_worker_allows_is_not_run_and_the_study_says_so(cluster: Cluster, client: Client) -> None:
    # the first test: a worker that was killed counts as there for a minute
    study = one(client, "forbidden", {"function": "trainers:fine"})
    cluster.worker("strict", allow=("trainers:other",), allow_command=("python other.py",))
    wait_until(lambda: any("none of them allows 'function:trainers:fine'" in why for why in study.why()), 10)
    assert cluster.attempts("forbidden") == []
    study.stop()


def test_the_function_example_runs_deepens_and_finds_a_good_rate(cluster: Cluster, client: Client) -> None:
    cluster.worker("example", slots=2, allow=("train:main",), cwd=EXAMPLES)
    study = client.launch_study(load_spec(EXAMPLES / "tiny_lr.yaml"))
    until_idle(study)
    before = {trial.number: trial.levels for trial in study.trials()}
    study.deepen(27)
    until_idle(study)
    after = {trial.number: trial.levels for trial in study.trials()}
    assert all(after[number][: len(had)] == had for number, had in before.items()), "nothing that ran is run again"
    assert max(level.budget for had in after.values() for level in had) == 27
    assert study.best_value < 0.1
    assert set(cluster.attempts("tiny-lr")) == {"ok"}


def test_how_programs_and_functions_end_is_what_their_tasks_become(cluster: Cluster, client: Client) -> None:
    studies = {
        name: one(client, name, {"command": ["python", "program.py", name]})
        for name in ("succeeds", "preempted", "mute", "fails")
    }
    studies |= {
        name: one(client, name, {"function": f"trainers:{name}"}, trials=2 if name == "crashes" else 1)
        for name in ("nan", "silent", "crashes")
    }
    cluster.worker("endings", slots=2, everything=True)
    for study in studies.values():
        until_idle(study)

    ((state, values, _),) = levels(studies["succeeds"])
    assert (state, values["val_loss"]) == ("ok", 1 / 3)
    assert cluster.attempts("succeeds") == ["ok"]

    ((state, values, _),) = levels(studies["preempted"])
    assert (state, values["val_loss"]) == ("ok", 1 / 3)
    assert cluster.attempts("preempted") == ["released", "ok"]

    ((state, _, message),) = levels(studies["mute"])
    assert state == "failed"
    assert message.startswith("The trainer ended without its metric val_loss (it reported no metric)")

    ((state, _, message),) = levels(studies["fails"])
    assert (state, message) == ("failed", "The command exited with 3.\nthe last words")
    assert cluster.attempts("fails") == ["failed"] * 3

    ((state, _, _),) = levels(studies["nan"])
    assert state == "diverged"

    ((state, _, message),) = levels(studies["silent"])
    assert state == "failed" and "without its metric val_loss (it reported accuracy)" in message

    first, second = levels(studies["crashes"])
    assert (first[0], first[2]) == ("failed", "The child process ended with exit code 139.")
    assert second[0] == "ok", "the study goes on"
    assert cluster.attempts("crashes") == ["failed", "failed", "failed", "ok"]


def test_what_bad_programs_do_ends_their_trial_or_nothing_and_never_the_worker(
    cluster: Cluster, client: Client
) -> None:
    names = ("past-its-budget", "never-exits", "shrinks", "long-lines")
    studies = {
        name: one(
            client, name, {"command": ["python", "program.py", name], "timeout": 2 if name == "never-exits" else 60}
        )
        for name in names
    }
    worker = cluster.worker("bad-programs", slots=2, allow_command=("python program.py",))
    for study in studies.values():
        until_idle(study, 60)
    said = {name: levels(study) for name, study in studies.items()}
    ((state, _, message),) = said["past-its-budget"]
    assert (state, cluster.attempts("past-its-budget")) == ("failed", ["failed"]), "once is enough"
    assert "reported step 4, and its budget_to is 3" in message
    ((state, _, message),) = said["never-exits"]
    assert state == "failed" and message.startswith("The run took longer than run.timeout, 2 s.")
    for name in ("shrinks", "long-lines"):
        assert [(state, values["val_loss"]) for state, values, _ in said[name]] == [("ok", 1 / 3)], name
    assert worker.process.poll() is None
    assert "Traceback" not in worker.said


def test_a_terminated_worker_gives_its_task_back_and_another_goes_on(cluster: Cluster, client: Client) -> None:
    study = one(client, "given-back", {"function": "trainers:sleeps"})
    leaving = cluster.worker("leaving", everything=True)
    wait_until(lambda: study.info().tasks.get("leased"), 20)
    begun = time.monotonic()
    assert leaving.terminate() == 0
    assert time.monotonic() - begun < 6
    assert cluster.attempts("given-back") == ["released"]
    assert study.info().tasks == {"ready": 1}
    study.stop()


def test_a_drained_worker_finishes_what_it_holds_and_leaves(cluster: Cluster, client: Client) -> None:
    study = one(client, "drained", {"function": "trainers:slow"}, trials=3, budget=5)
    worker = cluster.worker("drained", everything=True)
    wait_until(lambda: study.info().tasks.get("leased"), 20)
    client.drain_worker("drained")
    assert worker.process.wait(15) == 0
    assert cluster.attempts("drained") == ["ok"]
    study.stop()


def test_a_worker_leaves_by_itself_when_there_was_nothing_to_do_for_so_long_and_never_at_work(
    cluster: Cluster, client: Client
) -> None:
    study = one(client, "all-there-is", {"function": "trainers:slow"}, trials=2, budget=10)
    worker = cluster.worker("leaves", everything=True, leave_after="1s")
    until_idle(study)
    at_rest = time.monotonic()
    assert worker.process.wait(15) == 0 and 0.5 < time.monotonic() - at_rest < 6
    assert cluster.attempts("all-there-is") == ["ok", "ok"] and "worker.left" in worker.said
    wrong = cluster.worker("wrong", leave_after="soon")
    assert wrong.process.wait(15) == 2 and "--leave-after is 'soon'; accepted is a duration" in wrong.said


def test_what_a_trainer_prints_is_seen_while_it_runs_and_kept_bounded_and_so_is_how_busy_a_worker_is(
    cluster: Cluster, client: Client
) -> None:
    study = one(client, "talks", {"function": "trainers:talks"})
    cluster.worker("heard", everything=True)
    wait_until(lambda: any(log["text"].endswith("line 99") for log in study.logs()), 20, what="the lines of what runs")
    (log,) = study.logs()
    assert (log["trial"], log["attempt"], log["worker"], log["state"]) == (0, 1, "heard", "running")
    assert log["text"].splitlines()[0] == "line 50" and "\0" not in log["text"]
    load = next(worker["load"] for worker in client.workers() if worker["worker_id"] == "heard")
    assert 0 < load["memory_bytes"] < load["memory_total_bytes"] and load["utilisation"] >= 0
    assert "joules" not in load and not load.get("energy_source"), "nothing is measured here, and nothing invented"
    (cluster.home / "enough").touch()
    until_idle(study)
    (log,) = study.logs(0)
    assert log["state"] == "ok" and log["text"].endswith("line 99\nthe end")


def test_a_stopped_study_ends_what_runs_within_a_heartbeat_and_the_slot_serves_others(
    cluster: Cluster, client: Client
) -> None:
    study = one(client, "stopped", {"function": "trainers:sleeps"})
    cluster.worker("busy", everything=True)
    wait_until(lambda: study.info().tasks.get("leased"), 20)
    study.stop()
    wait_until(lambda: cluster.attempts("stopped") == ["cancelled"], 5)
    other = one(client, "after-the-stop", {"function": "trainers:fine"})
    until_idle(other)
    assert cluster.attempts("after-the-stop") == ["ok"]


def test_a_controller_killed_and_started_again_under_a_worker_loses_nothing(cluster: Cluster, client: Client) -> None:
    study = one(client, "outage", {"function": "trainers:slow"}, trials=4, budget=6)
    cluster.worker("patient", slots=2, everything=True)
    wait_until(lambda: study.info().tasks.get("leased") == 2, 20)
    cluster.kill_controller()
    time.sleep(2.5)  # the tasks end in the meantime, with nobody to tell
    cluster.start_controller()
    until_idle(study)
    assert cluster.attempts("outage") == ["ok"] * 4
    curve = """SELECT count(*) FROM metric_chunk, unnest("values") AS point, task, study
               WHERE metric_chunk.task_id = task.id AND study.id = task.study_id AND study.name = %s"""
    assert cluster.rows(curve, "outage") == [(24,)], "every point of every curve"


def test_a_frozen_worker_that_lost_its_lease_reports_nothing_and_drops_the_task(
    cluster: Cluster, client: Client
) -> None:
    study = one(client, "frozen", {"function": "trainers:slow"}, budget=10)
    frozen = cluster.worker("frozen", everything=True)
    wait_until(lambda: study.info().tasks.get("leased"), 20)
    os.kill(frozen.process.pid, signal.SIGSTOP)
    wait_until(lambda: cluster.attempts("frozen")[:1] == ["expired"], 15)
    cluster.worker("awake", everything=True)
    wait_until(lambda: len(cluster.attempts("frozen")) == 2, 10)
    os.kill(frozen.process.pid, signal.SIGCONT)
    wait_until(lambda: '"how": "lost"' in frozen.said or '"verdict": "stale"' in frozen.said, 10)
    until_idle(study)
    assert cluster.attempts("frozen") == ["expired", "ok"]


def test_a_task_that_needs_more_gpus_than_a_slot_has_waits_with_a_reason_and_holds_up_nobody(
    cluster: Cluster, client: Client
) -> None:
    wide = one(client, "wide", {"function": "trainers:fine", "gpus": 8})
    cluster.worker(allow=("trainers:fine",), cwd=cluster.home)
    narrow = one(client, "narrow", {"function": "trainers:fine"})
    wait_until(lambda: narrow.info().state == "idle", 30)
    assert not any(level.state != "ready" for trial in wide.trials() for level in trial.levels), "nobody took it"
    assert any("run.gpus is 8 and no worker has more than 0 GPUs for a task" in reason for reason in wide.why())


def test_of_two_workers_of_one_name_the_later_one_stays_and_the_other_says_why(
    cluster: Cluster, client: Client
) -> None:
    first = cluster.worker("twin", everything=True)
    wait_until(lambda: any(worker["worker_id"] == "twin" for worker in client.workers()), 20)
    second = cluster.worker("twin", everything=True)
    assert first.process.wait(40) == 4
    assert "registered by another process since; accepted is one process a name" in first.said
    assert second.process.poll() is None


def test_a_task_that_comes_back_before_its_loss_is_heard_runs_beside_what_is_left_of_it(
    cluster: Cluster, client: Client
) -> None:
    worker = cluster.worker("both", slots=2, allow=("trainers:slow", "trainers:fine"))
    study = one(client, "again", {"function": "trainers:slow"}, budget=8)
    wait_until(lambda: study.info().tasks.get("leased"), 15, what="leased")

    async def expire() -> None:
        async with Pool(cluster.dsn, size=1) as pool, pool.connection() as conn:
            await conn.execute("UPDATE lease SET expires_at = now() - interval '1 second'")
            assert len(await tasks.reap(conn)) == 1
            await conn.execute("UPDATE task SET not_before = now()")

    asyncio.run(expire())
    after = one(client, "after", {"function": "trainers:fine"}, trials=4)  # rings: the free slot asks at once
    until_idle(study)
    until_idle(after)
    assert worker.process.poll() is None, "the worker lives"
    assert cluster.attempts("again")[0] == "expired"
    assert [state for state, _, _ in levels(study)] == ["ok"]


@pytest.mark.long
def test_what_another_machine_saved_is_never_begun_again_in_silence(cluster: Cluster, client: Client) -> None:
    command = ["python", "program.py", "saves-and-waits"]
    study = one(client, "elsewhere", {"command": command, "cwd": str(cluster.home), "checksum": True})
    saver = cluster.worker("saver", everything=True)
    query = "SELECT path FROM checkpoint JOIN attempt USING (task_id, epoch) WHERE worker_id = 'saver'"
    (path,) = wait_until(lambda: cluster.rows(query), 20)[0]
    assert Path(f"{path}.sha256").read_text().split()[1] == f"{Path(path).name}/DONE"
    cluster.rows("UPDATE worker SET host = 'gpu-1' WHERE id = 'saver' RETURNING 1")
    saver.process.kill()
    Path(path).rename(f"{path}.away")  # as if it were on the disk of gpu-1
    (cluster.home / "go").touch()
    cluster.worker("other", everything=True)
    sentence = f"does not see {path}, which gpu-1 saved; accepted is an ISOLOSS_HOME that all workers share."
    wait_until(lambda: any(sentence in why for why in study.why()), 20)
    assert study.info().state == "active" and not any(level[0] == "failed" for level in levels(study))
    cluster.worker("new", everything=True, begin_again=True)
    until_idle(study)
    how = cluster.attempts("elsewhere")
    assert how[:2] == ["expired", "released"] and how[-2:] == ["released", "ok"]


def test_a_machine_on_which_tasks_fail_that_go_well_elsewhere_is_given_nothing_for_a_while(
    cluster: Cluster, client: Client
) -> None:
    study = one(client, "sound", {"function": "trainers:on_a_sound_machine", "cwd": str(cluster.home)}, trials=60)
    cluster.worker("good", everything=True)
    cluster.worker("broken", everything=True, environment={"BROKEN": "1"})
    (broken,) = wait_until(lambda: [w for w in client.workers() if w["cools_seconds"] > 0], 30)
    assert broken["worker_id"] == "broken" and broken["cools_seconds"] <= 130
    assert any("Worker 'broken' is given nothing for" in why for why in study.why())
    until_idle(study)
    assert [state for state, _, _ in levels(study)] == ["ok"] * 60
    assert 3 <= cluster.attempts("sound").count("failed") <= 6


def test_the_version_of_the_code_is_recorded_and_a_change_reaches_warm_children_and_is_warned_of(
    cluster: Cluster, client: Client, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def git(*words: str) -> str:
        command = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b", *words]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    source = "import time\ndef main(trial): time.sleep(0.3); return 1.0\n"
    (tmp_path / "own.py").write_text(source)
    git("init", "-q")
    git("add", "own.py")
    git("commit", "-qm", "first")
    commit = git("rev-parse", "HEAD")[:12]
    study = one(client, "code", {"function": "own:main", "cwd": str(tmp_path)}, trials=12)
    cluster.worker("coder", everything=True)
    wait_until(lambda: study.info().codes.get(commit, 0) >= 2, 20)
    (tmp_path / "own.py").write_text(source.replace("1.0", "2.0"))
    until_idle(study)
    losses = [values["val_loss"] for _, values, _ in levels(study)]
    assert losses == sorted(losses) and {*losses} == {1.0, 2.0}, "a warm child keeps no old code"
    (changed,) = study.info().codes.keys() - {commit}
    assert changed.startswith(f"{commit}+") and len(changed) == 12 + 9
    assert run(["study", "show", "code", "--address", cluster.address]) == 0
    assert "warning: the code changed on the way, so losses may not compare: " in capsys.readouterr().out


def test_a_project_runs_no_more_than_its_quota_and_leaves_the_slots_to_others(cluster: Cluster, client: Client) -> None:
    async def bound() -> None:
        async with Pool(cluster.dsn, size=1) as pool, pool.connection() as conn:
            await projects.set_share(conn, "narrow", weight=5.0, most=1)

    asyncio.run(bound())
    cluster.worker("three", slots=3, allow=("trainers:slow",))
    found = {}
    for project in ("narrow", "wide"):
        found[project] = client.launch_study(
            {
                "name": f"in-{project}", "project": project, "space": {"lr": {"type": "float", "low": 1e-4, "high": 1e-1}},
                "objective": {"metric": "val_loss"}, "method": {"name": "fixed", "budget": 3},
                "run": {"function": "trainers:slow"}, "limits": {"trials": 4},
            }
        )  # fmt: skip
    seen: list[tuple[int, int]] = []
    while any(study.info().state != "idle" for study in found.values()):
        seen.append(tuple(study.info().tasks.get("leased", 0) for study in found.values()))  # type: ignore[arg-type]
        time.sleep(0.1)
    assert max(narrow for narrow, _ in seen) == 1 and max(wide for _, wide in seen) == 2
