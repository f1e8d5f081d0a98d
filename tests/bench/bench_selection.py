"""Does halving bend the laws? Survivors carry their small-D optimum upward; all brackets add runs that were not chosen.

Replayed on the Step Law table: for each of four sizes the configurations that were run at 2B, 4B, 8B and 20B tokens
are a pool; halving (eta 2) promotes by the loss at each D, with one bracket or with all of them, and the exponents of
D in lr (b) and batch (q) are fitted to what it ran. Goal: within two standard errors of the fit to all runs of the
same pool. The naive answer to the same runs, a regression through each cell's best run, is printed beside it.

    ISOLOSS_DATA_HOME=… python tests/bench/bench_selection.py [--seeds 20]
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from step_law_table import read_step_law

from isoloss.laws import surface
from isoloss.laws.cells import cell_index
from isoloss.laws.observation import Observations
from isoloss.laws.solve import Floats

LEVELS: Final = (2e9, 4e9, 8e9, 2e10)
ETA: Final = 2
FIRST: Final = 16  # configurations that enter the lowest rung of bracket 0


def pool_of(seen: Observations, size: float) -> NDArray[np.int64]:
    """Row numbers (configurations, levels) of the places that were run at every D of the ladder."""
    places = np.round(2 * np.log2(seen.lr)) + 1j * np.round(seen.batch_tokens)
    rows = [np.flatnonzero(np.isclose(seen.n_params, size) & np.isclose(seen.n_tokens, D, rtol=0.02)) for D in LEVELS]
    shared = set.intersection(*(set(places[level].tolist()) for level in rows))
    return np.array([[level[places[level] == place][0] for level in rows] for place in sorted(shared, key=str)])


def halve(loss: Floats, pool: NDArray[np.int64], rng: np.random.Generator, *, brackets: int) -> set[int]:
    """The rows that halving runs: bracket b begins at level b with fresh configurations."""
    ran: set[int] = set()
    order = rng.permutation(len(pool))
    for bracket in range(brackets):
        count = min(FIRST // ETA**bracket, len(order))
        alive, order = pool[order[:count]], order[count:]
        for level in range(bracket, len(LEVELS)):
            ran |= set(alive[:, level].tolist())
            alive = alive[np.argsort(loss[alive[:, level]], kind="stable")[: max(1, len(alive) // ETA)]]
    return ran


def naive(seen: Observations) -> tuple[float, float]:
    """Exponents of D by least squares through each cell's best run."""
    index = cell_index(seen)
    best = np.array([min(np.flatnonzero(index == c), key=lambda row: seen.loss[row]) for c in range(index.max() + 1)])
    X = np.column_stack([np.ones(len(best)), np.log(seen.n_params[best]), np.log(seen.n_tokens[best])])
    found = [np.linalg.lstsq(X, np.log(y[best]), rcond=None)[0][2] for y in (seen.lr, seen.batch_tokens)]
    return float(found[0]), float(found[1])


def main() -> int:
    """Print the table; 0 when all brackets stay within two standard errors in every draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=20)
    seeds = parser.parse_args().seeds
    home = os.environ.get("ISOLOSS_DATA_HOME")
    if not home:
        sys.stderr.write("ISOLOSS_DATA_HOME is not set; it names the folder that holds steplaw_lr_bs.\n")
        return 2
    seen = read_step_law(Path(home))
    pools = [pool_of(seen, size) for size in np.unique(seen.n_params)]
    pools = [pool for pool in pools if len(pool) >= FIRST]
    whole = seen.select(np.isin(np.arange(len(seen)), np.concatenate(pools).ravel()))
    reference = surface.fit_surface(whole, test=False).estimates
    out = sys.stdout.write
    out(f"{len(pools)} sizes, pools of {', '.join(str(len(pool)) for pool in pools)}; {seeds} draws\n")
    out(f"{'':<28}{'runs':>6}{'b (lr)':>9}{'q (batch)':>11}{'s.e. b':>9}{'s.e. q':>9}{'inside 2 s.e.':>15}\n")
    out(f"{'all runs of the pools':<28}{len(whole):>6}{reference['b'].value:>9.3f}{reference['q'].value:>11.3f}\n")
    met = True
    for name, brackets in (("one bracket", 1), ("all brackets", len(LEVELS))):
        rows, best = [], []
        for seed in range(seeds):
            rng = np.random.default_rng(seed)
            ran = sorted(set().union(*(halve(seen.loss, pool, rng, brackets=brackets) for pool in pools)))
            part = seen.select(np.isin(np.arange(len(seen)), ran))
            made = surface.fit_surface(part, test=False).estimates
            b, q = made["b"], made["q"]
            inside = [abs(made[k].value - reference[k].value) <= 2 * (made[k].se or 0.0) for k in ("b", "q")]
            rows.append((len(ran), b.value, q.value, b.se, q.se, all(inside)))
            best.append(naive(part))
        table = np.array(rows, dtype=float)
        mean = table.mean(axis=0)
        out(f"{name:<28}{mean[0]:>6.0f}{mean[1]:>9.3f}{mean[2]:>11.3f}{mean[3]:>9.3f}{mean[4]:>9.3f}{mean[5]:>15.0%}\n")
        out(
            f"{'  the best runs regressed':<28}{'':>6}{np.mean(best, axis=0)[0]:>9.3f}{np.mean(best, axis=0)[1]:>11.3f}\n"
        )
        met &= brackets == 1 or bool(mean[5] == 1)
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
