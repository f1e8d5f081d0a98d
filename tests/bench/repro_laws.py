"""Published laws, refitted: ours beside the figure, with pass or fail.

Run with ISOLOSS_DATA_HOME naming a folder that holds ``chinchilla_points/points.csv`` and
``steplaw_lr_bs/lr_bs_loss.csv.gz``; the data are not part of this repository. Exit code 1 when a figure is missed.

    ISOLOSS_DATA_HOME=… python tests/bench/repro_laws.py
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.interpolate import LinearNDInterpolator, NearestNDInterpolator

from isoloss.files.tables import read_observations, read_rows
from isoloss.laws import steplaw, surface
from isoloss.laws.cells import cell_index
from isoloss.laws.chinchilla import CHINCHILLA
from isoloss.laws.evidence import Fit
from isoloss.laws.fit import fit
from isoloss.laws.frontier import frontier
from isoloss.laws.observation import Observations


@dataclass(frozen=True)
class Check:
    """One figure: ours, the published one, and how far apart they may be (or ours at most, when ``most``)."""

    name: str
    ours: float
    figure: float
    tolerance: float
    most: bool = False

    @property
    def passed(self) -> bool:
        if self.most:
            return self.ours <= self.figure
        return abs(self.ours - self.figure) <= self.tolerance


def chinchilla(home: Path) -> Iterator[Check]:
    """Besiroglu et al. 2024 on 240 and 245 digitised points, by each loss; 4,000 bootstraps."""
    seen = read_observations(home / "chinchilla_points" / "points.csv", ["tokens=n_tokens"])
    kept = seen.select(np.isin(np.arange(len(seen)), np.argsort(seen.loss)[:-5]))
    published = {
        "240 huber": (kept, "huber:1e-3", (1.81722, 477.83, 2143.4, 0.34731, 0.36717), 1.0182740178e-3),
        "240 lad": (kept, "lad", (1.81686, 482.00, 2085.4, 0.34781, 0.36585), 1.1294828),
        "245 huber": (seen, "huber:1e-3", (1.89134, 495.73, 12845.6, 0.34931, 0.45305), 1.8260105e-3),
    }
    for label, (rows, loss, figures, objective) in published.items():
        made = fit("chinchilla", rows, loss=loss, bootstrap=0)
        tolerances = (5e-4, 0.005 * figures[1], 0.01 * figures[2], 2e-4, 2e-4)
        for name, figure, tolerance in zip(made.estimates, figures, tolerances, strict=True):
            yield Check(f"{label} {name}", made.estimates[name].value, figure, tolerance)
        yield Check(f"{label} objective", made.objective, objective, 1e-7 * objective)
    N, D = frontier(CHINCHILLA, fit("chinchilla", kept, bootstrap=0), 5.76e23)
    yield Check("240 huber N*(5.76e23)", N, 7.319e10, 0.002 * 7.319e10)
    yield Check("240 huber D/N", D / N, 17.92, 0.05)
    begin = time.process_time()
    made = fit("chinchilla", kept, bootstrap=4000, level=0.95)
    yield Check("4,000 bootstraps, CPU s", time.process_time() - begin, 2.0, 0.0, most=True)
    yield from _bootstrap(made)


def _bootstrap(made: Fit) -> Iterator[Check]:
    errors = {"E": 0.0252, "A": 118.6, "B": 1453.0, "alpha": 0.0149, "beta": 0.0203}
    for name, figure in errors.items():
        yield Check(f"bootstrap SE {name}", made.estimates[name].se or 0.0, figure, 0.1 * figure)
    ends = {"alpha": (0.3165, 0.3717), "beta": (0.3337, 0.4158), "E": (1.7715, 1.8706)}
    for name, (low, high) in ends.items():
        yield Check(f"bootstrap low {name}", made.estimates[name].low or 0.0, low, 0.1 * (high - low))
        yield Check(f"bootstrap high {name}", made.estimates[name].high or 0.0, high, 0.1 * (high - low))


def step_law(home: Path) -> Iterator[Check]:
    """Li et al. 2025, pooled runs within .25 % of their cell's best, 36 visible cells."""
    seen = step_law_table(home)
    made = steplaw.fit_step_law(seen, near=0.0025, bootstrap=0)
    figures = {"c": 0.97667, "a": -0.67994, "b": 0.30631, "d": 0.31902, "e": 0.59771}
    yield Check("step law rows", made.n_observations, 198, 0)
    for name, figure in figures.items():
        yield Check(f"step law {name}", made.estimates[name].value, figure, 1e-4 * abs(figure))
    wider = steplaw.fit_step_law(seen, near=0.0025, batch_on_n=True, bootstrap=0)
    for name, figure in {"f": -0.19322, "e": 0.61991}.items():
        yield Check(f"batch on N and D {name}", wider.estimates[name].value, figure, 1e-4 * abs(figure))


