"""What the built-in GPT makes of a device: precision, compiled regions, memory, and what it says that it cost."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from isoloss.errors import TrainableFailed
from isoloss_worker.job import Failed, Job, Reporter, Stop, Values

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.filterwarnings(
    "ignore:The .grad attribute of a Tensor"
)  # Dynamo looks at it, and says so itself


@pytest.fixture(autouse=True)
def tokens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Tokens of which the next is nearly always the last one's successor."""
    monkeypatch.setenv("ISOLOSS_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    file = tmp_path / "tokens.bin"
    draw = np.random.default_rng(5)
    file.write_bytes(((np.arange(40_000) + 7 * (draw.random(40_000) < 0.1).cumsum()) % 100).astype("<u2").tobytes())
    return file


def job(tmp_path: Path, name: str, model: dict[str, Any] | None = None, **changes: Any) -> Job:
    base = {
        "width": 32, "depth": 2, "context": 16, "data": str(tmp_path / "tokens.bin"), "vocabulary": 100,
        "eval_tokens": 512, "batch_tokens": 128, "lr": 0.01, "warmup_tokens": 512,
    }  # fmt: skip
    values: dict[str, Any] = {
        "study": "s", "trial": 0, "level": 0, "params": {}, "seed": 11, "budget_from": 0, "decay_from": 2048,
        "budget_to": 2560, "save_to": str(tmp_path / name), "metrics": ("val_loss",),
    }  # fmt: skip
    return Job(**(values | changes), run={"gpt": base | (model or {})})


def train(job: Job, metrics: Callable[[int, Values], None] = lambda *_: None, stop: Stop | None = None) -> Any:
    from isoloss_worker.trainables.gpt.train import train

    return train(job, Reporter(metrics, lambda _: None, stop))


def state(folder: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return load_file(folder / "state.safetensors")


def test_bf16_learns_as_fp32_does_and_keeps_fp32_weights(tmp_path: Path) -> None:
    exact, half = (train(job(tmp_path, p, {"precision": p}))["val_loss"] for p in ("fp32", "bf16"))
    assert exact != half and half == pytest.approx(exact, abs=0.03)
    assert exact < 4.0, "it learns"
    assert {value.dtype for value in state(tmp_path / "bf16").values()} == {torch.float32}


def test_without_a_gpu_the_precision_is_fp32(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has one")
    assert train(job(tmp_path, "a"))["val_loss"] == train(job(tmp_path, "b", {"precision": "fp32"}))["val_loss"]


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], int]]:
    """Graphs captured since, with a backend that runs them as they are: what is captured does not depend on it."""
    from torch._dynamo.utils import counters

    from isoloss_worker.trainables.gpt import model

    real = torch.compile
    monkeypatch.setattr(torch, "compile", lambda *a, **k: real(*a, backend="eager", **k))
    model.compiled.cache_clear()
    torch.compiler.reset()
    counters.clear()
    yield lambda: counters["stats"]["unique_graphs"]
    model.compiled.cache_clear()
    torch.compiler.reset()


def test_blocks_share_a_graph_and_neither_a_new_rate_nor_a_new_trial_needs_another(
    tmp_path: Path, graphs: Callable[[], int]
) -> None:
    plain = train(job(tmp_path, "plain", {"depth": 3}))
    assert graphs() == 0
    compiled = train(job(tmp_path, "compiled", {"depth": 3, "compile": True, "schedule": "cosine"}))
    assert graphs() == 2, "one for all the blocks, one for the loss; the evaluation has none"
    for trial, rate in enumerate((0.003, 0.02, 0.05)):
        train(job(tmp_path, f"t{trial}", {"compile": True, "schedule": "linear"}, params={"lr": rate}, seed=trial))
    assert graphs() == 2, "twenty rates a trial, four trials, two depths"
    assert compiled["val_loss"] != plain["val_loss"], "cosine is not constant"
    assert train(job(tmp_path, "same", {"depth": 3, "compile": True}))["val_loss"] == plain["val_loss"]


def test_batches_of_one_micro_batch_share_its_graph(tmp_path: Path, graphs: Callable[[], int]) -> None:
    for batch in (128, 256, 512):
        train(job(tmp_path, str(batch), {"compile": True, "micro_batch": 4, "batch_tokens": batch}))
    assert graphs() == 2


@pytest.mark.long
def test_more_shapes_than_dynamo_keeps_by_itself_are_compiled_all_the_same(
    tmp_path: Path, graphs: Callable[[], int]
) -> None:
    for context in range(8, 17):
        model = {"compile": True, "context": context, "batch_tokens": context, "depth": 1}
        train(job(tmp_path, str(context), model, decay_from=context, budget_to=context))
    assert graphs() == 18


