"""The agent's own judgements, without a controller: what is allowed, what is resumed from, what is kept."""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from isoloss.domain.lease import Ending
from isoloss.domain.spec import Run, decode
from isoloss.errors import InvalidSpec, NotAllowed
from isoloss.v1 import common_pb2 as pb
from isoloss.v1 import work_pb2
from isoloss_worker import checkpoint, cli, gpus, sums
from isoloss_worker.allow import AllowList
from isoloss_worker.attempt import Attempt
from isoloss_worker.building import shares, slots_of, spanned
from isoloss_worker.cleaner import Cleaner
from isoloss_worker.cli import main
from isoloss_worker.energy import Gauge
from isoloss_worker.messages import Ended, Saved
from isoloss_worker.objects import Objects

EVERYTHING = AllowList(everything=True)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ISOLOSS_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def lease(run: dict[str, Any] | None = None, **changes: Any) -> pb.Lease:
    values: dict[str, Any] = {
        "key": pb.LeaseKey(task_id=7, epoch=2), "study": "s", "project": "p", "trial": 3, "level": 1,
        "budget_from": 4, "decay_from": 8, "budget_to": 10, "metrics": ["val_loss"], "ttl_seconds": 30.0,
        "run_json": json.dumps(run or {"function": "train:main"}),
    }  # fmt: skip
    return pb.Lease(**(values | changes))


def saved(folder: Path, **files: str) -> Path:
    folder.mkdir(parents=True)
    for name, text in files.items():
        (folder / name).write_text(text)
    return folder


@pytest.mark.parametrize(
    ("run", "allowed", "sentence"),
    [
        ({"function": "train:main"}, AllowList(functions=("train:other",)), "run.function is 'train:main'; accepted on this worker: train:other"),
        ({"function": "train:main"}, AllowList(), "accepted on this worker: none"),
        ({"command": ["python", "train.py"]}, AllowList(command_prefixes=("python train",)), "commands that begin with: 'python train'"),
        ({"command": ["python train.py"]}, AllowList(command_prefixes=("python",)), "run.command is"),
    ],
)  # fmt: skip
def test_what_is_not_allowed_is_refused_with_what_is(run: dict[str, Any], allowed: AllowList, sentence: str) -> None:
    with pytest.raises(NotAllowed, match=sentence):
        allowed.check(decode(run, Run))


def test_what_is_allowed_passes() -> None:
    AllowList(functions=("train:main",)).check(decode({"function": "train:main"}, Run))
    AllowList(command_prefixes=("python train.py",)).check(decode({"command": ["python", "train.py", "--lr"]}, Run))
    AllowList().check(decode({"gpt": {}}, Run))
    EVERYTHING.check(decode({"command": ["rm"]}, Run))


def test_how_busy_a_machine_is_needs_no_package(monkeypatch: pytest.MonkeyPatch) -> None:
    found = Gauge(()).read()
    assert found is not None and 0 < found.memory_bytes < found.memory_total_bytes and not found.HasField("joules")
    monkeypatch.setitem(sys.modules, "psutil", None)
    assert Gauge(()).read() is None


def test_a_whole_checkpoint_is_resumed_from(tmp_path: Path) -> None:
    folder = saved(tmp_path / "c", state="abc")
    assert checkpoint.seal(folder, 4) is not None
    job, _ = Attempt.of(lease(resume_from=str(folder))).job(EVERYTHING, ())
    assert (job.budget_from, job.resume_from) == (4, str(folder))
    for stated, begins in (("6", 6), ("3", 4), ("9", 4), ("", 4)):  # written after the step that was registered, or not
        (folder / "DONE").write_text(stated)
        assert Attempt.of(lease(resume_from=str(folder))).job(EVERYTHING, ())[0].budget_from == begins