def extrapolation(home: Path) -> Iterator[Check]:
    """Regret (%) of the predicted optimum in cells held out by size, tokens or compute; five splits, score P."""
    seen = step_law_table(home)
    N, D, C = seen.n_params, seen.n_tokens, seen.flops
    splits = {
        "V1 N <= 429M -> 537M": (N <= 4.3e8, N > 5e8),
        "V2 N <= 268M -> 429M, 537M": (N <= 2.7e8, N > 4e8),
        "V3 C <= 1.1e19 -> 1e20": (C <= 1.1e19, C >= 1e20),
        "V4 D <= 8B -> 40B": (D <= 8e9, D >= 4e10),
        "V5 C <= 3.3e19 -> 1e20": (C <= 3.3e19, C >= 1e20),
    }
    scores = []
    for name, (train, test) in splits.items():
        made = surface.fit_surface(seen.select(train), test=False)
        held = seen.select(test)
        index = cell_index(held)
        regrets = [_regret(held.select(index == cell), made) for cell in range(index.max() + 1)]
        scores.append(float(np.mean(regrets)))
        yield Check(f"{name}: worst regret %", max(regrets), 0.55, 0.0, most=True)
    yield Check(
        "mean regret % of five splits (SL refit .238, published .100)", float(np.mean(scores)), 0.125, 0.0, most=True
    )


def step_law_table(home: Path) -> Observations:
    """The Step Law table in our columns; a sequence has 2,048 tokens."""
    rows = read_rows(home / "steplaw_lr_bs" / "lr_bs_loss.csv.gz")
    ours = [
        {
            "n_params": row["n_params_nonemb"],
            "n_tokens": row["tokens"],
            "lr": row["lr"],
            "batch_tokens": 2048 * float(row["batch_seqs"]),
            "loss": row["loss"],
            "n_params_count": "non_embedding",
        }
        for row in rows
    ]
    return Observations.from_rows(ours)


def _regret(cell: Observations, made: Fit) -> float:
    """Piecewise-linear ln loss at the prediction, clipped to the cell's box, over the cell's least (%)."""
    places = np.column_stack([np.log2(cell.lr), np.log2(cell.batch_tokens)])
    spread, ln_loss = places.std(axis=0), np.log(cell.loss)
    at = np.clip(surface.predict(made, cell.n_params[0], cell.n_tokens[0])[0], places.min(axis=0), places.max(axis=0))
    value = np.ravel(LinearNDInterpolator(places / spread, ln_loss)(at / spread))[0]
    if np.isnan(value):
        value = np.ravel(NearestNDInterpolator(places / spread, ln_loss)(at / spread))[0]
    return float(100 * np.expm1(value - ln_loss.min()))


def main() -> int:
    """Print every check; 0 when all passed."""
    folder = os.environ.get("ISOLOSS_DATA_HOME")
    if not folder:
        sys.stderr.write("ISOLOSS_DATA_HOME is not set; it names the folder with the data.\n")
        return 2
    checks = [check for part in (chinchilla, step_law, extrapolation) for check in part(Path(folder))]
    for check in checks:
        bound = f"<= {check.figure:<13.6g}" if check.most else f"{check.figure:<16.10g}"
        sys.stdout.write(f"{'pass' if check.passed else 'FAIL'}  {check.name:<62} {check.ours:<16.10g} {bound}\n")
    return 0 if all(check.passed for check in checks) else 1


if __name__ == "__main__":
    sys.exit(main())
