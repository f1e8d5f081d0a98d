"""Studies that ran keep their decisions: recorded ledgers are decided again, event by event.

A history that differs means that studies in people's databases would be decided otherwise after an upgrade. Record one
anew only with a decision record that says why:

    python tests/sim/test_recorded_histories.py
"""

from __future__ import annotations

import gzip
import json
import random
from pathlib import Path
from typing import Any

import pytest

from isoloss.domain.spec import decode_study
from isoloss.search.events import (
    ENQUEUED,
    Asked,
    CreateTask,
    Decision,
    Deepened,
    Event,
    Proposed,
    Rescored,
    Retried,
    SpaceChanged,
    TaskDone,
    Widened,
    decision_from_mapping,
    event_from_mapping,
    to_mapping,
)
from isoloss.search.replay import replay
from isoloss.search.search import Search
from isoloss.search.standing import failures

FOLDER = Path(__file__).parent / "histories"
SPACE = {
    "lr": {"type": "float", "low": 1e-4, "high": 1e-1, "log": True},
    "layers": {"type": "int", "low": 2, "high": 8},
    "batch": {"type": "ordinal", "choices": [8, 16, 32]},
}
METHODS: dict[str, dict[str, Any]] = {
    "settled": {"brackets": "all", "sampler": "sobol"},
    "settled_random": {"brackets": "first:2", "order": "eager", "sampler": "random"},
    "efficient": {"variant": "efficient", "brackets": "all", "sampler": "sobol"},
    "discarding": {"sync": True, "sampler": "random"},
    "preserving": {"sync": True, "variant": "preserving", "sampler": "random"},
    "asha": {"name": "asha", "sampler": "sobol"},
}


@pytest.mark.parametrize("name", METHODS)
def test_a_recorded_study_is_decided_as_it_was(name: str) -> None:
    with gzip.open(FOLDER / f"{name}.json.gz", "rt") as file:
        history = json.load(file)
    events = [event_from_mapping(event) for event, _ in history["ledger"]]
    recorded = [[decision_from_mapping(made) for made in decisions] for _, decisions in history["ledger"]]
    report = replay(decode_study(history["spec"]), events, recorded)
    assert report.ok, report.difference
    assert len(events) > 100


def record(name: str) -> None:
    """A study with everything that can happen to one, on three workers."""
    spec = {"name": name, "space": SPACE, "objective": {"metric": "loss"}, "limits": {"trials": 80},
            "method": {"min_budget": 1, "max_budget": 9} | METHODS[name], "seed": 5}  # fmt: skip
    search, ledger, rng = Search(decode_study(spec)), list[tuple[Event, tuple[Decision, ...]]](), random.Random(name)
    wider = SPACE | {"batch": {"type": "ordinal", "choices": [8, 16, 32, 64]}}
    changes: dict[int, Event] = {
        5: Proposed(configurations=({"lr": 0.003, "layers": 4, "batch": 16},), source=ENQUEUED),
        12: Deepened(max_budget=27),
        16: SpaceChanged(space=decode_study(spec | {"space": wider}).space),
        28: Widened(width=2),
    }

    def tell(event: Event) -> tuple[Decision, ...]:
        ledger.append((event, search.apply(event)))
        return ledger[-1][1]

    running: list[CreateTask] = []
    for turn in range(1, 400):
        if turn in changes and not (name == "asha" and turn == 28):
            tell(changes[turn])
        if turn == 24 and (failed := failures(search)):
            tell(Retried(trial=failed[0][0], level=failed[0][1]))
            tell(TaskDone(trial=failed[0][0], level=failed[0][1], score=rng.random()))
        if turn == 26:
            done = [t for t in range(search.trials) if (r := search.result(t, 0)) is not None and r.score is not None]
            tell(Rescored(scores=tuple((trial, 0, rng.random()) for trial in done[:9])))
        running += (
            [made for made in tell(Asked(n=3 - len(running))) if isinstance(made, CreateTask)]
            if len(running) < 3
            else []
        )
        if not running:
            if turn > 28:
                break
            continue
        task = running.pop(rng.randrange(len(running)))
        fails = rng.random() < 0.08
        score = None if fails else rng.random()
        tell(TaskDone(trial=task.trial, level=task.level, status="failed" if fails else "ok", score=score))
    body = [[to_mapping(event), [to_mapping(made) for made in decisions]] for event, decisions in ledger]
    FOLDER.mkdir(exist_ok=True)
    (FOLDER / f"{name}.json.gz").write_bytes(
        gzip.compress(json.dumps({"spec": spec, "ledger": body}).encode(), mtime=0)
    )


if __name__ == "__main__":
    for one in METHODS:
        record(one)