def test_a_worker_without_a_compiler_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._inductor import exc

    def fail(*_: Any, **__: Any) -> Any:
        raise exc.InvalidCxxCompiler

    monkeypatch.setattr("isoloss_worker.trainables.gpt.model.compiled", lambda _: fail)
    with pytest.raises(
        TrainableFailed, match=r"run.gpt.compile is true, and this worker cannot compile .* is false, or"
    ):
        train(job(tmp_path, "x", {"compile": True}))


COMPILED = """
import json, sys, torch
from isoloss_worker.job import Job, Reporter
from isoloss_worker.trainables.gpt.train import train
values = train(Job(**json.loads(sys.stdin.read())), Reporter(lambda *_: None, lambda _: None))
from torch._dynamo.utils import counters
made, found = counters["inductor"]["fxgraph_cache_miss"], counters["aot_autograd"]["autograd_cache_hit"]
print(json.dumps([values["val_loss"], made, found]))
"""


@pytest.mark.long
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_compiled_run_learns_the_same_and_the_next_process_finds_its_graphs(tmp_path: Path, precision: str) -> None:
    import msgspec

    plain = train(job(tmp_path, "plain", {"precision": precision}))["val_loss"]
    found = []
    for name in ("first", "second"):
        text = msgspec.json.encode(job(tmp_path, name, {"compile": True, "precision": precision}))
        done = subprocess.run([sys.executable, "-c", COMPILED], input=text, stdout=subprocess.PIPE, check=True)
        found.append(json.loads(done.stdout.splitlines()[-1]))
    assert found[0][0] == pytest.approx(plain, abs=0.02) and found[1][0] == found[0][0]
    assert found[0][1] > 0 and found[1][1:] == [0, 2], "made once, then both regions found"
    assert (tmp_path / "home" / "cache" / "inductor").is_dir()


def at_most(monkeypatch: pytest.MonkeyPatch, sequences: int, error: Callable[[], Any]) -> list[int]:
    """A device on which only so many sequences fit at once; returns the sizes that were tried."""
    from isoloss_worker.trainables.gpt.model import Gpt

    tried: list[int] = []
    forward = Gpt.forward

    def limited(self: Any, batch: Any) -> Any:
        if torch.is_grad_enabled():
            tried.append(len(batch))
            if len(batch) > sequences:
                error()
        return forward(self, batch)

    monkeypatch.setattr(Gpt, "forward", limited)
    return tried


def cuda_says() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")


def cpu_says() -> None:
    torch.empty(1 << 60, dtype=torch.uint8)


def cublas_says() -> None:
    raise RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")


@pytest.mark.parametrize("error", [cuda_says, cpu_says, cublas_says])
def test_what_does_not_fit_passes_in_parts_and_the_batch_stays_what_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Callable[[], Any]
) -> None:
    whole = train(job(tmp_path, "whole"))
    tried = at_most(monkeypatch, 3, error)
    halved = train(job(tmp_path, "halved"))
    assert tried[:6] == [8, 4, 2, 2, 2, 2] and max(tried[2:]) == 2
    assert halved["micro_batch"] == 2 and "micro_batch" not in whole
    assert halved["val_loss"] == pytest.approx(whole["val_loss"], abs=1e-3)
    weights = state(tmp_path / "whole"), state(tmp_path / "halved")
    assert all(torch.allclose(weights[0][name], weights[1][name], atol=2e-3) for name in weights[0])


def test_a_micro_batch_that_does_not_divide_the_batch_weighs_every_sequence_alike(tmp_path: Path) -> None:
    whole, parts = train(job(tmp_path, "whole")), train(job(tmp_path, "parts", {"micro_batch": 3}))
    assert parts["val_loss"] == pytest.approx(whole["val_loss"], abs=1e-3) and parts["micro_batch"] == 3


def test_where_not_even_one_sequence_fits_the_outcome_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from isoloss_worker.trainables.gpt.memory import OutOfMemory

    tried = at_most(monkeypatch, 0, cuda_says)
    with pytest.raises(OutOfMemory, match=r"width 32, depth 2, context 16, vocabulary 100 .* micro_batch 1;") as caught:
        train(job(tmp_path, "x"))
    assert tried == [8, 4, 2, 1] and caught.value.micro_batch == 1
    assert isinstance(caught.value, Failed) and not caught.value.retryable


