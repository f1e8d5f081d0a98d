"""The built-in GPT: a run that was killed and resumed is, bit for bit, one that never stopped."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from isoloss.errors import InvalidSpec, TrainableFailed
from isoloss_worker.job import Diverged, Job, Preempted, Reporter, Stop, Values

torch = pytest.importorskip("torch")

WORDS = [
    "the",
    "loss",
    "of",
    "a",
    "run",
    "is",
    "what",
    "its",
    "tokens",
    "and",
    "its",
    "weights",
    "make",
    "of",
    "it",
    "and",
    "nothing",
    "else",
    "at",
    "all",
]


@pytest.fixture(autouse=True)
def corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A text of its own and an ISOLOSS_HOME for its bytes."""
    from isoloss_worker.trainables.gpt import data

    data.load.cache_clear()
    monkeypatch.setenv("ISOLOSS_HOME", str(tmp_path / "home"))
    draw = random.Random(3)
    file = tmp_path / "text.txt"
    file.write_text(" ".join(draw.choice(WORDS) for _ in range(60_000)))
    return file


def job(tmp_path: Path, name: str, **changes: Any) -> Job:
    model = {"width": 16, "depth": 1, "context": 16, "data": str(tmp_path / "text.txt"), "eval_tokens": 512}
    model |= changes.pop("model", {})
    values: dict[str, Any] = {
        "study": "s", "trial": 0, "level": 0, "params": {"lr": 0.01, "batch_tokens": 64, "warmup_tokens": 256}, "seed": 11,
        "budget_from": 0, "decay_from": 1024, "budget_to": 1280, "save_to": str(tmp_path / name), "metrics": ("val_loss",),
    }  # fmt: skip
    return Job(**(values | changes), run={"gpt": model})


def train(job: Job, *, metrics: Callable[[int, Values], None] = lambda *_: None, stop: Stop | None = None) -> Any:
    from isoloss_worker.trainables.gpt.train import train

    saved: list[int] = []
    values = train(job, Reporter(metrics, saved.append, stop))
    return {
        name: value for name, value in values.items() if name not in ("cpu_us_per_token", "tokens_per_second")
    }, saved


def state(tmp_path: Path, name: str) -> bytes:
    return (tmp_path / name / "state.safetensors").read_bytes()


class Killed(BaseException):
    """As a SIGKILL: nobody handles it."""


def killed_at(step: int) -> Callable[[int, Values], None]:
    def metrics(now: int, _: Values) -> None:
        if now >= step:
            raise Killed

    return metrics


def test_two_rungs_equal_one_run_in_weights_and_in_loss(tmp_path: Path) -> None:
    train(job(tmp_path, "first"))
    deeper = {"budget_to": 2560, "decay_from": 2048, "level": 1}
    resumed, _ = train(job(tmp_path, "second", resume_from=str(tmp_path / "first"), budget_from=1024, **deeper))
    whole, _ = train(job(tmp_path, "whole", **deeper))
    assert resumed == whole
    assert state(tmp_path, "second") == state(tmp_path, "whole")


def test_a_run_killed_in_its_decay_resumes_at_the_fork_and_ends_the_same(tmp_path: Path) -> None:
    whole, saved = train(job(tmp_path, "whole"))
    assert saved == [1024]
    with pytest.raises(Killed):
        train(job(tmp_path, "killed"), metrics=killed_at(1100))
    assert state(tmp_path, "killed") == state(tmp_path, "whole")
    resumed, again = train(job(tmp_path, "resumed", resume_from=str(tmp_path / "killed"), budget_from=1024))
    assert resumed == whole
    assert again == [] and not (tmp_path / "resumed").exists(), "the fork's folder is the killed attempt's"


def test_a_run_killed_on_its_trunk_begins_again_and_ends_the_same(tmp_path: Path) -> None:
    whole, _ = train(job(tmp_path, "whole"))
    with pytest.raises(Killed):
        train(job(tmp_path, "killed"), metrics=killed_at(500))
    again, _ = train(job(tmp_path, "again"))
    assert again == whole
    assert state(tmp_path, "again") == state(tmp_path, "whole")


