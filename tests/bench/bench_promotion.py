# ruff: noqa: T201 - a benchmark prints
"""Successive halving by several rules on made-up curves: how much of the pool's best D the survivors keep.

Pools of 81 runs go up at budgets 1, 3, 9 to 27; loss(t) = final + gap · t^-rate with rates and gaps that differ from run to
run, sizes are static, and the loss limits are meant for the end. The lines of the forecast come from 40 earlier runs, as a study
has after its first brackets; ``soft`` has none. The score is D of the survivors' best over D of the pool's best.

    python tests/bench/bench_promotion.py [--pools 200] [--seed 0]
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from isoloss.domain.spec import decode_study
from isoloss.search.desirability import overall
from isoloss.search.foresight import Foresight
from isoloss.search.geometry import ladder_of
from isoloss.search.scoring import score

BUDGETS = (1, 3, 9, 27)
SPEC = decode_study(
    {
        "name": "p", "space": {}, "method": {"name": "sha", "min_budget": 1, "max_budget": 27},
        "desirability": {
            "loss": {"shape": "smaller", "target": 0.08, "limit": 0.35},
            "size": {"shape": "smaller", "target": 1500, "limit": 12000, "kind": "static"},
        },
    }
)  # fmt: skip
Runs = list[list[dict[str, float]]]
Rule = Callable[[int, dict[str, float]], float]


def drawn(count: int, rng: np.random.Generator) -> Runs:
    """Metrics of each run at every level: larger models end lower and begin higher, rates vary."""
    size = 10 ** rng.uniform(2.7, 4.5, count)
    final = 0.05 + 3 / size**0.4 * np.exp(rng.normal(0, 0.5, count))
    gap, rate = np.exp(rng.normal(0, 0.4, count)) * 2.5, rng.uniform(0.5, 1.2, count)
    curves: NDArray[np.float64] = (
        final[:, None] + gap[:, None] * np.array(BUDGETS)[None] ** -rate[:, None] * final[:, None]
    )
    return [[{"loss": float(loss), "size": float(n)} for loss in curve] for curve, n in zip(curves, size, strict=True)]


def kept(pool: Runs, rule: Rule) -> float:
    """D of the best of three survivors, over that of the best in the pool."""
    alive = list(range(len(pool)))
    for level in range(len(BUDGETS) - 1):
        alive = sorted(alive, key=lambda run: (rule(level, pool[run][level]), run))[: len(alive) // 3]
    ends = [overall(SPEC, run[-1]).overall or 0.0 for run in pool]
    return max(ends[run] for run in alive) / max(ends) if max(ends) > 0 else 1.0


def main() -> None:
    """Read the command line and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pools", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rng, ladder = np.random.default_rng(options.seed), ladder_of(SPEC)
    shares = [budget / BUDGETS[-1] for budget in BUDGETS]
    ratios: dict[str, list[float]] = {}
    for _ in range(options.pools):
        pool, earlier = drawn(81, rng), drawn(40, rng)
        foresight = Foresight(SPEC, ladder, {(k, j): v for k, run in enumerate(earlier) for j, v in enumerate(run)})

        def foreseen(level: int, values: dict[str, float], foresight: Any = foresight) -> float:
            forecast = foresight.forecast("loss", values["loss"], level)
            return score(SPEC, values, {}, shares[level], {"loss": forecast}) or 0.0

        rules: dict[str, Rule] = {
            "loss only": lambda _, values: values["loss"],
            "hard D of the raw rung": lambda _, values: -(overall(SPEC, values).overall or 0.0),
            "soft D of the raw rung": lambda level, values: score(SPEC, values, {}, shares[level]) or 0.0,
            "expected D of the foreseen end": foreseen,
        }
        for name, rule in rules.items():
            ratios.setdefault(name, []).append(kept(pool, rule))
    print(f"seed {options.seed}, {options.pools} pools: mean ratio (10 % quantile), share of pools whose best was kept")
    for name, found in ratios.items():
        low = float(np.quantile(found, 0.1))
        print(f"{name:<32} {statistics.fmean(found):.3f} ({low:.3f})  {sum(r == 1 for r in found) / len(found):.2f}")


if __name__ == "__main__":
    main()
