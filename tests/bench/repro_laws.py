"""Published laws, refitted: ours beside the figure, with ok or MISSED.

Run with ISOLOSS_DATA_HOME naming the folder of public tables; they are not part of this repository. Without it nothing
is run. Names of parts as arguments run those only. Exit code 1 when a figure is missed.

    ISOLOSS_DATA_HOME=… python tests/bench/repro_laws.py [chinchilla clark muennighoff farseer which-law step-law …]
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from repro_losses import chinchilla, clark, farseer, muennighoff, which_law
from reproduction import Check, show
from scipy.interpolate import LinearNDInterpolator, NearestNDInterpolator

from isoloss.files.tables import read_rows
from isoloss.laws import steplaw, surface
from isoloss.laws.cells import cell_index
from isoloss.laws.evidence import Fit
from isoloss.laws.observation import Observations


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
        made = surface.fit_surface(seen.select(train), bootstrap=0, test=False)
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


PARTS: dict[str, Callable[[Path], Iterator[Check]]] = {
    "chinchilla": chinchilla,
    "clark": clark,
    "muennighoff": muennighoff,
    "farseer": farseer,
    "which-law": which_law,
    "step-law": step_law,
    "extrapolation": extrapolation,
}


def main() -> int:
    """Print every check; 0 when all passed, or when there are no data to check against."""
    folder = os.environ.get("ISOLOSS_DATA_HOME")
    if not folder:
        sys.stderr.write("skipped: ISOLOSS_DATA_HOME is not set; it names the folder with the public tables.\n")
        return 0
    wanted = sys.argv[1:] or list(PARTS)
    if unknown := [name for name in wanted if name not in PARTS]:
        sys.stderr.write(f"no part {unknown[0]!r}; accepted are {', '.join(PARTS)}.\n")
        return 2
    return 0 if show(check for name in wanted for check in PARTS[name](Path(folder))) else 1


if __name__ == "__main__":
    sys.exit(main())
