"""How fast the fold is, and that its plans equal the shared table of exact ones.

    python tests/bench/bench_search.py [--configurations 100000] [--workers 64]

The table (``idhb_oracle/oracle.json``: 24 chains of deepening, exact integers) is read from the folder that
ISOLOSS_DATA_HOME names, and skipped with a word when that is not set. Times are of ``Search.apply`` alone, in
microseconds an event, on a virtual clock with log-normal durations; the median must stay below 1 ms, the 99th
percentile below 5 ms.
"""

# ruff: noqa: T201  a bench prints

from __future__ import annotations

import argparse
import heapq
import json
import os
import random
import sys
import time
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from isoloss.domain.spec import StudySpec, decode_study
from isoloss.search.events import Asked, CreateTask, Decision, Deepened, Event, TaskDone
from isoloss.search.preview import preview
from isoloss.search.replay import replay
from isoloss.search.search import Search


def study(eta: int, top: int, **method: Any) -> StudySpec:
    base = {"min_budget": 1, "max_budget": eta**top, "eta": eta, "brackets": "all", "sampler": "random"}
    return decode_study(
        {"name": "bench", "space": {"x": {"type": "float", "low": 0, "high": 1}}, "objective": {"metric": "loss"},
         "method": base | method}
    )  # fmt: skip


def check_oracle(cases: list[dict[str, Any]]) -> int:
    """How many figures were compared; AssertionError at the first that differs."""
    compared = 0
    for case in cases:
        eta, first, spec = case["eta"], case["L0"], study(case["eta"], case["L0"])
        start = preview(spec)
        assert figures(start) == (case["start"]["tasks"], case["start"]["fresh"], case["start"]["resumed"])
        assert rungs(start, "configurations") == [row["n"] for row in case["start"]["brackets"]]
        assert rungs(start, "budget") == [row["resource"] for row in case["start"]["brackets"]]
        maxima = [eta ** (first + 1 + step) for step in range(len(case["steps"]))]
        for number, step in enumerate(case["steps"], 1):
            said, after, new = preview(spec, maxima[:number]), step["hyperband_at_to_R"], step["efficient"]
            assert figures(said) == (after["tasks"], after["fresh"], after["resumed"])
            assert rungs(said, "configurations") == [row["n_new"] for row in step["brackets"]]
            assert rungs(said, "new") == [row["new_tasks_efficient"] for row in step["brackets"]]
            added = (said["added_tasks"], said["added_budget"], said["added_resumed_budget"])
            assert added == (new["new_tasks"], new["new_budget_fresh"], new["new_budget_resumed"])
            compared += 6 + 2 * sum(len(row["n_new"]) for row in step["brackets"])
        last = preview(spec, maxima)
        restarts = (case["total_restarts_fresh"], case["total_restarts_resumed"])
        assert (last["restart_budget"], last["restart_resumed_budget"]) == restarts
        compared += 5 + 2 * sum(len(row["n"]) for row in case["start"]["brackets"])
    return compared


def figures(said: dict[str, Any]) -> tuple[int, int, int]:
    return said["tasks"], said["total_budget"], said["resumed_budget"]


def rungs(said: dict[str, Any], name: str) -> list[list[int]]:
    return [[rung[name] for rung in bracket["rungs"]] for bracket in said["brackets"]]


def time_events(
    spec: StudySpec, configurations: int, workers: int, *, deepen: float | None = None
) -> tuple[list[float], list[tuple[Event, tuple[Decision, ...]]]]:
    """Seconds of every event, and the ledger, of a study that ends at so many configurations or when idle."""
    search, rng, seconds = Search(spec), random.Random(0), list[float]()
    ledger: list[tuple[Event, tuple[Decision, ...]]] = []
    running: list[tuple[float, int, CreateTask]] = []
    clock, idle = 0.0, workers

    def apply(event: Event) -> tuple[Decision, ...]:
        began = time.perf_counter()
        decisions = search.apply(event)
        seconds.append(time.perf_counter() - began)
        ledger.append((event, decisions))
        return decisions

    while search.trials < configurations:
        if deepen is not None and search.trials > configurations / 2:
            apply(Deepened(max_budget=deepen))
            deepen = None
        while idle and isinstance(task := apply(Asked())[-1], CreateTask):
            used = task.budget_to - task.budget_from
            heapq.heappush(running, (clock + used * rng.lognormvariate(0, 0.3), len(ledger), task))
            idle -= 1
        if not running:
            break
        clock, _, task = heapq.heappop(running)
        idle += 1
        apply(TaskDone(trial=task.trial, level=task.level, score=rng.random()))
    return seconds, ledger


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--configurations", type=int, default=100_000)
    parser.add_argument("--workers", type=int, default=64)
    asked = parser.parse_args()
    home = os.environ.get("ISOLOSS_DATA_HOME")
    if home is None:
        print("oracle: skipped, ISOLOSS_DATA_HOME is not set")
    else:
        cases = json.loads((Path(home) / "idhb_oracle" / "oracle.json").read_text())["cases"]
        print(f"oracle: {len(cases)} cases, {check_oracle(cases)} figures, all equal")
    studies = {
        "one bracket, deepened at half": (study(3, 10, brackets="first:1"), 3.0**11),
        "all brackets, eager": (study(3, 11, order="eager"), None),
        "fixed, endless": (
            study(3, 1, name="fixed", budget=1, min_budget=None, max_budget=None, brackets="first:1"),
            None,
        ),
    }
    slow = False
    for name, (spec, deepen) in studies.items():
        seconds, ledger = time_events(spec, asked.configurations, asked.workers, deepen=deepen)
        middle, late = median(seconds), quantiles(seconds, n=100)[98]
        slow = slow or middle > 1e-3 or late > 5e-3
        began = time.perf_counter()
        same = replay(spec, [event for event, _ in ledger], [made for _, made in ledger]).ok
        took = time.perf_counter() - began
        mean, longest = sum(seconds) / len(seconds), max(seconds)
        print(
            f"{name}: {len(seconds)} events, {mean * 1e6:.1f} us mean, {middle * 1e6:.1f} median, "
            f"{late * 1e6:.1f} p99, {longest * 1e3:.1f} ms max; replay {'ok' if same else 'DIFFERS'} {took:.1f} s"
        )
        slow = slow or not same
    return int(slow)


if __name__ == "__main__":
    sys.exit(main())
