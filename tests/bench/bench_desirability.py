# ruff: noqa: T201 - a benchmark prints
"""Evaluations to 95 % of the best overall desirability: composite search beside Optuna's samplers on D itself.

Everyone gets the same ten scrambled Sobol points and then one configuration at a time, up to 50. ``hits`` counts the
evaluations until D reaches 95 % of the optimum; a run that does not get there counts 51. With noise everyone recommends
one of what was measured: Optuna's best by the measured D, ours the best the models believe in; its true D is what counts.
rf and svm need scikit-learn, the methods of BoTorch need botorch; without them they are left out.

    python tests/bench/bench_desirability.py                    # the table
    python tests/bench/bench_desirability.py --batch 4          # four workers: four proposals before a result
    python tests/bench/bench_desirability.py --noise 0.08       # of each desirability's range, on every outcome
    python tests/bench/bench_desirability.py --cpu              # seconds a proposal at 50 and 500 results
"""

from __future__ import annotations

import argparse
import contextlib
import math
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from importlib.util import find_spec
from typing import Any

import numpy as np
from desirability_problems import PROBLEMS, Problem
from scipy.stats import qmc

from isoloss.domain.objective import leaves
from isoloss.domain.space import Configuration
from isoloss.search.composite import CompositeProposer
from isoloss.search.desirability import overall, span
from isoloss.search.optuna_samplers import OptunaProposer, gp, tpe
from isoloss.search.scoring import score

START, END, ENOUGH = 10, 50, 0.95
History = list[tuple[dict[str, Any], dict[str, float]]]
Ask = Callable[[Problem, History, list[Configuration], int], dict[str, Any]]


def worth(problem: Problem, values: dict[str, float]) -> float:
    """The hard D of outcomes."""
    return float(overall(problem.spec, values).overall or 0.0)


def by_composite(problem: Problem, history: History, pending: list[Configuration], seed: int) -> dict[str, Any]:
    """Ours."""
    return CompositeProposer(problem.spec).propose(history=history, pending=pending, n=1, seed=seed)[0]


