"""The search itself: a fold of events into decisions, deterministic and without IO.

``Search(spec).apply(event)`` is the only thing that decides: the controller, the Driver, the simulations and the replay
all use it. It reads no clock and draws no random number that is not a function of (seed, bracket, index), so the same
ledger gives the same decisions, and a refused event changes nothing. Within a bracket it is iterative-deepening
Hyperband (``deepening``); this file chooses between brackets, names trials and keeps the books.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict, deque
from collections.abc import Mapping
from copy import copy
from dataclasses import replace
from typing import Any, Final, Self, assert_never

import msgspec

import isoloss.search.events as ledger
from isoloss.domain.space import AnyParameter, Scalar, Space, check_configuration
from isoloss.domain.spec import StudySpec
from isoloss.domain.widening import widened
from isoloss.errors import InvalidSpec, WrongState
from isoloss.search.answers import Incumbent, ProposalRequest, Result, RungSummary, Trial
from isoloss.search.confirmation import Confirmation, Pull, finalists_of, rewards
from isoloss.search.deepening import Bracket, Candidate, Kept
from isoloss.search.geometry import Ladder, Plan, plan_of
from isoloss.search.proposals import COMPOSITE, seen
from isoloss.search.rung import Key, rank_key
from isoloss.search.streams import SOBOL, Stream, is_model, stream

ADDED: Final = -1  # the bracket of trials that were added
BUFFER: Final = 8  # proposals kept ahead, at least …
MOST_AHEAD: Final = 64  # … and at most
ENGINE: Final = 2  # the format of snapshots
KEPT: Final[dict[str, Kept]] = {"preserving": "pool", "efficient": "promoted"}  # other variants keep none


class Search:
    """One study's search. ``apply`` folds an event in; everything else only looks."""

    def __init__(self, spec: StudySpec) -> None:
        self.spec = spec  # its space as it is now
        self._plan = plan_of(spec)
        self._first_top = self._plan.ladder.top
        self._brackets: list[Bracket] = []
        self._streams: dict[int, Stream] = {}
        self._trials: list[Trial] = []
        self._tasks: dict[tuple[int, int], Result | None] = {}
        self._outstanding: dict[tuple[int, int], None] = {}  # in order of creation
        self._finite: Counter[int] = Counter()  # level -> finite results
        self._enqueued: deque[dict[str, Scalar]] = deque()
        self._proposed: deque[tuple[dict[str, Scalar], str]] = deque()
        self._added = 0
        self._best: tuple[float, int, int] | None = None  # (score, -level, trial)
        self._dropped: set[int] = set()  # trials without a checkpoint
        self._confirmation: Confirmation | None = None
        self._stopped: str | None = None
        self.changes = 0  # events that this object has folded in: whoever keeps it sees whether it is still what it was
        self._adopt(self._plan)

    def apply(self, event: ledger.Event) -> tuple[ledger.Decision, ...]:
        """Fold one event in and return what it decides.

        Raises ``WrongState`` or ``InvalidSpec`` for an event that cannot be, before anything has changed.
        """
        if self._stopped is not None and not isinstance(event, ledger.Rescored):
            raise WrongState(f"The study is stopped ({self._stopped}); accepted is nothing more but other scores.")
        self.changes += 1
        try:
            return self._fold(event)
        except (WrongState, InvalidSpec):  # of anything else it is not known how far it came
            self.changes -= 1
            raise

    def _fold(self, event: ledger.Event) -> tuple[ledger.Decision, ...]:  # noqa: C901, PLR0912 - the closed set, at one glance
        match event:
            case ledger.Asked():
                return self._ask(event.n)
            case ledger.Proposed():
                return self._take_proposals(event)
            case ledger.TaskDone():
                return self._finish(event)
            case ledger.Deepened():
                return self._adopt(self._plan.deepened(event.max_budget))
            case ledger.Widened():
                return self._adopt(self._plan.widened(event.width))
            case ledger.SpaceChanged():
                return self._change_space(event.space)
            case ledger.Rescored():
                return self._rescore(event.scores)
            case ledger.Retried():
                return self._retry(event.trial, event.level)
            case ledger.Dropped():
                return self._drop(event.trials)
            case ledger.TrialAdded():
                return self._add(event)
            case ledger.Confirming():
                return self._confirm(event)
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
    def plan(self) -> Plan:
        """Levels, brackets and quotas as they are now."""
        return self._plan

    @property
    def width(self) -> int:
        """How many iterations of Hyperband are pooled now."""
        return self._plan.width

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

    @property
    def brackets(self) -> tuple[Bracket, ...]:
        """The brackets by number, to look at."""
        return tuple(self._brackets)

    @property
    def tasks(self) -> Mapping[tuple[int, int], Result | None]:
        """Every task as (trial, level) with its result, in order of creation; to look at."""
        return self._tasks

    @property
    def dropped(self) -> frozenset[int]:
        """The trials whose checkpoints are gone, and which have not run again since."""
        return frozenset(self._dropped)

    def runs(self, trial: int, level: int) -> bool:
        """Whether the task was created and has no result yet, or runs again."""
        return (trial, level) in self._outstanding

    def result(self, trial: int, level: int) -> Result | None:
        """The result of a task, or ``None`` while there is none."""
        return self._tasks.get((trial, level))

    def startable(self) -> bool:
        """Whether ``Asked(1)`` would create a task now."""
        return self._stopped is None and (
            self._vacant() is not None
            or self._promotion() is not None
            or self._may_widen()
            or self._repetition() is not None
        )

    def startable_now(self, most: int) -> int:
        """How many tasks ``Asked(most)`` would create now, without creating them."""
        if not self.startable():
            return 0
        limit, started = self.spec.limits.trials, len(self._trials) - self._added
        fresh = most if self._may_widen() else sum(bracket.room for bracket in self._brackets)
        found = sum(bracket.promotable() for bracket in self._brackets)
        found += fresh if limit is None else min(fresh, limit - started)
        if self._confirmation is not None and self._repetition() is not None:
            found += self._confirmation.runs - len(self._confirmation.trials)
        return min(most, found)

    def next_cost(self) -> int | None:
        """What the task costs that ``Asked(1)`` would create now, in the budget's unit; ``None`` when there is none."""
        if not self.startable():
            return None
        if (found := self._promotion()) is not None:
            bracket, (minus_level, (_, _, index)) = found
            return self.ladder.cost(1 - minus_level, self._resumes(bracket.trials[index], -minus_level))
        if (vacant := self._vacant()) is None and not self._may_widen() and self._confirmation is not None:
            return self.ladder.cost(self._confirmation.level, None)
        return self.ladder.cost(0 if vacant is None else vacant.number, None)

    def best(self) -> Incumbent | None:
        """The lowest score at any level, of equals the one at the higher level, then of the earlier trial.

        It never gets worse, which the best at the highest level would whenever a level gets its first results.
        """
        if self._best is None:
            return None
        score, minus_level, trial = self._best
        return Incumbent(trial=trial, level=-minus_level, score=score, configuration=self._trials[trial].configuration)

    @property
    def confirmation(self) -> Confirmation | None:
        """The finalists that run again, to look at."""
        return self._confirmation

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
                created=len(bracket.trials) if level == bracket.number else len(bracket.rungs[level - 1].sent),
                results=len(rung.results), sent=len(rung.sent), outstanding=waiting[bracket.number, level],
                settled=bracket.members(level) is not None,
            )
            for bracket in self._brackets
            for level, rung in bracket.rungs.items()
        )  # fmt: skip

    def wants_proposals(self, ahead: int | None = None) -> int:
        """How many proposals are lacking to have ``ahead`` in store, once a model can say something; else 0.

        As many as tasks run are kept ahead, within bounds, and asked for in batches: none while half of them are left.
        """
        sampler = self.spec.method.sampler
        if not is_model(sampler) or self._stopped is not None or (sampler != "law" and self._model_level() is None):
            return 0
        wanted = max(BUFFER, min(MOST_AHEAD, self.outstanding)) if ahead is None else ahead
        lacking = min(wanted, self._unstarted()) - len(self._proposed)
        return lacking if 2 * lacking >= wanted or len(self._proposed) == 0 else 0

    def proposal_request(self, ahead: int | None = None) -> ProposalRequest | None:
        """What a model should propose now and from which results, or ``None``: plain data, for another process.

        The level is the highest with more finite results than the space has dimensions; scores of two levels are never
        mixed. Pending are the trials without any result yet and the proposals not used yet.
        """
        n, level = self.wants_proposals(ahead), self._model_level()
        if n <= 0:
            return None
        results = [(t, r) for (t, j), r in self._tasks.items() if j == level and r is not None and r.score is not None]
        started = {trial for (trial, _), result in self._tasks.items() if result is not None}
        pending = [self._trials[trial].configuration for trial, _ in self._outstanding if trial not in started]
        return ProposalRequest(
            n=n,
            seed=(self.spec.seed * 1_000_003 + len(self._trials) * 1_009 + len(self._proposed)) % 2**32,
            level=level,
            history=tuple(seen([(self._trials[t].configuration, r.score) for t, r in results if r.score is not None])),
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
            elif self._may_widen():
                self._adopt(self._plan.widened(self.width + 1))
                decisions += self._start(self._brackets[0])
            elif (pull := self._repetition()) is not None:
                decisions += self._repeat(*pull)
            else:
                break
        return tuple(decisions) or (ledger.Idle(),)

    def _take_proposals(self, event: ledger.Proposed) -> tuple[ledger.Decision, ...]:
        for number, configuration in enumerate(event.configurations):
            check_configuration(self.spec.space, configuration, path=f"proposed.configurations[{number}]")
        if event.source == ledger.ENQUEUED:
            self._enqueued.extend(event.configurations)
        else:
            self._proposed.extend((configuration, event.source) for configuration in event.configurations)
        return ()

    def _finish(self, event: ledger.TaskDone) -> tuple[ledger.Decision, ...]:
        task = (event.trial, event.level)
        if task not in self._outstanding:
            why = "already has its result" if task in self._tasks else "does not exist"
            raise WrongState(
                f"The task of trial {event.trial} at level {event.level} {why}; accepted is one result a task."
            )
        del self._outstanding[task]
        result = Result(status=event.status, score=_finite(event.score) if event.status == "ok" else None)
        if self._tasks[task] is None:
            self._record(event.trial, event.level, result)
        else:  # retried: its failure stood until now
            self._replace({task: result})
        return ()

    def _change_space(self, space: Space) -> tuple[ledger.Decision, ...]:
        widened(self.spec.space, space)
        self.spec = msgspec.structs.replace(self.spec, space={name: space[name] for name in self.spec.space})
        self._streams.clear()
        return ()

    def _rescore(self, scores: tuple[tuple[int, int, float | None], ...]) -> tuple[ledger.Decision, ...]:
        for trial, level, _ in scores:
            if (result := self._tasks.get((trial, level))) is None or result.status != "ok":
                raise WrongState(
                    f"The task of trial {trial} at level {level} has no score; accepted are tasks that ended ok."
                )
        self._replace({(trial, level): Result(status="ok", score=_finite(score)) for trial, level, score in scores})
        return ()

    def _retry(self, trial: int, level: int) -> tuple[ledger.Decision, ...]:
        result = self._tasks.get((trial, level))
        if result is None or result.status != "failed" or (trial, level) in self._outstanding:
            raise WrongState(f"The task of trial {trial} at level {level} did not fail; accepted is one that did.")
        self._outstanding[trial, level] = None
        return ()

    def _drop(self, trials: tuple[int, ...]) -> tuple[ledger.Decision, ...]:
        for number in trials:
            self.trial(number)
        self._dropped.update(trials)
        return ()

    def _resumes(self, trial: int, level: int) -> int | None:
        """The level a promotion out of ``level`` goes on from; ``None`` when its checkpoint is gone."""
        return None if trial in self._dropped else level

    def _add(self, event: ledger.TrialAdded) -> tuple[ledger.Decision, ...]:
        check_configuration(self.spec.space, event.configuration, path="trial_added.configuration")
        level = self.ladder.top if event.level is None else event.level
        if not 0 <= level <= self.ladder.top:
            raise InvalidSpec(f"trial_added.level is {level}; accepted are 0 to {self.ladder.top}.")
        created = self._create_trial(ADDED, self._added, event.configuration, "added")
        self._added += 1
        return created, self._create_task(created.trial, level, previous=None)

    def _confirm(self, event: ledger.Confirming) -> tuple[ledger.Decision, ...]:
        if self.spec.objectives:
            raise WrongState("confirming needs one best; accepted is a study with an objective or a desirability.")
        finalists = finalists_of(self, event.finalists)
        if len(finalists) < 2:
            raise WrongState(f"confirming finds {len(finalists)} trials with a result; accepted is a study with two.")
        self._confirmation = Confirmation(
            finalists=finalists, level=self.ladder.top, delta=event.delta, runs=event.runs
        )
        return ()

    def _repetition(self) -> Pull | None:
        """Which finalist runs next with which seed."""
        if (
            self._confirmation is None or self._confirmation.level != self.ladder.top
        ):  # deepened: others may be the best
            return None
        return self._confirmation.next(rewards(self))

    def _repeat(self, finalist: int, repeat: int) -> tuple[ledger.Decision, ...]:
        confirmation = self._confirmation
        assert confirmation is not None  # noqa: S101 - it was asked
        configuration = self._trials[finalist].configuration
        created = self._create_trial(ADDED, self._added, configuration, ledger.CONFIRM, repeat)
        self._added += 1
        confirmation.trials[finalist, repeat] = created.trial
        return created, self._create_task(created.trial, confirmation.level, previous=None)

    # ---- how ---------------------------------------------------------------------------------------------------

    def _patient(self) -> bool:
        """Whether configurations still to be started go before optimistic promotions.

        That cuts wrong early promotions, until the study is deepened or widened: then the best old finishers must go
        up first.
        """
        order, fresh = self.spec.method.order, (self.ladder.top, self.width) == (self._first_top, 1)
        return (order == "patient" or (order == "auto" and fresh)) and self._vacant() is not None

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

    def _may_widen(self) -> bool:
        """Whether one more iteration may be pooled by itself, as everything planned was started and sent up.

        Behind a barrier only at rest: a quota that grows whenever a worker waits would never let a rung complete.
        """
        limit, method = self.spec.limits.trials, self.spec.method
        return (
            method.width == "auto"
            and not (method.sync and self._outstanding)
            and (limit is None or len(self._trials) - self._added < limit)
        )

    def _unstarted(self) -> int:
        """How many configurations are still to be started."""
        planned = sum(bracket.rungs[bracket.number].quota for bracket in self._brackets)
        limit = self.spec.limits.trials
        return (planned if limit is None else min(limit, planned)) - (len(self._trials) - self._added)

    def _start(self, bracket: Bracket) -> tuple[ledger.Decision, ...]:
        index, number = len(bracket.trials), len(self._trials)
        sampler = self.spec.method.sampler
        if self._enqueued:
            configuration, source = self._enqueued.popleft(), ledger.ENQUEUED
        elif self._proposed and (number % 3 or not self._mixes()):  # every third keeps Hyperband's guarantee
            configuration, source = self._proposed.popleft()
        else:
            configuration = self._stream(bracket.number).configuration(index)
            source = "sobol" if sampler in SOBOL else "random"
        created = self._create_trial(bracket.number, index, configuration, source)
        bracket.start(number)
        return created, self._create_task(number, bracket.number, previous=None)

    def _mixes(self) -> bool:
        """Whether every third configuration is the stream's: not where a composite model explores and no rung decides."""
        method = self.spec.method
        return is_model(method.sampler) and not (method.sampler == COMPOSITE and method.name == "fixed")

    def _create_trial(
        self, bracket: int, index: int, configuration: dict[str, Scalar], source: str, repeat: int = 0
    ) -> ledger.CreateTrial:
        created = ledger.CreateTrial(
            trial=len(self._trials), bracket=bracket, index=index, configuration=configuration, source=source,
            repeat=repeat,
        )  # fmt: skip
        self._trials.append(
            Trial(
                number=created.trial, bracket=bracket, index=index, configuration=configuration, source=source,
                repeat=repeat,
            )
        )  # fmt: skip
        return created

    def _create_task(self, trial: int, level: int, *, previous: int | None) -> ledger.CreateTask:
        self._tasks[trial, level] = None
        self._outstanding[trial, level] = None
        ladder, previous = self.ladder, None if previous is None else self._resumes(trial, previous)
        self._dropped.discard(trial)  # what runs now leaves a checkpoint again
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
            if not trial.repeat:  # one more draw of a finalist is no better trial
                self._best = mark if self._best is None else min(self._best, mark)

    def _replace(self, results: Mapping[tuple[int, int], Result]) -> None:
        """Put other results in the place of some; costs as much as all results there are."""
        keys = defaultdict[int, list[tuple[int, Key]]](list)
        for (number, level), result in results.items():
            trial = self._trials[number]
            self._tasks[number, level] = result
            keys[trial.bracket].append((level, rank_key(result.score, trial.index)))
        for bracket in keys.keys() - {ADDED}:
            self._brackets[bracket].rescore(keys[bracket])
        finite = [(r.score, -j, t) for (t, j), r in self._tasks.items() if r is not None and r.score is not None]
        self._finite = Counter(-minus_level for _, minus_level, _ in finite)
        self._best = min((mark for mark in finite if not self._trials[mark[2]].repeat), default=None)

    def _model_level(self) -> int | None:
        """The highest level with at least d + 1 finite results."""
        enough = len(self.spec.space) + 1
        return max((level for level, count in self._finite.items() if count >= enough), default=None)

    def _stream(self, bracket: int) -> Stream:
        if bracket not in self._streams:
            spec = self.spec
            self._streams[bracket] = stream(spec.method.sampler, spec.space, seed=spec.seed, bracket=bracket)
        return self._streams[bracket]

    def _adopt(self, plan: Plan) -> tuple[ledger.Decision, ...]:
        """Search by this plan from now on: the brackets there are get its quotas, and new ones open."""
        self._plan, method = plan, self.spec.method
        for bracket in self._brackets:
            bracket.adopt(plan.quotas(bracket.number))
        for number in range(len(self._brackets), plan.brackets):
            kept, barrier = KEPT.get(method.variant or "", "none"), bool(method.sync)
            self._brackets.append(Bracket(number, self.ladder.eta, plan.quotas(number), kept=kept, barrier=barrier))
        return ()

    # ---- copies and snapshots ----------------------------------------------------------------------------------

    def copy(self) -> Self:
        """An equal search that goes its own way; what never changes, configurations and results, is shared."""
        other, again = copy(self), self._confirmation
        vars(other).update(
            _brackets=[bracket.copy() for bracket in self._brackets], _streams=dict(self._streams),
            _trials=list(self._trials), _tasks=dict(self._tasks), _outstanding=dict(self._outstanding),
            _finite=Counter(self._finite), _enqueued=deque(self._enqueued), _proposed=deque(self._proposed),
            _dropped=set(self._dropped), _confirmation=again and replace(again, trials=dict(again.trials)),
        )  # fmt: skip
        return other

    def snapshot(self) -> dict[str, Any]:
        """The state as JSON-able data; ``Search.restore`` makes an equal search of it, faster than the ledger."""
        tasks = [
            [trial, level, *((result.status, result.score) if result else ())]
            for (trial, level), result in self._tasks.items()
        ]
        return {
            "engine": ENGINE,
            "top": self.ladder.top,
            "width": self.width,
            "space": msgspec.to_builtins(self.spec.space),
            "trials": [[trial.bracket, trial.configuration, trial.source, trial.repeat] for trial in self._trials],
            "tasks": tasks,
            "outstanding": list(self._outstanding),
            "enqueued": list(self._enqueued),
            "proposed": [list(proposal) for proposal in self._proposed],
            "stopped": self._stopped,
            "dropped": sorted(self._dropped),
            "confirmation": self._confirmation.to_mapping() if self._confirmation else None,
        }

    @classmethod
    def restore(cls, spec: StudySpec, snapshot: Mapping[str, Any]) -> Search:
        """The search whose snapshot this is; ``InvalidSpec`` when another engine wrote it."""
        if snapshot.get("engine") != ENGINE:
            raise InvalidSpec(f"snapshot.engine is {snapshot.get('engine')!r}; accepted is {ENGINE}.")
        search = cls(spec)
        space = msgspec.convert(snapshot["space"], dict[str, AnyParameter])
        search.spec = msgspec.structs.replace(spec, space={name: space[name] for name in spec.space})
        ladder = search.ladder.extended(snapshot["top"] - search.ladder.top)
        search._adopt(replace(search._plan, ladder=ladder, width=snapshot["width"]))
        for bracket, configuration, source, *repeat in snapshot["trials"]:
            search._readmit(bracket, configuration, source, *repeat)
        for trial, level, *_ in snapshot["tasks"]:
            search._tasks[trial, level] = None
            search._mark_sent(search._trials[trial], level)
        for trial, level, *result in snapshot["tasks"]:
            if result:
                search._record(trial, level, Result(status=result[0], score=result[1]))
        search._outstanding = dict.fromkeys((trial, level) for trial, level in snapshot["outstanding"])
        search._enqueued.extend(snapshot["enqueued"])
        search._proposed.extend((configuration, source) for configuration, source in snapshot["proposed"])
        search._stopped = snapshot["stopped"]
        search._dropped.update(snapshot.get("dropped", ()))
        search._confirmation = Confirmation.from_mapping(snapshot.get("confirmation"))
        return search

    def _readmit(self, bracket: int, configuration: dict[str, Scalar], source: str, repeat: int = 0) -> None:
        if bracket == ADDED:
            self._create_trial(ADDED, self._added, configuration, source, repeat)
            self._added += 1
        else:
            created = self._create_trial(bracket, len(self._brackets[bracket].trials), configuration, source)
            self._brackets[bracket].start(created.trial)

    def _mark_sent(self, trial: Trial, level: int) -> None:
        """Whoever has a task above a rung was sent out of it; to be said before the rung's results."""
        if trial.bracket not in (ADDED, level):
            self._brackets[trial.bracket].rungs[level - 1].sent.add(trial.index)


def _finite(score: float | None) -> float | None:
    return score if score is not None and math.isfinite(score) else None
