"""What the workers of a storm did, held against the database: each trainer's own log, each worker's, and the table of attempts."""

from __future__ import annotations

import contextlib
import json
import statistics
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from preemptions import EVERY, Ran, ran

from isoloss.testing.cluster import Cluster

ATTEMPTS: Final = """
    SELECT task.trial_no, task.id, attempt.epoch, task.epoch, attempt.worker_id, attempt.outcome::text, attempt.message,
           extract(epoch FROM attempt.ended_at)::float8, task.budget_to, (result."values" ->> 'total')::float8
    FROM task JOIN study ON study.id = task.study_id JOIN attempt ON attempt.task_id = task.id
    LEFT JOIN result ON result.task_id = task.id AND result.epoch = attempt.epoch WHERE study.name = %s"""
Key = tuple[int, int]  # task, epoch


class Attempt(NamedTuple):
    """A row of the table, with the last epoch of its task and with its result, if it gave the task one."""

    trial: int
    task: int
    epoch: int
    last: int
    worker: str
    outcome: str | None
    message: str
    ended: float | None
    to: int
    total: float | None


class Fault(NamedTuple):
    """What was done, when, to which worker (to none when all may have been hit), and how long until those it hit were answered."""

    at: float
    kind: str
    worker: str
    lasted: float


NONE: Final = Fault(0.0, "promotion", "", 0.0)  # what a run goes on after that nothing had hit


class Cost(NamedTuple):
    """Of a run that went on after another: the fault between, the steps run again, and those the other ran once it was given up."""

    fault: Fault
    again: int
    beyond: int


def judged(
    cluster: Cluster,
    study: str,
    log: Path,
    faults: Sequence[Fault],
    most: Mapping[str, int],
    step_seconds: float,
    patience: int,
) -> tuple[dict[str, Any], list[str], list[str]]:
    """What was run and what it cost, what of it may not be, in the words of the oracles, and what costs more than it may.

    The costs are those of a machine that keeps up. ``most`` bounds the steps run again after a fault of a worker; the others keep workers from telling what they saved, for as long as
    a controller takes to come back. Whoever lost its lease runs so many steps of ``patience`` more once it can hear of it.
    """
    runs, attempts = ran(log), {row[1:3]: Attempt(*row) for row in cluster.rows(ATTEMPTS, study)}
    results = {key: one for key, one in attempts.items() if one.total is not None}
    hits = Counter(one.trial for one in attempts.values() if one.outcome in ("expired", "failed"))
    often, states = Counter[Key](), defaultdict[Key, set[str]](set)
    for one in runs:
        often.update((one.trial, step) for step, _, _ in one.reached[1:])
        for step, state, _ in one.reached:
            states[one.trial, step].add(state)
    computed = {(one.key, step): state for one in runs for step, state, _ in one.reached}
    paid, told = costs(runs, attempts, faults), verdicts(cluster)
    killed = [cost.again for cost in paid if cost.fault.kind in ("worker", "child")]
    wrong: dict[str, list[Any]] = {
        "an attempt is run by one trainer": [k for k, n in Counter(one.key for one in runs).items() if n > 1 or k not in attempts],
        "a result is of its task's last lease": [k for k, one in results.items() if (one.last, "ok") != (one.epoch, one.outcome)],
        "a result is what its own trainer computed": [k for k, one in results.items() if computed.get((k, one.to)) != repr(one.total)],
        "what was accepted is the result": [k for k, said in told.items() if said == "accepted" and k not in results],
        "only killed trainers fail": [one for one in attempts.values() if one.outcome == "failed" and "SIGKILL" not in one.message],
        "a step has one state": [k for k, found in states.items() if len(found) > 1],
        "a step is run once, and once more a fault": [k for k, n in often.items() if n > 1 + hits[k[0]]],
        "a promotion runs nothing again": [cost for cost in paid if cost.fault is NONE and cost.again],
    }  # fmt: skip
    dear: dict[str, list[Any]] = {
        "what is killed costs a checkpoint interval each": [sum(killed) / len(killed)] if sum(killed) > EVERY * len(killed) else [],
        "a fault of a worker costs what was not told": [cost for cost in paid if cost.again > most.get(cost.fault.kind, cost.again)],
        "who lost a lease ends once it can hear of it": [cost for cost in paid if cost.beyond > patience + cost.fault.lasted / step_seconds],
    }  # fmt: skip
    by_kind = defaultdict[str, list[int]](list)
    for cost in paid:
        by_kind[cost.fault.kind].append(cost.again)
    return {
        "attempts": dict(Counter(one.outcome for one in attempts.values())), "steps": often.total(),
        "again_a_fault": {kind: {"n": len(n), "mean": round(statistics.mean(n), 1), "max": max(n)} for kind, n in sorted(by_kind.items())},
        "most_beyond": max((cost.beyond for cost in paid), default=0),
        "completed": dict(Counter(told.values())),
    }, _said(wrong), _said(dear)  # fmt: skip


def _said(broken: Mapping[str, Sequence[Any]]) -> list[str]:
    return [f"{rule}: {len(found)} times not, first {found[0]}" for rule, found in broken.items() if found]


def costs(runs: Sequence[Ran], attempts: dict[Key, Attempt], faults: Sequence[Fault]) -> list[Cost]:
    """Of every run that is not its trial's first, beside the attempt before its own: who was frozen may begin after those who followed."""
    found, before = list[Cost](), dict[int, Ran]()
    for one in sorted(runs, key=lambda ran: ran.key):
        if (former := before.get(one.trial)) is not None:
            given_up = attempts.get((one.task, one.epoch - 1))
            until = one.begun if given_up is None or given_up.ended is None else given_up.ended
            hits = [
                fault for fault in faults if given_up and fault.at < until and fault.worker in ("", given_up.worker)
            ]
            passed = max((step for step, _, at in former.reached if at <= until), default=former.reached[0][0])
            again, beyond = max(0, passed - one.reached[0][0]), former.reached[-1][0] - passed
            found.append(Cost(hits[-1] if hits else NONE, again, beyond))
        before[one.trial] = one
    return found


def verdicts(cluster: Cluster) -> dict[Key, str]:
    """What the workers were answered to what they had completed."""
    found = {}
    for worker in cluster.workers:
        for line in worker.said.splitlines():
            with contextlib.suppress(ValueError):  # a killed worker's last line
                said = json.loads(line)
                if said["event"] == "task.ended" and said["how"] == "complete":
                    found[said["task"], said["epoch"]] = said["verdict"]
    return found
