"""A search on a virtual clock: the same fold, with workers that take time and measure something by a rule."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any, Final

from isoloss.domain.spec import StudySpec
from isoloss.errors import InvalidSpec
from isoloss.search.events import Asked, CreateTask, Deepened, TaskDone
from isoloss.search.search import Search

SEEDS: Final = 20
MOST_TASKS: Final = 100_000  # simulated in all; more would keep a person waiting
SPREAD: Final = 0.3  # of the logarithm of a configuration's speed, until it is measured


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """A task that ended at ``clock``, after ``seconds`` of work, with its score (``None``: it failed)."""

    clock: float
    seconds: float
    task: CreateTask
    score: float | None


def play(
    search: Search,
    *,
    workers: int,
    seconds: Callable[[CreateTask], float],
    score: Callable[[CreateTask], float | None],
    clock: float = 0.0,
) -> Iterator[Finished]:
    """Let so many workers run the search from ``clock`` on, and yield every task as its result is folded in.

    Between two of them the caller may look at the search, deepen or stop it. Ends when nothing runs or could be started.
    """
    order, idle = count(), workers
    running: list[tuple[float, int, float, CreateTask]] = []
    while True:
        made = search.apply(Asked(n=idle)) if idle and search.stopped is None else ()
        for task in made:
            if isinstance(task, CreateTask):
                took = seconds(task)
                heapq.heappush(running, (clock + took, next(order), took, task))
                idle -= 1
        if not running:
            return
        clock, _, took, task = heapq.heappop(running)
        idle += 1
        value = score(task)
        if search.stopped is None:
            failed = value is None
            search.apply(
                TaskDone(trial=task.trial, level=task.level, status="failed" if failed else "ok", score=value)
            )  # fmt: skip
        yield Finished(clock=clock, seconds=took, task=task, score=value)


def wall_time(
    spec: StudySpec, *, workers: int, tasks: int | None, seconds_per_unit: float = 1.0, deepen: Sequence[float] = ()
) -> dict[str, Any]:
    """How long a study takes on so many workers: median, 10 % and 90 % over simulated seeds, in the unit's seconds.

    ``tasks`` is the plan's count. Configurations differ in quality, and in speed by a log-normal factor. With
    ``deepen`` the study is deepened before anything runs. Raises ``InvalidSpec`` for a study without an end or too
    large to simulate.
    """
    import numpy as np

    if workers < 1 or seconds_per_unit <= 0:
        raise InvalidSpec(
            f"workers is {workers} and seconds_per_unit {seconds_per_unit:g}; accepted are numbers above 0."
        )
    if tasks is None or not 0 < tasks <= MOST_TASKS or spec.method.width == "auto":
        raise InvalidSpec(
            f"The plan has {'no end' if tasks is None or spec.method.width == 'auto' else f'{tasks} tasks'}; "
            f"accepted to simulate its time are 1 to {MOST_TASKS}."
        )
    ends, used = [], []
    for seed in range(max(1, min(SEEDS, MOST_TASKS // tasks))):
        rng = np.random.default_rng(seed)
        quality, pace = rng.random(4 * tasks), np.exp(rng.normal(0.0, SPREAD, 4 * tasks)) * seconds_per_unit
        search = _deepened(spec, deepen)
        done = list(
            play(
                search, workers=workers,
                seconds=lambda task, pace=pace: float(pace[task.trial]) * (task.budget_to - task.budget_from),  # type: ignore[misc]
                score=lambda task, quality=quality: float(quality[task.trial]),  # type: ignore[misc]
            )
        )  # fmt: skip
        ends.append(done[-1].clock)
        used.append(sum(finished.seconds for finished in done) / (workers * done[-1].clock))
    low, middle, high = (float(value) for value in np.quantile(ends, (0.1, 0.5, 0.9)))
    return {
        "workers": workers, "seconds_per_unit": seconds_per_unit, "seconds": middle, "interval": [low, high],
        "level": 0.8, "utilization": float(np.mean(used)), "seeds": len(ends),
    }  # fmt: skip


def _deepened(spec: StudySpec, maxima: Sequence[float]) -> Search:
    search = Search(spec)
    for maximum in maxima:
        search.apply(Deepened(max_budget=maximum))
    return search
