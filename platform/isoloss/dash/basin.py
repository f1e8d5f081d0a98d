"""The basin's picture: iso-loss contours of a stored fit at the target's cell, and the forecast's region.

The fitted excess is convex, so every contour is met once on each ray from the optimum: the picture is a few polygons
found by bisection, small enough to send to a browser and exact at any zoom.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

LEVELS: Final = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.04, 0.08, 0.16)  # fractions of the least loss
RAYS: Final = 120
FURTHEST: Final = 14.0  # octaves from the optimum
CHI_SQUARE: Final = 4.605  # of two degrees of freedom at 90 %


def picture(
    fit: Mapping[str, Any], n_params: float, n_tokens: float, cells: Sequence[Sequence[float]]
) -> dict[str, Any]:
    """Contours, the region of 90 % of the draws, and the optimum's path through ``cells`` (N, D), as (lr, batch) points.

    ``fit`` is the mapping of a joint surface (``lr-batch``); raises ``InvalidSpec`` when it is none.
    """
    import numpy as np

    from isoloss.laws import surface
    from isoloss.laws.evidence import Fit

    found = Fit.from_mapping(fit)
    basin = surface.basin(found)
    centre, draws = surface.predict(found, n_params, n_tokens)
    angles = np.linspace(0.0, 2 * np.pi, RAYS, endpoint=False)
    towards = np.column_stack([np.cos(angles), np.sin(angles)])
    low, high = np.zeros((len(LEVELS), RAYS)), np.full((len(LEVELS), RAYS), FURTHEST)
    limits = np.log1p(np.array(LEVELS))[:, None]
    for _ in range(30):
        middle = (low + high) / 2
        inside = basin.excess(middle * towards[:, 0], middle * towards[:, 1]) < limits
        low, high = np.where(inside, middle, low), np.where(inside, high, middle)
    contours = centre + low[:, :, None] * towards
    path = [surface.predict(found, n, d)[0] for n, d in cells]
    return {
        "levels": list(LEVELS),
        "contours": [_points(contour) for contour in contours],
        "centre": _points(centre[None, :])[0],
        "region": _points(_ellipse(draws, towards)) if len(draws) > 2 else [],
        "path": _points(np.array(path)) if path else [],
    }


def _ellipse(draws: Any, towards: Any) -> Any:
    """The ellipse that holds 90 % of normal draws (log2 lr, log2 batch)."""
    import numpy as np

    values, vectors = np.linalg.eigh(np.cov(draws.T))
    axes = vectors * np.sqrt(np.maximum(values, 0.0) * CHI_SQUARE)
    return draws.mean(axis=0) + towards @ axes.T


def _points(octaves: Any) -> list[list[float]]:
    return [[float(f"{2.0**u:.5g}"), float(f"{2.0**v:.5g}")] for u, v in octaves]
