"""Leasing: an idle slot becomes a task. One mechanism for workers and for programs that ask.

Every kind of call stands in a line of its own and is served together with the others of its kind, so that a busy
controller writes in few transactions. Free slots are dealt to the studies they may run, to those with the fewest leases
first; a study's ready tasks go before new ones, which are created against this demand and never before it. A task of
many GPUs takes several slots of one worker at once, which are kept for it when it has waited long.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, Final

import structlog

from isoloss.controller.access import PRINCIPAL
from isoloss.controller.deal import deal, kept, squeezed_out
from isoloss.controller.decider import Decider
from isoloss.controller.demand import Demand
from isoloss.controller.duty import Bell
from isoloss.controller.health import Health
from isoloss.controller.line import Line
from isoloss.controller.recent import Recent
from isoloss.controller.why import gpus_of, slots_for
from isoloss.domain.ids import StudyId, TaskId
from isoloss.domain.lease import LeaseKey, slots_taken
from isoloss.domain.study import StudyState
from isoloss.domain.task import TaskState
from isoloss.errors import IsolossError, NotFound
from isoloss.store import curves, projects, studies, tasks, workers
from isoloss.store.pool import Pool
from isoloss.store.studies import Hungry
from isoloss.store.tasks import Lease, Want
from isoloss.v1 import common_pb2 as pb
from isoloss.v1 import work_pb2
from isoloss.wire.states import VERDICTS
from isoloss.wire.values import from_checkpoint, from_ending, from_key, from_series, to_key, to_values

log = structlog.get_logger()
LONGEST_WAIT_SECONDS: Final = 30.0
LONG_WAIT: Final = 2.0  # lease times
VAIN_SECONDS: Final = 1.0
Answer = Lease | StudyState
Beat = tuple[str, Sequence[LeaseKey]]  # a worker, or nobody in particular, and what it holds


@dataclass(slots=True)
class _Asking:
    """A program that stands in the line of a study: with endings to tell first, or with nothing else (it wants no task).

    What it says, and the lease of a lost reply, are looked at once.
    """

    want: Want
    verdicts: Sequence[str] | None = None  # of what it said, once that is durable


class Dispatcher:
    """Grants leases and takes their heartbeats, reports and endings."""

    def __init__(self, pool: Pool, decider: Decider, bell: Bell, ttl: timedelta) -> None:
        self.pool = pool
        self.decider = decider
        self.bell = bell
        self.ttl = ttl
        self.health = Health()
        self.demand = Demand(decider)
        self.draining = False
        self._ids = Recent[tuple[str, str], StudyId]()
        self._served = Recent[StudyId, float]()  # when it last got a task here
        self._vain = dict[StudyId, tuple[int, float]]()  # (next_seq, when): who was asked and had no task
        self._endings = Line[Sequence[tasks.Said], list[str]](self._finish)
        self._beats = Line[Beat, tuple[bool, dict[LeaseKey, TaskState]]](self._beat)
        self._curves = Line[Sequence[curves.Batch], dict[LeaseKey, TaskState]](self._store)
        self._slots = Line[Want, work_pb2.LeaseReply](self._fill)
        self._asked_of = Recent[TaskId, StudyId]()
        self._asks = Recent[StudyId, Line[_Asking, Answer]]()
        bell.listen(self._look)

    def drain(self) -> None:
        """Grant nothing more; whoever waits is answered now."""
        self.draining = True
        for line in self._waiting():
            line.close()

    def standing(self) -> dict[str, int]:
        """How many calls stand in each kind of line."""
        return {
            "endings": self._endings.waiting, "heartbeats": self._beats.waiting, "curves": self._curves.waiting,
            "leases": self._slots.waiting, "asks": sum(line.waiting for line in self._asks.values()),
        }  # fmt: skip

    def _look(self) -> None:
        for line in self._waiting():
            line.look()

    def _waiting(self) -> tuple[Line[Any, Any], ...]:
        """The lines in which people may stand for a while."""
        return (self._slots, *self._asks.values())

    # ---- granting ----------------------------------------------------------------------------------------------

    async def ask(
        self, project: str, name: str, want: Want, seconds: float, endings: Sequence[pb.Ending] = ()
    ) -> tuple[Answer | None, list[pb.Ack]]:
        """A task of one study, or the state of a study that has nothing more to run; ``None`` after so many seconds.

        Endings are told in the same transaction; when one is not accepted, its teller gets no task.
        """
        said = _said(endings)
        study_id = self._ids.get((project, name))
        if study_id is None:
            async with self.pool.connection() as conn:
                study_id = (await studies.by_name(conn, project, name)).id
            self._ids[project, name] = study_id
        if (line := self._asks.get(study_id)) is None:
            line = self._asks[study_id] = Line(lambda asking: self._serve(study_id, asking))
        asking = _Asking(replace(want, said=said, again=True))
        try:
            answer = await line.stand(asking, seconds=_patience(seconds))
        except NotFound:  # it was archived, and the name may be another's by now
            self._ids.pop((project, name), None)
            return await self.ask(project, name, want, seconds, endings)
        return answer, _acks(endings, asking.verdicts or ())

    async def _serve(self, study_id: StudyId, asking: Sequence[_Asking]) -> list[Answer | None]:
        decided = await self.decider.decide(study_id, wants=[one.want for one in asking])
        found, rest = dict(decided.leases), decided.state in (StudyState.IDLE, StudyState.STOPPED)
        for one, verdicts in zip(asking, decided.verdicts, strict=True):
            if one.verdicts is None:
                one.verdicts, one.want = verdicts, replace(one.want, said=(), again=False)
        for _, lease in decided.leases:
            self._asked_of[lease.task_id] = study_id
        over = [not one.want.n or not {*(one.verdicts or ())} <= {"accepted"} for one in asking]
        return [
            found.get(one.want.holder, decided.state if rest or is_over else None)
            for one, is_over in zip(asking, over, strict=True)
        ]

    async def lease(self, want: Want, seconds: float) -> work_pb2.LeaseReply:
        """Tasks for a worker's free slots, as soon as there are any; empty after so many seconds."""
        return await self._slots.stand(want, seconds=_patience(seconds)) or work_pb2.LeaseReply()

    async def _fill(self, wants: Sequence[Want]) -> list[work_pb2.LeaseReply | IsolossError | None]:
        """Serve every worker that stands here: its lost leases again, then what is dealt to its slots.

        One that stands here twice has given its earlier call up.
        """
        latest = {want.holder: want for want in wants}
        async with self.pool.connection() as conn:
            known = await workers.seen(conn, [want.holder for want in wants])
            again = await tasks.reclaim(conn, None, list(latest.values()), self.ttl)
            found = {lease.task_id: lease for lease in await tasks.describe(conn, again)}
        granted = defaultdict[str, list[Lease]](list)
        for task_id, _, holder in again:
            granted[holder].append(found[task_id])
        if not self.draining:
            free = [
                want for want in latest.values() if _is_current(want, known) and not known[want.holder].draining
                and not known[want.holder].full
                and self.health.cools_until(want.holder, time.monotonic()) is None
            ]  # fmt: skip
            await self._deal(free, {holder: one.allowed for holder, one in known.items()}, granted)
        return [
            self._answer(want, known, granted) if want is latest[want.holder] else work_pb2.LeaseReply()
            for want in wants
        ]

    def _answer(
        self, want: Want, known: Mapping[str, workers.Known], granted: Mapping[str, Sequence[Lease]]
    ) -> work_pb2.LeaseReply | IsolossError | None:
        if want.holder not in known:
            return workers.unknown(want.holder)
        if not _is_current(want, known):
            return workers.replaced(want.holder)
        leases, drain = granted.get(want.holder, ()), known[want.holder].draining
        if not leases and not drain:
            return None
        return work_pb2.LeaseReply(leases=[self.to_lease(lease) for lease in leases], drain=drain)

    async def _deal(self, wants: Sequence[Want], allowed: Mapping[str, Any], granted: dict[str, list[Lease]]) -> None:
        """Deal free slots to studies, and again to the others what a study had no task for."""
        since = time.monotonic() - VAIN_SECONDS
        while True:
            lacking = {want.holder: want.n - _taken(granted[want.holder], allowed[want.holder]) for want in wants}
            if (most := sum(free for free in lacking.values() if free > 0)) == 0:
                return
            async with self.pool.connection() as conn:
                hungry = await studies.hungry(conn, most, self._asked_in_vain(since))
                shares = {share.name: share for share in await projects.shares(conn)}
            able = {
                want.holder: {s: takes for s in map(self._since_served, hungry) if want.project in ("", s.project)
                              and (takes := slots_for(allowed[want.holder], s.trainable, s.gpus, s.nodes))}
                for want in wants if lacking[want.holder] > 0
            }  # fmt: skip
            if await self._announce(squeezed_out(lacking, able)):
                continue  # who comes after them may have one
            dealt = deal(lacking, kept(lacking, able, shares, self.ttl.total_seconds() * LONG_WAIT), shares)
            if not dealt:
                return
            for study_id, tasks_ in dealt.items():
                given = [replace(want, n=tasks_[want.holder]) for want in wants if want.holder in tasks_]
                decided = await self.decider.decide(study_id, wants=given)
                for holder, lease in decided.leases:
                    granted[holder].append(lease)
                    self.health.granted(lease.task_id, holder, study_id)
                if len(decided.leases) < sum(tasks_.values()):
                    self._vain[study_id] = decided.seq + 1, time.monotonic()
                if decided.leases:
                    self._served[study_id] = time.monotonic()

    def _asked_in_vain(self, since: float) -> dict[StudyId, int]:
        """Who was asked since then and had no task, with where its ledger stood: a limit it shares with others may give way later."""
        self._vain = {study_id: asked for study_id, asked in self._vain.items() if asked[1] > since}
        return {study_id: next_seq for study_id, (next_seq, _) in self._vain.items()}

    def _since_served(self, study: Hungry) -> Hungry:
        """The study, whose wait begins again with every task that it gets."""
        if study.waits is None or study.id not in self._served:
            return study
        return replace(study, waits=min(study.waits, time.monotonic() - self._served[study.id]))

    async def _announce(self, studies_: Sequence[Hungry]) -> bool:
        """See that what fits nowhere now has a task that is seen to wait; whether one of them has none to run."""
        vain = False
        for study in studies_:
            if study.waits is None and not (decided := await self.decider.decide(study.id, ask=1)).created:
                self._vain[study.id] = decided.seq + 1, time.monotonic()
                vain = True
        return vain

    # ---- what is heard of leases -------------------------------------------------------------------------------

    async def heartbeat(self, messages: Sequence[pb.LeaseKey], worker_id: str = "") -> tuple[bool, list[pb.Ack]]:
        """Renew leases: whether the worker is to leave, and an answer to each key; what is not held is told so."""
        keys = [shown(message) for message in messages]
        drain, held = await self._beats.stand((worker_id, keys)) or (False, {})
        return drain, _heard(messages, held)

    async def _beat(self, beats: Sequence[Beat]) -> list[tuple[bool, dict[LeaseKey, TaskState]] | NotFound]:
        async with self.pool.connection() as conn:
            names = [worker_id for worker_id, _ in beats if worker_id]
            known = await workers.seen(conn, names) if names else {}
            held = await tasks.heartbeat(conn, [key for _, keys in beats for key in keys], ttl=self.ttl)
        return [
            workers.unknown(worker_id) if worker_id and worker_id not in known
            else (bool(worker_id) and known[worker_id].draining, {key: held[key] for key in keys if key in held})
            for worker_id, keys in beats
        ]  # fmt: skip

    async def report(self, request: work_pb2.ReportRequest) -> list[pb.Ack]:
        """Store points and checkpoints, and renew the leases they came under."""
        held: dict[LeaseKey, TaskState] = {}
        if request.batches:
            held = await self._curves.stand([series_of(batch) for batch in request.batches]) or {}
        for saved in request.checkpoints:  # a transaction of their own: a checkpoint is acknowledged durably
            async with self.pool.connection() as conn:
                if (checkpoint := from_checkpoint(saved.checkpoint)) is not None:
                    await tasks.add_checkpoint(conn, shown(saved.key), checkpoint)
        if request.checkpoints:
            keys = [*(batch.key for batch in request.batches), *(saved.key for saved in request.checkpoints)]
            return (await self.heartbeat(keys))[1]
        return _heard([batch.key for batch in request.batches], held)

    async def _store(self, reports: Sequence[Sequence[curves.Batch]]) -> list[dict[LeaseKey, TaskState]]:
        async with self.pool.connection() as conn:
            await conn.execute("SET LOCAL synchronous_commit = off")  # durable with the next thing that is
            await curves.add(conn, [batch for report in reports for batch in report])
            held = await tasks.heartbeat(
                conn, list({key: None for report in reports for key, _ in report}), ttl=self.ttl
            )
        return [{key: held[key] for key, _ in report if key in held} for report in reports]

    async def tell(self, endings: Sequence[pb.Ending]) -> list[pb.Ack]:
        """End what programs asked for, in the rounds that serve the asks of their study: who tells asks next.

        Where that cannot be, for whatever reason, they end alone.
        """
        asked_of = {self._asked_of.get(TaskId(ending.key.task_id)) for ending in endings}
        study_id = asked_of.pop() if len(asked_of) == 1 else None
        line = self._asks.get(study_id) if study_id is not None else None
        if study_id is None or line is None or not self.decider.is_at_hand(study_id):
            return await self.finish(endings)
        telling = _Asking(Want(holder="", n=0, said=_said(endings)))
        try:
            await line.stand(telling)
        except Exception as error:  # noqa: BLE001 - no trouble of the study's is the teller's
            log.warning("tell.alone", study_id=study_id, error=str(error))
        return await self.finish(endings) if telling.verdicts is None else _acks(endings, telling.verdicts)

    async def finish(self, endings: Sequence[pb.Ending]) -> list[pb.Ack]:
        """End attempts; what the studies decide of it follows in another transaction."""
        verdicts = await self._endings.stand(_said(endings))
        return _acks(endings, verdicts or ())

    async def _finish(self, said: Sequence[Sequence[tasks.Said]]) -> list[list[str]]:
        all_said = [one for some in said for one in some]
        async with self.pool.connection() as conn, conn.pipeline():
            ended = await tasks.finish(conn, all_said, self.decider.specs.owed)
            await conn.commit()
        verdicts = ended.verdicts
        self.decider.mark(ended.results)
        self.bell.ring()
        for (key, ending), verdict in zip(all_said, verdicts, strict=True):
            if verdict == "accepted" and ending.kind in ("complete", "diverge", "fail"):
                self.health.ended(key.task_id, failed=ending.kind == "fail" and ending.retryable, now=time.monotonic())
        each = iter(verdicts)
        return [[next(each) for _ in some] for some in said]

    # ---- what crosses the wire ---------------------------------------------------------------------------------

    def to_lease(self, lease: Lease) -> pb.Lease:
        """A granted lease as a message; the fixed values of the spec are parameters like the searched ones."""
        spec, run = self.decider.specs.of(lease.study_id, lease.spec_version, lease.spec)
        key = LeaseKey(task_id=lease.task_id, epoch=lease.epoch, secret=lease.secret)
        return pb.Lease(
            key=to_key(key), study=lease.study, project=lease.project, trial=lease.trial_no, level=lease.level,
            budget_from=lease.budget_from, decay_from=lease.decay_from, budget_to=lease.budget_to,
            params=to_values(spec.fixed | lease.params), resume_from=lease.resume_from, resume_host=lease.resume_host, seed=spec.seed + lease.repeat, run_json=run,
            metrics=spec.metrics, ttl_seconds=self.ttl.total_seconds(),
        )  # fmt: skip


