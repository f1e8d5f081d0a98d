"""Configurations proposed by a model: a small protocol, and Optuna's TPE behind it.

A proposer is a function of plain data and an integer seed: the controller runs it in another process and appends what
it proposed to the ledger, so that a replay needs no model. The ledger stays the truth: each call builds Optuna's
in-memory study anew, with the results of one level as completed trials and what is on its way as running ones, which
the sampler counts as bad (constant liar). Only new configurations come from a model, promotions never do.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, Protocol

from isoloss.domain.space import AnyParameter, Categorical, Configuration, Float, Int, Ordinal, Scalar, Space
from isoloss.domain.spec import StudySpec
from isoloss.search.answers import ProposalRequest
from isoloss.search.events import Proposed

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial

BEST: Final = 250  # of a long history the model sees the best …
LATEST: Final = 1000  # … and the latest


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


class TpeProposer:
    """Optuna's multivariate tree-structured Parzen estimator (Falkner et al. 2018 use it so in BOHB)."""

    def __init__(self, space: Space) -> None:
        self._space = space

    def propose(
        self,
        *,
        history: Sequence[tuple[Configuration, float]],
        pending: Sequence[Configuration],
        n: int,
        seed: int,
    ) -> tuple[dict[str, Scalar], ...]:
        """``n`` configurations in the order they should be tried."""
        import optuna

        with _quiet():
            sampler = optuna.samplers.TPESampler(
                multivariate=True, constant_liar=True, seed=seed, n_startup_trials=len(self._space) + 1
            )
            study = optuna.create_study(direction="minimize", sampler=sampler)
            space = distributions(self._space)
            known = [self._trial(space, configuration, score) for configuration, score in _seen(history)]
            coming = [self._trial(space, configuration, None) for configuration in pending]
            study.add_trials([trial for trial in (*known, *coming) if trial is not None])
            return tuple(from_optuna(self._space, study.ask(space).params) for _ in range(n))

    def _trial(
        self, space: dict[str, BaseDistribution], configuration: Configuration, score: float | None
    ) -> FrozenTrial | None:
        """Optuna's trial; ``None`` for a value off a parameter's step, which somebody may add but TPE cannot hold."""
        from optuna.trial import TrialState, create_trial

        state = TrialState.RUNNING if score is None else TrialState.COMPLETE
        params = to_optuna(self._space, configuration)
        try:
            return create_trial(state=state, value=score, params=params, distributions=space)
        except ValueError:
            return None


def propose(spec: StudySpec, request: ProposalRequest) -> Proposed:
    """The event that answers a request, made by the study's model; plain data in and out, for another process."""
    proposer: Proposer = TpeProposer(spec.space)
    configurations = proposer.propose(history=request.history, pending=request.pending, n=request.n, seed=request.seed)
    return Proposed(configurations=configurations, source=spec.method.sampler, level=request.level)


def distributions(space: Space) -> dict[str, BaseDistribution]:
    """The space in Optuna's words; an ordinal parameter is the index of its choice."""
    with _quiet():
        return {name: _distribution(parameter) for name, parameter in space.items()}


def to_optuna(space: Space, configuration: Configuration) -> dict[str, Any]:
    """A configuration as Optuna's parameters."""
    return {
        name: parameter.choices.index(configuration[name]) if isinstance(parameter, Ordinal) else configuration[name]
        for name, parameter in space.items()
    }


def from_optuna(space: Space, params: Mapping[str, Any]) -> dict[str, Scalar]:
    """Optuna's parameters as a configuration."""
    return {
        name: parameter.choices[params[name]] if isinstance(parameter, Ordinal) else params[name]
        for name, parameter in space.items()
    }


def _distribution(parameter: AnyParameter) -> BaseDistribution:
    from optuna import distributions as optuna

    match parameter:
        case Float():
            return optuna.FloatDistribution(parameter.low, parameter.high, log=parameter.log, step=parameter.step)
        case Int():
            step = int(parameter.step or 1)
            return optuna.IntDistribution(int(parameter.low), int(parameter.high), log=parameter.log, step=step)
        case Categorical():
            return optuna.CategoricalDistribution(parameter.choices)
        case Ordinal():
            return optuna.IntDistribution(0, len(parameter.choices) - 1)


def _seen(history: Sequence[tuple[Configuration, float]]) -> Sequence[tuple[Configuration, float]]:
    """Of a long history, the best and the latest in their order."""
    if len(history) <= BEST + LATEST:
        return history
    older = range(len(history) - LATEST)
    kept = sorted(sorted(older, key=lambda place: (history[place][1], place))[:BEST])
    return [*(history[place] for place in kept), *history[-LATEST:]]


@contextmanager
def _quiet() -> Iterator[None]:
    """Optuna neither logs nor warns of experimental options, here and only here."""
    import optuna

    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            warnings.filterwarnings("ignore", message="The distribution is specified by")  # a step that misses high
            yield
    finally:
        optuna.logging.set_verbosity(verbosity)