@pytest.fixture
def saving(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What makes a run save at every step, whatever that costs."""
    from isoloss_worker.trainables.gpt import train

    monkeypatch.setattr(train, "SAVING", math.inf)
    return {"model": {"save_every": 0}}


def test_a_run_killed_on_its_trunk_resumes_where_it_was_saved_last_and_ends_the_same(
    tmp_path: Path, saving: dict[str, Any]
) -> None:
    whole, _ = train(job(tmp_path, "whole"))
    with pytest.raises(Killed):
        train(job(tmp_path, "killed", **saving), metrics=killed_at(500))
    registered = int((tmp_path / "killed" / "DONE").read_text())
    assert registered == 448
    resumed, saved = train(job(tmp_path, "resumed", resume_from=str(tmp_path / "killed"), budget_from=registered))
    assert (resumed, saved) == (whole, [1024])
    assert state(tmp_path, "resumed") == state(tmp_path, "whole")


def test_a_state_that_is_saved_again_is_as_large_as_before(tmp_path: Path, saving: dict[str, Any]) -> None:
    sizes = {}

    def look(step: int, _: Values) -> None:
        sizes[step] = len(state(tmp_path, "saved"))

    _, saved = train(job(tmp_path, "saved", **saving), metrics=lambda s, v: look(s, v) if s > 64 else None)
    assert saved == list(range(64, 1025, 64))
    assert len(sizes) > 10 and len({*sizes.values()}) == 1


def test_a_preempted_run_saves_where_it_is_and_ends_the_same(tmp_path: Path) -> None:
    whole, _ = train(job(tmp_path, "whole"))
    stop = Stop()
    with pytest.raises(Preempted) as caught:
        train(job(tmp_path, "preempted"), stop=stop, metrics=lambda step, _: stop.ask() if step >= 500 else None)
    saved = caught.value.saved
    assert saved is not None and 500 <= saved < 1024
    resumed, _ = train(job(tmp_path, "resumed", resume_from=str(tmp_path / "preempted"), budget_from=saved))
    assert resumed == whole


def test_the_curve_goes_on_at_the_same_values(tmp_path: Path) -> None:
    whole: dict[int, float] = {}
    pieces: dict[int, float] = {}
    train(
        job(tmp_path, "whole", budget_to=2048, decay_from=2048), metrics=lambda s, v: whole.update({s: v["train_loss"]})
    )
    train(job(tmp_path, "a", budget_to=512, decay_from=512), metrics=lambda s, v: pieces.update({s: v["train_loss"]}))
    rest = job(tmp_path, "b", budget_to=2048, decay_from=2048, budget_from=512, resume_from=str(tmp_path / "a"))
    train(rest, metrics=lambda s, v: pieces.update({s: v["train_loss"]}))
    both = whole.keys() & pieces.keys()
    assert len(both) > 10
    assert {s: whole[s] for s in both} == {s: pieces[s] for s in both}


def test_a_hopeless_rate_diverges_at_a_step(tmp_path: Path) -> None:
    with pytest.raises(Diverged) as caught:
        train(job(tmp_path, "x", params={"lr": 1000.0, "batch_tokens": 64}))
    assert 0 < caught.value.step < 1280


def test_a_budget_that_is_no_whole_number_of_steps_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidSpec, match=r"decay_from is 1000; accepted are multiples of batch_tokens, 64"):
        train(job(tmp_path, "x", decay_from=1000))


@pytest.mark.parametrize(("schedule", "middle"), [("constant", 1.0), ("linear", 0.5), ("cosine", 0.5)])
def test_a_schedule_is_a_function_of_the_budget_it_ends_at(corpus: Path, schedule: Any, middle: float) -> None:
    from isoloss.domain.spec import Gpt
    from isoloss_worker.trainables.gpt.run import Run

    run = Run(Gpt(width=16, depth=1, lr=0.01, batch_tokens=64, schedule=schedule, data=str(corpus)), seed=0)
    assert run.rate(6400, 6400) == pytest.approx(0.01)
    run.tokens = 3200
    assert run.rate(6400, 6400) == pytest.approx(0.01 * middle)
    run.tokens = 6336
    last = run.rate(6400, 6400)
    assert last == pytest.approx(0.01) if schedule == "constant" else 0 < last < 2e-4


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"seed": 12}, "has seed 11, and this run 12"),
        ({"params": {"lr": 0.01, "batch_tokens": 64, "head_width": 8}}, "has head_width 16, and this run 8"),
        ({"params": {"lr": 0.01, "batch_tokens": 64, "width": 32}}, "has width 16, and this run 32"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    train(job(tmp_path, "first"))
    other = job(tmp_path, "other", resume_from=str(tmp_path / "first"), budget_from=1024, **change)
    with pytest.raises(TrainableFailed, match=f"{said}; accepted is a checkpoint of the same model, seed and data"):
        train(other)


def test_a_checkpoint_of_other_text_is_refused(tmp_path: Path, corpus: Path) -> None:
    from isoloss_worker.trainables.gpt import data

    train(job(tmp_path, "first"))
    corpus.write_text(corpus.read_text() + "more")
    data.load.cache_clear()
    with pytest.raises(TrainableFailed, match="has data '"):
        train(job(tmp_path, "other", resume_from=str(tmp_path / "first"), budget_from=1024))


def test_a_checkpoint_that_was_cut_short_is_refused(tmp_path: Path) -> None:
    file = "state.safetensors"
    train(job(tmp_path, "first"))
    whole = (tmp_path / "first" / file).read_bytes()
    (tmp_path / "first" / file).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(TrainableFailed, match="cannot be read .*; accepted is one that is whole"):
        train(job(tmp_path, "other", resume_from=str(tmp_path / "first"), budget_from=1024))


def test_a_slot_with_gpus_that_torch_does_not_see_is_no_reason_to_train_on_the_cpu(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has one")
    asked = job(tmp_path, "x")
    with pytest.raises(TrainableFailed, match="run.gpus is 1, and this worker's torch finds no GPU"):
        train(msgspec.structs.replace(asked, run={**asked.run, "gpus": 1}))


def test_more_gpus_than_it_can_use_are_refused(tmp_path: Path) -> None:
    asked = job(tmp_path, "x")
    with pytest.raises(InvalidSpec, match=r"run.gpus is 2 with run.gpt; accepted are 0 and 1"):
        train(msgspec.structs.replace(asked, run={**asked.run, "gpus": 2}))
