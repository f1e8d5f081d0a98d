"""A study in memory, without any service: the same search for notebooks, tests and benchmarks.

driver = Driver({"name": "tiny", "space": ..., "objective": ..., "method": ...})
while (ask := driver.ask()) is not None:
    driver.tell(ask.trial, ask.budget_to, {"val_loss": train(ask.params, ask.budget_from, ask.budget_to)})
driver.best()
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from isoloss.domain.space import Scalar
from isoloss.domain.spec import StudySpec, checked, decode_study
from isoloss.errors import InvalidSpec
from isoloss.search.answers import ProposalRequest
from isoloss.search.confirmation import due
from isoloss.search.events import Asked, CreateTask, Decision, Deepened, Event, Status, TaskDone
from isoloss.search.judging import Judge, informed, preferring, worthless
from isoloss.search.proposals import check_sampler, propose
from isoloss.search.search import Search

if TYPE_CHECKING:
    from isoloss.search.desirability import OverallDesirability


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """Run ``params`` from ``budget_from`` to ``budget_to``, decaying from ``decay_from`` (``budget_to``: no decay).

    ``repeat`` is not 0 for a finalist that runs again: it needs another seed then.
    """

    trial: int
    level: int
    budget_from: int
    decay_from: int
    budget_to: int
    params: dict[str, Scalar]
    repeat: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Best:
    """The best result: ``value`` is the metric, or the overall desirability with its parts in ``desirability``.

    Of several objectives it is one of the front, and ``value`` its first metric.
    """

    trial: int
    level: int
    budget: int
    params: dict[str, Scalar]
    value: float
    metrics: Mapping[str, float]
    desirability: OverallDesirability | None


class Driver:
    """Ask, run, tell; deepen and go on. Several asks may be open at once.

    ``ledger`` holds every event with what it decided; ``search`` is the fold, to look at.
    """

    def __init__(self, spec: Mapping[str, Any] | StudySpec) -> None:
        self.spec: StudySpec = checked(spec) if isinstance(spec, StudySpec) else decode_study(spec)
        check_sampler(self.spec)
        self.search = Search(self.spec)
        self.ledger: list[tuple[Event, tuple[Decision, ...]]] = []
        self._metrics: dict[tuple[int, int], Mapping[str, float]] = {}
        self._judge = Judge(self.search, {})

    def ask(self) -> Ask | None:
        """The next task to run, or ``None`` when there is nothing until a result is told or the study is deepened."""
        if (request := self.search.proposal_request(ahead=1)) is not None:
            self._propose(informed(request, self.search, self._metrics))
        if (confirming := due(self.search)) is not None:
            self._apply(confirming)
        task = self._created()
        while task is not None and task.budget_from == 0 and worthless(self.spec, self.search.trial(task.trial)):
            self._apply(TaskDone(trial=task.trial, level=task.level, status="cancelled"))
            task = self._created()
        if task is None:
            return None
        return Ask(
            trial=task.trial, level=task.level, budget_from=task.budget_from, decay_from=task.decay_from,
            budget_to=task.budget_to, params=self._params(task.trial), repeat=self.search.trial(task.trial).repeat,
        )  # fmt: skip

    def _created(self) -> CreateTask | None:
        return next((made for made in self._apply(Asked()) if isinstance(made, CreateTask)), None)

    def tell(self, trial: int, budget: float, metrics: Mapping[str, float] | None) -> None:
        """The metrics of a trial at a budget; a metric that is not finite means it diverged, ``None`` that it failed.

        Raises ``InvalidSpec`` for a budget that is no level's or a missing metric, ``WrongState`` for a task that was
        not asked for or already has its result.
        """
        level, value = self.search.ladder.level_of(budget), None
        status: Status = "failed"
        if metrics is not None:
            if missing := [metric for metric in self.spec.metrics if metric not in metrics]:
                raise InvalidSpec(
                    f"metrics lacks {missing[0]}; accepted are numbers for {', '.join(self.spec.metrics)}."
                )
            value = self._judge.score(trial, level, metrics)
            status = "diverged" if value is None else "ok"
        self._apply(TaskDone(trial=trial, level=level, status=status, score=value))
        self._metrics[trial, level] = dict(metrics or {})
        if self.spec.objective is None:
            self._rejudge()

    def deepen(self, max_budget: float) -> Driver:
        """Raise the maximum budget and reuse all that ran; ``InvalidSpec`` unless it is a power of eta times it."""
        self._apply(Deepened(max_budget=max_budget))
        if self.spec.objective is None:
            self._rejudge(always=True)
        return self

    def prefer(self, desirability: Mapping[str, Any]) -> Driver:
        """Change limits, weights and shapes: everything that ran is scored anew, nothing runs again.

        Raises ``InvalidSpec`` for a preference that cannot be, or names a metric that was not measured.
        """
        self.spec = self.search.spec = preferring(self.search.spec, desirability, self._metrics)
        self._rejudge(always=True)
        return self

    def best(self) -> Best | None:
        """The best result so far, or ``None`` before there is one."""
        from isoloss.search.desirability import overall

        incumbent = self.search.best()
        if incumbent is None:
            return None
        metrics = self._metrics[incumbent.trial, incumbent.level]
        objective, worth = (
            self.spec.objective,
            overall(self.spec, metrics, self.search.trial(incumbent.trial).configuration),
        )
        metric = objective.metric if objective else next(iter(self.spec.objectives), None)
        value = metrics[metric] if metric else float(worth.overall or 0.0)
        return Best(
            trial=incumbent.trial, level=incumbent.level, budget=self.search.ladder.budget(incumbent.level),
            params=self._params(incumbent.trial), value=value, metrics=metrics,
            desirability=worth if self.spec.desirability else None,
        )  # fmt: skip

    def _rejudge(self, *, always: bool = False) -> None:
        """Score the history anew, where more is foreseen than before or, with ``always``, anything may have changed."""
        judge = Judge(self.search, self._metrics)
        anew = always or self._judge.moved(judge)
        self._judge = judge
        if anew and (event := judge.rescored()) is not None:
            self._apply(event)

    def _params(self, trial: int) -> dict[str, Scalar]:
        return self.spec.fixed | self.search.trial(trial).configuration

    def _propose(self, request: ProposalRequest) -> None:
        """What the model proposes; when it fails, a warning says so and the study goes on with its stream."""
        try:
            proposed = propose(self.search.spec, request)
        except InvalidSpec as error:
            warnings.warn(f"{error.message} The study goes on without it.", RuntimeWarning, stacklevel=3)
        else:
            self._apply(proposed)

    def _apply(self, event: Event) -> tuple[Decision, ...]:
        decisions = self.search.apply(event)
        self.ledger.append((event, decisions))
        return decisions
