"""One model in training: its state, one step of it, and how it is saved and resumed."""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from isoloss.client.current import DONE
from isoloss.client.locate import home
from isoloss.domain.spec import Gpt as GptSpec
from isoloss.errors import TrainableFailed
from isoloss_worker.trainables.gpt.data import corpus_of
from isoloss_worker.trainables.gpt.flops import flops_per_token
from isoloss_worker.trainables.gpt.memory import OutOfMemory, is_out_of_memory
from isoloss_worker.trainables.gpt.model import Gpt

BETAS: Final = (0.9, 0.95)
EPSILON: Final = 1e-12
CLIP: Final = 1.0
EVALUATED: Final = 128  # held-out windows that pass at once, at most: a function of the spec alone, as the loss is
EVALUATED_LOGITS: Final = 1 << 28
META: Final = "run"
META_BYTES: Final = (
    1024  # whatever the numbers in it: a later state in the same file leaves its size as a manifest has it
)


class Run:
    """One model in training; ``tokens`` is how far it is, ``micro_batch`` how many sequences pass at once."""

    def __init__(self, spec: GptSpec, seed: int) -> None:
        # Also where nothing is compiled: the optimizer imports Dynamo, which settles the folder for the whole process.
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(home() / "cache" / "inductor"))
        self.spec = spec
        self.seed = seed
        self.tokens = 0
        self.sequences = spec.batch_tokens // spec.context
        self.micro_batch = min(spec.micro_batch or self.sequences, self.sequences)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.bf16 = spec.precision == "bf16" or (spec.precision == "auto" and self.device.type == "cuda")
        self.corpus = corpus_of(spec)
        self.model = Gpt(
            width=spec.width, depth=spec.depth, head_width=spec.head_width, context=spec.context,
            vocabulary=self.corpus.vocabulary,
        )  # fmt: skip
        self.model.initialise(seed)
        self.model.compiled = spec.compile
        with self._within_memory():
            self.model.to(self.device)
        matrices = [p for p in self.model.parameters() if p.ndim >= 2]
        vectors = [p for p in self.model.parameters() if p.ndim < 2]
        groups = [{"params": matrices, "weight_decay": spec.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=spec.lr, betas=BETAS, eps=EPSILON, fused=True)

    @property
    def flops_per_token(self) -> int:
        """What a token costs in training."""
        spec = self.spec
        return flops_per_token(
            width=spec.width, depth=spec.depth, context=spec.context, vocabulary=self.corpus.vocabulary
        )

    def rate(self, decay_from: int, budget_to: int) -> float:
        """The learning rate of the next step: warm-up in tokens, then the schedule, or linear to zero over the branch."""
        after = self.tokens + self.spec.batch_tokens
        warm = min(1.0, after / self.spec.warmup_tokens) if self.spec.warmup_tokens else 1.0
        left = (budget_to - self.tokens) / (budget_to - decay_from) if self.tokens >= decay_from < budget_to else 1.0
        done = self.tokens / budget_to
        schedule = {"constant": 1.0, "linear": 1.0 - done, "cosine": 0.5 + 0.5 * math.cos(math.pi * done)}
        return self.spec.lr * warm * left * schedule[self.spec.schedule]

    def step(self, lr: float) -> torch.Tensor:
        """One optimizer step; returns the training loss before it, which the device may not have computed yet."""
        batch = self.corpus.batch(self.seed, self.tokens // self.spec.context, self.sequences, self.spec.context)
        for group in self.optimizer.param_groups:  # the optimizer is in no compiled graph: a new rate compiles nothing
            group["lr"] = lr
        loss = self._gradients(batch.pin_memory() if self.device.type == "cuda" else batch)
        with self._within_memory():
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), CLIP)
            self.optimizer.step()
        self.tokens += self.spec.batch_tokens
        return loss

    def _gradients(self, batch: torch.Tensor) -> torch.Tensor:
        """The batch's mean loss, its gradient left in the weights; halves ``micro_batch`` until it fits."""
        while True:
            self.optimizer.zero_grad(set_to_none=True)
            if (loss := self._pass(batch)) is not None:
                return loss
            if self.micro_batch == 1:
                raise self._out_of_memory()
            self.micro_batch = (self.micro_batch + 1) // 2
            print(f"isoloss: out of memory, micro_batch is {self.micro_batch} from here on", flush=True)
            if self.device.type == "cuda":
                torch.cuda.empty_cache()

    def _pass(self, batch: torch.Tensor) -> torch.Tensor | None:
        """Forward and backward, micro batch by micro batch; ``None`` when memory ran out, all it held being free again."""
        total = torch.zeros((), device=self.device)
        try:
            for part in torch.split(batch, self.micro_batch):
                with self._precision():
                    loss = self.model(part.to(self.device, non_blocking=True)) * (len(part) / len(batch))
                loss.backward()
                total += loss.detach()
        except (RuntimeError, MemoryError) as error:
            if is_out_of_memory(error):
                return None
            if type(error).__module__.startswith(("torch._inductor", "torch._dynamo")):
                raise _uncompiled(error) from error
            raise
        return total

    @torch.no_grad()
    def held_out_loss(self) -> float:
        """The mean loss on the fixed held-out windows."""
        windows = self.corpus.windows(self.spec.eval_tokens, self.spec.context)
        at_once = max(1, min(EVALUATED, EVALUATED_LOGITS // (self.spec.context * self.corpus.vocabulary)))
        total = 0.0
        for part in torch.split(windows, at_once):
            with self._precision(), self._within_memory():
                total += float(self.model(part.to(self.device))) * len(part)
        return total / len(windows)

    def save(self, folder: Path) -> None:
        """The whole state in one file, whole or not there, as large at every step; then ``DONE``, which says the step."""
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {f"model.{name}": tensor for name, tensor in self.model.state_dict().items()}
        state = self.optimizer.state_dict()["state"]
        tensors |= {f"adam.{i}.{key}": value for i, one in state.items() for key, value in one.items()}
        draft = folder / f"state.{os.getpid()}"
        meta = {"tokens": self.tokens, "micro_batch": self.micro_batch, **self._identity()}
        said = {META: json.dumps(meta).ljust(META_BYTES)}
        save_file({name: tensor.contiguous().cpu() for name, tensor in tensors.items()}, draft, metadata=said)
        draft.replace(folder / "state.safetensors")
        (folder / DONE).write_text(str(self.tokens))

    def load(self, folder: Path) -> None:
        """Go on from a saved state; raises ``TrainableFailed`` when it is of another run, or cannot be read."""
        try:
            with safe_open(folder / "state.safetensors", "pt") as file:
                meta = json.loads((file.metadata() or {})[META])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no mapping
        except (OSError, ValueError, KeyError, SafetensorError) as error:
            raise TrainableFailed(
                f"The checkpoint {folder} cannot be read ({error}); accepted is one that is whole."
            ) from error
        for name, ours in self._identity().items():
            if meta.get(name, ours) != ours:
                raise TrainableFailed(
                    f"The checkpoint {folder} has {name} {meta[name]!r}, and this run {ours!r}; accepted is a checkpoint of "
                    "the same model, seed and data."
                )
        self.model.load_state_dict({k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.")})
        found: dict[int, dict[str, Any]] = {}
        for name, tensor in tensors.items():
            if name.startswith("adam."):
                _, index, key = name.split(".")
                found.setdefault(int(index), {})[key] = tensor
        with self._within_memory():
            self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": found})
        self.tokens = meta["tokens"]
        fitted = meta.get("micro_batch", self.micro_batch)  # its gradients are summed in the order they were
        self.micro_batch = min(self.micro_batch, fitted)

    def _identity(self) -> dict[str, Any]:
        """What a checkpoint must have in common with a run; of some of it the shapes of the weights know nothing."""
        spec = self.spec
        shape = {"width": spec.width, "depth": spec.depth, "head_width": spec.head_width, "context": spec.context}
        return {**shape, "vocabulary": self.corpus.vocabulary, "seed": self.seed, "data": self.corpus.digest}

    def _precision(self) -> torch.autocast:
        """Bf16 for what gains from it; weights, sums and the optimizer stay fp32."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16)

    @contextlib.contextmanager
    def _within_memory(self) -> Iterator[None]:
        """What no smaller micro batch would make fit: weights and the optimizer's state."""
        try:
            yield
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise self._out_of_memory() from error

    def _out_of_memory(self) -> OutOfMemory:
        device = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "this machine's memory"
        spec = self.spec
        what = f"run.gpt of width {spec.width}, depth {spec.depth}, context {spec.context}"
        return OutOfMemory(self.micro_batch, what=f"{what}, vocabulary {self.corpus.vocabulary}", device=device)


def _uncompiled(error: Exception) -> TrainableFailed:
    """The error of a worker that lacks a compiler."""
    first = str(error).strip().splitlines()[0]
    return TrainableFailed(
        f"run.gpt.compile is true, and this worker cannot compile the model ({first}); accepted is false, or a worker with "
        "a C++ compiler, for a GPU with Triton and a C compiler."
    )
