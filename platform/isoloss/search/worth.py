"""What the limits do to a study: how many trials they leave nothing of, which metric does it, and how much space is left."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Final

from isoloss.search.answers import Incumbent
from isoloss.search.desirability import OverallDesirability, overall
from isoloss.search.foresight import Values
from isoloss.search.front import fronts, vector
from isoloss.search.proposals import outcome_names
from isoloss.search.search import Search

FEWEST: Final = 8  # results of a level before models are asked
CONSIDERED: Final = 128  # the best by measurement, which models rank anew
NEAR: Final = 0.05  # of the best overall desirability: what is within it is about as good
DRAWN: Final = ("sobol", "random")  # sources that know nothing of results


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Of ``measured`` trials ``vetoed`` have D = 0, by ``vetoes`` of a metric; of those drawn blindly ``alive`` have more."""

    measured: int
    vetoed: int
    vetoes: Mapping[str, int]
    drawn: int
    alive: int

    @property
    def sentence(self) -> str:
        """What a user should know of the limits; empty while nothing is measured or nothing is vetoed."""
        if not self.vetoed:
            return ""
        worst = max(self.vetoes, key=lambda metric: self.vetoes[metric])
        share = self.vetoed / self.measured
        said = f"Your limits veto {share:.0%} of the {self.measured} trials measured, most often {worst}"
        if self.vetoed < self.measured:
            return f"{said}."
        return f"{said}: nothing is worth anything yet. A wider limit tells the search where to go."


@dataclass(frozen=True, slots=True, kw_only=True)
class Worth:
    """A trial with its overall desirability at the level it is judged at, and the D that models believe it has."""

    incumbent: Incumbent
    desirability: OverallDesirability
    believed: float | None = None

    @property
    def value(self) -> float:
        """D as it was measured; 0 where it is not known."""
        return self.desirability.overall or 0.0

    @property
    def expected(self) -> float:
        """What another run would be worth, as far as the models know, else what was measured."""
        return self.value if self.believed is None else self.believed


def limits(search: Search, known: Values) -> Limits:
    """How the limits treat the trials measured so far, each at its highest level."""
    highest = dict(sorted(task for task in known if not search.trial(task[0]).repeat))  # of a trial the last stays
    found = {trial: _worth(search, trial, level, known) for trial, level in highest.items()}
    vetoed = {trial: worth for trial, worth in found.items() if worth.overall == 0}
    drawn = [trial for trial in found if search.trial(trial).source in DRAWN]
    return Limits(
        measured=len(found), vetoed=len(vetoed),
        vetoes=dict(Counter(metric for worth in vetoed.values() for metric, d in worth.parts.items() if d == 0)),
        drawn=len(drawn), alive=sum(trial not in vetoed for trial in drawn),
    )  # fmt: skip


def ranking(search: Search, known: Values) -> list[Worth]:
    """The trials of the highest level where one is worth something, best D first; none while D is 0 or unknown everywhere.

    D is never read at a lower level than it must be: what is cumulative looks better there, what is a curve worse.
    """
    for level in sorted({level for _, level in known}, reverse=True):
        found = []
        for trial, at in known:
            if at != level or (result := search.result(trial, level)) is None or result.score is None:
                continue
            if search.trial(trial).repeat:
                continue
            incumbent = Incumbent(
                trial=trial, level=level, score=result.score, configuration=search.trial(trial).configuration
            )
            found.append(Worth(incumbent=incumbent, desirability=_worth(search, trial, level, known)))
        found.sort(key=lambda worth: (-worth.value, worth.incumbent.score, worth.incumbent.trial))
        if found and found[0].value > 0:
            return found
    return []


def believing(ranked: list[Worth], search: Search, known: Values) -> Callable[[], list[Worth]]:
    """The work that ranks them by what models of their outcomes believe; to be done wherever, as it is slow.

    Only the best by measurement may come first: a result that is not among them would have to be very unlucky.
    """
    if len(ranked) < max(FEWEST, len(search.spec.space) + 2):
        return lambda: ranked
    level, spec, best = ranked[0].incumbent.level, search.spec, ranked[:CONSIDERED]
    names = outcome_names(spec)
    history = [
        (search.trial(trial).configuration, known.get((trial, level), {}) if result.score is not None else dict.fromkeys(names, math.nan))
        for (trial, at), result in search.tasks.items()
        if at == level and result is not None and result.status in ("ok", "diverged")
    ]  # fmt: skip

    def work() -> list[Worth]:
        from isoloss.search.composite import CompositeProposer

        asked = [worth.incumbent.configuration for worth in best]
        believed = CompositeProposer(spec).believed(history, asked)
        found = [replace(worth, believed=float(d)) for worth, d in zip(best, believed, strict=True)]
        found.sort(key=lambda worth: (-worth.expected, worth.incumbent.score, worth.incumbent.trial))
        return found + ranked[CONSIDERED:]

    return work


def near_best(ranked: list[Worth], within: float = NEAR) -> list[Worth]:
    """Those whose D, as it is expected, is within so much of the best."""
    return [worth for worth in ranked if worth.expected >= ranked[0].expected - within]


def front_of(search: Search, known: Values) -> list[Incumbent]:
    """What nothing beats in every objective, of the highest level with results, in the order of the first objective."""
    top = max((level for _, level in known), default=0)
    objectives = search.spec.objectives
    measured = {
        trial: turned for (trial, level), values in known.items()
        if level == top and all(map(math.isfinite, turned := vector(objectives, values)))
    }  # fmt: skip
    trials = list(measured)
    first = [trials[number] for front in fronts(list(measured.values()))[:1] for number in front]
    return [
        Incumbent(trial=t, level=top, score=float(place), configuration=search.trial(t).configuration)
        for place, t in enumerate(sorted(first, key=lambda trial: measured[trial]))
    ]


def _worth(search: Search, trial: int, level: int, known: Values) -> OverallDesirability:
    return overall(search.spec, known[trial, level], search.trial(trial).configuration)
