"""The search itself: a fold of events into decisions, deterministic and without IO.

``Search(spec).apply(event)`` is the only thing that decides: the controller, the Driver, the simulations and the replay
all use it. It reads no clock and draws no random number that is not a function of (seed, bracket, index), so the same
ledger gives the same decisions, and a refused event changes nothing. Within a bracket it is iterative-deepening
Hyperband made asynchronous (``deepening``); this file chooses between brackets, names trials and keeps the books.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final, assert_never

import isoloss.search.events as ledger
from isoloss.domain.space import Scalar, check_configuration
from isoloss.domain.spec import StudySpec
from isoloss.errors import InvalidSpec, WrongState
from isoloss.search.answers import Incumbent, ProposalRequest, Result, RungSummary, Trial
from isoloss.search.deepening import Bracket, Candidate
from isoloss.search.geometry import Ladder, Plan, plan_of
from isoloss.search.rung import rank_key
from isoloss.search.streams import Stream, stream

ADDED: Final = -1  # the bracket of trials that were added
BUFFER: Final = 8  # proposals kept ahead
ENGINE: Final = 1  # the format of snapshots


class Search:
    """One study's search. ``apply`` folds an event in; everything else only looks."""

    def __init__(self, spec: StudySpec) -> None:
        self.spec = spec
        self._plan = plan_of(spec)
        self._first_top = self._plan.ladder.top
        self._brackets: list[Bracket] = []
        self._streams: dict[int, Stream] = {}
        self._trials: list[Trial] = []
        self._tasks: dict[tuple[int, int], Result | None] = {}
        self._outstanding: dict[tuple[int, int], None] = {}  # in order of creation
        self._finite: Counter[int] = Counter()  # level -> finite results
        self._proposed: deque[tuple[dict[str, Scalar], str]] = deque()
        self._added = 0
        self._best: tuple[float, int, int] | None = None  # (score, -level, trial)
        self._stopped: str | None = None
        self._adopt(self._plan)

    def apply(self, event: ledger.Event) -> tuple[ledger.Decision, ...]:
        """Fold one event in and return what it decides.

        Raises ``WrongState`` or ``InvalidSpec`` for an event that cannot be, before anything has changed.
        """
        if self._stopped is not None:
            raise WrongState(f"The study is stopped ({self._stopped}); accepted is nothing more.")
        match event:
            case ledger.Asked():
                return self._ask(event.n)
            case ledger.Proposed():
                return self._take_proposals(event)
            case ledger.TaskDone():
                return self._finish(event)
            case ledger.Deepened():
                return self._deepen(event.max_budget)
            case ledger.TrialAdded():
                return self._add(event)
            case ledger.Stopped():
                self._stopped = event.reason
                cancelled = tuple(ledger.CancelTask(trial=t, level=j) for t, j in self._outstanding)
                self._outstanding.clear()
                return cancelled
            case _:
                assert_never(event)

    # ---- looking -----------------------------------------------------------------------------------------------

    @property
    def ladder(self) -> Ladder:
        """The levels and their budgets, as deep as they are now."""
        return self._plan.ladder

    @property
    def stopped(self) -> str | None:
        """Why the study was stopped, or ``None``."""
        return self._stopped

    @property
    def trials(self) -> int:
        """How many trials there are."""
        return len(self._trials)

    @property
    def outstanding(self) -> int:
        """How many created tasks have no result yet."""
        return len(self._outstanding)

    @property
    def idle(self) -> bool:
        """Nothing runs and nothing could be started; deepening or adding a trial may change that."""
        return not self._outstanding and not self.startable()

    def trial(self, number: int) -> Trial:
        """A trial by number; ``WrongState`` when there is none."""
        if not 0 <= number < len(self._trials):
            raise WrongState(f"trial is {number}; accepted are 0 to {len(self._trials) - 1}.")
        return self._trials[number]

    def result(self, trial: int, level: int) -> Result | None:
        """The result of a task, or ``None`` while there is none."""
        return self._tasks.get((trial, level))

    def startable(self) -> bool:
        """Whether ``Asked(1)`` would create a task now."""
        return self._stopped is None and (self._vacant() is not None or self._promotion() is not None)

    def best(self) -> Incumbent | None:
        """The lowest score at any level, of equals the one at the higher level, then of the earlier trial.

        It never gets worse, which the best at the highest level would whenever a level gets its first results.
        """
        if self._best is None:
            return None
        score, minus_level, trial = self._best
        configuration = self._trials[trial].configuration
        return Incumbent(trial=trial, level=-minus_level, score=score, configuration=configuration)

    def settled(self) -> dict[int, dict[int, tuple[int, ...]]]:
        """The synchronous member sets known so far: bracket → level → trials, in order of creation."""
        return {
            bracket.number: {
                level: members for level in bracket.rungs if (members := bracket.members(level)) is not None
            }
            for bracket in self._brackets
        }

    def rungs(self) -> tuple[RungSummary, ...]:
        """Every rung in numbers, bracket by bracket from the lowest level up."""
        waiting = Counter((self._trials[trial].bracket, level) for trial, level in self._outstanding)
        return tuple(
            RungSummary(
                bracket=bracket.number, level=level, budget=self.ladder.budget(level), quota=rung.quota,
                results=len(rung.results), sent=len(rung.sent), outstanding=waiting[bracket.number, level],
                settled=bracket.members(level) is not None,
            )
            for bracket in self._brackets
            for level, rung in bracket.rungs.items()
        )  # fmt: skip

    def wants_proposals(self, ahead: int = BUFFER) -> int:
        """How many proposals are lacking to have ``ahead`` in store, once some level is known well enough; else 0."""
        if self.spec.method.sampler != "tpe" or self._stopped is not None or self._model_level() is None:
            return 0
        return max(0, min(ahead, self._unstarted()) - len(self._proposed))

    def proposal_request(self, ahead: int = BUFFER) -> ProposalRequest | None:
        """What a model should propose now and from which results, or ``None``: plain data, for another process.

        The level is the highest with more finite results than the space has dimensions; scores of two levels are never
        mixed. Pending are the trials without any result yet and the proposals not used yet.
        """
        n, level = self.wants_proposals(ahead), self._model_level()
        if n == 0 or level is None:
            return None
        results = [(t, r) for (t, j), r in self._tasks.items() if j == level and r is not None and r.score is not None]
        started = {trial for (trial, _), result in self._tasks.items() if result is not None}
        pending = [self._trials[trial].configuration for trial, _ in self._outstanding if trial not in started]
        return ProposalRequest(
            n=n,
            seed=(self.spec.seed * 1_000_003 + len(self._trials) * 1_009 + len(self._proposed)) % 2**32,
            level=level,
            history=tuple((self._trials[t].configuration, r.score) for t, r in results if r.score is not None),
            pending=(*pending, *(configuration for configuration, _ in self._proposed)),
        )

    # ---- events ------------------------------------------------------------------------------------------------

    def _ask(self, n: int) -> tuple[ledger.Decision, ...]:
        if n < 1:
            raise InvalidSpec(f"asked.n is {n}; accepted is a whole number from 1.")
        decisions: list[ledger.Decision] = []
        for _ in range(n):
            if (found := self._promotion()) is not None:
                bracket, candidate = found
                bracket.promote(candidate)
                minus_level, (_, _, index) = candidate
                decisions.append(self._create_task(bracket.trials[index], 1 - minus_level, previous=-minus_level))
            elif (vacant := self._vacant()) is not None:
                decisions += self._start(vacant)
            else:
                break
        return tuple(decisions) or (ledger.Idle(),)

    def _take_proposals(self, event: ledger.Proposed) -> tuple[ledger.Decision, ...]:
        for number, configuration in enumerate(event.configurations):
            check_configuration(self.spec.space, configuration, path=f"proposed.configurations[{number}]")
        self._proposed.extend((configuration, event.source) for configuration in event.configurations)
        return ()

    def _finish(self, event: ledger.TaskDone) -> tuple[ledger.Decision, ...]:
        task = (event.trial, event.level)
        if task not in self._outstanding:
            why = "already has its result" if task in self._tasks else "does not exist"
            raise WrongState(
                f"The task of trial {event.trial} at level {event.level} {why}; accepted is one result a task."
            )
        ok = event.status == "ok" and event.score is not None and math.isfinite(event.score)
        del self._outstanding[task]
        self._record(event.trial, event.level, Result(status=event.status, score=event.score if ok else None))
        return ()

    def _deepen(self, max_budget: float) -> tuple[ledger.Decision, ...]:
        self._adopt(self._plan.deepened(max_budget))
        return ()

    def _add(self, event: ledger.TrialAdded) -> tuple[ledger.Decision, ...]:
        check_configuration(self.spec.space, event.configuration, path="trial_added.configuration")
        level = self.ladder.top if event.level is None else event.level
        if not 0 <= level <= self.ladder.top:
            raise InvalidSpec(f"trial_added.level is {level}; accepted are 0 to {self.ladder.top}.")
        created = self._create_trial(ADDED, self._added, event.configuration, "added")
        self._added += 1
        return created, self._create_task(created.trial, level, previous=None)

    # ---- how ---------------------------------------------------------------------------------------------------

    def _patient(self) -> bool:
        """Whether configurations still to be started go before optimistic promotions.

        That cuts wrong early promotions, until the study is deepened: then the best old finishers must go up first.
        """
        order = self.spec.method.order
        patient = order == "patient" or (order == "auto" and self.ladder.top == self._first_top)
        return patient and self._vacant() is not None

    def _promotion(self) -> tuple[Bracket, Candidate] | None:
        """The next promotion of all brackets: highest level first, then best, then lowest bracket."""
        settled = self._patient()
        ready = [
            (candidate, bracket.number)
            for bracket in self._brackets
            if (candidate := bracket.candidate(settled=settled)) is not None
        ]
        if not ready:
            return None
        candidate, number = min(ready)
        return self._brackets[number], candidate

    def _vacant(self) -> Bracket | None:
        """The first bracket that may start a configuration."""
        limit = self.spec.limits.trials
        if limit is not None and len(self._trials) - self._added >= limit:
            return None
        return next((bracket for bracket in self._brackets if bracket.has_room), None)

    def _unstarted(self) -> int:
        """How many configurations are still to be started."""
        planned = sum(bracket.rungs[bracket.number].quota for bracket in self._brackets)
        limit = self.spec.limits.trials
        return (planned if limit is None else min(limit, planned)) - (len(self._trials) - self._added)

    def _start(self, bracket: Bracket) -> tuple[ledger.Decision, ...]:
        index, number = len(bracket.trials), len(self._trials)
        sampler = self.spec.method.sampler
        if self._proposed and (sampler != "tpe" or number % 3):  # every third keeps Hyperband's guarantee
            configuration, source = self._proposed.popleft()
        else:
            configuration = self._stream(bracket.number).configuration(index)
            source = "sobol" if sampler == "sobol" else "random"
        created = self._create_trial(bracket.number, index, configuration, source)
        bracket.start(number)
        return created, self._create_task(number, bracket.number, previous=None)

    def _create_trial(
        self, bracket: int, index: int, configuration: dict[str, Scalar], source: str
    ) -> ledger.CreateTrial:
        number = len(self._trials)
        trial = Trial(number=number, bracket=bracket, index=index, configuration=configuration, source=source)
        self._trials.append(trial)
        return ledger.CreateTrial(
            trial=number, bracket=bracket, index=index, configuration=configuration, source=source
        )

    def _create_task(self, trial: int, level: int, *, previous: int | None) -> ledger.CreateTask:
        self._tasks[trial, level] = None
        self._outstanding[trial, level] = None
        ladder = self.ladder
        return ledger.CreateTask(
            trial=trial, level=level, budget_from=ladder.budget_from(level, previous),
            decay_from=ladder.fork(level), budget_to=ladder.budget(level),
        )  # fmt: skip

    def _record(self, number: int, level: int, result: Result) -> None:
        trial = self._trials[number]
        self._tasks[number, level] = result
        if trial.bracket != ADDED:
            self._brackets[trial.bracket].record(level, rank_key(result.score, trial.index))
        if result.score is not None:
            self._finite[level] += 1
            mark = (result.score, -level, number)
            self._best = mark if self._best is None else min(self._best, mark)

    def _model_level(self) -> int | None:
        """The highest level with at least d + 1 finite results."""
        enough = len(self.spec.space) + 1
        return max((level for level, count in self._finite.items() if count >= enough), default=None)

    def _stream(self, bracket: int) -> Stream:
        if bracket not in self._streams:
            spec = self.spec
            self._streams[bracket] = stream(spec.method.sampler, spec.space, seed=spec.seed, bracket=bracket)
        return self._streams[bracket]

    def _adopt(self, plan: Plan) -> None:
        """Search by this plan from now on: the brackets there are get its quotas, and new ones open."""
        self._plan = plan
        for bracket in self._brackets:
            bracket.deepen(plan.quotas(bracket.number))
        for number in range(len(self._brackets), plan.brackets):
            self._brackets.append(Bracket(number, self.ladder.eta, plan.quotas(number)))

    # ---- snapshots ---------------------------------------------------------------------------------------------

    def snapshot(self) -> dict[str, Any]:
        """The state as JSON-able data; ``Search.restore`` makes an equal search of it, faster than the ledger."""
        tasks = [
            [trial, level] if result is None else [trial, level, result.status, result.score]
            for (trial, level), result in self._tasks.items()
        ]
        return {
            "engine": ENGINE,
            "top": self.ladder.top,
            "trials": [[trial.bracket, trial.configuration, trial.source] for trial in self._trials],
            "tasks": tasks,
            "proposed": [list(proposal) for proposal in self._proposed],
            "stopped": self._stopped,
        }

    @classmethod
    def restore(cls, spec: StudySpec, snapshot: Mapping[str, Any]) -> Search:
        """The search whose snapshot this is; ``InvalidSpec`` when another engine wrote it."""
        if snapshot.get("engine") != ENGINE:
            raise InvalidSpec(f"snapshot.engine is {snapshot.get('engine')!r}; accepted is {ENGINE}.")
        search = cls(spec)
        plan = search._plan
        search._adopt(replace(plan, ladder=plan.ladder.extended(snapshot["top"] - plan.ladder.top)))
        for bracket, configuration, source in snapshot["trials"]:
            search._readmit(bracket, configuration, source)
        for trial, level, *_ in snapshot["tasks"]:
            search._tasks[trial, level] = None
            search._mark_sent(search._trials[trial], level)
        for trial, level, *result in snapshot["tasks"]:
            if result:
                search._record(trial, level, Result(status=result[0], score=result[1]))
            elif snapshot["stopped"] is None:
                search._outstanding[trial, level] = None
        search._proposed.extend((configuration, source) for configuration, source in snapshot["proposed"])
        search._stopped = snapshot["stopped"]
        return search

    def _readmit(self, bracket: int, configuration: dict[str, Scalar], source: str) -> None:
        if bracket == ADDED:
            self._create_trial(ADDED, self._added, configuration, source)
            self._added += 1
        else:
            created = self._create_trial(bracket, len(self._brackets[bracket].trials), configuration, source)
            self._brackets[bracket].start(created.trial)

    def _mark_sent(self, trial: Trial, level: int) -> None:
        """Whoever has a task above a rung was sent out of it; to be said before the rung's results."""
        if trial.bracket not in (ADDED, level):
            self._brackets[trial.bracket].rungs[level - 1].sent.add(trial.index)
