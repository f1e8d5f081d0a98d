"""Optuna's samplers as proposers: each call builds an in-memory study anew, because our ledger is the truth.

Results of one level are its completed trials and what is on its way its running ones: TPE counts those as bad (constant
liar), GP draws from its posterior there. A trial has its active parameters only. Genetic samplers know their generations
from system attributes that nobody wrote; they are numbered here in the order of the results.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from isoloss.domain.space import AnyParameter, Categorical, Configuration, Float, Int, Ordinal, Scalar, Space, active

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.samplers import BaseSampler
    from optuna.trial import FrozenTrial


POPULATION = 20  # of a generation


class OptunaProposer:
    """One of Optuna's samplers, made from a seed; with several ``outcomes`` a history holds vectors of them."""

    def __init__(self, space: Space, make: Callable[[int], BaseSampler], outcomes: int = 1) -> None:
        self._space, self._make, self._outcomes = space, make, outcomes

    def propose(
        self,
        *,
        history: Sequence[tuple[Configuration, float | tuple[float, ...]]],
        pending: Sequence[Configuration],
        n: int,
        seed: int,
    ) -> tuple[dict[str, Scalar], ...]:
        """``n`` configurations in the order they should be tried."""
        import optuna

        with _quiet():
            sampler = self._make(seed)
            study = optuna.create_study(directions=["minimize"] * self._outcomes, sampler=sampler)
            space, attributes = distributions(self._space), _generations(sampler)
            known = [
                self._trial(space, configuration, score, attributes(place))
                for place, (configuration, score) in enumerate(history)
            ]
            coming = [self._trial(space, configuration, None, {}) for configuration in pending]
            study.add_trials([trial for trial in (*known, *coming) if trial is not None])
            asked = (from_optuna(self._space, study.ask(space).params) for _ in range(n))
            return tuple(active(self._space, configuration) for configuration in asked)

    def _trial(
        self, space: dict[str, BaseDistribution], configuration: Configuration, score: float | tuple[float, ...] | None,
        attributes: dict[str, int],
    ) -> FrozenTrial | None:  # fmt: skip
        """Optuna's trial; ``None`` for a value off a parameter's step, which somebody may add but Optuna cannot hold."""
        from optuna.trial import TrialState, create_trial

        state = TrialState.RUNNING if score is None else TrialState.COMPLETE
        params = to_optuna(self._space, configuration)
        values = None if score is None else list(score) if isinstance(score, tuple) else [score]
        try:
            return create_trial(
                state=state, values=values, params=params, distributions={name: space[name] for name in params},
                system_attrs=attributes,
            )  # fmt: skip
        except ValueError:
            return None


def tpe(space: Space) -> OptunaProposer:
    """The multivariate tree-structured Parzen estimator (Falkner et al. 2018 use it so in BOHB)."""

    def make(seed: int) -> BaseSampler:
        from optuna.samplers import TPESampler

        conditional = any(parameter.conditions for parameter in space.values())
        return TPESampler(
            multivariate=True, group=conditional, constant_liar=True, seed=seed, n_startup_trials=len(space) + 1
        )

    return OptunaProposer(space, make)


def gp(space: Space) -> OptunaProposer:
    """A Gaussian process with log expected improvement; parameters under a condition are drawn at random."""

    def make(seed: int) -> BaseSampler:
        from optuna.samplers import GPSampler

        return GPSampler(seed=seed, n_startup_trials=len(space) + 1)

    return OptunaProposer(space, make)


def nsga2(space: Space, outcomes: int) -> OptunaProposer:
    """NSGA-II (Deb et al. 2002), in generations small enough for trials that cost something."""

    def make(seed: int) -> BaseSampler:
        from optuna.samplers import NSGAIISampler

        return NSGAIISampler(seed=seed, population_size=POPULATION)

    return OptunaProposer(space, make, outcomes)


def motpe(space: Space, outcomes: int) -> OptunaProposer:
    """The multi-objective tree-structured Parzen estimator (Ozaki et al. 2022)."""

    def make(seed: int) -> BaseSampler:
        from optuna.samplers import TPESampler

        return TPESampler(constant_liar=True, seed=seed, n_startup_trials=len(space) + 1)

    return OptunaProposer(space, make, outcomes)


def named(space: Space, name: str) -> OptunaProposer:
    """The class of ``optuna.samplers`` by its name, with its own defaults."""

    def make(seed: int) -> BaseSampler:
        kind = classes()[name]
        made: BaseSampler = kind(seed=seed) if "seed" in inspect.signature(kind).parameters else kind()
        return made

    return OptunaProposer(space, make)


def classes() -> dict[str, Any]:
    """The sampler classes that need no argument, by name."""
    from optuna import samplers

    found = {name: getattr(samplers, name) for name in samplers.__all__}
    return {
        name: kind
        for name, kind in found.items()
        if inspect.isclass(kind) and not inspect.isabstract(kind) and not _required(kind)
    }


def _required(kind: type) -> list[str]:
    parameters = inspect.signature(kind).parameters.values()
    optional = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [p.name for p in parameters if p.default is inspect.Parameter.empty and p.kind not in optional]


def _generations(sampler: BaseSampler) -> Callable[[int], dict[str, int]]:
    """What a sampler would have written on the result at a place of the history."""
    from optuna.samplers import BaseGASampler

    if not isinstance(sampler, BaseGASampler):
        return lambda _place: {}
    key, size = sampler._get_generation_key(), sampler.population_size or 1
    return lambda place: {key: place // size}


def distributions(space: Space) -> dict[str, BaseDistribution]:
    """The space in Optuna's words; an ordinal parameter is the index of its choice."""
    with _quiet():
        return {name: _distribution(parameter) for name, parameter in space.items()}


def to_optuna(space: Space, configuration: Configuration) -> dict[str, Any]:
    """A configuration as Optuna's parameters."""
    return {
        name: parameter.choices.index(configuration[name]) if isinstance(parameter, Ordinal) else configuration[name]
        for name, parameter in space.items()
        if name in configuration
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
