"""Training from one budget to another: warm-up and constant rate on the trunk, then the decay branch of the rung.

The trunk's state at ``decay_from`` is saved before the decay begins, so that the next rung resumes there and the
decayed weights are dropped: a rung's result is a finished run at exactly ``budget_to`` tokens. On its way there the
trunk is saved every ``save_every``. Everything is a function of (spec, seed, tokens seen), so a killed and resumed run
equals one that never stopped.
"""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Final

import torch

from isoloss.domain.spec import Gpt as GptSpec
from isoloss.domain.spec import decode
from isoloss.errors import InvalidSpec, TrainableFailed
from isoloss_worker.job import Diverged, Job, Preempted, Reporter, Values
from isoloss_worker.trainables.gpt.cost import Cost
from isoloss_worker.trainables.gpt.run import Run

HOPELESS: Final = 3  # times the loss of knowing nothing
REPORTS: Final = 20  # points of the curve in one rung
SAVING: Final = 0.02  # of the time, at most


class Curve:
    """Follows the training loss, one step behind: while it is read, a GPU has the next step to work on."""

    def __init__(self, run: Run, reporter: Reporter, every: int) -> None:
        self.last = math.nan
        self._run = run
        self._reporter = reporter
        self._every = every * run.spec.batch_tokens
        self._hopeless = HOPELESS * math.log(run.corpus.vocabulary)
        self._ahead: tuple[int, torch.Tensor] | None = None

    def follow(self, loss: torch.Tensor) -> None:
        """Take the loss of the step just asked for, and settle the one before."""
        self.settle()
        self._ahead = self._run.tokens, loss

    def settle(self) -> None:
        """Wait for the last step: report its loss where one is due; raises ``Diverged`` where training is lost."""
        if self._ahead is None:
            return
        (tokens, awaited), self._ahead = self._ahead, None
        loss = float(awaited)
        if not math.isfinite(loss) or loss > self._hopeless:
            raise Diverged(tokens, {"train_loss": self.last} if math.isfinite(self.last) else {})
        self.last = loss
        if tokens % self._every == 0:
            self._reporter.metrics(tokens, {"train_loss": loss})


class Trunk:
    """Saves a run on its way to the fork: as often as its spec says, less often where that would cost too much time."""

    def __init__(self, run: Run, job: Job, reporter: Reporter) -> None:
        self._run, self._job, self._reporter = run, job, reporter
        self._saved_at = run.tokens
        self._due = time.monotonic() + run.spec.save_every

    @property
    def saved(self) -> bool:
        """Whether it is saved as far as the fork."""
        return self._saved_at >= self._job.decay_from

    @property
    def due(self) -> bool:
        """Whether the run is to be saved now."""
        now = self._run.tokens
        late = time.monotonic() >= self._due and now > self._saved_at
        return not self.saved and (late or now >= self._job.decay_from)

    def save(self) -> None:
        """Save it, and register that."""
        begun = time.monotonic()
        self._run.save(Path(self._job.save_to))
        self._reporter.checkpoint(self._run.tokens)
        self._saved_at = self._run.tokens
        now = time.monotonic()
        self._due = now + max(self._run.spec.save_every, (now - begun) / SAVING)


def train(job: Job, reporter: Reporter) -> Values:
    """Run one task; returns the final metrics: val_loss, and what it cost. Raises ``Diverged``, ``OutOfMemory``."""
    spec = spec_of(job)
    if job.run.get("gpus") and not torch.cuda.is_available():
        raise TrainableFailed(
            f"run.gpus is {job.run['gpus']}, and this worker's torch finds no GPU; accepted is a torch built for CUDA, or 0."
        )
    torch.set_num_threads(1)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()  # of the trial before, in a warm child
    run = Run(spec, job.seed)
    if (folder := job.resume_folder) is not None:
        run.load(folder)
    cost = Cost(run.device, job.gpu_ids if job.own_gpus else (), run.tokens)
    curve = Curve(run, reporter, max(1, (job.budget_to - run.tokens) // spec.batch_tokens // REPORTS))
    begun_at = run.tokens
    trunk = Trunk(run, job, reporter)
    while run.tokens < job.budget_to:
        if reporter.stop.asked:
            curve.settle()
            raise _preempted(run, job, saved=trunk.saved)
        if trunk.due:
            curve.settle()
            trunk.save()
        curve.follow(run.step(run.rate(job.decay_from, job.budget_to)))
        if run.tokens == begun_at + spec.batch_tokens:
            curve.settle()
            cost.first_step_done(run.tokens)
    curve.settle()
    costs = cost.values(run.tokens, flops_per_token=run.flops_per_token, bf16=run.bf16)
    if not trunk.saved:
        run.save(Path(job.save_to))
    costs["flops"] = float(run.flops_per_token * run.tokens)
    if run.micro_batch < run.sequences:
        costs["micro_batch"] = float(run.micro_batch)
    values = {"val_loss": run.held_out_loss(), "train_loss": curve.last, **costs}
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
    if spec.vocabulary is None and (spec.dtype is not None or spec.data.endswith(".bin")):
        said = f"dtype is {spec.dtype!r}" if spec.dtype else f"data is {spec.data!r}"
        raise InvalidSpec(
            f"run.gpt.{said} and run.gpt.vocabulary is missing; accepted beside token files is how many tokens their "
            "tokenizer has, such as 50304."
        )
    if job.run.get("gpus", 0) > 1:
        raise InvalidSpec(f"run.gpus is {job.run['gpus']} with run.gpt; accepted are 0 and 1: it trains on one GPU.")
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
