"""Two sets of real learning curves as pools to search, on a virtual clock: TaskSet's Adam and YAHPO's LCBench.

Regret at a budget is (value - best of the pool) / (median of the pool - best), at most 1; a diverged run has 1. One unit
of time is one unit of budget of a configuration of mean speed: seconds per epoch as measured in LCBench, log-normal
with sigma 0.3 in TaskSet.
"""

from __future__ import annotations

import csv
import gzip
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Task:
    """``loss`` by member and budget (column 0 is unused), ``pace`` by member, ``points`` of the members in a unit cube."""

    name: str
    loss: Floats
    pace: Floats
    points: Floats

    @cache  # noqa: B019 - a bench ends
    def scale(self, budget: int) -> tuple[float, float]:
        column = np.sort(np.where(np.isnan(self.loss[:, budget]), np.inf, self.loss[:, budget]))
        return float(column[0]), float(column[len(column) // 2])

    def regret(self, member: int, budget: int) -> float:
        best, median = self.scale(budget)
        value = float(self.loss[member, budget])
        return 1.0 if np.isnan(value) else min(1.0, (value - best) / (median - best))


def home() -> Path | None:
    """Where the data are: the folder that ISOLOSS_DATA_HOME names, if it names one."""
    named = os.environ.get("ISOLOSS_DATA_HOME")
    return Path(named) if named else None


def taskset(folder: Path, limit: int | None = None) -> list[Task]:
    """Budget b is the loss after 200 b steps."""
    points = _cube(folder / "taskset_adam8p")
    tables = _tables(folder / "taskset_adam8p" / "valid_loss.csv.gz", limit)
    paces = (np.exp(np.random.default_rng(n).normal(0, 0.3, len(points))) for n in range(len(tables)))
    return [
        Task(name.removeprefix("FixedTextRNNClassification_"), loss, pace, points)
        for (name, loss), pace in zip(tables.items(), paces, strict=True)
    ]


def lcbench(folder: Path, limit: int | None = None) -> list[Task]:
    """Budget b is 100 - accuracy after epoch b + 1: epoch 1 is the untrained network."""
    where = folder / "yahpo_lcbench"
    points, seconds = _cube(where), _tables(where / "time_seconds.csv.gz", limit)
    tasks = []
    for name, accuracy in _tables(where / "val_accuracy.csv.gz", limit).items():
        slope = (seconds[name][:, 2] - seconds[name][:, 0]) / 50
        pace = np.maximum(slope, 0.05 * slope.mean()) / slope.mean()
        tasks.append(Task(name, 100 - accuracy / 1000, pace, points))
    return tasks


def _rows(path: Path) -> Iterator[list[str]]:
    with gzip.open(path, "rt", newline="") as file:
        rows = csv.reader(file)
        next(rows)
        yield from rows


def _tables(path: Path, limit: int | None) -> dict[str, Floats]:
    found: dict[str, list[list[float]]] = {}
    for name, _, *values in _rows(path):
        if name not in found and limit is not None and len(found) == limit:
            break
        found.setdefault(name, []).append([float(value or "nan") for value in values])
    return {name: np.array(rows) for name, rows in found.items()}


def _cube(folder: Path) -> Floats:
    values = np.array([[float(value) for value in row[1:]] for row in _rows(folder / "configs.csv.gz")])
    ranks = np.argsort(np.argsort(values, axis=0, kind="stable"), axis=0)
    return np.asarray((ranks + 0.5) / len(values), dtype=np.float64)
