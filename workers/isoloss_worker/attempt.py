"""One leased execution of a task: from the lease to a job, from what became of it to the ending that is told."""

from __future__ import annotations

import socket
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import structlog

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
from isoloss_worker.objects import Lost, Objects, fetch, fetched, is_url

log = structlog.get_logger()


@dataclass(slots=True)
class Attempt:
    """A lease with its run section and its folder; ``registered`` once the controller may know of a checkpoint in it."""

    lease: pb.Lease
    section: dict[str, Any]
    folder: Path
    resume_from: str  # on this machine's disks, once it is fetched
    objects: Objects | None = None
    announce: Callable[[str], bool] = lambda _: True  # where in the store it is about to write; whether it still may
    registered: bool = False
    published: list[Checkpoint] = field(default_factory=list)  # in the store, the newest last

    @classmethod
    def of(cls, lease: pb.Lease, objects: Objects | None = None) -> Attempt:
        """The attempt of a lease, whose checkpoints go into the store if there is one."""
        folder = checkpoint.folder_of(lease)
        return cls(lease=lease, section=describe(lease), folder=folder, resume_from=lease.resume_from, objects=objects)

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
            budget_from=self.begins, decay_from=lease.decay_from, budget_to=lease.budget_to, save_to=str(self.folder),
            run=_plain(self.section, run), resume_from=self.resume_from, seed=lease.seed, metrics=tuple(lease.metrics), code=code,
            gpu_ids=gpu_ids[: run.gpus or None], own_gpus=own_gpus,
        ), run  # fmt: skip

    @property
    def begins(self) -> int:
        """The step that it goes on from: ``budget_to`` where all was trained, and whoever did so died before it was told."""
        return checkpoint.reached(self.resume_from, self.lease.budget_from, self.lease.decay_from)

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
        if is_url(path):
            return self._fetched(path)
        if not path or not (flaw := checkpoint.flaw(Path(path), self.lease.budget_from, self.lease.decay_from)):
            return None
        if not Path(path).exists() and saver != here and not begin_again:
            return Ending(
                kind="release",
                message=f"{here} does not see {path}, which {saver or 'a program'} saved; accepted is an ISOLOSS_HOME that "
                "all workers share. A worker started with --begin-again gives up what it does not see.",
            )
        return Ending(kind="release", message=f"{path} cannot be resumed from: {flaw}. It is given up.", lost=path)

    def _fetched(self, url: str) -> Ending | None:
        """Bring what it resumes from here; why that cannot be, if so."""
        folder = fetched() / self.folder.name
        try:
            fetch(url, folder)
        except Lost as error:
            return Ending(kind="release", message=f"{url} cannot be resumed from: {error}. It is given up.", lost=url)
        except Exception as error:  # noqa: BLE001 - each store has errors of its own; another machine may have more luck
            return Ending(kind="release", message=f"{url} cannot be fetched on {socket.gethostname()}: {error}")
        self.resume_from = str(folder)
        return None

    def saved(self, message: Saved, *, told: bool = False) -> Checkpoint | None:
        """The checkpoint that the trainer completed in mid-run; once all before it are ``told``, the newest of those will do."""
        if told and self.objects is not None:
            for old in self.published[:-1]:
                self.objects.forget(old.path)
            del self.published[:-1]
        found = self._sealed(message.step, goes_on=True)
        self.registered |= found is not None and not is_url(found.path)
        return found

    def _sealed(self, step: int, *, goes_on: bool = False) -> Checkpoint | None:
        found = checkpoint.seal(self.folder, step, goes_on=goes_on)
        if found is None or self.objects is None:
            return found
        if self.published and replace(found, path=self.published[-1].path) == self.published[-1]:
            return self.published[-1]
        if not self.announce(self.objects.url_of(self.folder, step)):
            return None
        try:
            found = self.objects.publish(self.folder, found)
        except Lost as error:  # of a trainer that goes on the next step's follows; else it stays on the disk
            log.warning("checkpoint.not_published", path=str(self.folder), error=str(error))
            return None if goes_on else found
        if is_url(found.path):
            self.published.append(found)
        return found

    def ending(self, ended: Ended, measured: dict[str, float]) -> Ending:
        """What to tell of the attempt; ``measured`` is the worker's own metrics, such as energy.

        One that had only to be measured and was not has not failed: not every trainer expects that nothing is left to train.
        Raises ``OSError`` when there is no room to seal what it saved, unless it was told to leave: then it is given back
        without, and goes on from the checkpoint before.
        """
        if self.begins == self.lease.budget_to and not self._has_measured(ended):
            path, why = self.lease.resume_from, ended.message or "no metric"
            message = f"{path} has its budget, and nothing was measured there ({why}). It is given up."
            return Ending(kind="release", message=message, lost=path)
        try:
            sealed = None if ended.saved is None else self._sealed(ended.saved)
        except OSError as error:
            if ended.kind != "release":
                raise
            log.warning("checkpoint.missed", path=str(self.folder), error=str(error))
            sealed = None
        match ended.kind:
            case "complete":
                return Ending(kind="complete", values=measured | ended.values, checkpoint=sealed)
            case "diverge":
                return Ending(kind="diverge", step=ended.step, values=measured | ended.values)
            case "release":  # told too late it is called stale, whatever was registered before
                self.registered |= sealed is not None and not is_url(sealed.path)
                return Ending(kind="release", checkpoint=sealed)
            case "fail":
                return Ending(kind="fail", retryable=ended.retryable, message=ended.message)

    def _has_measured(self, ended: Ended) -> bool:
        return ended.kind == "release" or (ended.kind == "complete" and {*self.lease.metrics} <= {*ended.values})

    def tidy(self, ending: Ending | None) -> None:
        """Remove what nobody will read: the folder unless it may be registered, what was fetched, and what a later one supersedes."""
        if self.resume_from != self.lease.resume_from:
            checkpoint.discard(Path(self.resume_from))
        if not self.registered and (ending is None or ending.checkpoint is None or is_url(ending.checkpoint.path)):
            checkpoint.discard(self.folder)
        if self.objects is not None and ending is not None and ending.checkpoint is not None:
            for old in self.published[:-1]:
                self.objects.forget(old.path)

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
