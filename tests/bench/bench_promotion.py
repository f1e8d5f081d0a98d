# ruff: noqa: T201 - a benchmark prints
"""Successive halving by several rules: how much of the pool's best D the survivors keep.

Pools of 81 runs go up at budgets 1, 3, 9 to 27. Curves are, by ``--curves``,

* ``made``: loss(t) = final + gap · t^-rate with rates and gaps that differ from run to run, size against loss;
* ``digits``: 260 MLPs really trained on scikit-learn's digits, 27 epochs each with a cosine schedule, size against loss
  (needs torch and scikit-learn; some minutes, ``--keep FILE`` trains once);
* ``lcbench``: YAHPO's LCBench, 34 data sets, budget b at epoch b + 1, training time against validation error, limits at
  quantiles of each data set (needs ISOLOSS_DATA_HOME).

The lines of the forecast come from 40 other runs, as a study has after its first brackets; ``soft`` has none. The score is D
of the survivors' best over D of the pool's best.

    python tests/bench/bench_promotion.py [--curves made digits lcbench] [--pools 200] [--seed 0]
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import search_curves

from isoloss.domain.objective import leaves
from isoloss.domain.spec import StudySpec, decode_study
from isoloss.search.desirability import hard, overall
from isoloss.search.foresight import Foresight
from isoloss.search.front import places
from isoloss.search.geometry import ladder_of
from isoloss.search.scoring import score

BUDGETS = (1, 3, 9, 27)
POOL, EARLIER = 81, 40
Values = Mapping[str, float]
Runs = list[list[Values]]  # by run and level
Rule = Callable[[int, Sequence[Values]], Sequence[float]]  # the less the better, of all that are alive
RANGES = {  # of the MLPs on digits
    "learning rate": "1e-4..1e-1 log", "weight decay": "1e-6..1e-1 log", "width": "8..256 log", "depth": "1..3",
    "batch": "16..256 log", "dropout": "0..0.6", "optimizer": "adamw, sgd with momentum 0.9",
}  # fmt: skip


def study(**desirability: Any) -> StudySpec:
    """A search of budgets 1 to 27 with this preference."""
    method = {"name": "sha", "min_budget": BUDGETS[0], "max_budget": BUDGETS[-1]}
    return decode_study({"name": "p", "space": {}, "method": method, "desirability": desirability})


SIZED = study(
    loss={"shape": "smaller", "target": 0.08, "limit": 0.35},
    size={"shape": "smaller", "target": 1500, "limit": 12000, "kind": "static"},
)


def made(rng: np.random.Generator) -> Iterator[tuple[StudySpec, Runs]]:
    """Pools without end: larger models end lower and begin higher, rates vary."""
    while True:
        count = POOL + EARLIER
        size = 10 ** rng.uniform(2.7, 4.5, count)
        final = 0.05 + 3 / size**0.4 * np.exp(rng.normal(0, 0.5, count))
        gap, rate = np.exp(rng.normal(0, 0.4, count)) * 2.5, rng.uniform(0.5, 1.2, count)
        curves = final[:, None] + gap[:, None] * np.array(BUDGETS)[None] ** -rate[:, None] * final[:, None]
        yield (
            SIZED,
            [[{"loss": float(y), "size": float(n)} for y in curve] for curve, n in zip(curves, size, strict=True)],
        )


def digits(rng: np.random.Generator, kept: Path | None) -> Iterator[tuple[StudySpec, Runs]]:
    """Pools of the 260 MLPs."""
    if kept is not None and kept.exists():
        runs: Runs = json.loads(kept.read_text())
    else:
        print("trains 260 MLPs on digits: " + ", ".join(f"{name} {said}" for name, said in RANGES.items()), flush=True)
        runs = [mlp(number) for number in range(260)]
        if kept is not None:
            kept.write_text(json.dumps(runs))
    inside = [statistics.fmean(run[level]["loss"] < 0.35 for run in runs) for level in range(len(BUDGETS))]
    ends = [overall(SIZED, run[-1]).overall or 0.0 for run in runs]
    print(
        f"{len(runs)} MLPs: inside the limit of the loss {', '.join(f'{share:.1%}' for share in inside)} at {BUDGETS}; "
        f"D > 0 at the end {statistics.fmean(end > 0 for end in ends):.1%}, best {max(ends):.3f}"
    )
    while True:
        yield SIZED, [runs[place] for place in rng.permutation(len(runs))]


def mlp(number: int) -> list[Values]:
    """One network: validation loss and size at the end of each budget of one run to the last."""
    import torch
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(x))
    inputs, labels = torch.tensor(x[order] / 16, dtype=torch.float32), torch.tensor(y[order])
    draw = np.random.default_rng([7, number])
    lr, decay = 10 ** draw.uniform(-4, -1), 10 ** draw.uniform(-6, -1)
    width, depth, batch = round(8 * 32 ** draw.random()), int(draw.integers(1, 4)), round(16 * 16 ** draw.random())
    dropout, adam = 0.6 * draw.random(), bool(draw.integers(2))
    torch.manual_seed(number)
    layers: list[torch.nn.Module] = []
    for before in [64, *[width] * (depth - 1)]:
        layers += [torch.nn.Linear(before, width), torch.nn.ReLU(), torch.nn.Dropout(dropout)]
    model = torch.nn.Sequential(*layers, torch.nn.Linear(width, 10))
    size = sum(weights.numel() for weights in model.parameters())
    optimizer: torch.optim.Optimizer = (
        torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=decay) if adam
        else torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9, weight_decay=decay)
    )  # fmt: skip
    steps = BUDGETS[-1] * -(-1200 // batch)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    found: list[Values] = []
    for epoch in range(1, BUDGETS[-1] + 1):
        model.train()
        for chosen in torch.randperm(1200).split(batch):  # type: ignore[no-untyped-call]
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(inputs[chosen]), labels[chosen]).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
        if epoch in BUDGETS:
            model.eval()
            with torch.no_grad():
                loss = torch.nn.functional.cross_entropy(model(inputs[1200:]), labels[1200:]).item()
            found.append({"loss": float(np.nan_to_num(loss, nan=99.0, posinf=99.0)), "size": float(size)})
    return found


def lcbench(rng: np.random.Generator, folder: Path) -> Iterator[tuple[StudySpec, Runs]]:
    """Pools of one data set after the other; limits at quantiles of what its configurations end at."""
    pools: list[tuple[StudySpec, Runs]] = []
    for task in search_curves.lcbench(folder):
        error, pace = task.loss[:, list(BUDGETS)], task.pace
        (error_target, error_limit), (time_target, time_limit) = (
            np.quantile(values, (0.05, share)) for values, share in ((error[:, -1], 0.5), (27 * pace, 0.75))
        )
        spec = study(
            error={"shape": "smaller", "target": float(error_target), "limit": float(error_limit)},
            time={"shape": "smaller", "target": float(time_target), "limit": float(time_limit), "kind": "cumulative"},
        )
        runs: Runs = [
            [{"error": float(e), "time": float(p * b)} for e, b in zip(curve, BUDGETS, strict=True)]
            for curve, p in zip(error, pace, strict=True)
        ]
        pools.append((spec, runs))
    for spec, runs in itertools.cycle(pools):
        yield spec, [runs[place] for place in rng.choice(len(runs), POOL + EARLIER, replace=False)]


def rules(spec: StudySpec, earlier: Runs) -> dict[str, Rule]:
    """The rules by name; the first metric is the curve, the second the static or cumulative one."""
    curve, other = spec.metrics
    ladder = ladder_of(spec)
    foresight = Foresight(spec, ladder, {(k, j): v for k, run in enumerate(earlier) for j, v in enumerate(run)})

    def soft(level: int, values: Values) -> float:
        return score(spec, values, {}, BUDGETS[level] / BUDGETS[-1]) or 0.0

    def foreseen(level: int, values: Values) -> float:
        forecast = foresight.forecast(curve, values[curve], level)
        known = {} if forecast is None else {curve: forecast}
        return float(score(spec, values, {}, BUDGETS[level] / BUDGETS[-1], known) or 0.0)

    return {
        "first metric only": lambda _, alive: [values[curve] for values in alive],
        "hard D of the raw rung": lambda _, alive: [-(overall(spec, values).overall or 0.0) for values in alive],
        "non-dominated, then crowding": lambda _, alive: places([(values[curve], values[other]) for values in alive]),
        "soft D, no history": lambda level, alive: [soft(level, values) for values in alive],
        "expected D of the foreseen end": lambda level, alive: [foreseen(level, values) for values in alive],
    }


def kept(spec: StudySpec, pool: Runs, rule: Rule) -> float:
    """D of the best of three survivors, over that of the best in the pool."""
    alive = list(range(len(pool)))
    for level in range(len(BUDGETS) - 1):
        scores = rule(level, [pool[run][level] for run in alive])
        alive = [run for _, run in sorted(zip(scores, alive, strict=True))][: len(alive) // 3]
    ends = [overall(spec, run[-1]).overall or 0.0 for run in pool]
    return max(ends[run] for run in alive) / max(ends) if max(ends) > 0 else 1.0


def spared(spec: StudySpec, pool: Runs) -> float:
    """The share of a bracket's epochs that are not run when static values that veto are known before."""
    static = {metric: leaf.shape for metric, leaf in leaves(spec.desirability).items() if leaf.shape.kind == "static"}
    vetoed = sum(any(hard(shape, run[0][metric]) == 0 for metric, shape in static.items()) for run in pool)
    epochs = BUDGETS[0] * POOL + sum((b - a) * POOL // 3**k for k, (a, b) in enumerate(itertools.pairwise(BUDGETS), 1))
    return float(vetoed * BUDGETS[0] / epochs)


def main() -> None:
    """Read the command line and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--curves", nargs="*", default=["made"], choices=["made", "digits", "lcbench"])
    parser.add_argument("--pools", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="where the trained curves are kept")
    options = parser.parse_args()
    for curves in options.curves:
        rng = np.random.default_rng(options.seed)
        if curves == "lcbench" and search_curves.home() is None:
            print("lcbench: ISOLOSS_DATA_HOME is not set; skipped")
            continue
        pools = {
            "made": lambda: made(rng), "digits": lambda: digits(rng, options.keep),  # noqa: B023 - called at once
            "lcbench": lambda: lcbench(rng, search_curves.home() or Path()),  # noqa: B023
        }[curves]()  # fmt: skip
        ratios: dict[str, list[float]] = {}
        spares = []
        for spec, runs in itertools.islice(pools, options.pools):
            pool, earlier = runs[:POOL], runs[POOL : POOL + EARLIER]
            spares.append(spared(spec, pool))
            for name, rule in rules(spec, earlier).items():
                ratios.setdefault(name, []).append(kept(spec, pool, rule))
        print(f"{curves}, seed {options.seed}, {options.pools} pools: mean ratio (10 % quantile), best kept")
        for name, found in ratios.items():
            low = float(np.quantile(found, 0.1))
            print(
                f"{name:<32} {statistics.fmean(found):.3f} ({low:.3f})  {sum(r == 1 for r in found) / len(found):.2f}"
            )
        print(f"a static veto before training spares {statistics.fmean(spares):.1%} of the epochs", flush=True)


if __name__ == "__main__":
    main()
