"""A slot and its warm child, with real processes: how a job ends, and what the child survives."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import textwrap
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from isoloss_worker.job import Job
from isoloss_worker.messages import Ended, Measured, Saved
from isoloss_worker.slots import Slot, Stopped

TRAINERS = """
    import os, sys, time
    import isoloss

    def fine(trial):
        print("a print", '{"type":"ended"}'); sys.stdout.buffer.write(b"raw\\n"); os.write(1, b"rawer\\n")
        for step in trial.steps():
            trial.report(step, val_loss=1 / step, pid=os.getpid())
        (trial.save_to / "state").write_text("x")

    def number(trial): return trial.params["lr"] * 2
    def mapping(trial): return {"val_loss": 1.0, "resumed": trial.resume_from is not None, "seed": trial.seed}
    def nothing_given():
        with isoloss.current_trial() as trial:
            isoloss.report(trial.budget_to, val_loss=trial.params["lr"])
    async def coroutine(trial): return 3.0
    def nan(trial):
        trial.report(1, val_loss=2.0, other=5.0)
        try: trial.report(2, val_loss=float("nan"))
        except Exception: pass
        trial.report(3, val_loss=1.0)
    def returns_inf(trial): return float("inf")
    def raises(trial):
        print("just before", file=sys.stderr)
        raise ValueError("no such luck")
    def exits(trial): os._exit(139)
    def segfaults(trial): os.kill(os.getpid(), 11)
    def leaves(trial): sys.exit(3)
    def preempted(trial):
        trial.report(2, val_loss=1.0)
        (trial.save_to / "state").write_text("x")
        sys.exit(75)
    def saves(trial):
        for step in (1, 2):
            (trial.save_to / "DONE").write_text(str(step))
            time.sleep(0.5)
        return 1.0
    def sleeps(trial):
        trial.report(1, val_loss=1.0)
        time.sleep(60)
    def environment(trial): return {"val_loss": float(os.environ["OWN"])}
    def credentials(trial): return {"val_loss": float(sum(name in os.environ for name in ("ISOLOSS_TOKEN", "ISOLOSS_KEY")))}