@pytest.mark.parametrize(
    ("damage", "flaw"),
    [("none", None), ("shorter", "state has 2 bytes instead of 3"), ("gone", "state has no bytes instead of 3"),
     ("changed", "state is not what was saved, by its SHA-256 sum"), ("empty", "it is not there, or empty"),
     ("went on", None)],
)  # fmt: skip
def test_a_checkpoint_that_is_torn_or_gone_on_the_machine_that_saved_it_is_given_up(
    tmp_path: Path, damage: str, flaw: str | None
) -> None:
    folder = saved(tmp_path / "c", state="abc", other="x")
    checkpoint.seal(folder, 4)
    sums.write(folder)
    match damage:
        case "shorter":
            (folder / "state").write_text("ab")
        case "gone":
            (folder / "state").unlink()
        case "changed":
            (folder / "state").write_text("xyz")
        case "empty":
            checkpoint.discard(folder)
        case "went on":  # killed before it could tell
            (folder / "state").write_text("abcdef")
            (folder / "DONE").write_text("5")
    refusal = Attempt.of(lease(resume_from=str(folder), resume_host=socket.gethostname())).refusal(begin_again=False)
    if flaw is None:
        assert refusal is None
    else:
        assert refusal is not None and refusal.kind == "release" and refusal.lost == str(folder)
        assert refusal.message == f"{folder} cannot be resumed from: {flaw}. It is given up."


def test_what_another_machine_saved_and_nobody_sees_here_is_left_to_others(tmp_path: Path) -> None:
    attempt = Attempt.of(lease(resume_from=str(tmp_path / "elsewhere"), resume_host="gpu-1"))
    refusal = attempt.refusal(begin_again=False)
    assert refusal is not None and (refusal.kind, refusal.lost) == ("release", "")
    assert f"does not see {tmp_path / 'elsewhere'}, which gpu-1 saved" in refusal.message
    told = attempt.refusal(begin_again=True)
    assert told is not None and told.lost == str(tmp_path / "elsewhere")


def test_sums_are_those_of_coreutils(tmp_path: Path) -> None:
    folder = saved(tmp_path / "c", state="abc")
    saved(folder / "shard-0", part="x" * 100_000)
    sums.write(folder)
    checked = subprocess.run(["sha256sum", "-c", "c.sha256"], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert checked.stdout.splitlines() == ["c/shard-0/part: OK", "c/state: OK"]


def test_every_attempt_saves_to_a_folder_of_its_own(home: Path) -> None:
    folders = {Attempt.of(lease(key=pb.LeaseKey(task_id=7, epoch=epoch))).folder for epoch in (1, 2)}
    assert len(folders) == 2
    assert all(folder.is_relative_to(home / "checkpoints" / "p" / "s" / "3") for folder in folders)


def test_a_failed_attempt_leaves_nothing_and_a_registered_checkpoint_stays() -> None:
    failed, kept = Attempt.of(lease()), Attempt.of(lease(key=pb.LeaseKey(task_id=8, epoch=1)))
    for attempt in (failed, kept):
        saved(attempt.folder, state="abc")
    assert kept.saved(Saved(8)) is not None
    for attempt in (failed, kept):
        attempt.tidy(attempt.ending(Ended(kind="fail", message="x"), {}))
        attempt.tidy(None)
    assert not failed.folder.exists() and not checkpoint.beside(failed.folder).exists()
    assert kept.folder.exists() and checkpoint.beside(kept.folder).exists()


def test_a_complete_attempt_tells_its_values_energy_and_checkpoint() -> None:
    attempt = Attempt.of(lease())
    saved(attempt.folder, state="abc")
    ending = attempt.ending(Ended(kind="complete", values={"val_loss": 1.0}, saved=8), {"joules": 3.0})
    assert (ending.kind, ending.values) == ("complete", {"joules": 3.0, "val_loss": 1.0})
    assert ending.checkpoint is not None
    assert (ending.checkpoint.step, ending.checkpoint.manifest) == (8, {"state": 3})


@pytest.mark.parametrize(
    ("ended", "kind"),
    [(Ended(kind="complete", values={"val_loss": 1.0}), "complete"), (Ended(kind="complete", values={}), "release"),
     (Ended(kind="fail", message="NameError"), "release"), (Ended(kind="diverge", step=10, values={}), "release"),
     (Ended(kind="release"), "release")],
)  # fmt: skip
def test_what_was_trained_and_never_told_is_measured_or_trained_again_and_has_not_failed(
    tmp_path: Path, ended: Ended, kind: str
) -> None:
    folder = saved(tmp_path / "c", state="abc", DONE="10")
    attempt = Attempt.of(lease(decay_from=10, resume_from=str(folder)))
    assert attempt.job(EVERYTHING, ())[0].budget_from == attempt.lease.budget_to
    ending = attempt.ending(ended, {})
    assert (ending.kind, ending.lost) == (kind, str(folder) if ended.kind != kind else "")


def test_an_attempt_writes_into_the_store_only_what_it_may_still_register(tmp_path: Path) -> None:
    attempt, named = Attempt.of(lease(), Objects(f"file://{tmp_path}/bucket")), list[str]()
    saved(attempt.folder, DONE="6")

    def refused(url: str) -> bool:
        named.append(url)
        return False

    attempt.announce = refused
    assert attempt.saved(Saved(6)) is None
    assert named == [f"file://{tmp_path}/bucket/p/s/3/1-7-2/6"] and not (tmp_path / "bucket").exists()
    attempt.announce = lambda _: True
    found = attempt.saved(Saved(6))
    assert found is not None and [found.path] == named


def test_a_release_told_again_after_a_lost_answer_keeps_its_checkpoint() -> None:
    attempt = Attempt.of(lease())
    saved(attempt.folder, state="abc")
    assert attempt.ending(Ended(kind="release", saved=8), {}).checkpoint is not None
    attempt.tidy(None)  # the second telling was called stale
    assert attempt.folder.exists()


def test_a_release_of_nothing_saved_has_no_checkpoint() -> None:
    assert Attempt.of(lease()).ending(Ended(kind="release"), {}) == Ending(kind="release")


def test_who_leaves_and_finds_no_room_to_seal_what_it_saved_is_given_back_and_has_not_failed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    attempt = Attempt.of(lease())
    saved(attempt.folder, state="x")

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "seal", full)
    ending = attempt.ending(Ended(kind="release", saved=5), {})
    attempt.tidy(ending)
    assert ending == Ending(kind="release") and not attempt.folder.exists()
    with pytest.raises(OSError, match="No space left"):
        attempt.ending(Ended(kind="complete", saved=5), {})


