"""The decider: the second of the two transactions.

A worker's ending is durable under its task's row alone. The decider then locks the study's row, takes every undecided
result in the order it became durable, gives each the next ``seq``, folds it, and writes what the search decided, all in
one transaction. The folded searches are a cache keyed by (study, seq): under the lock, the events a cache lacks are
folded in first, so any number of controllers may decide for the same study.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any, Final, TypeVar
from weakref import WeakValueDictionary

import structlog
from msgspec import structs

from isoloss.controller.book import MOST_STARTABLE, Book, Choice, Decided, Known, check_largest
from isoloss.controller.duty import Bell
from isoloss.controller.specs import Specs
from isoloss.domain.ids import StudyId
from isoloss.domain.spec import StudySpec, decode_study, encode
from isoloss.domain.study import StudyState
from isoloss.errors import IsolossError, NotFound
from isoloss.search import events as ev
from isoloss.search.judging import preferring
from isoloss.search.preview import planned_rungs
from isoloss.search.proposals import check_sampler
from isoloss.search.retention import bests, expendable
from isoloss.search.search import ENGINE, Search
from isoloss.store import checkpoints, ledger, preferences, studies, tasks
from isoloss.store.pool import Conn, Pool
from isoloss.store.studies import StudyRow
from isoloss.store.tasks import Want

log = structlog.get_logger()
T = TypeVar("T")
PAGE: Final = 2000  # events read and folded at a time
SNAPSHOT_EVERY: Final = 256  # events folded at once after which the fold is saved
SNAPSHOT_LEAST: Final = 2048  # and events since the last one, in a study that is decided on and on
MOST_KEPT: Final = 2_000_000  # events that the folds kept have heard, all together …
LEAST_KEPT: Final = 1_000  # … each at least as many: a fold of nothing takes its room too
TTL: Final = timedelta(seconds=30)


@dataclass(slots=True)
class _Folded:
    """A study's search as it stands after ``seq``, the row it was folded for, and what was measured, once it was needed."""

    seq: int
    search: Search
    row: StudyRow
    known: Known | None
    saved: int  # the seq of the newest snapshot known
    changes: int = field(init=False)

    def __post_init__(self) -> None:
        self.changes = self.search.changes

    @property
    def is_ahead(self) -> bool:
        """Whether more than ``seq`` was folded: that may never be committed."""
        return self.search.changes != self.changes

    async def copy(self) -> _Folded:
        """An equal one that goes its own way."""
        search = await _apart(self.seq, self.search.copy)
        return replace(self, search=search, known=None if self.known is None else dict(self.known))

    def stand(self, row: StudyRow) -> None:
        """Everything is folded that the ledger says by this row."""
        self.seq, self.row, self.known, self.changes = row.next_seq - 1, row, None, self.search.changes


