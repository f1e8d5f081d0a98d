"""The critical batch size, up to which a larger batch saves steps almost one for one.

    B_crit = B* L^(−1/α)     (McCandlish et al. 2018, arXiv 1812.06162; Kaplan et al. 2020, arXiv 2001.08361, eq. 1.4)
    B_crit = c D^p           (Bergsma et al. 2025, Power Lines, arXiv 2505.13738)

Kaplan's constants are B* = 2e8 tokens (a widely copied table prints 2e18) and α = 0.21.
"""

from __future__ import annotations

from isoloss.laws.powerline import PowerLine, fit_power_line
from isoloss.laws.solve import Floats


def critical_batch_by_loss(loss: Floats, batch_tokens: Floats, *, level: float = 0.9) -> PowerLine:
    """B* (tokens) as ``c`` and −1/α as ``p`` from critical batches (tokens) measured at losses (nats), each (n,).

    Raises as ``fit_power_line`` does.
    """
    return fit_power_line(loss, batch_tokens, level=level)


def batch_by_tokens(n_tokens: Floats, batch: Floats, *, level: float = 0.9) -> PowerLine:
    """Optimal or critical batch as c D^p, in the unit of ``batch``, from (n,) training lengths D in tokens.

    Raises as ``fit_power_line`` does.
    """
    return fit_power_line(n_tokens, batch, level=level)
