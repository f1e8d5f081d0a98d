"""The one float a rung ranks, from the metrics of a finished task."""

from __future__ import annotations

import math
from collections.abc import Mapping

from isoloss.domain.spec import StudySpec
from isoloss.search.desirability import log_soft_overall


def score(spec: StudySpec, values: Mapping[str, float]) -> float | None:
    """What the search minimises: the metric, its negative when maximised, or minus the log of the soft desirability.

    ``None`` when a metric the study needs is missing or not finite.
    """
    if any(not math.isfinite(values.get(metric, math.nan)) for metric in spec.metrics):
        return None
    if spec.objective is None:
        return -log_soft_overall(spec, values)
    value = float(values[spec.objective.metric])
    return -value if spec.objective.goal == "maximize" else value
