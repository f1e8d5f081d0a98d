"""The law of routed language models: N parameters a token, E experts, one token budget.

    log10 L = a log10 N + b log10 Ê + c log10 N log10 Ê + d
    1 / Ê = 1 / (E − 1 + (1 / E_start − 1 / E_max)^−1) + 1 / E_max

Clark et al. 2022, arXiv 2202.01169, eq. 1 and 2; N is the dense model's parameter count. ``effective_params`` is their
eq. 6: the dense model that would be as good.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Final

import numpy as np

from isoloss.laws.solve import Floats, RobustLoss

TEN: Final = float(np.log(10.0))
GRID: Final = {"E_start": (1.3, 2.0, 4.0, 8.0), "E_max": (100.0, 250.0, 500.0, 2000.0)}


@dataclass(frozen=True, slots=True)
class Routed:
    """Clark's form; θ is (a, b, c, d, ln E_start, ln E_max)."""

    name: str = "routed"
    equation: str = "log10 L = a log10 N + b log10 E^ + c log10 N log10 E^ + d, E^ saturating from E_start to E_max"
    source: str = "Clark et al. 2022, arXiv 2202.01169, eq. 1 and 2"
    columns: tuple[str, ...] = ("n_params", "n_experts")
    names: tuple[str, ...] = ("a", "b", "c", "d", "E_start", "E_max")
    logarithms: frozenset[str] = frozenset({"E_start", "E_max"})
    origin: tuple[float, ...] = (0.0, 0.0)

    def centre(self, x: Floats) -> Floats:
        """Mean ln N; a number of experts is absolute."""
        return np.array([x[0].mean(), 0.0])

    def design(self, x: Floats) -> Floats:
        """log10 N and E."""
        return np.array([x[0] / TEN, np.exp(x[1])])

    def log_loss(self, theta: Floats, design: Floats) -> tuple[Floats, Floats]:
        """Give ln L (S, n) and its Jacobian (S, n, p)."""
        a, b, c, d, start, most = (column[:, None] for column in theta.T)
        n, experts = design
        saturated, by_start, by_most = _saturated(experts, start, most)
        slope = b + c * n
        parts = (n, saturated, n * saturated, 1.0, slope * by_start, slope * by_most)
        jacobian = np.stack(np.broadcast_arrays(*parts, saturated)[:-1], axis=-1)
        return TEN * (a * n + slope * saturated + d), TEN * jacobian

    def shift(self, theta: Floats, by: Floats) -> Floats:
        """B absorbs c's offset in log10 N, and d that of a."""
        offset = by[0] / TEN
        a, b, c, d, *rest = np.moveaxis(theta, -1, 0)
        return np.stack([a, b - c * offset, c, d - a * offset, *rest], axis=-1)

    def constants(self, theta: Floats) -> Floats:
        """θ itself."""
        return theta

    def bounds(self, loss: Floats) -> tuple[Floats, Floats]:
        """Slopes within 2 a decade; E_start up to 30, and E_max from there on."""
        level = abs(float(np.log10(loss.max()))) + 5.0
        low = np.array([-2.0, -2.0, -1.0, -level, np.log(1.001), np.log(31.0)])
        high = np.array([2.0, 2.0, 1.0, level, np.log(30.0), np.log(1e5)])
        return low, high

    def starts(self, x: Floats, loss: Floats, robust: RobustLoss) -> Floats:  # noqa: ARG002 - every start is polished
        """Least squares for a, b, c, d at each point of a grid of E_start and E_max."""
        n, experts = self.design(x)
        ends = np.log(np.array(list(product(*GRID.values()))))
        saturated = _saturated(experts, ends[:, :1], ends[:, 1:])[0]
        linear = [
            np.linalg.lstsq(np.column_stack([n, row, n * row, np.ones_like(n)]), np.log10(loss), rcond=None)[0]
            for row in saturated
        ]
        return np.hstack([np.array(linear), ends])


def _saturated(experts: Floats, ln_start: Floats, ln_most: Floats) -> tuple[Floats, Floats, Floats]:
    """log10 Ê and its derivatives by ln E_start and ln E_max."""
    start, most = np.exp(-ln_start), np.exp(-ln_most)
    offset = 1 / (start - most)
    inverse = 1 / (experts - 1 + offset)
    total = inverse + most
    moved = inverse**2 * offset**2  # the inverse of Ê by 1 / E_start
    return -np.log10(total), moved * start / total / TEN, (1 - moved) * most / total / TEN


ROUTED: Final = Routed()


def effective_params(constants: dict[str, float], n_params: float, n_experts: float) -> float:
    """Parameters of the dense model as good as one of N ``n_params`` and E ``n_experts`` (Clark et al. 2022, eq. 6).

    N̄ = N^(α(Ê) / α(E_start)) (Ê / E_start)^(b / α(E_start)), α(x) = a + c log10 x.
    """
    a, b, c = (constants[name] for name in "abc")
    ln_start, ln_most = (np.log([constants[name]]) for name in ("E_start", "E_max"))
    start = float(np.log10(constants["E_start"]))
    saturated = float(_saturated(np.array([n_experts]), ln_start, ln_most)[0][0])
    dense = a + c * start
    return float(n_params ** ((a + c * saturated) / dense) * 10 ** ((saturated - start) * b / dense))