def test_an_optimizer_that_does_not_fit_is_not_tried_with_less(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from isoloss_worker.trainables.gpt.memory import OutOfMemory

    monkeypatch.setattr(torch.optim.AdamW, "step", lambda _: cuda_says())
    with pytest.raises(OutOfMemory) as caught:
        train(job(tmp_path, "x"))
    assert caught.value.micro_batch == 8


def test_a_child_tells_its_agent_that_memory_ran_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from isoloss_worker.child import execute

    at_most(monkeypatch, 0, cuda_says)
    ended = execute(job(tmp_path, "x"), Reporter(lambda *_: None, lambda _: None))
    assert (ended.kind, ended.retryable) == ("fail", False) and ended.message.startswith("OutOfMemory: ")


def test_another_error_is_not_mistaken_for_lack_of_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    tried = at_most(monkeypatch, 0, broken)
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        train(job(tmp_path, "x"))
    assert tried == [8]


@pytest.mark.parametrize("model", [{"micro_batch": 3}, {"micro_batch": 3, "precision": "bf16"}])
def test_a_run_in_parts_that_was_ended_resumes_to_the_same_bits(tmp_path: Path, model: dict[str, Any]) -> None:
    from isoloss_worker.job import Preempted

    whole = train(job(tmp_path, "whole", model))
    stop = Stop()
    with pytest.raises(Preempted) as caught:
        train(job(tmp_path, "cut", model), lambda step, _: stop.ask() if step >= 900 else None, stop)
    rest = job(tmp_path, "rest", model, resume_from=str(tmp_path / "cut"), budget_from=caught.value.saved)
    assert train(rest)["val_loss"] == whole["val_loss"]
    assert (tmp_path / "rest/state.safetensors").read_bytes() == (tmp_path / "whole/state.safetensors").read_bytes()


def test_a_resumed_run_goes_on_with_the_micro_batch_that_fitted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = at_most(monkeypatch, 2, cuda_says)
    train(job(tmp_path, "first", decay_from=1024, budget_to=1024))
    tried.clear()
    train(job(tmp_path, "second", resume_from=str(tmp_path / "first"), budget_from=1024))
    assert set(tried) == {2}


def test_the_flops_of_a_token_are_what_the_formula_and_torch_count() -> None:
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    from isoloss_worker.trainables.gpt.flops import flops_per_token
    from isoloss_worker.trainables.gpt.model import Gpt

    assert flops_per_token(width=128, depth=4, context=64, vocabulary=256) == 5_308_416
    model = Gpt(width=128, depth=4, head_width=16, context=64)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:  # of others torch counts no attention
        model(torch.zeros((2, 65), dtype=torch.int64)).backward()
    assert counter.get_total_flops() == 2 * 64 * 5_308_416


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12), ("NVIDIA H200", 989e12), ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA A100 80GB PCIe", 312e12), ("NVIDIA H100 PCIe", None), ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None),
        ("NVIDIA H200 NVL", None), ("NVIDIA GeForce RTX 4090", None),
    ],
)  # fmt: skip
def test_a_peak_is_known_by_the_devices_exact_name_or_not_at_all(name: str, peak: float | None) -> None:
    from isoloss_worker.trainables.gpt.flops import peak_flops

    assert peak_flops(name) == peak


def test_on_a_cpu_nothing_is_invented(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    values = train(job(tmp_path, "x"))
    assert values["tokens_per_second"] > 0 and values["cpu_us_per_token"] > 0
    assert {"mfu", "peak_bytes", "joules_per_token"}.isdisjoint(values)


def test_a_gpu_says_what_it_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from isoloss_worker import gpus
    from isoloss_worker.trainables.gpt.cost import Cost

    energy, seconds = iter([5_000, 9_000, 14_000]), iter([1.0, 11.0, 13.0])
    monkeypatch.setattr(gpus, "millijoules", lambda _: next(energy))
    monkeypatch.setattr("time.perf_counter", lambda: next(seconds))
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda _: None)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda _: 123)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA H200")
    cost = Cost(torch.device("cuda"), ("0",), tokens=1000)
    cost.first_step_done(2000)
    values = cost.values(6000, flops_per_token=10**9, bf16=True)
    del values["cpu_us_per_token"]
    assert values == {
        "tokens_per_second": 2000, "joules_per_token": 5 / 4000, "peak_bytes": 123, "mfu": 2000 * 1e9 / 989e12
    }  # fmt: skip


def test_the_cache_of_graphs_may_be_put_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, graphs: Any) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "mine"))
    train(job(tmp_path, "x", {"compile": True}))
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(tmp_path / "mine")


@pytest.mark.parametrize(("own", "joules"), [(True, 3.0 / 2432), (False, None)])
def test_the_energy_of_a_gpu_that_slots_share_is_nobodys(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own: bool, joules: float | None
) -> None:
    from isoloss_worker import gpus

    counter = iter((1_000, 2_000, 5_000))
    monkeypatch.setattr(gpus, "millijoules", lambda ids: next(counter) if ids else None)
    values = train(job(tmp_path, "x", gpu_ids=("0",), own_gpus=own))
    assert values.get("joules_per_token") == joules
