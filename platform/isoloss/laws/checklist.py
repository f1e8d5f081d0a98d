"""The reporting checklist for scaling laws, filled from what a fit knows.

(Mis)Fitting (arXiv 2502.18969) found that most papers leave out what a reader needs to redo a fit; the items below
are its, in our words. What isoloss cannot know it says it does not know, instead of leaving the line away.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from isoloss.laws.inference import rerun_noise
from isoloss.laws.observation import Observations, Status

UNKNOWN: Final = "not recorded with the observations"


def checklist(
    seen: Observations,
    used: int,
    *,
    equation: str,
    objective: str,
    algorithm: str,
    starts: int,
    validity: str,
    choice: str,
) -> dict[str, str]:
    """The items as question → answer; ``seen`` are all observations given, ``used`` how many points entered the fit."""
    N, D, C = seen.n_params, seen.n_tokens, seen.flops
    counted = ", ".join(sorted({row.n_params_count for row in seen}))
    given = int(np.sum(~np.isnan(seen.column("flops"))))
    statuses = {status.value: sum(row.status is status for row in seen) for status in Status}
    recipes = sorted({row.recipe for row in seen if row.recipe})
    lr, batch = (_span(values[~np.isnan(values)]) for values in (seen.lr, seen.batch_tokens))
    return {
        "form": equation,
        "models trained": f"{len(seen)} runs: {', '.join(f'{n} {word}' for word, n in statuses.items() if n)}",
        "sizes": f"{len(np.unique(N))} sizes, N from {_span(N)} ({counted})",
        "tokens": f"{len(np.unique(D))} values, D from {_span(D)}; repetition of data {UNKNOWN}",
        "compute": f"C from {_span(C)} FLOP, {given} as recorded and {len(seen) - given} as 6 N D",
        "recipe": "; ".join(recipes[:3]) or UNKNOWN,
        "hyper-parameters": f"{choice}; lr from {lr}, batch from {batch} tokens",
        "metric": "loss in nats per token as observed, fitted in logarithms, no smoothing or interpolation",
        "noise of a run": _reruns(seen),
        "objective": objective,
        "algorithm": algorithm,
        "starts": f"{starts}",
        "points": f"{used} used of {len(seen)}",
        "validity": validity,
    }


def _reruns(seen: Observations) -> str:
    noise, freedom = rerun_noise(seen)
    return f"{noise:.2%} of the loss, from {freedom} reruns" if freedom else "no two runs differ in their seed alone"


def _span(values: np.ndarray[tuple[int, ...], np.dtype[np.float64]]) -> str:
    return f"{values.min():.4g} to {values.max():.4g}" if len(values) else UNKNOWN
