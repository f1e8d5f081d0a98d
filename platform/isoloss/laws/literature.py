"""Published laws as values: what each gives at (N, D), which N it means, where it was seen, and its known misprints.

A law of a paper carries the paper's tokenizer, schedule and way of counting N; at another recipe it is a starting point
and no forecast. Every entry has figures that its own test holds it to. Units: lr is the peak learning rate, batches
are tokens per step, losses are nats per token, C = 6 N D.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from isoloss.laws.chinchilla import ChinchillaLaw

Rule = Callable[[float, float], float]
SEQUENCE: Final = 2048  # tokens of a sequence where a paper counts batches in sequences
HOFFMANN: Final = ChinchillaLaw(E=1.69, A=406.4, B=410.7, alpha=0.34, beta=0.28)
BESIROGLU: Final = ChinchillaLaw(E=1.8172, A=482.01, B=2085.43, alpha=0.3478, beta=0.3658)


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """One paper's law. ``rules`` maps what it gives (lr, batch_tokens, loss, n_params, …) to a function of (N, D).

    ``n_params`` and ``n_tokens`` are the ranges its runs covered (``None`` where the paper does not say); ``n_count``
    is the N it means; ``schedule`` and ``note`` say what else one has to know.
    """

    name: str
    rules: Mapping[str, Rule]
    equation: str
    n_count: str
    source: str
    schedule: str = ""
    n_params: tuple[float, float] | None = None
    n_tokens: tuple[float, float] | None = None
    note: str = ""
    printed: Mapping[str, tuple[float, float, float]] = field(default_factory=dict)  # rule → N, D and the paper's value

    def at(self, n_params: float, n_tokens: float) -> dict[str, float]:
        """Everything it gives at (N, D)."""
        return {name: float(rule(n_params, n_tokens)) for name, rule in self.rules.items()}

    def beyond(self, n_params: float, n_tokens: float) -> dict[str, float]:
        """How many times outside its own range a target lies, for N and D; 1 is inside."""
        found = {}
        for name, value, span in (("n_params", n_params, self.n_params), ("n_tokens", n_tokens, self.n_tokens)):
            if span is not None:
                found[name] = max(value / span[1], span[0] / value, 1.0)
        return found

    def to_mapping(self) -> dict[str, Any]:
        """The entry as plain data."""
        names = ("name", "equation", "n_count", "schedule", "n_params", "n_tokens", "source", "note")
        return {**{name: getattr(self, name) for name in names}, "gives": list(self.rules)}


def _kaplan(N: float, D: float) -> float:
    return float(((6.4e13 / N) ** (0.076 / 0.103) + 1.8e13 / D) ** 0.103)


def _compute(N: float, D: float) -> float:
    return 6 * N * D


LITERATURE: Final[dict[str, Published]] = {
    entry.name: entry
    for entry in (
        Published(
            name="kaplan",
            rules={
                "loss": _kaplan,
                "lr": lambda N, _: 3.239e-3 - 1.395e-4 * np.log(N),
                "critical_batch_tokens": lambda N, D: 2e8 * _kaplan(N, D) ** (-1 / 0.21),
            },
            equation="L = [(6.4e13/N)^(.076/.103) + 1.8e13/D]^.103; lr = 3.239e-3 - 1.395e-4 ln N; B_crit = 2e8 L^(-1/.21)",
            n_count="non_embedding",
            schedule="cosine, one fixed and long warm-up for all sizes",
            n_params=(768, 1.5e9),
            n_tokens=(2.2e7, 2.3e10),
            source="Kaplan et al. 2020, arXiv 2001.08361, eq. 1.5, D.1 and 1.4",
            note="B_crit's 2e8 is often copied as 2e18; lr turns negative above N = 1.2e10",
            printed={"lr": (1e9, 1e10, 3.48e-4)},
        ),
        Published(
            name="hoffmann",
            rules={"loss": HOFFMANN.loss, "n_params": lambda N, D: HOFFMANN.optimal(_compute(N, D))[0]},
            equation="L = 1.69 + 406.4/N^.34 + 410.7/D^.28",
            n_count="total",
            schedule="cosine to a tenth, as long as the run",
            n_params=(7e7, 1.6e10),
            n_tokens=(5e9, 5e11),
            source="Hoffmann et al. 2022, arXiv 2203.15556, approach 3",
            note="constants printed too rounded, and the fit stopped early (Besiroglu et al. 2024): take besiroglu",
            printed={"loss": (7e10, 1.4e12, 1.937)},
        ),
        Published(
            name="besiroglu",
            rules={"loss": BESIROGLU.loss, "n_params": lambda N, D: BESIROGLU.optimal(_compute(N, D))[0]},
            equation="L = 1.8172 + 482.01/N^.3478 + 2085.43/D^.3658",
            n_count="total",
            schedule="cosine to a tenth, as long as the run",
            n_params=(7e7, 1.6e10),
            n_tokens=(5e9, 5e11),
            source="Besiroglu et al. 2024, arXiv 2404.10102",
            note="240 digitised points; the printed constants are of least absolute deviations, not of Huber 1e-3",
            printed={"loss": (7e10, 1.4e12, 1.974)},
        ),
        Published(
            name="porian",
            rules={"lr": lambda N, _: 3.7 * N**-0.36, "batch_tokens": lambda N, _: 0.7576 * N**0.703},
            equation="lr = 3.7 N^-.36; B = .7576 N^.703",
            n_count="with head",
            schedule="constant with warm-up as long as the size wants, tuned per size at D = 20 N",
            n_params=(5e6, 9.01e8),
            source="Porian et al. 2024, arXiv 2406.19146",
            printed={"lr": (1.08e8, 2.16e9, 4.7e-3), "batch_tokens": (1.08e8, 2.16e9, 160 * SEQUENCE)},
        ),
        Published(
            name="step-law",
            rules={"lr": lambda N, D: 1.79 * N**-0.713 * D**0.307, "batch_tokens": lambda _, D: 0.58 * D**0.571},
            equation="lr = 1.79 N^-.713 D^.307; B = .58 D^.571",
            n_count="non_embedding; of a mixture of experts all of them, active or not",
            schedule="cosine to a fixed floor of 1e-5, whatever the peak",
            n_params=(6e7, 1.07e9),
            n_tokens=(2e9, 1e11),
            source="Li et al. 2025, arXiv 2503.04715, eq. 1",
            note="others report a weaker exponent of D; the optimum at a tenth of the peak as floor is another",
            printed={"lr": (1.07e9, 1e11, 1.56e-3), "batch_tokens": (1e9, 1e11, 1.11e6)},
        ),
        Published(
            name="deepseek",
            rules={
                "lr": lambda N, D: 0.3118 * _compute(N, D) ** -0.125,
                "batch_tokens": lambda N, D: 0.2920 * _compute(N, D) ** 0.3271,
            },
            equation="lr = .3118 C^-.125; B = .2920 C^.3271",
            n_count="non-embedding FLOP per token in their C; here C = 6 N D",
            schedule="multi-step, 80 % at the peak",
            source="DeepSeek-AI 2024, arXiv 2401.02954",
            printed={"lr": (1e9, 1e11 / 6, 0.3118 * 1e20**-0.125)},
        ),
        Published(
            name="microsoft",
            rules={"lr": lambda N, D: 1.3192e-3 * (N / 1e9) ** -0.23 * (D / 1e9) ** -0.32},
            equation="lr = 1.3192e-3 N^-.23 D^-.32, N and D in 1e9",
            n_count="total",
            schedule="cosine, batch of half a million tokens",
            n_params=(5e7, 2.7e9),
            source="Bjorck et al. 2024, arXiv 2409.19913",
            note="printed as 1.3192e-5 without units, which no unit makes plausible: 1e-3 and 1e9 are our reading; coded elsewhere as 1.3192 exp(-5)",
        ),
        Published(
            name="power-lines",
            rules={
                "batch_tokens": lambda _, D: SEQUENCE * 0.0306 * D**0.383,
                "critical_batch_tokens": lambda _, D: SEQUENCE * 0.0471 * D**0.462,
            },
            equation="B_opt = .0306 D^.383, B_crit = .0471 D^.462, in sequences of 2,048 tokens",
            n_count="total",
            schedule="linear to zero, maximal-update parameterisation",
            n_params=(1.11e8, 3.3e9),
            source="Bergsma et al. 2025, arXiv 2505.13738",
            printed={"batch_tokens": (1e9, 1e10, SEQUENCE * 0.0306 * 1e10**0.383)},
        ),
        Published(
            name="minicpm",
            rules={"batch_tokens": lambda N, D: 1.21e9 / BESIROGLU.loss(N, D) ** 6.24, "lr": lambda _n, _d: 0.01},
            equation="B = 1.21e9 / L^6.24; lr = .01 at every size",
            n_count="non_embedding",
            schedule="warm-up, stable, decay; maximal-update parameterisation",
            source="Hu et al. 2024, arXiv 2404.06395",
            note="B wants their own loss: here it is put at besiroglu's",
        ),
    )
}