@pytest.mark.parametrize("gpu_ids", [("0",), ()])
def test_a_run_that_wants_more_gpus_than_its_slots_have_is_refused(gpu_ids: tuple[str, ...]) -> None:
    with pytest.raises(InvalidSpec, match=r"run\.gpus is 8; accepted on this worker are at most"):
        Attempt.of(lease({"function": "a:b", "gpus": 8})).job(EVERYTHING, gpu_ids)


def test_a_duration_of_the_spec_is_the_time_limit_in_seconds() -> None:
    _, run = Attempt.of(lease({"function": "a:b", "timeout": "5m"})).job(EVERYTHING, ())
    assert float(run.timeout or 0) == 300.0


def test_gpus_are_dealt_to_slots() -> None:
    assert shares(("0", "1", "2", "3"), 2) == [("0", "1"), ("2", "3")]
    assert shares((), 2) == [(), ()]
    assert shares(("GPU-5",), 2) == [("GPU-5",), ("GPU-5",)]
    assert slots_of("auto", ()) == 1 and slots_of("auto", ("0", "1")) == 2


@pytest.mark.parametrize(
    ("stated", "seen"),
    [("", ()), ("-1", ()), ("GPU-8932f937, MIG-1f2e", ("GPU-8932f937", "MIG-1f2e")), ("GPU-1,no,GPU-2", ("GPU-1",)),
     ("GPU-1,GPU-1", ("GPU-1",))],
)  # fmt: skip
def test_a_worker_sees_the_gpus_that_cuda_would(
    stated: str, seen: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert gpus.visible({"CUDA_VISIBLE_DEVICES": stated}) == seen


def test_chosen_gpus_are_names_each_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert gpus.chosen("none") == ()
    assert gpus.chosen("0, GPU-1f") == ("0", "GPU-1f")
    for wrong in ("0,0", "cuda:0", "", "0,,1"):
        with pytest.raises(InvalidSpec, match=r"--gpus is .*; accepted is auto, none, or names"):
            gpus.chosen(wrong)


def test_a_gpu_is_one_workers_until_it_lets_go(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tempfile, "gettempdir", lambda: str(tmp_path))
    mine, yours, theirs = ("GPU-1", "MIG-GPU-1/7/0"), ("GPU-2", "MIG-GPU-1/7/0"), ("GPU-2",)
    refused = pytest.raises(InvalidSpec, match="GPU MIG-GPU-1/7/0 is another worker's on this machine")
    with gpus.held(mine):
        with refused, gpus.held(yours):
            pass
        with gpus.held(theirs):
            pass
    with gpus.held(yours):
        pass


def test_a_worker_spans_the_nodes_of_its_slurm_job_or_one() -> None:
    inside = {"SLURM_JOB_NUM_NODES": "4"}
    assert spanned(1, (), {}) == 1 and spanned(4, ("0", "1"), inside) == 4
    for nodes, gpu_ids, environment in ((2, (), {}), (2, (), inside), (0, (), inside), (4, ("GPU-1f",), inside)):
        with pytest.raises(InvalidSpec, match="accepted"):
            spanned(nodes, gpu_ids, environment)


def test_without_a_gpu_there_is_no_energy_and_no_estimate() -> None:
    assert gpus.millijoules(()) is None
    assert gpus.describe(()) == "cpu"


def test_wrong_usage_is_a_sentence_and_exit_code_2(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli, "configure_logs", lambda **_: None)  # it would bind every later log to this test's stderr
    assert main(["--address", "127.0.0.1:1", "--slots", "none"]) == 2
    assert "--slots is 'none'; accepted is auto or a number from 1." in capsys.readouterr().err
    assert main(["--address", "127.0.0.1:1", "--leave-after=0s"]) == 2
    assert "--leave-after is 0s; accepted is a duration above 0." in capsys.readouterr().err


def test_only_an_attempts_own_folder_below_the_root_is_removed_and_twice_is_once(home: Path) -> None:
    cleaner = Cleaner(busy=list)
    mine = saved(home / "checkpoints" / "p" / "s" / "3" / "0-7-1", state="abc")
    checkpoint.seal(mine, 4)
    outside = saved(home / "elsewhere" / "p" / "s" / "3" / "0-7-1", state="abc")
    (mine.parent / "1-7-1").symlink_to(outside)
    for path, epoch in (
        (mine, 2), (mine.parent, 1), (home / "checkpoints", 1), (outside, 1), (mine.parent / "1-7-1", 1),
        (home / "checkpoints" / ".." / "elsewhere" / "p" / "s" / "3" / "0-7-1", 1),
    ):  # fmt: skip
        assert not cleaner.remove(work_pb2.CheckpointFolder(task_id=7, epoch=epoch, path=str(path)))
    assert mine.exists() and outside.exists()
    for _ in range(2):
        assert cleaner.remove(work_pb2.CheckpointFolder(task_id=7, epoch=1, path=str(mine)))
    assert not mine.exists() and not checkpoint.beside(mine).exists()


def test_what_an_attempt_still_writes_to_is_removed_once_it_ended(home: Path) -> None:
    async def body() -> list[int]:
        busy, gone = [7], asyncio.Queue[int]()
        cleaner = Cleaner(busy=lambda: busy)
        folders = [work_pb2.CheckpointFolder(task_id=n, epoch=1, path=str(paths[n])) for n in (7, 8)]
        running = asyncio.ensure_future(cleaner.run(lambda folder: gone.put_nowait(folder.task_id)))
        cleaner.dropped(folders)
        first = await gone.get()
        busy.clear()
        cleaner.dropped(folders)
        found = [first, await gone.get(), await gone.get()]
        running.cancel()
        return found

    paths = {n: saved(home / "checkpoints" / "p" / "s" / "3" / f"0-{n}-1", state="abc") for n in (7, 8)}
    assert asyncio.run(body()) == [8, 7, 8]
