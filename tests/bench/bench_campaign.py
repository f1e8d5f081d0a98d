"""A campaign replayed on the Step Law table: how good is the forecast that a fraction of one target run can buy?

Targets in turn: 537M/50B, 429M/100B, 268M/100B, 537M/28.4B. The planner may buy any finished run of a smaller N, each
at 6 N D, until a fraction f of ONE target run is spent; then it forecasts lr and batch, and the target's own cell says
what that costs (score P, percent of loss; ``step_law_table.py``). It starts from the middle of the table's grid and
from beliefs that owe nothing to this table (``EXPONENTS["other"]``); ``--beliefs sp`` uses the product's default. A
seed moves the starting point and turns the rings. Beside it, in the same run: sixteen random runs of the target's own
cell (16 times the target's price), and the published Step Law.

    ISOLOSS_DATA_HOME=… python tests/bench/bench_campaign.py [--seeds 20] [--beliefs other]
"""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from step_law_table import TableCell, read_step_law, table_cells

from isoloss.laws import surface
from isoloss.laws.cells import cell_index
from isoloss.laws.design import RING, Outlook, purchases
from isoloss.laws.observation import Observations
from isoloss.laws.solve import Floats

TARGETS: Final = ((537e6, 50e9), (429e6, 100e9), (268e6, 100e9), (537e6, 28.4e9))
FRACTIONS: Final = (0.10, 0.25)
GOALS: Final = {0.10: 0.25, 0.25: 0.15}


@dataclass(frozen=True)
class Table:
    seen: Observations
    cells: tuple[TableCell, ...]
    index: NDArray[np.int64]

    def nearest(self, n_params: float, n_tokens: float) -> int:
        gaps = [abs(np.log(c.n_params / n_params)) + abs(np.log(c.n_tokens / n_tokens)) for c in self.cells]
        return int(np.argmin(gaps))


def play(table: Table, target: int, fraction: float, seed: int, beliefs: str) -> tuple[float, int]:
    """Score P of the forecast, and how many runs were bought."""
    rng = np.random.default_rng(seed)
    goal = table.cells[target]
    where = (goal.n_params, goal.n_tokens)
    shop = [i for i, cell in enumerate(table.cells) if cell.n_params < 0.99 * goal.n_params]
    cells = np.array([(table.cells[i].n_params, table.cells[i].n_tokens) for i in shop])
    places = np.column_stack([np.log2(table.seen.lr), np.log2(table.seen.batch_tokens)])
    unsold = np.isin(table.index, shop)
    bought = np.zeros(len(unsold), dtype=bool)
    middle = (places.min(axis=0) + places.max(axis=0)) / 2 + 0.3 * rng.standard_normal(2)
    outlook = Outlook.nothing(cells, where, (middle[0], middle[1]), beliefs=beliefs)
    budget = fraction * 6 * goal.n_params * goal.n_tokens
    while True:
        offers = purchases(outlook, budget, turn=rng.uniform(0, np.pi))
        offers = [offer for offer in offers if np.sum(unsold & (table.index == shop[offer.cell])) >= RING]
        if not offers:
            break
        for place in offers[0].places:
            stock = np.flatnonzero(unsold & (table.index == shop[offers[0].cell]))
            chosen = stock[np.argmin(np.sum((places[stock] - place) ** 2, axis=1))]
            unsold[chosen], bought[chosen] = False, True
        budget -= offers[0].flops
        made = surface.fit_surface(table.seen.select(bought), test=False, beliefs=beliefs)
        outlook = Outlook.by(made, cells, where)
    return goal.regret(outlook.mean[-1]), int(bought.sum())


def sixteen(table: Table, target: int, seed: int) -> float:
    """The best of sixteen random runs of the target's own cell, its regret over the cell's least loss (%)."""
    cell = table.cells[target]
    drawn = np.random.default_rng(seed).choice(len(cell.ln_loss), size=16, replace=False)
    return float(100 * np.expm1(cell.ln_loss[drawn].min() - cell.ln_loss.min()))


def main() -> int:
    """Print the table; 0 when both goals are met."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--beliefs", default="other", choices=sorted(surface.EXPONENTS))
    given = parser.parse_args()
    home = os.environ.get("ISOLOSS_DATA_HOME")
    if not home:
        sys.stderr.write("ISOLOSS_DATA_HOME is not set; it names the folder that holds steplaw_lr_bs.\n")
        return 2
    seen = read_step_law(Path(home))
    table = Table(seen, tuple(table_cells(seen)), cell_index(seen))
    goals = [table.nearest(*target) for target in TARGETS]
    names = [f"{table.cells[g].n_params / 1e6:.0f}M/{table.cells[g].n_tokens / 1e9:.0f}B" for g in goals]
    out = sys.stdout.write
    out(f"score P (%), {given.seeds} seeds, beliefs {given.beliefs}\n")
    out(f"{'':<34}{''.join(f'{name:>12}' for name in names)}{'mean':>9}{'worst':>9}{'runs':>7}\n")
    met = True
    for fraction in FRACTIONS:
        played = [[play(table, goal, fraction, seed, given.beliefs) for seed in range(given.seeds)] for goal in goals]
        scores: Floats = np.array([[score for score, _ in row] for row in played])
        runs = np.mean([[count for _, count in row] for row in played])
        met &= bool(scores.mean() <= GOALS[fraction] and scores.max() <= 0.6)
        out(_line(f"planner, f = {fraction:.2f}", scores, f"{runs:.0f}"))
    out(
        _line(
            "best of 16 runs of the target", np.array([[sixteen(table, g, s) for s in range(20)] for g in goals]), "16"
        )
    )
    law = [[table.cells[g].regret(_published(table.cells[g]))] for g in goals]
    out(_line("published Step Law (saw the table)", np.array(law), ""))
    return 0 if met else 1


def _published(cell: TableCell) -> Floats:
    N, D = cell.n_params, cell.n_tokens
    return np.log2([1.79 * N**-0.713 * D**0.307, 0.58 * D**0.571])


def _line(name: str, scores: Floats, runs: str) -> str:
    by_target = "".join(f"{value:>12.3f}" for value in scores.mean(axis=1))
    return f"{name:<34}{by_target}{scores.mean():>9.3f}{scores.max():>9.3f}{runs:>7}\n"


if __name__ == "__main__":
    sys.exit(main())
