"""Scores that depend on more than their own task: what is foreseen of a run, and its place in a front.

Whoever takes up a result (the decider, the Driver) asks here for its score, and afterwards whether the history must be
scored anew: because more is foreseen than before, because a front has moved, or because the user prefers something else.
The search sees scores only, and other scores only as ``Rescored``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

import msgspec

from isoloss.domain.objective import AnyDesirability, leaves
from isoloss.domain.spec import StudySpec, check_goal, decode
from isoloss.errors import InvalidSpec, WrongState
from isoloss.search.answers import ProposalRequest, Trial
from isoloss.search.events import CONFIRM, ENQUEUED, Rescored
from isoloss.search.foresight import Foresight, Values
from isoloss.search.front import Vector, fronts, hypervolume, places, vector
from isoloss.search.proposals import learns_outcomes, outcome_names
from isoloss.search.scoring import score
from isoloss.search.search import Search

FIRST: Final = 10  # results of a level whose worst is the reference of its hypervolume
ADDED: Final = "added"  # the source of a trial that was added


class Judge:
    """Scores of a study whose ``known`` results, in the order of the ledger, are these."""

    def __init__(self, search: Search, known: Values) -> None:
        self.search, self._known = search, known
        self._foresight = Foresight(search.spec, search.ladder, known)

    def moved(self, later: Judge) -> bool:
        """Whether the scores of the one before can no longer be compared with those of ``later``."""
        return bool(self.search.spec.objectives) or self._foresight.stage != later._foresight.stage

    def score(self, trial: int, level: int, values: Mapping[str, float]) -> float | None:
        """The score of a task that measured these values; ``None`` when it diverged."""
        search = self.search
        foreseen = {
            metric: forecast
            for metric, value in values.items()
            if metric in search.spec.desirability_metrics
            and (forecast := self._foresight.forecast(metric, value, level)) is not None
        }
        configuration = search.trial(trial).configuration if trial < search.trials else {}
        found = score(search.spec, values, configuration, search.ladder.share(level), foreseen)
        if found is None or not search.spec.objectives:
            return found
        return self._places(level, {trial: vector(search.spec.objectives, values)})[trial]

    def worth(self, trial: int, level: int, values: Mapping[str, float]) -> dict[str, Any] | None:
        """What the values are worth, for people to see: D, d and value by metric, and the one that limits.

        Of several objectives it is the hypervolume of the front with them, below the worst of the level's first ``FIRST``.
        """
        if self.search.spec.objectives:
            return {"y": dict(values), "hypervolume": self._hypervolume(trial, level, values)}
        if not self.search.spec.desirability:
            return None
        from isoloss.search.desirability import known_values, overall

        configuration = self.search.trial(trial).configuration
        found = overall(self.search.spec, values, configuration)
        known = known_values(self.search.spec, values, configuration)
        return {"D": found.overall, "d": dict(found.parts), "y": known, "limiting": found.limiting}

    def _hypervolume(self, trial: int, level: int, values: Mapping[str, float]) -> float | None:
        objectives = self.search.spec.objectives
        at_level = [vector(objectives, v) for (t, at), v in self._known.items() if at == level and t != trial]
        vectors = [v for v in (*at_level, vector(objectives, values)) if all(map(math.isfinite, v))]
        if len(vectors) < FIRST:
            return None
        reference = tuple(map(max, zip(*vectors[:FIRST], strict=True)))
        return hypervolume([vectors[place] for place in fronts(vectors)[0]], reference)

    def worths(self) -> list[tuple[int, int, dict[str, Any] | None]]:
        """The worth of everything that was measured, each (trial, level, worth)."""
        return [
            (trial, level, self.worth(trial, level, values)) for (trial, level), values in self._known.items() if values
        ]

    def _places(self, level: int, more: Mapping[int, Vector]) -> dict[int, float]:
        """The place in the front of every trial at a level, ``more`` included."""
        objectives = self.search.spec.objectives
        at_level = {trial: vector(objectives, values) for (trial, at), values in self._known.items() if at == level}
        vectors = {t: v for t, v in (at_level | dict(more)).items() if all(map(math.isfinite, v))}
        return dict(zip(vectors, places(list(vectors.values())), strict=True))

    def headed(self, level: int, values: Mapping[str, float]) -> dict[str, float]:
        """The values a run is heading for that measured these at ``level``: what a model of outcomes should learn from."""
        share, found = self.search.ladder.share(level), dict(values)
        for metric, leaf in leaves(self.search.spec.desirability).items():
            if metric in values and (forecast := self._foresight.forecast(metric, values[metric], level)) is not None:
                found[metric] = forecast.middle
            elif metric in values and leaf.shape.kind == "cumulative":
                found[metric] = values[metric] / share
        return found

    def rescored(self) -> Rescored | None:
        """The scores that are not what they were recorded as; ``None`` when all are."""
        changed = []
        for (trial, level), value in self._scores().items():
            result = self.search.result(trial, level)
            if result is not None and result.status == "ok" and value != result.score:
                changed.append((trial, level, value))
        return Rescored(scores=tuple(changed)) if changed else None

    def _scores(self) -> dict[tuple[int, int], float | None]:
        if not self.search.spec.objectives:
            return {(trial, level): self.score(trial, level, values) for (trial, level), values in self._known.items()}
        levels = sorted({level for _, level in self._known})
        return {(trial, level): place for level in levels for trial, place in self._places(level, {}).items()}


def informed(request: ProposalRequest, search: Search, known: Values) -> ProposalRequest:
    """The request with the outcomes its level's runs are heading for, where the study's model wants them."""
    if not learns_outcomes(search.spec):
        return request
    judge, outcomes = Judge(search, known), []
    diverged = dict.fromkeys(outcome_names(search.spec), math.nan)
    for (trial, level), result in search.tasks.items():
        if level == request.level and result is not None and result.status in ("ok", "diverged"):
            found = diverged if result.score is None else judge.headed(level, known.get((trial, level), {}))
            outcomes.append((search.trial(trial).configuration, found))
    return replace(request, outcomes=tuple(outcomes))


def worthless(spec: StudySpec, trial: Trial) -> bool:
    """Whether a formula already says that D is 0, so that running it would tell nothing; never of what a user asked for."""
    from isoloss.search.desirability import hard, known_values

    if trial.source in (ADDED, ENQUEUED, CONFIRM):
        return False
    static = {metric: leaf.shape for metric, leaf in leaves(spec.desirability).items() if leaf.shape.known_before}
    known = known_values(spec, {}, trial.configuration) if static else {}
    return any(known[metric] is not None and hard(shape, known[metric]) == 0 for metric, shape in static.items())


def preferring(spec: StudySpec, desirability: Mapping[str, Any], known: Values) -> StudySpec:
    """The spec with another preference; ``InvalidSpec`` for one that cannot be, or that asks for what was not measured."""
    if not spec.desirability:
        raise WrongState(f"Study {spec.name!r} has no desirability; accepted is a study that was created with one.")
    found = decode({"desirability": desirability}, _Preference).desirability
    changed = msgspec.structs.replace(spec, desirability=found)
    check_goal(changed)
    measured = [set(values) for values in known.values() if values]
    common = set.intersection(*measured) if measured else set(spec.metrics)
    for metric, leaf in leaves(found).items():
        if leaf.shape.owed and metric not in common:
            raise InvalidSpec(
                f"desirability.{metric} is a metric that not every result has; accepted are {', '.join(sorted(common))}, "
                "or one with `missing`."
            )
    return changed


class _Preference(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    desirability: dict[str, AnyDesirability]
