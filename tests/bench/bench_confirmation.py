# ruff: noqa: T201 - a benchmark prints
"""How many runs it takes until one of some finalists is separated, and how often the wrong one is named.

Finalists have known means; every run has noise of its own and a luck that its seed brings to everybody. ``leader and rival``
is what a confirmation does, ``all alike`` runs every finalist on every seed under the same bound.

    python tests/bench/bench_confirmation.py [--repeats 150] [--noise 0.03] [--luck 0.05] [--runs 200] [--seed 0]
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence

import numpy as np

from isoloss.search.confirmation import Confirmation, Pull, separated

CASES = {
    "one ahead": (0.70, 0.60, 0.60, 0.60),
    "two close": (0.70, 0.68, 0.60, 0.50),
    "six": (0.70, 0.66, 0.65, 0.60, 0.55, 0.50),
    "equals": (0.60, 0.60, 0.60, 0.60),
}


def play(
    means: Sequence[float], noise: float, luck: float, runs: int, rng: np.random.Generator, *, alike: bool
) -> tuple[bool, bool, int]:
    """Whether one was separated, whether it was not the best, and the runs it took."""
    found = Confirmation(finalists=tuple(range(len(means))), level=0, delta=0.05, runs=runs)
    rewards: dict[Pull, float] = {}
    shared: dict[int, float] = {}
    while len(rewards) < runs:
        pull = found.next(rewards)
        if alike:
            whole, place = divmod(len(rewards), len(means))
            pull = None if place == 0 and separated(found.standing(rewards)) else (place, whole + 1)
        if pull is None:
            break
        found.trials[pull] = len(found.trials)
        rewards[pull] = means[pull[0]] + shared.setdefault(pull[1], rng.normal(0, luck)) + rng.normal(0, noise)
    standing = found.standing(rewards)
    sure = separated(standing)
    return sure, sure and means[standing[0].trial] < max(means), len(rewards)


def main() -> None:
    """Read the command line and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=150)
    parser.add_argument("--noise", type=float, default=0.03)
    parser.add_argument("--luck", type=float, default=0.05)
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    print(f"{options}\n{'':<12}{'':<18}{'separated':>10}{'wrong':>8}{'median runs':>13}")
    for name, means in CASES.items():
        for alike in (False, True):
            rng = np.random.default_rng(options.seed)
            ends = [
                play(means, options.noise, options.luck, options.runs, rng, alike=alike) for _ in range(options.repeats)
            ]
            sure, wrong = (statistics.fmean(end[place] for end in ends) for place in (0, 1))
            runs = statistics.median(end[2] for end in ends)
            print(
                f"{name:<12}{'all alike' if alike else 'leader and rival':<18}{sure:>10.2f}{wrong:>8.3f}{runs:>13g}",
                flush=True,
            )


if __name__ == "__main__":
    main()