def _taken(leases: Sequence[Lease], allowed: Mapping[str, Any]) -> int:
    return sum(slots_taken(gpus_of(lease.spec), allowed.get("gpus", 0)) for lease in leases)


def _is_current(want: Want, known: Mapping[str, workers.Known]) -> bool:
    return want.holder in known and known[want.holder].incarnation == want.incarnation


def series_of(message: pb.SeriesBatch) -> curves.Batch:
    """The curves of a batch."""
    return shown(message.key), from_series(message.series)


def _said(endings: Sequence[pb.Ending]) -> list[tasks.Said]:
    return [(shown(ending.key), from_ending(ending)) for ending in endings]


def shown(message: pb.LeaseKey) -> LeaseKey:
    """The key that a caller shows, bound to the project it is held to: a stolen one is worth nothing to another's."""
    key, project = from_key(message), PRINCIPAL.get().project
    return replace(key, secret=key.secret + project) if project else key


def _heard(messages: Sequence[pb.LeaseKey], held: Mapping[LeaseKey, TaskState]) -> list[pb.Ack]:
    """An answer to each key shown; what is not held any more is told so."""
    said = {TaskState.LEASED: "accepted", TaskState.CANCELLING: "cancelling"}
    verdicts = [said.get(held.get(shown(message), TaskState.CANCELLED), "stale") for message in messages]
    return [pb.Ack(key=m, verdict=VERDICTS[v]) for m, v in zip(messages, verdicts, strict=True)]


def _acks(endings: Sequence[pb.Ending], verdicts: Sequence[str]) -> list[pb.Ack]:
    return [pb.Ack(key=e.key, verdict=VERDICTS[v]) for e, v in zip(endings, verdicts, strict=True)]


def _patience(seconds: float) -> float:
    return min(seconds, LONGEST_WAIT_SECONDS) if seconds > 0 else 0.0  # NaN is no time at all
