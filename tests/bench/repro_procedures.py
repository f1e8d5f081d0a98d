"""Published procedures, redone: parabolas on noise-free surfaces, and Porian's exponents."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import numpy as np
from public_data import porian
from reproduction import Check

from isoloss.laws.chinchilla import CHINCHILLA, ChinchillaLaw
from isoloss.laws.isoflop import budgets, estimated_bias, fit_isoflop
from isoloss.laws.losslaw import Settings, fit_loss_law
from isoloss.laws.observation import Observation, Observations

SURFACES: Final = {
    "chin": (1.69, 406.4, 410.7, 0.34, 0.28),
    "sym": (1.69, 400.0, 400.0, 0.31, 0.31),
    "asym": (1.69, 400.0, 400.0, 0.465, 0.155),
}
CENTRED: Final = {  # half-width of the grid as a factor of D: error of D* at 1e24 FLOP, %
    "sym": {2: 0.0, 4: 0.0, 8: 0.0, 16: 0.0},
    "chin": {2: -0.33, 4: -1.30, 8: -2.90, 16: -5.10},
    "asym": {2: -1.67, 4: -6.50, 8: -13.91, 16: -23.12},
}
OFF_CENTRE: Final = {
    "sym": (1.51, 1.69),
    "chin": (0.24, 3.05),
    "asym": (-2.42, 14.00),
}  # ×3 off; drifting to ×3; k = 16
PORIAN: Final = {  # RefinedWeb: (count, hyper-parameters, warm-up, decay, split): exponent of N*, its 95 % interval
    ("kaplan", "base", "long", "kaplan", "train"): (0.8353, 0.8235, 0.8460),
    ("standard", "base", "long", "kaplan", "val"): (0.7065, 0.6915, 0.7169),
    ("standard", "base", "short", "kaplan", "val"): (0.6020, 0.5914, 0.6173),
    ("standard", "base", "short", "chinchilla", "val"): (0.5715, 0.5598, 0.5885),
    ("standard", "tuned", "short", "const", "val"): (0.4969, 0.4907, 0.5045),
    ("kaplan", "tuned", "long", "const", "train"): (0.7115, 0.7026, 0.7214),
    ("attention", "base", "long", "kaplan", "train"): (0.7171, None, None),
    ("attention", "base", "short", "kaplan", "train"): (0.6223, None, None),
    ("attention", "base", "short", "chinchilla", "train"): (0.5772, None, None),
    ("attention", "tuned", "short", "const", "train"): (0.5053, None, None),
}


def planted(
    constants: tuple[float, ...], width: float, first: float, last: float
) -> tuple[Observations, ChinchillaLaw]:
    """Five budgets of fifteen noise-free runs, ``width`` about D* times a centre that goes from ``first`` to ``last``."""
    law = ChinchillaLaw(**dict(zip(("E", "A", "B", "alpha", "beta"), constants, strict=True)))
    rows = []
    for C, centre in zip(np.logspace(17, 21, 5), np.geomspace(first, last, 5), strict=True):
        best = law.optimal(C)[1]
        for D in best * centre * np.geomspace(1 / width, width, 15):
            N = C / (6 * D)
            rows.append(Observation(n_params=N, n_tokens=D, loss=law.loss(N, D), flops=C))
    return Observations(tuple(rows)), law


def approach_two(_: Path) -> Iterator[Check]:
    """The bias of parabolas without any noise (Open-Athena 2026), and variable projection on the same points."""
    grids = [(s, k, (1.0, 1.0), figure) for s, row in CENTRED.items() for k, figure in row.items()]
    for surface, (offset, drift) in OFF_CENTRE.items():
        grids += [(surface, 16, (3.0, 3.0), offset), (surface, 16, (1.0, 3.0), drift)]
    worst = 0.0
    for surface, width, centres, figure in grids:
        seen, law = planted(SURFACES[surface], width, *centres)
        yield Check(f"{surface} k={width} centre ×{centres[0]:g}–{centres[1]:g}: error of D*, %",
                    100 * estimated_bias(budgets(seen), law, 1e24), figure, 0.01)  # fmt: skip
        made = fit_loss_law(CHINCHILLA, seen, Settings(bootstrap=0))
        ours = ChinchillaLaw(**{name: constant.value for name, constant in made.estimates.items()})
        worst = max(worst, abs(ours.optimal(1e24)[1] / law.optimal(1e24)[1] - 1))
    yield Check("chinchilla on the same points: worst error of D*", worst, 1e-6, 0.0, most=True)


def porian_table(home: Path) -> Iterator[Check]:
    """Porian et al. 2024, their as-released noise; all fifteen configurations are timed."""
    tables = porian(home)
    begin = time.process_time()
    fits = {
        name: fit_isoflop("isoflop-akima", seen, level=0.95, noise=0.002 if name[0] == "rw" else 0.01)
        for name, seen in tables.items()
    }
    spent = time.process_time() - begin
    for name, (figure, low, high) in PORIAN.items():
        a = fits["rw", *name].estimates["a"]
        yield Check(f"{'/'.join(name)}: a", a.value, figure, 0.002)
        if low is not None and high is not None:
            yield Check(f"{'/'.join(name)}: low", a.low or 0.0, low, 0.004)
            yield Check(f"{'/'.join(name)}: high", a.high or 0.0, high, 0.004)
    yield Check(f"{len(fits)} configurations with intervals, CPU s", spent, 5.0, 0.0, most=True)
