"""A trainer in pure Python, as small as one can be that learns, saves and resumes: logistic regression on two moons.

Run it as a function (``tiny_lr.yaml``: it imports nothing of isoloss) or as a command (``tiny_lr_command.yaml``: it reads
its arguments and writes JSON lines). Both keep the same contract: train from ``budget_from`` to ``budget_to`` epochs,
report at each, save what the next rung needs into ``save_to``.
"""

import argparse
import json
import math
import os
import random
from pathlib import Path
from typing import Any

Vector = list[float]
Row = tuple[Vector, int]  # features, class


def moons(n: int, seed: int) -> list[Row]:
    """Points of two interleaved half circles, as features that make them separable, with their class."""
    draw, rows = random.Random(seed), []
    for i in range(n):
        angle, upper = draw.random() * math.pi, i % 2
        x = math.cos(angle) if upper else 1 - math.cos(angle)
        y = math.sin(angle) if upper else 0.5 - math.sin(angle)
        x, y = x + draw.gauss(0, 0.15), y + draw.gauss(0, 0.15)
        rows.append(([1.0, x, y, x * x, y * y, x * y, x**3, y**3], upper))
    return rows


TRAIN, HELD_OUT = moons(200, seed=1), moons(200, seed=2)


def probability(weights: Vector, features: Vector) -> float:
    score = sum(w * f for w, f in zip(weights, features, strict=True))
    return 1 / (1 + math.exp(-max(-60.0, min(60.0, score))))


def loss(weights: Vector, rows: list[Row]) -> float:
    """The mean loss in nats."""
    total = 0.0
    for features, label in rows:
        p = min(max(probability(weights, features), 1e-12), 1 - 1e-12)
        total -= math.log(p if label else 1 - p)
    return total / len(rows)


def one_epoch(weights: Vector, lr: float, momentum: float, velocity: Vector) -> None:
    """Gradient descent with momentum, one example at a time."""
    for features, label in TRAIN:
        error = probability(weights, features) - label
        for i, feature in enumerate(features):
            velocity[i] = momentum * velocity[i] - lr * error * feature
            weights[i] += velocity[i]


def begin(resume_from: Path | str | None) -> tuple[Vector, Vector]:
    """Weights and velocity: as they were saved, or zero."""
    if resume_from:
        state = json.loads((Path(resume_from) / "state.json").read_text())
        return state["weights"], state["velocity"]
    return [0.0] * 8, [0.0] * 8


def save(save_to: Path | str, weights: Vector, velocity: Vector) -> None:
    (Path(save_to) / "state.json").write_text(json.dumps({"weights": weights, "velocity": velocity}))


def main(trial: Any) -> None:
    """The function: ``run: {function: "train:main"}``."""
    weights, velocity = begin(trial.resume_from)
    for epoch in trial.steps():  # budget_from + 1 … budget_to
        one_epoch(weights, trial.params["lr"], trial.params["momentum"], velocity)
        trial.report(epoch, val_loss=loss(weights, HELD_OUT))
    save(trial.save_to, weights, velocity)


def command_line() -> None:
    """The command: ``run: {command: [python, train.py, …]}``; without isoloss it prints its reports."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--lr", type=float, required=True)
    parser.add_argument("--momentum", type=float, default=0.9)
    parser.add_argument("--from-epoch", type=int, default=0)
    parser.add_argument("--to-epoch", type=int, required=True)
    parser.add_argument("--resume", default="")
    parser.add_argument("--save", required=True)
    flags = parser.parse_args()
    weights, velocity = begin(flags.resume)
    with open(os.environ.get("ISOLOSS_METRICS", "/dev/stdout"), "a") as reports:  # noqa: PTH123
        for epoch in range(flags.from_epoch + 1, flags.to_epoch + 1):
            one_epoch(weights, flags.lr, flags.momentum, velocity)
            print(json.dumps({"step": epoch, "val_loss": loss(weights, HELD_OUT)}), file=reports, flush=True)
    save(flags.save, weights, velocity)


if __name__ == "__main__":
    command_line()
