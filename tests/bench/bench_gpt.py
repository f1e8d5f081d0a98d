# ruff: noqa: T201 - a benchmark prints
"""The built-in GPT beside a bare training loop: what its comforts cost, how soon a trial steps, what a GPU makes of it.

``loop``: our loop, a loop as nanoGPT's around the same model, and that loop around nanoGPT's own architecture, one after
another in every round, by CPU time, the median of the rounds. ``start``: from a fresh child to its first step.
``overhead``: reports, checkpoint and heartbeats of a trial under a real worker, as a part of its training. ``gpu``: MFU,
memory and joules of 124M, 350M and 1B, where there is a GPU.

    python tests/bench/bench_gpt.py [loop] [start] [overhead] [gpu] [--rounds 5] [--width 128] [--seconds 20]
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
import psutil
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from isoloss.testing.cluster import Cluster, wait_until
from isoloss_worker import gpus
from isoloss_worker.job import Job, Reporter
from isoloss_worker.messages import DECODER, Ended, Measured, Saved, line
from isoloss_worker.trainables.gpt.model import Gpt
from isoloss_worker.trainables.gpt.train import train

DEPTH, CONTEXT, BATCH = 2, 64, 512
SIZES: Final[dict[str, dict[str, int]]] = {
    "124M": {"width": 768, "depth": 12, "head_width": 64, "context": 1024, "micro_batch": 32, "batch_tokens": 1 << 19},
    "350M": {"width": 1024, "depth": 24, "head_width": 64, "context": 1024, "micro_batch": 16, "batch_tokens": 1 << 18},
    "1B": {"width": 2048, "depth": 20, "head_width": 128, "context": 2048, "micro_batch": 8, "batch_tokens": 1 << 17},
}
TARGETS: Final = {"124M": 0.35, "350M": 0.40, "1B": 0.45}


def job(folder: Path, model: dict[str, Any], *, steps: int, fork: int | None = None) -> Job:
    """So many steps, saved at ``fork`` or at the end."""
    model = {"data": str(folder / "tokens.bin"), "vocabulary": 256, "batch_tokens": BATCH, "eval_tokens": 64, **model}
    return Job(
        study="bench", trial=0, level=0, params={}, budget_from=0, budget_to=steps * model["batch_tokens"],
        decay_from=(steps if fork is None else fork) * model["batch_tokens"], save_to=str(folder / "saved"),
        run={"gpt": model}, metrics=("val_loss",), gpu_ids=gpus.visible()[:1], own_gpus=True,
    )  # fmt: skip


def corpus(folder: Path, vocabulary: int = 256, size: int = 5_000_000) -> None:
    """Random tokens: what they are costs nothing."""
    np.random.default_rng(1).integers(0, vocabulary, size).astype("<u2").tofile(folder / "tokens.bin")


class Plain(nn.Module):
    """GPT-2's architecture as nanoGPT has it: learned positions, LayerNorm, tied embedding, exact GELU."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.tokens, self.positions = nn.Embedding(256, width), nn.Embedding(CONTEXT, width)
        self.blocks = nn.ModuleList(
            nn.ModuleList(
                [nn.LayerNorm(width, bias=False), nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width, bias=False),
                 nn.LayerNorm(width, bias=False), nn.Linear(width, 4 * width, bias=False),
                 nn.Linear(4 * width, width, bias=False)]
            ) for _ in range(DEPTH)
        )  # fmt: skip
        self.norm = nn.LayerNorm(width, bias=False)
        for weight in self.parameters():
            if weight.ndim > 1:
                nn.init.normal_(weight, std=0.02)

    def forward(self, batch: Tensor) -> Tensor:
        """The mean loss of the next token."""
        inputs, targets = batch[:, :-1], batch[:, 1:]
        count, length = inputs.shape
        x = self.tokens(inputs) + self.positions(torch.arange(length))
        parts: tuple[nn.Module, ...]
        for parts in self.blocks:  # type: ignore[assignment]  # a ModuleList of ModuleLists
            first, attend, out, second, up, down = parts
            q, k, v = attend(first(x)).split(x.shape[2], dim=2)
            q, k, v = (part.view(count, length, self.heads, -1).transpose(1, 2) for part in (q, k, v))
            mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            x = x + out(mixed.transpose(1, 2).contiguous().view(x.shape))
            x = x + down(F.gelu(up(second(x))))
        logits = F.linear(self.norm(x), self.tokens.weight)
        return F.cross_entropy(logits.view(-1, 256), targets.reshape(-1))


