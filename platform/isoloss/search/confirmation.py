"""Which of a few finalists is the best, with a stated confidence: they run again with other seeds until one is separated.

Best-arm identification in a linear bandit whose features are the finalist and the seed: a run's reward is an effect of each
plus noise, so that what a seed does to everybody cancels. The two to run next are the leader and the challenger whose gap
could be the smallest (GLUCB: Zaki, Mohan & Gopalan 2019), on the first seed that one of them has not seen. Gaps are held
against Student bounds with the pooled variance of the residuals; δ is spent over challengers and looks, δ/(m-1)/(ν(ν+1)) at
ν degrees of freedom, so that looking again and again costs no confidence. Noise is taken as normal and equally wide.

The runs by which the finalists were chosen are not counted: who was chosen for a result was lucky in it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Final

import msgspec

from isoloss.search.events import Confirming

if TYPE_CHECKING:
    from isoloss.search.search import Search

Pull = tuple[int, int]  # (finalist, repeat); repeats count from 1, the study's own seed is 0
FEWEST: Final = 2  # finalists
FIRST: Final = 2  # seeds that every finalist sees before anything is compared
DIGITS: Final = 9  # to which gaps are compared, so that every machine decides alike


@dataclass(frozen=True, slots=True, kw_only=True)
class Finalist:
    """A trial with so many runs: its mean reward, and by how much the leader is ahead of it, at least and likely."""

    trial: int
    runs: int
    mean: float
    behind: float
    behind_at_least: float


@dataclass(slots=True, kw_only=True)
class Confirmation:
    """The finalists, what they may cost, and the trials by which they ran again: a part of the fold."""

    finalists: tuple[int, ...]
    level: int
    delta: float
    runs: int
    trials: dict[Pull, int] = field(default_factory=dict)

    def to_mapping(self) -> dict[str, Any]:
        """JSON-able data that ``from_mapping`` makes an equal one of."""
        return asdict(self) | {"trials": [[*pull, trial] for pull, trial in self.trials.items()]}

    @classmethod
    def from_mapping(cls, source: Mapping[str, Any] | None) -> Confirmation | None:
        """What ``to_mapping`` was said of; ``None`` of ``None``."""
        if source is None:
            return None
        trials = {(finalist, repeat): trial for finalist, repeat, trial in source["trials"]}
        return cls(**{**source, "finalists": tuple(source["finalists"]), "trials": trials})

    def next(self, rewards: Mapping[Pull, float]) -> Pull | None:
        """What to run next, or ``None``: one is separated, or the runs are used up."""
        if len(self.trials) >= self.runs:
            return None
        for repeat in range(1, FIRST + 1):
            if (pull := self._unseen(self.finalists, repeat)) is not None:
                return pull
        found = self.standing(rewards)
        if found and separated(found):
            return None
        pair = [one.trial for one in _closest(found)] if found else list(self.finalists)
        repeat = FIRST
        while (pull := self._unseen(pair, repeat)) is None:
            repeat += 1
        return pull

    def _unseen(self, finalists: Iterable[int], repeat: int) -> Pull | None:
        return next(((one, repeat) for one in finalists if (one, repeat) not in self.trials), None)

    def standing(self, rewards: Mapping[Pull, float]) -> list[Finalist]:
        """The finalists, best mean first; none while too few runs have ended to say how wide the noise is."""
        import numpy as np
        from scipy.special import stdtrit

        pulls = sorted(pull for pull in self.trials if pull in rewards)
        arms = {trial: place for place, trial in enumerate(self.finalists)}
        seeds = {repeat: place for place, repeat in enumerate(sorted({repeat for _, repeat in pulls}))}
        runs = np.bincount([arms[trial] for trial, _ in pulls], minlength=len(arms))
        if not pulls or runs.min() == 0:
            return []
        design = np.zeros((len(pulls), len(arms) + len(seeds)))
        for row, (trial, repeat) in enumerate(pulls):
            design[row, arms[trial]] = design[row, len(arms) + seeds[repeat]] = 1
        y = np.array([rewards[pull] for pull in pulls])
        inverse = np.linalg.pinv(design.T @ design, hermitian=True)
        freedom = len(pulls) - int(np.linalg.matrix_rank(design))
        if freedom < 1:
            return []
        effect = inverse @ design.T @ y
        deviation = float(np.sqrt(max(0.0, float(np.sum((y - design @ effect) ** 2))) / freedom))
        means = np.round(effect[: len(arms)] + effect[len(arms) :].mean(), DIGITS)
        leader = int(np.argmax(means))
        level = self.delta / (len(arms) - 1) / (freedom * (freedom + 1))
        bound = float(stdtrit(freedom, 1 - level)) * deviation
        found = []
        for trial, place in arms.items():
            contrast = np.zeros(len(effect))
            contrast[leader] += 1
            contrast[place] -= 1
            wide = bound * float(np.sqrt(max(0.0, float(contrast @ inverse @ contrast))))
            gap = float(means[leader] - means[place])
            found.append(
                Finalist(
                    trial=trial, runs=int(runs[place]), mean=float(means[place]), behind=gap,
                    behind_at_least=0.0 if place == leader else round(gap - wide, DIGITS),
                )
            )  # fmt: skip
        return sorted(found, key=lambda one: (-one.mean, one.trial != self.finalists[leader], one.trial))


def finalists_of(search: Search, most: int) -> tuple[int, ...]:
    """The trials measured highest up, of one level the best first; no two of one configuration."""
    highest: dict[int, tuple[int, float, int]] = {}
    for (number, level), result in search.tasks.items():  # a trial's tasks are created level by level
        if result is not None and result.score is not None and not search.trial(number).repeat:
            highest[number] = (-level, result.score, number)
    found: dict[bytes, int] = {}
    for _, _, number in sorted(highest.values()):
        found.setdefault(msgspec.json.encode(search.trial(number).configuration), number)
    return tuple(found.values())[:most]


def due(search: Search) -> Confirming | None:
    """What a spec that confirms asks for now: at rest, once for each largest budget."""
    wanted, begun = search.spec.confirm, search.confirmation
    if wanted is None or search.stopped is not None or (begun is not None and begun.level == search.ladder.top):
        return None
    if not search.idle or len(finalists_of(search, FEWEST)) < FEWEST:
        return None
    return Confirming(finalists=wanted.finalists, delta=wanted.delta, runs=wanted.runs)


def rewards(search: Search) -> dict[Pull, float]:
    """What the finalists' runs are worth, the more the better: soft D, or the metric turned so that more is better.

    A run that diverged or failed counts as D = 0, or as the worst of the others.
    """
    ended = {} if search.confirmation is None else {
        pull: result for pull, number in search.confirmation.trials.items()
        if (result := search.result(number, search.confirmation.level)) is not None
    }  # fmt: skip
    desired = bool(search.spec.desirability)
    worth = {p: math.exp(-r.score) if desired else -r.score for p, r in ended.items() if r.score is not None}
    worst = 0.0 if desired else min(worth.values(), default=None)
    return worth if worst is None else {pull: worth.get(pull, worst) for pull in ended}


def sentence(found: list[Finalist], confirmation: Confirmation) -> str:
    """What a user should know of a confirmation; empty before anything can be said."""
    if not found:
        return ""
    runs, first = sum(one.runs for one in found), found[0]
    if separated(found):
        return (
            f"Trial {first.trial} is the best of {len(found)} finalists with confidence {1 - confirmation.delta:g}, after {runs} "
            "runs with other seeds."
        )
    rivals = [str(one.trial) for one in found[1:] if one.behind_at_least <= 0]
    ended = "and its runs are used up" if len(confirmation.trials) >= confirmation.runs else "and goes on"
    return (
        f"Trial {first.trial} leads {len(found)} finalists after {runs} runs with other seeds; not yet separated from "
        f"{', '.join(rivals)} at confidence {1 - confirmation.delta:g}, {ended}."
    )


def _closest(found: list[Finalist]) -> list[Finalist]:
    """The leader, and whoever could be ahead of it by most."""
    return [found[0], min(found[1:], key=lambda one: (one.behind_at_least, one.trial))]


def separated(found: list[Finalist]) -> bool:
    """Whether the leader is ahead of every other at the confidence asked for."""
    return bool(found) and all(one.behind_at_least > 0 for one in found[1:])