"""
Listen = Callable[[Measured | Saved], None]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "trainers.py").write_text(textwrap.dedent(TRAINERS))
    return tmp_path


def job(folder: Path, name: str, **changes: Any) -> Job:
    run = {"function": f"trainers:{name}", "cwd": str(folder), **changes.pop("run", {})}
    values: dict[str, Any] = {
        "study": "p/s", "trial": 4, "level": 1, "params": {"lr": 0.25}, "budget_from": 0, "decay_from": 3, "budget_to": 3,
        "save_to": str(folder / "save"), "seed": 5, "metrics": ("val_loss",),
    }  # fmt: skip
    return Job(**(values | changes), run=run)


def in_slot(body: Callable[[Slot], Awaitable[Any]]) -> Any:
    async def scene() -> Any:
        slot = Slot(0)
        try:
            return await asyncio.wait_for(body(slot), 30)
        finally:
            await slot.close()

    return asyncio.run(scene())


def never() -> asyncio.Future[str]:
    return asyncio.get_running_loop().create_future()


def ignore(message: Measured | Saved) -> None:
    pass


def run_all(*jobs: Job, listen: Listen = ignore) -> list[Ended | Stopped]:
    async def body(slot: Slot) -> list[Ended | Stopped]:
        return [await slot.run(one, listen, never()) for one in jobs]

    return in_slot(body)  # type: ignore[no-any-return]


def test_a_function_reports_saves_and_prints_without_disturbing_the_messages(folder: Path) -> None:
    heard: list[Measured | Saved] = []

    async def body(slot: Slot) -> Any:
        return await slot.run(job(folder, "fine"), heard.append, never())

    ended = in_slot(body)
    assert (ended.kind, ended.saved, ended.values["val_loss"]) == ("complete", 3, 1 / 3)
    assert [m.step for m in heard if isinstance(m, Measured)] == [1, 2, 3]


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("number", {"val_loss": 0.5}),
        ("mapping", {"val_loss": 1.0, "resumed": 0.0, "seed": 5.0}),
        ("nothing_given", {"val_loss": 0.25}),
        ("coroutine", {"val_loss": 3.0}),
    ],
)
def test_what_a_function_may_return(folder: Path, name: str, values: dict[str, float]) -> None:
    assert run_all(job(folder, name)) == [Ended(kind="complete", values=values)]


def test_the_child_stays_warm_over_tasks_of_a_study_and_is_new_for_another(folder: Path) -> None:
    jobs = [job(folder, "fine"), job(folder, "fine"), job(folder, "fine", study="p/other")]
    first, second, third = (ended.values["pid"] for ended in run_all(*jobs) if isinstance(ended, Ended))
    assert first == second != third


@pytest.mark.parametrize(("name", "step"), [("nan", 2), ("returns_inf", 3)])
def test_an_objective_that_is_no_number_is_a_divergence_even_if_swallowed(folder: Path, name: str, step: int) -> None:
    (ended,) = run_all(job(folder, name))
    assert isinstance(ended, Ended)
    assert (ended.kind, ended.step) == ("diverge", step)


def test_an_exception_is_told_with_its_type_frames_and_the_last_lines_and_the_slot_lives_on(folder: Path) -> None:
    failed, after = run_all(job(folder, "raises"), job(folder, "fine"))
    assert isinstance(failed, Ended) and isinstance(after, Ended)
    assert (failed.kind, failed.retryable) == ("fail", True)
    assert failed.message.startswith("ValueError: no such luck")
    assert "trainers.py" in failed.message and "just before" in failed.message
    assert after.kind == "complete"


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("exits", "The child process ended with exit code 139."),
        ("segfaults", "The child process was killed by SIGSEGV."),
        ("leaves", "The function called sys.exit(3)."),
    ],
)
def test_a_death_is_a_failure_and_the_slot_lives_on(folder: Path, name: str, sentence: str) -> None:
    died, after = run_all(job(folder, name), job(folder, "number"))
    assert isinstance(died, Ended) and isinstance(after, Ended)
    assert (died.kind, died.retryable, died.message.partition("\n")[0]) == ("fail", True, sentence)
    assert after.kind == "complete"


def test_what_a_function_saves_in_mid_run_is_told_step_by_step(folder: Path) -> None:
    heard: list[Measured | Saved] = []
    run_all(job(folder, "saves"), listen=heard.append)
    assert heard == [Saved(1), Saved(2)]


def test_a_function_that_exits_75_was_preempted_and_has_saved(folder: Path) -> None:
    assert run_all(job(folder, "preempted")) == [Ended(kind="release", saved=2)]


@pytest.mark.parametrize(
    ("function", "sentence"),
    [
        ("nowhere:main", "finds no module 'nowhere'"),
        ("trainers:nobody", "accepted are the functions of module trainers: .*fine"),
    ],
)
def test_an_unknown_function_is_refused_and_not_tried_again(folder: Path, function: str, sentence: str) -> None:
    (ended,) = run_all(job(folder, "", run={"function": function}))
    assert isinstance(ended, Ended)
    assert (ended.kind, ended.retryable) == ("fail", False)
    import re

    assert re.search(sentence, ended.message)


def test_run_env_reaches_a_function_before_its_imports_do(folder: Path) -> None:
    _, own = run_all(job(folder, "number"), job(folder, "environment", run={"env": {"OWN": "7"}}))
    assert isinstance(own, Ended)
    assert own.values == {"val_loss": 7.0}


def test_a_run_past_its_time_limit_is_killed(folder: Path) -> None:
    async def body(slot: Slot) -> Any:
        return await slot.run(job(folder, "sleeps"), ignore, never(), 0.5)

    ended = in_slot(body)
    assert ended.kind == "fail" and ended.message.startswith("The run took longer than run.timeout, 0.5 s.")


@pytest.mark.parametrize("why", ["stale", "cancelling"])
def test_a_lost_or_cancelled_lease_kills_the_child_at_once_and_the_slot_lives_on(folder: Path, why: str) -> None:
    async def body(slot: Slot) -> tuple[Any, float, Any]:
        stop = never()
        begun = 0.0

        def listen(message: Measured | Saved) -> None:
            nonlocal begun
            begun = time.monotonic()
            stop.set_result(why)

        lost = await slot.run(job(folder, "sleeps"), listen, stop)
        return lost, time.monotonic() - begun, await slot.run(job(folder, "number"), ignore, never())

    lost, seconds, after = in_slot(body)
    assert lost == Stopped(why)
    assert seconds < 2
    assert after.kind == "complete"


def test_a_drained_function_is_given_back_at_once(folder: Path) -> None:
    async def body(slot: Slot) -> Any:
        stop = never()
        return await slot.run(job(folder, "sleeps"), lambda _: stop.set_result("drain"), stop)

    assert in_slot(body) == Ended(kind="release")


def test_a_drained_program_may_save_and_say_75(folder: Path) -> None:
    program = """
        import json, os, signal, sys, time
        def save(*_):
            open(os.path.join(os.environ["ISOLOSS_SAVE_TO"], "state"), "w").write("x")
            sys.exit(75)
        signal.signal(signal.SIGTERM, save)
        open(os.environ["ISOLOSS_METRICS"], "a").write(json.dumps({"step": 2, "val_loss": 1.0}) + "\\n")
        time.sleep(60)
    """
    (folder / "program.py").write_text(textwrap.dedent(program))

    async def body(slot: Slot) -> Any:
        stop = never()
        run = {"function": None, "command": ["python", "program.py"]}
        return await slot.run(job(folder, "", run=run), lambda _: stop.set_result("drain"), stop)

    assert in_slot(body) == Ended(kind="release", saved=2)


def test_the_child_of_a_killed_agent_dies_with_it_and_takes_its_program_along(folder: Path) -> None:
    agent = f"""
        import asyncio, pathlib
        from isoloss_worker.job import Job
        from isoloss_worker.slots import Slot
        async def main():
            stop = asyncio.get_running_loop().create_future()
            await Slot(0).run(Job(study="s", trial=0, level=0, params={{}}, budget_from=0, decay_from=1, budget_to=1,
                save_to={str(folder / "save")!r}, run={{"command": ["sh", "-c", "echo $$ > pid; exec sleep 60"],
                "cwd": {str(folder)!r}}}), print, stop)
        asyncio.run(main())
    """
    import subprocess
    import sys

    with subprocess.Popen([sys.executable, "-c", textwrap.dedent(agent)]) as process:
        deadline = time.monotonic() + 10
        while not (folder / "pid").exists() or not (folder / "pid").read_text().strip():
            assert time.monotonic() < deadline
            time.sleep(0.02)
        pid = int((folder / "pid").read_text())
        os.kill(process.pid, signal.SIGKILL)
    deadline = time.monotonic() + 5
    while Path(f"/proc/{pid}").exists() and Path(f"/proc/{pid}/stat").read_text().split()[2] not in "ZX":
        assert time.monotonic() < deadline, "the program outlived its worker"
        time.sleep(0.02)


def test_a_run_that_is_drained_before_it_begins_is_given_back(folder: Path) -> None:
    async def body(slot: Slot) -> Any:
        stop = never()
        stop.set_result("drain")
        return await slot.run(job(folder, "sleeps"), ignore, stop)

    begun = time.monotonic()
    assert in_slot(body) == Ended(kind="release")
    assert time.monotonic() - begun < 3


def test_a_trainer_does_not_see_the_workers_own_credentials(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ISOLOSS_TOKEN", "id.secret")
    monkeypatch.setenv("ISOLOSS_KEY", "/keys/gpu-1.key")
    (ended,) = run_all(job(folder, "credentials"))
    assert isinstance(ended, Ended) and ended.values == {"val_loss": 0.0}


@pytest.mark.parametrize("how", ["exits", "killed"])
def test_nothing_a_program_started_outlives_its_run_not_even_in_a_session_of_its_own(folder: Path, how: str) -> None:
    (folder / "forks.py").write_text(
        textwrap.dedent("""
        import json, os, subprocess, sys, time
        sleeps = [sys.executable, "-c", "import time; time.sleep(60)"]
        nested = f"import subprocess; subprocess.Popen({sleeps!r}, start_new_session=True)"
        left = [subprocess.Popen(sleeps, start_new_session=True), subprocess.Popen(sleeps)]
        subprocess.run([sys.executable, "-c", nested], check=True)
        with open(os.environ["ISOLOSS_METRICS"], "a") as file:
            file.write(json.dumps({"step": 1, "val_loss": 1.0}) + "\\n")
        time.sleep(60 if sys.argv[1] == "killed" else 0)
    """)
    )
    command = {"command": [sys.executable, str(folder / "forks.py"), how], "function": None}
    sleeping = "time.sleep(60)"

    async def body(slot: Slot) -> Any:
        stop: asyncio.Future[str] = never()

        def listen(message: Measured | Saved) -> None:
            if how == "killed" and not stop.done():
                stop.set_result("cancelling")

        ended = await slot.run(job(folder, "", run=command), listen, stop)
        return ended, [line for line in _commands(folder) if sleeping in line]

    ended, left = in_slot(body)
    assert isinstance(ended, Stopped) if how == "killed" else ended.kind == "complete"
    assert left == []


def _commands(folder: Path) -> list[str]:
    """The command lines of the live processes that work in a folder."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if (process / "cwd").readlink() == folder:
                found.append((process / "cmdline").read_bytes().replace(b"\0", b" ").decode())
    return found
