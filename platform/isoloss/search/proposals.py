"""Configurations proposed by a model: a small protocol, and who speaks it.

A proposer is a function of plain data and an integer seed: the controller runs it in another process and appends what
it proposed to the ledger, so that a replay needs no model. The ledger stays the truth: a proposer keeps nothing between
calls. Only new configurations come from a model, promotions never do. A proposer that fails is reported under its
sampler's name, and the search goes on with its stream.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from heapq import nsmallest
from importlib.util import find_spec
from typing import Final, Protocol, TypeVar

from isoloss.domain.space import Configuration, Scalar, Space, check_configuration
from isoloss.domain.spec import Method, StudySpec
from isoloss.errors import InvalidSpec, IsolossError
from isoloss.search.answers import ProposalRequest
from isoloss.search.cma import CmaProposer
from isoloss.search.events import Proposed
from isoloss.search.front import vector
from isoloss.search.optuna_samplers import classes, gp, motpe, named, nsga2, tpe
from isoloss.search.priors import PriorProposer
from isoloss.search.streams import STREAMS

BEST: Final = 50  # of a long history a model sees the best …
LATEST: Final = 200  # … and the latest
C = TypeVar("C", bound=Configuration)


class Proposer(Protocol):
    """A model of one level's scores that says what to try next."""

    def propose(
        self,
        *,
        history: Sequence[tuple[Configuration, float]],
        pending: Sequence[Configuration],
        n: int,
        seed: int,
    ) -> tuple[dict[str, Scalar], ...]:
        """``n`` configurations worth trying, the same for the same arguments; scores are minimised."""
        ...


PROPOSERS: Final[dict[str, Callable[[Space, Method], Proposer]]] = {
    "tpe": lambda space, _: tpe(space),
    "gp": lambda space, _: gp(space),
    "cma": lambda space, _: CmaProposer(space),
    "law": lambda space, method: PriorProposer(space, method.prior),
}
COMPOSITE: Final = "composite"  # these learn from outcomes and not from scores …
FRONTS: Final = ("nsga2", "motpe", "quadratic-pareto")  # … and these of several at once
OPTUNA: Final = {"TPESampler": "tpe", "GPSampler": "gp", "CmaEsSampler": "cma"}  # what is more than its defaults here


def proposer(space: Space, method: Method) -> Proposer:
    """The model the method names."""
    name = OPTUNA.get(method.sampler, method.sampler)
    return PROPOSERS[name](space, method) if name in PROPOSERS else named(space, name)


def check_sampler(spec: StudySpec) -> None:
    """Raise ``InvalidSpec`` for a sampler that is not there, or cannot draw from this space.

    To be called where a study is created, and not when a spec is read: it may import Optuna.
    """
    sampler = spec.method.sampler
    name = OPTUNA.get(sampler, sampler)
    if name == "gp" and find_spec("torch") is None:  # a look at the path, as Optuna's own later import
        raise InvalidSpec(
            f"method.sampler is {sampler}, which needs torch; accepted is it where isoloss[gpt] is installed, or tpe."
        )
    if name == COMPOSITE and not spec.desirability:
        raise InvalidSpec("method.sampler is composite without a desirability; accepted is it with one, or gp or tpe.")
    if name in FRONTS and len(outcome_names(spec)) < 2:
        raise InvalidSpec(
            f"method.sampler is {name} with one metric; accepted is it with objectives or a desirability."
        )
    if name in PROPOSERS or name in (COMPOSITE, *FRONTS, *STREAMS):
        return
    if name not in (found := classes()):
        raise InvalidSpec(
            f"method.sampler is {sampler}; accepted are {', '.join([*STREAMS, *PROPOSERS, COMPOSITE, *FRONTS])} and, of optuna.samplers, "
            f"{', '.join(sorted(found))}."
        )
    _proposed(spec, ProposalRequest(n=1, seed=0, level=None, history=(), pending=()))


def propose(spec: StudySpec, request: ProposalRequest) -> Proposed:
    """The event that answers a request, made by the study's model; plain data in and out, for another process.

    Raises ``InvalidSpec`` naming the sampler when it fails or leaves the space, whatever it is.
    """
    configurations = _proposed(spec, request)
    return Proposed(configurations=configurations, source=spec.method.sampler, level=request.level)


def _proposed(spec: StudySpec, request: ProposalRequest) -> tuple[dict[str, Scalar], ...]:
    sampler = spec.method.sampler
    try:
        configurations = _from_outcomes(spec, request) if learns_outcomes(spec) else _from_scores(spec, request)
    except IsolossError:
        raise
    except Exception as error:
        said = f"{type(error).__name__}: {error}".rstrip(".")
        raise InvalidSpec(
            f"method.sampler is {sampler}, which failed with {said}; accepted is a sampler for this space."
        ) from error
    for number, configuration in enumerate(configurations):
        check_configuration(spec.space, configuration, path=f"method.sampler {sampler}: proposal {number}")
    return configurations


def learns_outcomes(spec: StudySpec) -> bool:
    """Whether the study's model must be told what was measured, beside the scores."""
    return spec.method.sampler in (COMPOSITE, *FRONTS)


def outcome_names(spec: StudySpec) -> tuple[str, ...]:
    """The metrics a model of outcomes learns."""
    return tuple(spec.objectives) or spec.desirability_metrics


def _from_scores(spec: StudySpec, request: ProposalRequest) -> tuple[dict[str, Scalar], ...]:
    return proposer(spec.space, spec.method).propose(
        history=seen(request.history), pending=request.pending, n=request.n, seed=request.seed
    )


def _from_outcomes(spec: StudySpec, request: ProposalRequest) -> tuple[dict[str, Scalar], ...]:
    n, seed, pending, space = request.n, request.seed, request.pending, spec.space
    if spec.method.sampler == COMPOSITE:
        from isoloss.search.composite import CompositeProposer

        return CompositeProposer(spec).propose(history=request.outcomes, pending=pending, n=n, seed=seed)
    vectors = [
        (c, found) for c, values in request.outcomes if all(map(math.isfinite, found := _vector(spec, c, values)))
    ]
    if spec.method.sampler == "quadratic-pareto":
        from isoloss.search.quadratic import QuadraticPareto

        return QuadraticPareto(space).propose(history=vectors, pending=pending, n=n, seed=seed)
    make = nsga2 if spec.method.sampler == "nsga2" else motpe
    return make(space, len(outcome_names(spec))).propose(history=vectors, pending=pending, n=n, seed=seed)


def _vector(spec: StudySpec, configuration: Configuration, values: Mapping[str, float]) -> tuple[float, ...]:
    """What a front is made of, less being better: the objectives, or minus the log soft d of every metric."""
    if spec.objectives:
        return vector(spec.objectives, values)
    from isoloss.search.desirability import log_softs

    return tuple(-log for log in log_softs(spec, values, configuration))


def seen(history: Sequence[tuple[C, float]]) -> Sequence[tuple[C, float]]:
    """Of a long history, the best and the latest in their order."""
    if len(history) <= BEST + LATEST:
        return history
    older = range(len(history) - LATEST)
    kept = sorted(nsmallest(BEST, older, key=lambda place: history[place][1]))  # of equals the earlier
    return [*(history[place] for place in kept), *history[-LATEST:]]
