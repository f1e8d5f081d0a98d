"""AdamW's averaging timescale, as a share of training, against tokens per parameter.

    τ = B / (η λ D) = c (D / N)^p

Bergsma et al. 2025 (Power Lines), arXiv 2505.13738: weight decay is tuned by holding τ on this line when batch, data
or model change. B, D in tokens; η the peak learning rate, λ the weight decay.
"""

from __future__ import annotations

import numpy as np

from isoloss.laws.powerline import PowerLine, fit_power_line
from isoloss.laws.solve import Floats


def timescale(batch_tokens: Floats, lr: Floats, weight_decay: Floats, n_tokens: Floats) -> Floats:
    """τ, a share of the run."""
    return np.asarray(batch_tokens / (lr * weight_decay * n_tokens))


def timescale_by_ratio(tau: Floats, n_tokens: Floats, n_params: Floats, *, level: float = 0.9) -> PowerLine:
    """The line of optimal τ over D / N, each (n,). Raises as ``fit_power_line`` does."""
    return fit_power_line(n_tokens / n_params, tau, level=level)


def weight_decay(line: PowerLine, *, batch_tokens: float, lr: float, n_tokens: float, n_params: float) -> float:
    """The λ that puts a run on the line."""
    return batch_tokens / (lr * n_tokens * line.at(n_tokens / n_params))