class Decider:
    """Decides for studies; ``decide`` is the only way into a ledger."""

    name: Final = "decider"
    seconds: Final = 1.0
    pause: Final = 0.01  # an ask that comes meanwhile takes the results up, in one transaction with its lease

    def __init__(self, pool: Pool, bell: Bell, ttl: timedelta = TTL) -> None:
        self.pool = pool
        self.bell = bell
        self.ttl = ttl
        self.specs = Specs()
        self._marked: set[StudyId] = set()
        self._looked = -math.inf
        self.opened = 0  # how often a study came into the cache
        self._cache: dict[StudyId, _Folded] = {}  # the one used last is the last
        self._locks = WeakValueDictionary[StudyId, asyncio.Lock]()  # each for as long as somebody holds or awaits it

    async def once(self) -> int:
        """Decide for every study that has undecided results: those marked, and once a second whatever there is."""
        waiting, now = list(self._marked), time.monotonic()
        if now - self._looked >= self.seconds:  # another controller may have taken results and be gone
            self._looked = now
            async with self.pool.connection() as conn:
                waiting = await ledger.pending(conn)
        results = 0
        for study_id in waiting:
            try:
                results += (await self.decide(study_id)).results
            except IsolossError as error:  # one study's trouble is not the others'
                log.warning("study.not_decided", study_id=study_id, error=error.message)
        await self._save_folds()
        return results

    async def _save_folds(self) -> None:
        """Keep the folds that have grown by a quarter: whoever comes next begins there, and all in all it costs a few folds."""
        grown = [
            study_id for study_id, folded in self._cache.items()
            if folded.seq - folded.saved > max(SNAPSHOT_LEAST, folded.seq // 4)
        ]  # fmt: skip
        for study_id in grown:
            async with self._lock(study_id):
                if (folded := self._cache.get(study_id)) is None:  # a pass failed after it had folded something
                    continue
                body = await _apart(folded.seq, _packed, folded.search)
                folded.saved = folded.seq
            await self._save(study_id, folded.saved, body)

    async def _save(self, study_id: StudyId, seq: int, body: bytes) -> None:
        async with self.pool.connection() as conn:
            await ledger.save_snapshot(conn, study_id, seq, body)

    def mark(self, study_ids: Iterable[StudyId]) -> None:
        """Results of these studies have just become durable."""
        self._marked.update(study_ids)

    async def decide(
        self, study_id: StudyId, *, events: Sequence[ev.Event] = (), ask: int = 0, wants: Sequence[Want] = ()
    ) -> Decided:
        """End what the wants say, drain the results, fold the given events, then grant what the wants can run.

        Ready tasks go first; for what is lacking, and for ``ask`` tasks that nobody runs yet, the search is asked. Whoever
        says what is not accepted gets nothing.
        """
        return (await self._pass(study_id, events, ask, wants))[0]

    def is_at_hand(self, study_id: StudyId) -> bool:
        """Whether a decision for it needs no history first, which may take seconds to fold."""
        return study_id in self._cache

    async def search(self, study_id: StudyId) -> Search:
        """The study's search with every result that is durable by now, to look at; never to be changed."""
        return (await self._pass(study_id))[1].search

    async def startable(self, study_id: StudyId, most: int) -> int:
        """How many tasks an ask would create now, below what limits the study's budget; none is created."""
        async with self._book(study_id) as book:
            return await book.startable(most)

    async def exceeded(self, study_id: StudyId) -> list[str]:
        """The limits below which the study's next task does not fit now, in words."""
        async with self._book(study_id) as book:
            return await book.exceeded()

    @contextlib.asynccontextmanager
    async def _book(self, study_id: StudyId) -> AsyncIterator[Book]:
        """The study's book, to look at."""
        async with self._alone(study_id) as conn:
            opened, folded = await self._open(conn, study_id)
            self._keep(study_id, folded)
            yield Book(conn, opened, folded.search, folded.known, self.ttl)

    async def make_room(self, study_id: StudyId, folders: Sequence[tuple[int, int]], trials: Sequence[int]) -> None:
        """Drop these (task, epoch) where a later checkpoint still supersedes them, and what these trials left, where they may still go.

        In a stopped study, whose ledger is closed, nothing resumes: it need not know.
        """
        async with self._alone(study_id) as conn:
            opened, folded = await self._open(conn, study_id)
            search, seq = folded.search, folded.seq
            may_go = {trial for _, trial in expendable(search)}
            trials = [trial for trial in trials if trial in may_go]
            if trials and search.stopped is None:
                book = Book(conn, opened, search, folded.known, self.ttl)
                await book.settle([ev.Dropped(trials=tuple(trials))], 0, ())
                seq = (await book.decided()).seq
            await checkpoints.drop(conn, study_id, trials=trials, best=bests(search), superseded=folders, for_room=True)
            self._keep(study_id, _Folded(seq, search, opened.row, None, folded.saved))

    async def _pass(
        self, study_id: StudyId, events: Sequence[ev.Event] = (), ask: int = 0, wants: Sequence[Want] = ()
    ) -> tuple[Decided, _Folded]:
        async with self._alone(study_id) as conn:
            self._marked.discard(study_id)
            decided, folded = await self._settle(
                conn, study_id, self._cache.get(study_id), events, ask, wants, commit=True
            )
            self._keep(study_id, folded)
        if decided.created or decided.results or events:
            self.bell.ring()
        return decided, folded

    async def warm(self, study_id: StudyId) -> None:
        """Fold what there is by now, ahead of a transaction that will change the study."""
        async with self._lock(study_id):
            await self._warm(study_id)

    @contextlib.asynccontextmanager
    async def _alone(self, study_id: StudyId) -> AsyncIterator[Conn]:
        """A transaction in which nobody else here decides for the study.

        If that fails the fold is kept where nothing was folded: it must never be ahead of what was committed, but whoever is
        refused may come again and again, and a long history takes seconds to fold.
        """
        async with self._lock(study_id):
            before = await self._warm(study_id)
            try:
                async with self.pool.connection() as conn:
                    yield conn
            except BaseException:
                self._cache.pop(study_id, None)
                if before is not None and not before.is_ahead:
                    self._keep(study_id, before)
                raise

    async def decide_within(self, conn: Conn, study_id: StudyId, *events: ev.Event | Choice) -> Decided:
        """Fold events inside the caller's transaction, so that all are durable or nothing is."""
        async with self._aside(conn, study_id) as folded:
            return (await self._settle(conn, study_id, folded, events))[0]

    @contextlib.asynccontextmanager
    async def _aside(self, conn: Conn, study_id: StudyId) -> AsyncIterator[_Folded | None]:
        """The study alone, with a fold that its caller's transaction may change: whether that is committed is not known here.

        The fold that is kept stays as it is. What the transaction commits is one tail more for whoever comes next.
        """
        async with self._lock(study_id):
            kept = self._cache.get(study_id)
            try:
                yield await (self._read(study_id, conn) if kept is None else kept.copy())
            finally:
                self.specs.forget(study_id)  # the version it made may become another's number

    async def prefer(self, conn: Conn, study_id: StudyId, desirability: Mapping[str, Any]) -> Decided:
        """Prefer something else from now on, in a stopped study too: what ran has other scores, in the same transaction."""
        async with self._aside(conn, study_id) as folded:
            row = await studies.lock(conn, study_id)
            changed = preferring(decode_study(row.spec), desirability, await studies.outcomes(conn, study_id))
            await preferences.add(conn, study_id, encode(changed)["desirability"])
            return (await self._settle(conn, study_id, folded, (), rescore=True))[0]

    async def _settle(
        self, conn: Conn, study_id: StudyId, folded: _Folded | None, events: Sequence[ev.Event | Choice], ask: int = 0,
        wants: Sequence[Want] = (), *, rescore: bool = False, commit: bool = False,
    ) -> tuple[Decided, _Folded]:  # fmt: skip
        said = [one for want in wants for one in want.said]
        holders = [want.holder for want in wants if want.again]
        opened, held = await ledger.opened(conn, study_id, folded.row if folded else None, holders, said)
        if opened is not None:
            opened, folded = await self._up_to_date(conn, opened, folded)
        verdicts: tuple[tuple[str, ...], ...] = tuple(() for _ in wants)
        async with conn.pipeline():
            if said:
                ended = await tasks.finish(conn, said, self.specs.owed, held)
                each = iter(ended.verdicts)
                verdicts = tuple(tuple(next(each) for _ in want.said) for want in wants)
                wants = [want for want, heard in zip(wants, verdicts, strict=True) if {*heard} <= {"accepted"}]
                self.mark(ended.results.keys() - ({study_id} if opened else set()))
                if opened and len(opened.undecided) < ledger.MOST:  # else older ones wait, and these are behind them
                    opened = replace(opened, undecided=(*opened.undecided, *ended.results.get(study_id, ())))
            if opened is None or folded is None:  # who ended is told so; who asks is to come again
                return _nothing(folded, study_id, verdicts)
            book = Book(conn, opened, folded.search, folded.known, self.ttl)
            await book.settle(events, ask, wants, rescore=rescore, commit=commit)
        decided = await book.decided()
        found = _Folded(decided.seq, folded.search, opened.row, book.known, folded.saved)
        return replace(decided, verdicts=verdicts), found

    async def _open(self, conn: Conn, study_id: StudyId) -> tuple[ledger.Opened, _Folded]:
        """The study under its lock, with the fold that is kept, up to date."""
        folded = self._cache.get(study_id)
        opened, _ = await ledger.opened(conn, study_id, folded.row if folded else None)
        assert opened is not None, "nothing ends"  # noqa: S101
        return await self._up_to_date(conn, opened, folded)

    async def _up_to_date(
        self, conn: Conn, opened: ledger.Opened, folded: _Folded | None
    ) -> tuple[ledger.Opened, _Folded]:
        """The fold of the whole ledger: the one given, once it has heard what it lacks."""
        row = opened.row
        if folded and folded.seq == row.next_seq - 1 and folded.row.spec_version == row.spec_version:
            return opened, folded
        folded = await self._caught_up(conn, row, folded)
        return replace(opened, undecided=tuple(await ledger.undecided(conn, row.id))), folded

    async def _caught_up(self, conn: Conn, row: StudyRow, folded: _Folded | None) -> _Folded:
        """The fold of every event there is now: what is missing is read under the lock."""
        spec, _ = self.specs.of(row.id, row.spec_version, row.spec)
        if folded is None:
            folded = _Folded(0, Search(spec), row, None, 0)
        elif folded.seq >= row.next_seq:  # Postgres came back without its last commits
            folded.seq, folded.search = 0, Search(spec)
        search = folded.search
        search.spec = structs.replace(search.spec, desirability=spec.desirability)  # the fold does not look at it
        if folded.seq < row.next_seq - 1:
            _fold(search, [body for _, _, body, _ in await ledger.events(conn, row.id, after=folded.seq)])
        folded.stand(row)
        return folded

    async def _warm(self, study_id: StudyId) -> _Folded | None:
        """The fold that is kept: made before the study's row is locked, so that a long history keeps nobody waiting."""
        if (folded := self._cache.get(study_id)) is None and (folded := await self._read(study_id)) is not None:
            self._keep(study_id, folded)
        return folded

    def _keep(self, study_id: StudyId, folded: _Folded) -> None:
        """Keep a fold as the one used last; where it is one more, those go that were not used for longest and are too much."""
        one_more = self._cache.pop(study_id, None) is None
        self._cache[study_id] = folded
        if not one_more:
            return
        weights = {one: max(LEAST_KEPT, kept.seq) for one, kept in self._cache.items()}
        total = sum(weights.values())
        for oldest in list(weights)[:-1]:  # this one stays, large as it may be
            if total <= MOST_KEPT:
                return
            total -= weights[oldest]
            del self._cache[oldest]

    def _lock(self, study_id: StudyId) -> asyncio.Lock:
        return self._locks.setdefault(study_id, asyncio.Lock())

    async def _read(self, study_id: StudyId, within: Conn | None = None) -> _Folded | None:
        """A fold of what there is by now; ``None`` where there is no study.

        It begins at the fold that was saved last. Unless it reads ``within`` a transaction of the caller's, it saves its own.
        """
        async with self._reading(within) as conn:
            row, (body, seq) = await studies.find(conn, study_id), await ledger.snapshot(conn, study_id)
        if row is None:
            return None
        spec, _ = self.specs.of(row.id, row.spec_version, row.spec)
        search = None if body is None else await _apart(seq, _restored, spec, body)
        if search is None:
            search, seq = Search(spec), 0
        saved = seq
        while True:
            async with self._reading(within) as conn:
                page = [body for _, _, body, _ in await ledger.events(conn, study_id, after=seq, limit=PAGE)]
            await _apart(len(page), _fold, search, page)
            seq += len(page)
            if len(page) < PAGE:
                break
        if within is None and seq - saved > SNAPSHOT_EVERY:
            await self._save(study_id, seq, await _apart(seq, _packed, search))
            saved = seq
        self.opened += 1
        return _Folded(seq, search, row, None, saved)

    def _reading(self, within: Conn | None) -> AbstractAsyncContextManager[Conn]:
        return self.pool.connection() if within is None else contextlib.nullcontext(within)


def _nothing(
    folded: _Folded | None, study_id: StudyId, verdicts: tuple[tuple[str, ...], ...]
) -> tuple[Decided, _Folded]:
    """What is decided while somebody else has the study, or of one that is gone."""
    if folded is None:
        raise NotFound(f"There is no study with id {study_id}.")
    decided = Decided(
        created=0, results=0, state=StudyState.ACTIVE, seq=folded.seq, decisions=(), verdicts=verdicts
    )  # fmt: skip
    return decided, folded


async def _apart(events: int, call: Callable[..., T], *given: Any) -> T:
    """Call it; of many events in a thread, so that the others' heartbeats are answered meanwhile."""
    return await asyncio.to_thread(call, *given) if events >= PAGE else call(*given)


def _packed(search: Search) -> bytes:
    return ledger.packed(search.snapshot())


def _restored(spec: StudySpec, body: bytes) -> Search | None:
    """The search that was saved; ``None`` for another release's, since the ledger is the truth."""
    snapshot = ledger.unpacked(body)
    return Search.restore(spec, snapshot) if snapshot.get("engine") == ENGINE else None


def _fold(search: Search, bodies: Sequence[Mapping[str, Any]]) -> None:
    for body in bodies:
        search.apply(ev.event_from_mapping(body))


async def create(
    conn: Conn,
    spec: StudySpec,
    *,
    mapping: dict[str, Any],
    trainable: str,
    n_params: float | None = None,
    **campaign: Any,
) -> StudyRow | None:
    """Create a study whose geometry is sound; ``None`` when the name is taken."""
    check_sampler(spec)
    search = Search(spec)
    check_largest(search)
    top = search.ladder.budget(search.ladder.top)
    cap = spec.limits.cap(spec.flops_per_unit(n_params))
    row = await studies.insert(
        conn, mapping, trainable=trainable, max_budget=top, startable=search.startable_now(MOST_STARTABLE),
        n_params=n_params, cap=cap[0] if cap else None, **campaign,
    )  # fmt: skip
    if row is not None:
        await studies.set_rungs(conn, row.id, planned_rungs(search.plan))
    if row is not None and search.idle:
        await studies.set_state(conn, row.id, StudyState.IDLE)
        row = replace(row, state=StudyState.IDLE)
    return row
