"""The over-training law: loss against compute at a fixed ratio of tokens to parameters (Gadre et al. 2024)."""

from __future__ import annotations

from typing import Final

import numpy as np

from isoloss.laws.powersum import PowerSum, Term

OVERTRAINING: Final = PowerSum(
    name="overtraining",
    equation="L(C, M) = E + (a M^eta + b / M^eta) / C^eta, M = D / N, C = 6 N D",
    source="Gadre et al. 2024, arXiv 2403.08540, eq. 4",
    terms=(Term("E"), Term("a", n="eta"), Term("b", d="eta")),  # C / M = 6 N², C M = 6 D²
    grid={"eta": tuple(float(x) for x in np.linspace(0.02, 0.6, 48))},
    prior={"eta": (0.175, 0.075)},
    columns=("6 N^2", "6 D^2"),
)