def bare(folder: Path, model: nn.Module, steps: int) -> float:
    """CPU microseconds a token of a loop that only trains: nanoGPT's, with its loss read every tenth step."""
    data = np.memmap(folder / "tokens.bin", dtype=np.uint16, mode="r")
    decayed = [p for p in model.parameters() if p.ndim >= 2]
    rest = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=0.004, betas=(0.9, 0.95), fused=True)
    begun = time.process_time()
    for step in range(steps):
        places = torch.randint(len(data) - CONTEXT - 1, (BATCH // CONTEXT,))
        batch = torch.stack([torch.from_numpy(data[i : i + CONTEXT + 1].astype(np.int64)) for i in places])
        for group in optimizer.param_groups:
            group["lr"] = 0.004 * min(1.0, (step + 1) / 100)
        loss = model(batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if step % 10 == 0:
            loss.item()
    return 1e6 * (time.process_time() - begun) / (steps * BATCH)


def quiet() -> Reporter:
    """Nobody listens."""
    return Reporter(lambda *_: None, lambda _: None)


def loop(folder: Path, rounds: int, width: int) -> None:
    """Three loops in turn."""
    torch.set_num_threads(1)
    steps = max(20, round(150 * (128 / width) ** 1.5))
    loops: dict[str, Callable[[], float]] = {
        "ours": lambda: train(job(folder, {"width": width}, steps=steps), quiet())["cpu_us_per_token"],
        "bare, the same model": lambda: bare(
            folder, Gpt(width=width, depth=DEPTH, head_width=16, context=CONTEXT), steps
        ),
        "bare, nanoGPT's model": lambda: bare(folder, Plain(width, width // 16), steps),
    }
    for measure in loops.values():
        measure()
    found = [{name: measure() for name, measure in loops.items()} for _ in range(rounds)]
    ours = [one["ours"] for one in found]
    print(f"loop: width {width}, {steps} steps of {BATCH} tokens, one thread, {rounds} rounds, CPU time")
    for name in loops:
        us = statistics.median(one[name] for one in found)
        ratio = statistics.median(one[name] / mine for one, mine in zip(found, ours, strict=True))
        print(f"  {name:22} {1e6 / us:8.0f} tokens/s   ours runs at {ratio:.3f} of it")


class Child:
    """A child process as a slot has one."""

    def __init__(self) -> None:
        command = [sys.executable, "-m", "isoloss_worker.child"]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )

    def first_step(self, one: Job) -> float:
        """Seconds until the job's first step is reported; waits for its end."""
        stdin, stdout = self.process.stdin, self.process.stdout
        assert stdin is not None and stdout is not None
        begun, at = time.perf_counter(), 0.0
        stdin.write(msgspec.json.encode(one) + b"\n")
        stdin.flush()
        for text in stdout:
            message = DECODER.decode(text)
            if isinstance(message, Measured) and not at:
                at = time.perf_counter() - begun
            if isinstance(message, Ended):
                assert message.kind == "complete", message.message
                return at
        raise RuntimeError("The child ended.")

    def close(self) -> None:
        """End it."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def start(folder: Path, rounds: int, width: int) -> None:
    """From nothing, and from a warm child."""
    found = []
    for _ in range(rounds):
        begun = time.perf_counter()
        child = Child()
        one = job(folder, {"width": width}, steps=1)
        child.first_step(one)
        fresh = time.perf_counter() - begun
        found.append((fresh, child.first_step(one)))
        child.close()
    fresh, warm = (statistics.median(times) for times in zip(*found, strict=True))
    print(f"start: a fresh child ends its first step after {fresh:.2f} s, a warm one after {1000 * warm:.0f} ms")
    for what in ("nothing in the cache", "its graphs in the cache"):
        begun = time.perf_counter()
        child = Child()
        child.first_step(job(folder, {"width": width, "compile": True}, steps=1))
        print(f"  compiled, with {what}: {time.perf_counter() - begun:.1f} s")
        child.close()


def overhead(folder: Path, seconds: float, width: int) -> None:
    """What the child does beside training, and what its agent does."""
    model = {"width": width}
    speed = train(job(folder, model, steps=60), quiet())["tokens_per_second"]
    steps = round(seconds * speed / BATCH)
    child, fork = _beside(folder, job(folder, model, steps=steps, fork=round(0.8 * steps)))
    with Cluster(fsync=True) as cluster, cluster.client() as client:
        worker = cluster.worker("bench", slots=1)
        wait_until(client.workers, 30, what="the worker")
        spec: dict[str, Any] = {
            "name": "bench", "space": {"lr": {"type": "float", "low": 1e-3, "high": 4e-3}}, "objective": {"metric": "val_loss"},
            "method": {"name": "fixed", "budget": steps * BATCH}, "budget": {"unit": "tokens", "multiple": BATCH},
            "fidelity": {"mode": "branch", "decay": 0.2}, "limits": {"trials": 1},
            "run": {"gpt": job(folder, model, steps=1).run["gpt"]},
        }  # fmt: skip
        agent = psutil.Process(worker.process.pid)
        before = agent.cpu_times()
        study = client.launch_study(spec)
        wait_until(lambda: study.info().state == "idle", 20 * seconds + 60, what="the trial")
        after = agent.cpu_times()
        values = study.trials()[0].levels[0].values
    told = after.user + after.system - before.user - before.system
    trained = values["cpu_us_per_token"] * steps * BATCH / 1e6
    print(f"overhead: {trained:.1f} CPU seconds of training ({steps} steps) under a real worker")
    print(
        f"  reports {1000 * child:.1f} ms, checkpoint {1000 * fork:.1f} ms, agent with heartbeats {1000 * told:.0f} ms CPU:"
    )
    print(f"  {100 * (child + fork + told) / trained:.2f} % of the training")


def _beside(folder: Path, one: Job) -> tuple[float, float]:
    """CPU seconds of one run's reports and of its checkpoint, as a child makes them."""
    from isoloss_worker.trainables.gpt.run import Run

    spent = {"reports": 0.0, "checkpoint": 0.0}
    read, write = os.pipe()

    def timed(name: str, act: Callable[..., Any]) -> Callable[..., Any]:
        def body(*arguments: Any) -> Any:
            begun = time.process_time()
            try:
                return act(*arguments)
            finally:
                spent[name] += time.process_time() - begun

        return body

    save, Run.save = Run.save, timed("checkpoint", Run.save)  # type: ignore[method-assign]
    say = timed("reports", lambda step, values: os.write(write, line(Measured(step, values))))
    try:
        train(one, Reporter(say, timed("reports", lambda step: os.write(write, line(Saved(step))))))
    finally:
        Run.save = save  # type: ignore[method-assign]
        os.close(read)
        os.close(write)
    return spent["reports"], spent["checkpoint"]


def gpu(folder: Path, names: list[str]) -> None:
    """Compiled, bf16, fused: what the trainable itself reports."""
    if not torch.cuda.is_available():
        print("gpu: no GPU")
        return
    print(f"gpu: {torch.cuda.get_device_name()}, torch {torch.__version__}, bf16, compiled, vocabulary 50304")
    corpus(folder, 50304)
    for name in names:
        model = {**SIZES[name], "vocabulary": 50304, "compile": True, "precision": "bf16"}
        begun = time.perf_counter()
        values = train(job(folder, model, steps=15), quiet())
        seconds = time.perf_counter() - begun
        mfu = (
            f"{100 * values['mfu']:.1f} % MFU (wanted {100 * TARGETS[name]:.0f})" if "mfu" in values else "MFU unknown"
        )
        joules = (
            f"{values['joules_per_token']:.5f} J/token (NVML)" if "joules_per_token" in values else "joules unknown"
        )
        print(
            f"  {name}: {values['tokens_per_second']:.0f} tokens/s, {mfu}, {values['peak_bytes'] / 2**30:.1f} GiB, {joules}, "
            f"{seconds:.0f} s in all, micro_batch {values.get('micro_batch', 'whole'):.0f}"
        )


def main() -> None:
    """Run what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", default=["loop", "start", "overhead", "gpu"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--sizes", nargs="*", default=list(SIZES), choices=list(SIZES))
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="isoloss-gpt-") as name:
        folder = Path(name)
        os.environ.setdefault("ISOLOSS_HOME", str(folder / "home"))
        corpus(folder)
        if "loop" in asked.what:
            loop(folder, asked.rounds, asked.width)
        if "start" in asked.what:
            start(folder, asked.rounds, asked.width)
        if "overhead" in asked.what:
            overhead(folder, asked.seconds, asked.width)
        if "gpu" in asked.what:
            gpu(folder, asked.sizes)


if __name__ == "__main__":
    main()
