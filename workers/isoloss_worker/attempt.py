"""One leased execution of a task: from the lease to a job, from what became of it to the ending that is told."""

from __future__ import annotations

import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from isoloss.client.held import describe
from isoloss.domain.lease import Checkpoint, Ending
from isoloss.domain.spec import Run, decode
from isoloss.errors import InvalidSpec
from isoloss.v1 import common_pb2 as pb
from isoloss.wire.values import from_key, from_values
from isoloss_worker import checkpoint
from isoloss_worker.allow import AllowList
from isoloss_worker.gpus import GpuIds
from isoloss_worker.job import Job
from isoloss_worker.messages import Ended, Saved


@dataclass(slots=True)
class Attempt:
    """A lease with its run section and its folder; ``registered`` once the controller may know of a checkpoint in it."""

    lease: pb.Lease
    section: dict[str, Any]
    folder: Path
    registered: bool = False

    @classmethod
    def of(cls, lease: pb.Lease) -> Attempt:
        """The attempt of a lease."""
        return cls(lease=lease, section=describe(lease), folder=checkpoint.folder_of(lease))

    @property
    def gpus(self) -> int:
        """How many GPUs its task takes."""
        return int(self.section.get("gpus") or 0)

    def job(self, allowed: AllowList, gpu_ids: GpuIds, *, own_gpus: bool = False, code: str = "") -> tuple[Job, Run]:
        """What to run on these GPUs, or as many of them as it wants; ``code`` is the version of the trainer's.

        Raises ``NotAllowed`` or ``InvalidSpec`` when this worker will not.
        """
        lease, run = self.lease, decode(self.section, Run)
        run.check()
        allowed.check(run)
        if run.gpus > len(gpu_ids):
            raise InvalidSpec(
                f"run.gpus is {run.gpus}; accepted on this worker are at most {len(gpu_ids)}.",
                hint="Slots that share a GPU cannot be joined: start the worker with as many --slots as GPUs, or fewer.",
            )
        return Job(
            study=f"{lease.project}/{lease.study}", trial=lease.trial, level=lease.level, params=from_values(lease.params),
            budget_from=checkpoint.reached(lease.resume_from, lease.budget_from, lease.decay_from), decay_from=lease.decay_from,
            budget_to=lease.budget_to, save_to=str(self.folder), run=_plain(self.section, run), resume_from=lease.resume_from,
            seed=lease.seed, metrics=tuple(lease.metrics), code=code, gpu_ids=gpu_ids[: run.gpus or None], own_gpus=own_gpus,
        ), run  # fmt: skip

    @property
    def code_folder(self) -> Path | None:
        """Where the trainer's code lies; ``None`` for the built-in GPT."""
        return None if self.section.get("gpt") is not None else Path(self.section.get("cwd") or ".").absolute()

    def refusal(self, *, begin_again: bool) -> Ending | None:
        """Why it cannot be resumed here, if it cannot: never begun again in silence.

        What another machine saved and nobody sees here is left to others, unless it is to ``begin_again``; what is gone or
        torn is lost to all, and the trial goes on from the checkpoint before it.
        """
        path, saver, here = self.lease.resume_from, self.lease.resume_host, socket.gethostname()
        if not path or not (flaw := checkpoint.flaw(Path(path), self.lease.budget_from, self.lease.decay_from)):
            return None
        if not Path(path).exists() and saver != here and not begin_again:
            return Ending(
                kind="release",
                message=f"{here} does not see {path}, which {saver or 'a program'} saved; accepted is an ISOLOSS_HOME that "
                "all workers share. A worker started with --begin-again gives up what it does not see.",
            )
        return Ending(kind="release", message=f"{path} cannot be resumed from: {flaw}. It is given up.", lost=path)

    def saved(self, message: Saved) -> Checkpoint | None:
        """The checkpoint that the trainer completed in mid-run."""
        found = checkpoint.seal(self.folder, message.step)
        self.registered |= found is not None
        return found

    def ending(self, ended: Ended, measured: dict[str, float]) -> Ending:
        """What to tell of the attempt; ``measured`` is the worker's own metrics, such as energy."""
        sealed = None if ended.saved is None else checkpoint.seal(self.folder, ended.saved)
        match ended.kind:
            case "complete":
                return Ending(kind="complete", values=measured | ended.values, checkpoint=sealed)
            case "diverge":
                return Ending(kind="diverge", step=ended.step, values=measured | ended.values)
            case "release":
                self.registered |= sealed is not None  # a release told again after a lost answer is called stale
                return Ending(kind="release", checkpoint=sealed)
            case "fail":
                return Ending(kind="fail", retryable=ended.retryable, message=ended.message)

    def tidy(self, ending: Ending | None) -> None:
        """Remove the folder of an attempt that left no checkpoint; what may be registered stays."""
        if not self.registered and (ending is None or ending.checkpoint is None):
            checkpoint.discard(self.folder)

    @property
    def identity(self) -> dict[str, Any]:
        """What every log line of the attempt says."""
        lease, key = self.lease, from_key(self.lease.key)
        return {
            "study": lease.study,
            "trial": lease.trial,
            "trial_level": lease.level,
            "task": key.task_id,
            "epoch": key.epoch,
        }


def _plain(mapping: dict[str, Any], run: Run) -> dict[str, Any]:
    """The run section as the child reads it; its folder absolute, since a child is not where its agent is."""
    return mapping | {"cwd": str(Path(run.cwd or ".").absolute())}
