"""What a search answers when it is looked at: plain frozen values, safe to keep and to send to another process."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from isoloss.domain.space import Scalar
from isoloss.search.events import Status


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """A configuration and where it came from; ``index`` counts within its bracket, ``repeat`` is added to the seed."""

    number: int
    bracket: int
    index: int
    configuration: dict[str, Scalar]
    source: str
    repeat: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """How a task ended; the score is minimised and finite only when ``status`` is ok."""

    status: Status
    score: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Incumbent:
    """The best result of a study."""

    trial: int
    level: int
    score: float
    configuration: dict[str, Scalar]


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """Spearman's rank correlation between ``level`` and the one below, over the trials measured at both."""

    level: int
    trials: int
    spearman: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RungSummary:
    """A rung in numbers: ``created`` tasks, some ``outstanding``. ``settled``: its synchronous member set is known."""

    bracket: int
    level: int
    budget: int
    quota: int
    created: int
    results: int
    sent: int
    outstanding: int
    settled: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ProposalRequest:
    """What a model needs to propose ``n`` configurations: scores of one level (``None``: it needs none), and what is on its way.

    ``outcomes`` are the measured values at that level, which whoever runs the model lays beside the scores: the search
    itself knows no metrics. NaN is a run that diverged.
    """

    n: int
    seed: int
    level: int | None
    history: tuple[tuple[dict[str, Scalar], float], ...]
    pending: tuple[dict[str, Scalar], ...]
    outcomes: tuple[tuple[dict[str, Scalar], Mapping[str, float]], ...] = ()
