"""The book of one decision transaction: what a study's search decides of all that was heard, and the rows that follow.

Opened under the study's lock with a search folded up to its last word; ``settle`` writes the ledger's next pages, the tasks and
their leases, the budget and the study's row. Whoever raises undoes all of it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from secrets import token_urlsafe
from typing import Any, Final

from isoloss.domain.ids import TaskId
from isoloss.domain.spec import StudySpec
from isoloss.domain.study import StudyState
from isoloss.domain.task import TaskState
from isoloss.errors import InvalidSpec, WrongState
from isoloss.search import events as ev
from isoloss.search.confirmation import due
from isoloss.search.judging import Judge, worthless
from isoloss.search.preview import planned_rungs
from isoloss.search.retention import bests, spare
from isoloss.search.search import Search
from isoloss.store import checkpoints, ledger, limits, preferences, studies, tasks
from isoloss.store.pool import Conn, Cursor
from isoloss.store.tasks import Lease, Want

MOST_STARTABLE: Final = 10_000  # counted: a study that widens by itself would begin tasks without end
VETOES: Final = 64  # rounds of an ask in which what a formula vetoes is replaced
LARGEST: Final = 2**63  # what Postgres and the wire count to


@dataclass(frozen=True, slots=True, kw_only=True)
class Decided:
    """What one pass did: tasks created, leases granted, results taken up, and how the study stands now."""

    created: int
    results: int
    state: StudyState
    seq: int
    decisions: tuple[ev.Decision, ...]
    leases: tuple[tuple[str, Lease], ...] = ()  # (holder, lease)
    verdicts: tuple[tuple[str, ...], ...] = ()  # of what each want said


Known = dict[tuple[int, int], dict[str, float]]
Choice = Callable[[Search], Sequence[ev.Event]]  # events that depend on the search, once it has heard every result


def _lacking(wants: Sequence[Want], granted: tasks.Granted) -> list[Want]:
    """Who lacks a task after what was granted, once for each task."""
    held = Counter(holder for _, _, holder in granted)
    return [replace(want, n=1) for want in wants for _ in range(want.n - held[want.holder])]


class Book:
    """One decision transaction: the ledger's next pages, and the budget."""

    def __init__(self, conn: Conn, opened: ledger.Opened, search: Search, known: Known | None, ttl: timedelta) -> None:
        self.conn = conn
        self.opened = opened
        self.row = row = opened.row
        self.search = search
        self.known = known
        self.ttl = ttl
        self.plan = search.plan
        self.spec: StudySpec = search.spec
        self.seq = row.next_seq
        self.reserved = row.reserved
        self.spent = row.spent
        self.decisions: list[ev.Decision] = []
        self.page = ledger.Page()
        self._begun: dict[int, ev.CreateTrial] = {}  # the trials that begin in this pass
        self._looked = 0  # tasks of the page that were held against a formula
        self._results = 0  # taken up
        self._granted: tasks.Granted = []  # of the tasks there were …
        self._written: list[ledger.NewTask] = []  # … and of those that the last page makes
        self._last: Cursor | None = None

    async def settle(
        self, events: Sequence[ev.Event | Choice], ask: int, wants: Sequence[Want], *, rescore: bool = False,
        commit: bool = False,
    ) -> None:  # fmt: skip
        """Decide and write everything there is to decide now, in order, and then the study's row: ``decided`` says what.

        In a pipeline all of it is one round trip, if nothing has to be read. ``commit`` where nothing follows in the
        transaction.
        """
        if self.search.stopped is not None and not rescore:
            if events:
                raise WrongState(
                    f"Study {self.row.name!r} is stopped ({self.search.stopped}); accepted is a study that is not."
                )
            return
        if self.search.stopped is None:
            await self._drain()
        await self._hear(events, rescore=rescore)
        self._granted, lacking = await self._ready(wants)
        ask = max(ask, len(lacking), await self._behind())
        rooms = await self._rooms() if ask or self.page.tasks else []
        if ask and self.row.state != StudyState.PAUSED and self.search.startable():
            await self._ask(ask, rooms)
        self._check_bounds()
        if self._looks_at_checkpoints():
            await self._retain()
        state = self._state()
        self._written = self._lease_out(lacking)
        startable = self.search.startable_now(MOST_STARTABLE)
        if (self.seq, state, startable) != (self.row.next_seq, self.row.state, self.row.startable):
            await studies.update(
                self.conn, self.row.id, state=state, startable=startable, next_seq=self.seq, reserved=self.reserved, spent=self.spent,
                max_budget=self.search.ladder.budget(self.search.ladder.top),
            )  # fmt: skip
        if self.search.plan != self.plan:
            await studies.set_rungs(self.conn, self.row.id, planned_rungs(self.search.plan, self.plan))
        self._last = await self._flush()
        if commit and not self._granted and all(new.task.trial in self._begun for new in self._written):
            await self.conn.commit()  # nothing is asked of the rows after this

    async def decided(self) -> Decided:
        """What was decided, to be asked after the pipeline: a reply read within it costs a round trip of its own."""
        ids = await ledger.ids(self._last) if self._last else {}
        created = sum(isinstance(d, ev.CreateTask) for d in self.decisions)
        return Decided(
            created=created, results=self._results, state=self._state(), seq=self.seq - 1, decisions=tuple(self.decisions),
            leases=await self._describe(self._granted, self._written, ids),
        )  # fmt: skip

    async def _hear(self, events: Sequence[ev.Event | Choice], *, rescore: bool) -> None:
        """Fold what callers want, and what follows from it: other scores, and a confirmation that is due at rest."""
        for said in events:
            for event in said(self.search) if callable(said) else (said,):
                if self.search.stopped is None:
                    await self._fold(event)
        if rescore or (self.spec.desirability and self.search.plan.ladder.top != self.plan.ladder.top):
            await self._rescore()
        if rescore:
            await preferences.reworth(self.conn, self.row.id, (await self._judge()).worths())
        if (confirming := due(self.search)) is not None:
            await self._fold(confirming)

    async def _ready(self, wants: Sequence[Want]) -> tuple[tasks.Granted, list[Want]]:
        """Leases of the tasks that are there already, and who lacks a task, once for each."""
        if not wants or self.row.state == StudyState.PAUSED or self.search.stopped is not None:
            return [], []
        granted: tasks.Granted = []
        if self.opened.again:
            again = [want for want in wants if want.again]
            granted += await tasks.reclaim(self.conn, [self.row.id], again, self.ttl)
        lacking = _lacking(wants, granted)
        if self.opened.ready and lacking:
            granted += await tasks.lease_next(self.conn, [self.row.id], lacking, self.ttl)
            lacking = _lacking(wants, granted)
        return granted, lacking

    def _lease_out(self, lacking: Sequence[Want]) -> list[ledger.NewTask]:
        """Lease the page's new tasks to those who lack one."""
        free = [new for new in self.page.tasks if new.state is TaskState.READY]
        for want, new in zip(lacking, free, strict=False):
            new.holder, new.incarnation, new.project = want.holder, want.incarnation, want.project
            new.secret = token_urlsafe(16)
        return [new for new in free if new.holder is not None]

    async def _describe(
        self, granted: tasks.Granted, written: Sequence[ledger.NewTask], ids: Mapping[tuple[int, int], TaskId]
    ) -> tuple[tuple[str, Lease], ...]:
        """Who was granted what, of the page and of the tasks there were."""
        leases, holders = [], {task_id: holder for task_id, _, holder in granted}
        for new in written:
            task_id = ids[new.task.trial, new.task.level]
            holders[task_id] = str(new.holder)
            if new.task.trial in self._begun:
                leases.append(self._begins(task_id, new))
            else:  # it may resume from a checkpoint
                granted.append((task_id, new.secret, str(new.holder)))
        if granted:
            leases += await tasks.describe(self.conn, granted)
        return tuple((holders[lease.task_id], lease) for lease in leases)

    def _begins(self, task_id: TaskId, new: ledger.NewTask) -> Lease:
        """The lease of a trial's first task, of which all is known already."""
        row, task = self.row, new.task
        return Lease(
            task_id=task_id, epoch=1, secret=new.secret, project=row.project, study=row.name, study_id=row.id,
            trial_no=task.trial, level=task.level, budget_from=0, decay_from=task.decay_from, budget_to=task.budget_to,
            params=self._begun[task.trial].configuration, resume_from="", resume_host="", spec=row.spec, spec_version=row.spec_version,
            repeat=self._begun[task.trial].repeat,
        )  # fmt: skip

    async def _flush(self) -> Cursor | None:
        """Write what was decided so far."""
        page, self.page, self._looked = self.page, ledger.Page(), 0
        return await ledger.write(self.conn, self.row.id, page, self.ttl) if page.events else None

    async def _behind(self) -> int:
        """How many tasks are lacking to have ``method.ahead`` of them waiting for a slot."""
        ahead = self.spec.method.ahead
        return ahead and ahead - await studies.waiting(self.conn, self.row.id)

    def _looks_at_checkpoints(self) -> bool:
        """Whether this pass drops checkpoints, which looks at every result: at rest, and every hundredth of the trials."""
        if self.spec.fidelity.kept == "all" or self.seq == self.row.next_seq:
            return False
        every = max(1, self.search.trials // 100)
        at_rest = self.search.idle or self.search.stopped is not None
        return at_rest or self.seq // every != self.row.next_seq // every

    async def _retain(self) -> None:
        """Let the checkpoints go that nothing will resume from."""
        found = spare(self.search)
        if found and self.search.stopped is None:
            await self._fold(ev.Dropped(trials=found))
        await checkpoints.drop(self.conn, self.row.id, trials=found, best=bests(self.search))

    def _check_bounds(self) -> None:
        """What the rows could not hold is refused in words; raising undoes the whole transaction."""
        check_largest(self.search)
        if self.row.cap is not None and self.reserved + self.spent > self.row.cap:
            cap = self.spec.limits.cap(self.spec.flops_per_unit(self.row.n_params))
            limit = cap[1] if cap else f"limits.total_budget: {self.row.cap:g}"
            raise WrongState(f"{limit} would be exceeded; accepted is a trial that fits below it.")

    async def _drain(self) -> None:
        rows = self.opened.undecided
        self._results = len(rows)
        judge = await self._judge() if rows else None
        for row in rows:
            value = judge.score(row.trial_no, row.level, row.values) if judge and row.status == "ok" else None
            event = ev.TaskDone(trial=row.trial_no, level=row.level, status=row.status, score=value)  # type: ignore[arg-type]
            self.reserved = max(0.0, self.reserved - row.cost)
            self.spent += row.cost
            worth = judge.worth(row.trial_no, row.level, row.values) if judge and row.status == "ok" else None
            await self._fold(event, task_id=row.task_id, value=value, worth=worth)
        if self.known is not None:
            self.known.update({(row.trial_no, row.level): row.values for row in rows if row.status == "ok"})
        await self._check_failures(any(row.status == "failed" for row in rows))
        if judge is not None and self.spec.objective is None and judge.moved(await self._judge()):
            await self._rescore()

    async def _judge(self) -> Judge:
        """What gives results their scores; it needs the history unless one metric says all."""
        if self.spec.objective is not None:
            return Judge(self.search, {})
        if self.known is None:
            await self._flush()
            self.known = await studies.outcomes(self.conn, self.row.id)
        return Judge(self.search, dict(self.known))

    async def _rescore(self) -> None:
        """Give everything that ran the score it has now; nothing runs again for it."""
        event = (await self._judge()).rescored()
        if event is not None:
            await self._fold(event)
            await self._flush()
            await preferences.rescore(self.conn, self.row.id, event.scores)

    async def _check_failures(self, new: bool) -> None:
        limit = self.spec.limits.failures
        if not new or limit is None or self.search.stopped is not None:
            return
        failed = (await studies.counts(self.conn, self.row.id))[1].get("failed", 0)
        if failed >= limit:
            await self._fold(ev.Stopped(reason=f"limits.failures: {failed} tasks failed"))

    async def _ask(self, n: int, rooms: Sequence[limits.Room]) -> None:
        """Ask, unless the tasks it would create do not fit below a limit of the study, or of its campaign."""
        if not rooms:
            await self._fold(ev.Asked(n=n))
            for _ in range(VETOES):
                if not (vetoed := await self._veto()):
                    break
                await self._fold(ev.Asked(n=vetoed))
            return
        for _ in range(n):
            cost = self.search.next_cost()
            if cost is None:
                return
            if lacking := [room for room in rooms if not room.fits(cost)]:
                final = next((room for room in lacking if not room.fits(cost, freed=True)), None)
                if final is not None and not self.search.outstanding:
                    await self._fold(ev.Stopped(reason=final.exceeded(cost)))
                return
            await self._fold(ev.Asked(n=1))
            if not await self._veto():
                for room in rooms:
                    room.take(cost)

    async def startable(self, most: int) -> int:
        """How many tasks an ask would create, all at the price of the first."""
        found, cost = self.search.startable_now(most), self.search.next_cost()
        if not found or not cost or not (rooms := await self._rooms()):
            return found
        return min(room.holds(cost, found) for room in rooms)

    async def exceeded(self) -> list[str]:
        """The limits below which the next task does not fit, in words."""
        if self.search.stopped is not None or (cost := self.search.next_cost()) is None:
            return []
        return [room.exceeded(cost) for room in await self._rooms() if not room.fits(cost)]

    async def _rooms(self) -> list[limits.Room]:
        """What the limits of the study and its campaign leave, below which the tasks that callers added have to fit."""
        rooms = await limits.rooms(self.conn, self.row, self.spec, self.reserved + self.spent)
        for room in rooms:
            for task in [new.task for new in self.page.tasks if room.unit]:
                if not room.fits(cost := task.budget_to - task.budget_from):
                    raise WrongState(f"{room.exceeded(cost)}; accepted is a trial that fits below it.")
                room.take(cost)
        return rooms

    async def _veto(self) -> int:
        """End the tasks just created of which a formula says that D is 0, before anybody runs them."""
        if not self.spec.desirability:
            return 0
        made, self._looked = self.page.tasks[self._looked :], len(self.page.tasks)
        found = [new for new in made if new.task.trial in self._begun and self._worthless(new.task)]
        for new in found:
            new.vetoed = self.seq
            self.reserved = max(0.0, self.reserved - (new.task.budget_to - new.task.budget_from))
            await self._fold(ev.TaskDone(trial=new.task.trial, level=new.task.level, status="cancelled"))
            self.decisions.remove(new.task)
        return len(found)

    def _worthless(self, task: ev.CreateTask) -> bool:
        return worthless(self.spec, self.search.trial(task.trial))

    async def _fold(
        self, event: ev.Event, *, task_id: TaskId | None = None, value: float | None = None,
        worth: Mapping[str, Any] | None = None,
    ) -> None:  # fmt: skip
        decisions = self.search.apply(event)
        self.page.events.append((self.seq, ev.to_mapping(event), [ev.to_mapping(d) for d in decisions]))
        if task_id is not None:
            score = value if value is not None and math.isfinite(value) else None
            self.page.decided.append((task_id, self.seq, score, worth))
        for decision in decisions:
            self._act(decision)
        if isinstance(event, ev.Retried):
            self.reserved += await ledger.reopen(self.conn, self.row.id, event.trial, event.level)
        if isinstance(event, ev.Stopped):
            await self._flush()
            await ledger.cancel_open(self.conn, self.row.id, self.seq)
            self.reserved = 0.0
        self.decisions += decisions
        self.seq += 1

    def _act(self, decision: ev.Decision) -> None:
        match decision:
            case ev.CreateTrial():
                self._begun[decision.trial] = decision
                self.page.trials.append(decision)
            case ev.CreateTask():
                self.reserved += decision.budget_to - decision.budget_from
                self.page.tasks.append(ledger.NewTask(task=decision))
            case ev.CancelTask() | ev.Idle():
                pass

    def _state(self) -> StudyState:
        if self.search.stopped is not None:
            return StudyState.STOPPED
        if self.row.state == StudyState.PAUSED:
            return StudyState.PAUSED
        return StudyState.IDLE if self.search.idle else StudyState.ACTIVE


def check_largest(search: Search) -> None:
    """Raise ``InvalidSpec`` when the largest budget is more than a row can count."""
    if (top := search.ladder.budget(search.ladder.top)) >= LARGEST:
        raise InvalidSpec(f"The largest budget is {top:.3g}; accepted are budgets below 2^63, in a larger unit.")
