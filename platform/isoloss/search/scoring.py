"""The one float a rung ranks, from the metrics of a finished task.

With desirabilities it is minus the logarithm of the soft overall desirability of the vector that the run is heading for,
never the hard one of the values at a low rung: nearly nothing meets the final limits there, and zeros cannot be ranked.
What is cumulative is carried on in proportion to the budget, what is static counts as it is.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from isoloss.domain.space import Scalar
from isoloss.domain.spec import StudySpec
from isoloss.search.foresight import Forecast


def score(
    spec: StudySpec,
    values: Mapping[str, float],
    configuration: Mapping[str, Scalar] | None = None,
    share: float = 1.0,
    foreseen: Mapping[str, Forecast] | None = None,
) -> float | None:
    """What the search minimises: the metric, its negative when maximised, or minus the log of the soft desirability.

    ``share`` is the part of the maximum budget the task had, ``foreseen`` where its metrics will end. ``None`` when a metric the study needs is missing or not
    finite. Of several ``objectives`` a score alone says nothing: it is their place in the front (``search/front.py``).
    """
    if any(not math.isfinite(values.get(metric, math.nan)) for metric in spec.metrics):
        return None
    if spec.desirability:
        from isoloss.search.desirability import soft_score  # and with it numpy, which a plain objective does not need

        return soft_score(spec, values, configuration or {}, share, foreseen or {})
    if spec.objective is None:
        return 0.0
    value = float(values[spec.objective.metric])
    return -value if spec.objective.goal == "maximize" else value
