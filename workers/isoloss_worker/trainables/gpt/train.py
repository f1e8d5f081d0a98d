"""Training from one budget to another: warm-up and constant rate on the trunk, then the decay branch of the rung.

The trunk's state at ``decay_from`` is saved before the decay begins, so that the next rung resumes there and the
decayed weights are dropped: a rung's result is a finished run at exactly ``budget_to`` tokens. Everything is a function
of (spec, seed, tokens seen), so a killed and resumed run equals one that never stopped.
"""

from __future__ import annotations

import json
import math
import os
import time
from pathlib import Path
from typing import Any, Final

import torch
from safetensors.torch import load_file, save_file

from isoloss.domain.spec import Gpt as GptSpec
from isoloss.domain.spec import decode
from isoloss.errors import InvalidSpec, TrainableFailed
from isoloss_worker.job import Diverged, Job, Preempted, Reporter, Values
from isoloss_worker.trainables.gpt import data
from isoloss_worker.trainables.gpt.model import Gpt, flops_per_token

BETAS: Final = (0.9, 0.95)
EPSILON: Final = 1e-12
CLIP: Final = 1.0
HOPELESS: Final = 3 * math.log(256)  # nats: three times the loss of knowing nothing
REPORTS: Final = 20  # points of the curve in one rung


