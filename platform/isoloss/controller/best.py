"""What is best, as a message: the fold is read at once, as it goes on while models are fitted in another thread."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import asdict
from statistics import fmean

from isoloss.search.answers import Incumbent
from isoloss.search.confirmation import Confirmation, rewards, sentence, separated
from isoloss.search.desirability import OverallDesirability, overall
from isoloss.search.foresight import Values
from isoloss.search.search import Search
from isoloss.search.standing import settled_best
from isoloss.search.worth import Worth, believing, front_of, near_best, ranking
from isoloss.v1 import study_pb2 as pb
from isoloss.wire.values import to_values


async def best(search: Search, known: Values, *, settled: bool) -> pb.Best:
    """The finalist that was confirmed, else the first by expected D, of a front the first, else the lowest score.

    Of a confirmed finalist the values are means over its further runs: the first one chose it. With ``settled`` it is the best
    of the highest settled rung whatever else is known. ``KeyError`` when the fold is ahead of what was ``known``.
    """
    spec, ladder = search.spec, search.ladder
    front = front_of(search, known) if spec.objectives else []
    confirmation, incumbent = _confirmation(search), _incumbent(search, front, settled=settled)
    means = _means(search.confirmation, incumbent, known)
    by_worth = believing(ranking(search, known), search, known) if spec.desirability else list
    ranked: list[Worth] = await asyncio.to_thread(by_worth)
    if ranked and not settled and not confirmation.separated:
        incumbent = ranked[0].incumbent
    if incumbent is None:
        return pb.Best()
    values = (confirmation.separated and not settled and means) or known[incumbent.trial, incumbent.level]
    message = pb.Best(
        found=True, trial=incumbent.trial, level=incumbent.level, budget=ladder.budget(incumbent.level), values=values,
        params=to_values(incumbent.configuration), near=_near(ranked, front, known),
    )  # fmt: skip
    if confirmation.finalists:
        message.confirmation.CopyFrom(confirmation)
    if spec.desirability:
        found = overall(spec, values, incumbent.configuration)
        message.value, message.limiting = found.overall or 0.0, found.limiting or ""
        message.desirability.update(_parts(found))
        believed = {one.incumbent.trial: one.believed for one in ranked}.get(incumbent.trial)
        if believed is not None:
            message.expected = believed
    else:
        message.value = values[spec.objective.metric if spec.objective else next(iter(spec.objectives))]
    return message


def _means(confirmation: Confirmation | None, incumbent: Incumbent | None, known: Values) -> dict[str, float]:
    """The means over a finalist's further runs that ended well; empty without any."""
    if confirmation is None or incumbent is None:
        return {}
    trials = [trial for (finalist, _), trial in confirmation.trials.items() if finalist == incumbent.trial]
    runs = [values for trial in trials if (values := known.get((trial, incumbent.level)))]
    return {metric: fmean(run[metric] for run in runs if metric in run) for metric in (runs[0] if runs else ())}


def _incumbent(search: Search, front: Sequence[Incumbent], *, settled: bool) -> Incumbent | None:
    if settled:
        return settled_best(search)
    confirmation = search.confirmation
    found = confirmation.standing(rewards(search)) if confirmation else []
    if confirmation and separated(found):
        trial, result = search.trial(found[0].trial), search.result(found[0].trial, confirmation.level)
        return Incumbent(
            trial=trial.number, level=confirmation.level, score=result.score or 0.0 if result else 0.0,
            configuration=trial.configuration,
        )  # fmt: skip
    return front[0] if front else search.best()


def _confirmation(search: Search) -> pb.Confirmation:
    if (confirmation := search.confirmation) is None:
        return pb.Confirmation()
    found, desired = confirmation.standing(rewards(search)), bool(search.spec.desirability)
    sign = 1 if desired or search.spec.goal == "maximize" else -1
    return pb.Confirmation(
        finalists=[pb.Finalist(**asdict(one) | {"mean": sign * one.mean}) for one in found],
        separated=separated(found), delta=confirmation.delta, sentence=sentence(found, confirmation),
    )  # fmt: skip


def _near(ranked: list[Worth], front: Sequence[Incumbent], known: Values) -> list[pb.NearBest]:
    """What is about as good as the best, or the front; nothing of a single metric."""
    if front:
        return [
            pb.NearBest(trial=one.trial, params=to_values(one.configuration), values=known[one.trial, one.level])
            for one in front
        ]
    return [
        pb.NearBest(
            trial=one.incumbent.trial, value=one.value, desirability=_parts(one.desirability), expected=one.believed,
            params=to_values(one.incumbent.configuration), values=known[one.incumbent.trial, one.incumbent.level],
        )
        for one in (near_best(ranked) if ranked else [])
    ]  # fmt: skip


def _parts(found: OverallDesirability) -> dict[str, float]:
    """The d of every metric that is known."""
    return {metric: d for metric, d in found.parts.items() if d is not None}
