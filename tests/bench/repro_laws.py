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

from repro_losses import chinchilla, clark, farseer, muennighoff, which_law
from repro_procedures import approach_two, porian_table
from reproduction import Check, show
from step_law_table import read_step_law

from isoloss.laws import steplaw


def step_law(home: Path) -> Iterator[Check]:
    """Li et al. 2025, pooled runs within .25 % of their cell's best, 36 visible cells."""
    seen = read_step_law(home)
    made = steplaw.fit_step_law(seen, near=0.0025, bootstrap=0)
    figures = {"c": 0.97667, "a": -0.67994, "b": 0.30631, "d": 0.31902, "e": 0.59771}
    yield Check("step law rows", made.n_observations, 198, 0)
    for name, figure in figures.items():
        yield Check(f"step law {name}", made.estimates[name].value, figure, 1e-4 * abs(figure))
    wider = steplaw.fit_step_law(seen, near=0.0025, batch_on_n=True, bootstrap=0)
    for name, figure in {"f": -0.19322, "e": 0.61991}.items():
        yield Check(f"batch on N and D {name}", wider.estimates[name].value, figure, 1e-4 * abs(figure))


PARTS: dict[str, Callable[[Path], Iterator[Check]]] = {
    "chinchilla": chinchilla,
    "clark": clark,
    "muennighoff": muennighoff,
    "farseer": farseer,
    "which-law": which_law,
    "step-law": step_law,
    "approach-two": approach_two,
    "porian": porian_table,
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
