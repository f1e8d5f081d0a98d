"""Why a study is not running: one sentence for each thing in its way, as a pure function of what is known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from isoloss.domain.lease import slots_taken
from isoloss.domain.quantity import format_bytes
from isoloss.domain.study import StudyState
from isoloss.search.search import Search
from isoloss.store.projects import Share
from isoloss.store.studies import StudyRow
from isoloss.store.workers import WorkerRow

SILENT_SECONDS = 60.0


def obstacles(
    row: StudyRow, search: Search, open_tasks: Sequence[Mapping[str, Any]], workers: Sequence[WorkerRow],
    share: Share | None = None, given_back: Sequence[tuple[int, str]] = (),
    cooling: Mapping[str, float] = {}, exceeded: Sequence[str] = (),
) -> list[str]:  # fmt: skip
    """What keeps the study from running now; one sentence saying that it runs, when nothing does."""
    if row.state == StudyState.STOPPED:
        return [f"The study is stopped ({search.stopped}), which is final."]
    if row.state == StudyState.PAUSED:
        return ["The study is paused: `isoloss study resume` lets it go on."]
    if row.state == StudyState.IDLE:
        return ["The study has run everything it asked for: it is idle. Deepen it, or add a trial."]
    by_state = {task["state"]: task for task in open_tasks}
    leased, ready = by_state.get("leased"), by_state.get("ready")
    found = [f"Trial {trial} was given back by a worker. {said}" for trial, said in given_back]
    found += [
        f"Worker {name!r} is given nothing for {seconds:.0f} s: tasks fail with it that go well with others."
        for name, seconds in cooling.items()
    ]
    full = {
        worker.full["id"]: worker.full for worker in workers
        if worker.full and worker.seen_seconds_ago < SILENT_SECONDS and worker.full["project"] in ("", row.project)
    }  # fmt: skip
    found += [
        f"Workers on {disk['host']} are given no new task: {format_bytes(disk['used_bytes'])} lie in {disk['root']}, whose quota is "
        f"{format_bytes(disk['quota_bytes'])}, and no more checkpoints may be dropped. Free some, or start them with a larger --quota."
        for disk in full.values()
    ]
    if ready and ready["wait"] and ready["wait"] > 0:
        found.append(f"{ready['n']} tasks back off; the next may run in {ready['wait']:.0f} s.")
    if share is not None and share.most is not None and share.running >= share.most:
        found.append(
            f"Project {row.project!r} runs {share.running} tasks of at most {share.most} (`isoloss project set`)."
        )
    if row.trainable:
        found += _short_of_workers(row.trainable, row.spec.get("run") or {}, workers, running=bool(leased))
    elif not leased:
        found.append("The study names no trainable: a program has to ask for its trials (`study.optimize`).")
    if leased:
        found += [f"{said}: nothing more is begun until what runs has ended." for said in exceeded]
    if not search.startable() and leased:
        found.append(f"{leased['n']} tasks run; what follows depends on their results.")
    return found or [f"Nothing is in the way: {leased['n'] if leased else 0} tasks run."]


def _short_of_workers(
    trainable: str, run: Mapping[str, Any], workers: Sequence[WorkerRow], *, running: bool
) -> list[str]:
    gpus, nodes = int(run.get("gpus") or 0), int(run.get("nodes") or 1)
    live = [worker for worker in workers if worker.seen_seconds_ago < SILENT_SECONDS and not worker.draining]
    able = [worker for worker in live if slots_for(worker.allowed, trainable, gpus, nodes)]
    if not live:
        return ["No worker is there: `isoloss worker start` starts one."]
    if not able and not any(slots_for(worker.allowed, trainable, 0, nodes) for worker in live) and nodes > 1:
        return [f"run.nodes is {nodes} and no worker spans as many: start one with --nodes {nodes} inside a Slurm job."]
    if not able and any(slots_for(worker.allowed, trainable, 0) for worker in live):
        most = max(most_gpus(worker.allowed) for worker in live)
        return [f"run.gpus is {gpus} and no worker has more than {most} GPUs for a task: start a larger one."]
    if not able:
        return [f"{len(live)} workers are there and none of them allows {trainable!r}: start one with --allow."]
    if running:
        return []
    lacking = {
        worker.id: slots_for(worker.allowed, trainable, gpus, nodes) - worker.slots + worker.taken for worker in able
    }
    if min(lacking.values()) > 0 and all(slots_for(worker.allowed, trainable, gpus, nodes) == 1 for worker in able):
        return ["Every slot that could run it is taken by other studies."]
    if min(lacking.values()) > 0:
        nearest = min(lacking, key=lambda name: lacking[name])
        return [
            f"run.gpus is {gpus} and no worker has as many free at once: {nearest!r} lacks {lacking[nearest]} slots. "
            "When it has waited for two lease times, a worker's slots are kept for it as they become free."
        ]
    return []


def gpus_of(spec: Mapping[str, Any]) -> int:
    """The GPUs that a task of a study takes."""
    return int((spec.get("run") or {}).get("gpus") or 0)


def most_gpus(allowed: Mapping[str, Any]) -> int:
    """The most GPUs that one task may have on a worker that allows so much."""
    return max(int(allowed.get("gpus", 0)), int(allowed.get("most_gpus", 0)))


def slots_for(allowed: Mapping[str, Any], trainable: str, gpus: int, nodes: int = 1) -> int:
    """How many slots of a worker that allows so much a task takes; 0 if it may not run it.

    The task is a trainable ``kind:name`` on so many nodes with so many GPUs each.

    Nobody runs the SDK's own.
    """
    if gpus > most_gpus(allowed) or nodes > max(1, int(allowed.get("nodes", 1))):
        return 0
    kind, _, name = trainable.partition(":")
    match kind:
        case "gpt":
            allows = allowed.get("everything") or allowed.get("gpt")
        case "function":
            allows = allowed.get("everything") or name in allowed.get("functions", ())
        case "command":
            prefixes = allowed.get("command_prefixes", ())
            allows = allowed.get("everything") or any(name == p or name.startswith(p + " ") for p in prefixes)
        case _:
            allows = False
    return slots_taken(gpus, allowed.get("gpus", 0)) if allows else 0