class Run:
    """One model in training; ``tokens`` is how far it is."""

    def __init__(self, spec: GptSpec, seed: int) -> None:
        self.spec = spec
        self.seed = seed
        self.tokens = 0
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.corpus = data.load(spec.data)
        self.model = Gpt(width=spec.width, depth=spec.depth, head_width=spec.head_width, context=spec.context)
        self.model.initialise(seed)
        self.model.to(self.device)
        matrices = [p for p in self.model.parameters() if p.ndim >= 2]
        vectors = [p for p in self.model.parameters() if p.ndim < 2]
        groups = [{"params": matrices, "weight_decay": spec.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=spec.lr, betas=BETAS, eps=EPSILON, fused=True)

    def rate(self, decay_from: int, budget_to: int) -> float:
        """The learning rate of the next step: warm-up in tokens, then the schedule, or linear to zero over the branch."""
        after = self.tokens + self.spec.batch_tokens
        warm = min(1.0, after / self.spec.warmup_tokens) if self.spec.warmup_tokens else 1.0
        left = (budget_to - self.tokens) / (budget_to - decay_from) if self.tokens >= decay_from < budget_to else 1.0
        done = self.tokens / budget_to
        schedule = {"constant": 1.0, "linear": 1.0 - done, "cosine": 0.5 + 0.5 * math.cos(math.pi * done)}
        return self.spec.lr * warm * left * schedule[self.spec.schedule]

    def step(self, lr: float) -> float:
        """One optimizer step; returns the training loss before it."""
        count = self.spec.batch_tokens // self.spec.context
        batch = self.corpus.batch(self.seed, self.tokens // self.spec.context, count, self.spec.context)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            loss = self.model(batch.to(self.device, non_blocking=True))
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), CLIP)
        self.optimizer.step()
        self.tokens += self.spec.batch_tokens
        return float(loss.detach())

    @torch.no_grad()
    def held_out_loss(self) -> float:
        """The mean loss on the fixed held-out windows."""
        windows = self.corpus.windows(self.spec.eval_tokens, self.spec.context)
        losses = [float(self.model(part.to(self.device))) * len(part) for part in torch.split(windows, 128)]
        return sum(losses) / len(windows)

    def save(self, folder: Path) -> None:
        """The whole state: tensors in safetensors, the rest as JSON, whole or not there."""
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {f"model.{name}": tensor for name, tensor in self.model.state_dict().items()}
        state = self.optimizer.state_dict()["state"]
        tensors |= {f"adam.{i}.{key}": value for i, one in state.items() for key, value in one.items()}
        draft = folder / f"state.{os.getpid()}"
        save_file({name: tensor.contiguous().cpu() for name, tensor in tensors.items()}, draft)
        (folder / "state.json").write_text(
            json.dumps({"tokens": self.tokens, "seed": self.seed, "data": self.corpus.digest})
        )
        draft.replace(folder / "state.safetensors")

    def load(self, folder: Path) -> None:
        """Go on from a saved state; raises ``TrainableFailed`` when it was trained on other text."""
        meta = json.loads((folder / "state.json").read_text())
        if meta["data"] != self.corpus.digest:
            raise TrainableFailed(f"The checkpoint {folder} was trained on other text than run.gpt.data holds now.")
        tensors = load_file(folder / "state.safetensors")
        self.model.load_state_dict({k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.")})
        found: dict[int, dict[str, Any]] = {}
        for name, tensor in tensors.items():
            if name.startswith("adam."):
                _, index, key = name.split(".")
                found.setdefault(int(index), {})[key] = tensor
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": found})
        self.tokens = meta["tokens"]


def train(job: Job, reporter: Reporter) -> Values:
    """Run one task; returns the final metrics: val_loss, and what it cost. Raises ``Diverged``."""
    spec = spec_of(job)
    torch.set_num_threads(1)
    run = Run(spec, job.seed)
    if (folder := job.resume_folder) is not None:
        run.load(folder)
    begun, began_at = time.process_time(), run.tokens
    every = max(1, (job.budget_to - run.tokens) // spec.batch_tokens // REPORTS)
    last = math.nan
    saved = job.decay_from <= run.tokens
    while run.tokens < job.budget_to:
        if reporter.stop.asked:
            raise _preempted(run, job, saved=saved)
        if run.tokens >= job.decay_from and not saved:
            run.save(Path(job.save_to))
            reporter.checkpoint(run.tokens)
            saved = True
        loss = run.step(run.rate(job.decay_from, job.budget_to))
        if not math.isfinite(loss) or loss > HOPELESS:
            raise Diverged(run.tokens, {"train_loss": last} if math.isfinite(last) else {})
        last = loss
        if (run.tokens // spec.batch_tokens) % every == 0:
            reporter.metrics(run.tokens, {"train_loss": loss})
    seconds = time.process_time() - begun
    if not saved:
        run.save(Path(job.save_to))
    cost = {
        "cpu_us_per_token": 1e6 * seconds / max(1, run.tokens - began_at),
        "flops": float(flops_per_token(width=spec.width, depth=spec.depth, context=spec.context) * run.tokens),
    }
    values = {"val_loss": run.held_out_loss(), "train_loss": last, **cost}
    reporter.metrics(run.tokens, values)
    return values


def _preempted(run: Run, job: Job, *, saved: bool) -> Preempted:
    """The trunk is saved where it is; a decay under way is dropped, since its fork was saved already."""
    if saved or run.tokens == job.budget_from:
        return Preempted()
    run.save(Path(job.save_to))
    return Preempted(saved=run.tokens)


def spec_of(job: Job) -> GptSpec:
    """The model's spec with the job's parameters over it; raises ``InvalidSpec`` for budgets that are not whole steps."""
    base = job.run.get("gpt") or {}
    known = {name: value for name, value in job.params.items() if name in GptSpec.__struct_fields__}
    spec = decode({**base, **known}, GptSpec)
    if spec.width % spec.head_width:
        raise InvalidSpec(f"run.gpt.width is {spec.width}; accepted are multiples of head_width, {spec.head_width}.")
    if spec.batch_tokens % spec.context:
        raise InvalidSpec(
            f"batch_tokens is {spec.batch_tokens}; accepted are multiples of run.gpt.context, {spec.context}."
        )
    for name in ("budget_from", "decay_from", "budget_to"):
        if getattr(job, name) % spec.batch_tokens:
            raise InvalidSpec(
                f"{name} is {getattr(job, name)}; accepted are multiples of batch_tokens, {spec.batch_tokens}.",
                hint="Set budget.multiple to the largest batch.",
            )
    return spec