def by_optuna(
    make: Callable[[Any], OptunaProposer], problem: Problem, history: History, pending: list[Configuration], seed: int,
    *, soft: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """A sampler of Optuna's on -D, or on minus the log of the soft D."""
    spec = problem.spec
    scored = [(c, (score(spec, v) or 0.0) if soft else -worth(problem, v)) for c, v in history]
    return make(spec.space).propose(history=scored, pending=pending, n=1, seed=seed)[0]


def by_chance(problem: Problem, _history: History, _pending: list[Configuration], seed: int) -> dict[str, Any]:
    """Uniform points."""
    return configuration(np.random.default_rng(seed).random(problem.dimensions))


def by_botorch(problem: Problem, history: History, pending: list[Configuration], seed: int) -> dict[str, Any]:
    """BoTorch's logarithmic expected improvement of D itself, with its default process, as its tutorials have it."""
    import torch
    from botorch.acquisition import LogExpectedImprovement
    from botorch.fit import fit_gpytorch_mll
    from botorch.models import SingleTaskGP
    from botorch.optim import optimize_acqf
    from gpytorch.mlls import ExactMarginalLogLikelihood

    torch.manual_seed(seed)
    names = [f"x{place}" for place in range(problem.dimensions)]
    x = torch.tensor([[c[name] for name in names] for c, _ in history], dtype=torch.double)
    y = torch.tensor([[worth(problem, v)] for _, v in history], dtype=torch.double)
    if float(y.std()) == 0:
        return by_chance(problem, history, pending, seed)
    model = SingleTaskGP(x, y)
    fit_gpytorch_mll(ExactMarginalLogLikelihood(model.likelihood, model))
    bounds = torch.tensor([[0.0] * len(names), [1.0] * len(names)], dtype=torch.double)
    gain = LogExpectedImprovement(model, best_f=y.max())
    point, _ = optimize_acqf(gain, bounds=bounds, q=1, num_restarts=5, raw_samples=256)
    return configuration(point[0].numpy())


METHODS: dict[str, Ask] = {
    "composite": by_composite,
    "gp on D": partial(by_optuna, gp),
    "gp soft": partial(by_optuna, gp, soft=True),
    "tpe on D": partial(by_optuna, tpe),
    "random": by_chance,
}
if find_spec("botorch"):
    METHODS["botorch on D"] = by_botorch


def recommended(method: str, problem: Problem, history: History) -> int:
    """The number of the result a method would recommend."""
    if method == "composite":
        return int(np.argmax(CompositeProposer(problem.spec).believed(history, [c for c, _ in history])))
    return int(np.argmax([worth(problem, values) for _, values in history]))


def configuration(point: np.ndarray[Any, Any]) -> dict[str, Any]:
    """A point of the cube as the problem's parameters."""
    return {f"x{place}": float(u) for place, u in enumerate(point)}


def run(method: str, name: str, seed: int, batch: int, noise: float) -> tuple[list[float], float]:
    """The true D of the best so far by evaluation, and CPU seconds a proposal; it ends where 95 % of a known D* is reached.

    With noise the run ends at 20 evaluations, and the D is the true one of what is recommended then.
    """
    problem, rng = PROBLEMS[name], np.random.default_rng(1000 + seed)
    spans = {m: float(np.ptp(span(leaf.shape))) for m, leaf in leaves(problem.spec.desirability).items()}
    history: History = []
    truth: list[float] = []
    true: list[float] = []

    def measure(params: dict[str, Any]) -> None:
        values = problem.values(np.array([params[f"x{place}"] for place in range(problem.dimensions)]))
        true.append(worth(problem, values))
        truth.append(max([true[-1], *truth[-1:]]))
        history.append((params, {m: v + noise * spans[m] * rng.normal() for m, v in values.items()}))

    for point in qmc.Sobol(problem.dimensions, scramble=True, rng=np.random.default_rng(seed)).random(16)[:START]:
        measure(configuration(point))
    spent, proposals, reached = 0.0, 0, ENOUGH * (problem.best or math.inf)
    end = 20 if noise else END
    while len(history) < end and (truth[-1] < reached or noise):
        pending: list[Configuration] = []
        for _ in range(batch):
            begun = time.process_time()
            pending.append(METHODS[method](problem, history, pending, seed * 10_007 + len(history) + len(pending)))
            spent, proposals = spent + time.process_time() - begun, proposals + 1
        for params in pending:
            measure(dict(params))
    if noise:
        return [true[recommended(method, problem, history)]] * END, spent / max(1, proposals)
    return truth + [truth[-1]] * (END - len(truth)), spent / max(1, proposals)


def evaluations(truth: Sequence[float], best: float) -> int:
    """How many it took to 95 % of the best; 51 where it did not get there."""
    return min(END + 1, next((place + 1 for place, value in enumerate(truth) if value >= ENOUGH * best), END + 1))


def table(methods: Sequence[str], problems: Sequence[str], seeds: Sequence[int], batch: int, noise: float) -> None:
    """Run and print: median evaluations, the share of runs that got there, mean D at 30; then ratios to the first."""
    jobs = [(m, p, s) for m in methods for p in problems for s in seeds]
    with ProcessPoolExecutor(2) as pool:
        futures = [pool.submit(run, m, p, s, batch, noise) for m, p, s in jobs]
        found = dict(zip(jobs, (future.result() for future in futures), strict=True))
    best = {
        name: PROBLEMS[name].best or max(found[m, name, s][0][-1] for m in methods for s in seeds) for name in problems
    }
    hits = {(m, p, s): evaluations(found[m, p, s][0], best[p]) for m, p, s in jobs}
    said = "mean true D recommended at 20" if noise else "median evaluations (share that got there) mean D at 30"
    print(f"seeds {list(seeds)}, batch {batch}, noise {noise:g}; {said}")
    print("D* " + ", ".join(f"{name} {value:.4f}" for name, value in best.items()))
    print(f"{'':<12}" + "".join(f"{name:>24}" for name in problems) + f"{'CPU s':>10}")
    for method in methods:
        cells = []
        for name in problems:
            needed = [hits[method, name, seed] for seed in seeds]
            at_30 = statistics.fmean(found[method, name, seed][0][29] for seed in seeds)
            got = sum(hit <= END for hit in needed) / len(needed)
            cells.append(f"{at_30:.3f}" if noise else f"{statistics.median(needed):>11g} ({got:.2f}) {at_30:.3f}")
        cpu = statistics.fmean(found[method, name, seed][1] for name in problems for seed in seeds)
        print(f"{method:<12}" + "".join(f"{cell:>24}" for cell in cells) + f"{cpu:>10.3f}", flush=True)
    for method in methods[1:] if not noise else ():
        logs = [math.log(hits[method, p, s] / hits[methods[0], p, s]) for p in problems for s in seeds]
        wins, losses = sum(log > 0 for log in logs), sum(log < 0 for log in logs)
        ratio = math.exp(statistics.fmean(logs))
        print(
            f"{method} needs {ratio:.2f} x the evaluations of {methods[0]} ({wins} W / {losses} L / {len(logs)} pairs)"
        )


def cpu(problems: Sequence[str]) -> None:
    """Seconds a proposal takes over the history it learns from."""
    for name in problems:
        problem = PROBLEMS[name]
        for results in (50, 500):
            points = np.random.default_rng(0).random((results, problem.dimensions))
            history = [(configuration(point), problem.values(point)) for point in points]
            times = []
            for seed in range(5):
                begun = time.process_time()
                by_composite(problem, history, [], seed)
                times.append(time.process_time() - begun)
            print(f"{name} at {results} results: {statistics.median(times):.2f} s (most {max(times):.2f})", flush=True)


def main() -> None:
    """Read the command line and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", nargs="*", default=list(PROBLEMS))
    parser.add_argument("--methods", nargs="*", default=list(METHODS))
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--noise", type=float, default=0.0)
    parser.add_argument("--cpu", action="store_true")
    options = parser.parse_args()
    with contextlib.suppress(KeyboardInterrupt):
        if options.cpu:
            cpu(options.problems)
        else:
            table(options.methods, options.problems, range(options.seeds), options.batch, options.noise)


if __name__ == "__main__":
    main()
