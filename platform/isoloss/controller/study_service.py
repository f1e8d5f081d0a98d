"""Studies over the wire: translate, call, translate back."""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import asdict, replace
from functools import partial
from typing import Any, Final

import msgspec

from isoloss.controller import decider as deciding
from isoloss.controller.best import best
from isoloss.controller.book import Choice
from isoloss.controller.campaigner import trainable_of
from isoloss.controller.decider import Decider
from isoloss.controller.duty import Bell
from isoloss.controller.health import Health
from isoloss.controller.idempotency import M, once
from isoloss.controller.why import obstacles
from isoloss.domain.ids import StudyId
from isoloss.domain.space import AnyParameter
from isoloss.domain.spec import Confirm, StudySpec, decode, decode_study, encode
from isoloss.domain.study import StudyState
from isoloss.errors import AlreadyExists, Busy, InvalidSpec, IsolossError, NotFound, WrongState
from isoloss.search.events import (
    ENQUEUED,
    Confirming,
    CreateTrial,
    Deepened,
    Event,
    Proposed,
    SpaceChanged,
    Stopped,
    TrialAdded,
    Widened,
)
from isoloss.search.geometry import ENDLESS
from isoloss.search.preview import outlook, preview
from isoloss.search.search import Search
from isoloss.search.standing import agreement, retries
from isoloss.search.why import reasons
from isoloss.search.worth import limits
from isoloss.store import checkpoints, curves, ledger, preferences, projects, studies, workers
from isoloss.store.pool import Conn, Pool
from isoloss.store.studies import StudyRow
from isoloss.v1 import study_pb2 as pb
from isoloss.v1 import study_pb2_grpc
from isoloss.wire.states import to_study_state
from isoloss.wire.values import decode_json, from_values, to_series, to_values

Context = Any  # grpc.aio.ServicerContext, generic in its stubs only
JSON = msgspec.json.Encoder()
BEST_TRIES: Final = 20


class StudyService(study_pb2_grpc.StudyServiceServicer):
    """Create, look at, deepen and end studies."""

    def __init__(self, pool: Pool, decider: Decider, bell: Bell, health: Health) -> None:
        self.pool = pool
        self.decider = decider
        self.bell = bell
        self.health = health

    async def CreateStudy(self, request: pb.CreateStudyRequest, context: Context) -> pb.Study:
        spec = decode_study(decode_json(request.spec_json, "spec_json"))

        async def effect(conn: Conn) -> pb.Study:
            mapping = encode(spec)
            row = await deciding.create(
                conn, spec, mapping=mapping, trainable=trainable_of(mapping), n_params=spec.n_params
            )
            if row is None:
                row = await studies.by_name(conn, spec.project, spec.name)
                if kept := await preferences.versions(conn, row.id):  # the spec it was launched with stays its own
                    row = replace(row, spec=row.spec | {"desirability": kept[0][1]})
                check_same(spec, row, load_if_exists=request.load_if_exists)
            return await describe(conn, row)

        reply = await once(self.pool, request, pb.Study, effect)
        self.bell.ring()
        return reply

    async def GetStudy(self, request: pb.StudyName, context: Context) -> pb.Study:
        async with self.pool.connection() as conn:
            row = await studies.by_name(conn, request.project, request.name)
        if request.brief:
            return _stored(row)
        search = await self.decider.search(row.id)  # first: what it takes up changes the row
        async with self.pool.connection() as conn:
            row = await studies.by_name(conn, request.project, request.name)
            message = await describe(conn, row)
            message.codes.update(await studies.codes(conn, row.id))
            message.checkpoints.CopyFrom(pb.Checkpoints(**asdict(await checkpoints.tally(conn, row.id))))
        message.rungs.extend(
            pb.Rung(
                bracket=r.bracket, level=r.level, budget=r.budget, quota=min(r.quota, ENDLESS), results=r.results,
                promoted=r.sent, settled=r.settled,
            )
            for r in search.rungs()
        )  # fmt: skip
        message.width = search.width
        if (found := agreement(search)) is not None:
            message.agreement.CopyFrom(pb.Agreement(level=found.level, trials=found.trials, spearman=found.spearman))
        if search.spec.desirability:
            message.preference.CopyFrom(await self._preference(row, search))
        if (deepening := next_deepening(search)) is not None and row.state != StudyState.STOPPED:
            message.next_deepening.CopyFrom(deepening)
        return message

    async def _preference(self, row: StudyRow, search: Search) -> pb.Preference:
        async with self.pool.connection() as conn:
            found = limits(search, await studies.outcomes(conn, row.id))
            kept = await preferences.versions(conn, row.id)
        return pb.Preference(
            version=kept[-1][0] if kept else 1, measured=found.measured, vetoed=found.vetoed, vetoes=found.vetoes,
            drawn=found.drawn, alive=found.alive, sentence=found.sentence,
        )  # fmt: skip

    async def ListStudies(self, request: pb.ListStudiesRequest, context: Context) -> pb.ListStudiesReply:
        async with self.pool.connection() as conn:
            rows = await studies.listed(conn, project=request.project)
            return pb.ListStudiesReply(studies=[await describe(conn, row) for row in rows])

    async def PreviewStudy(self, request: pb.PreviewStudyRequest, context: Context) -> pb.PreviewStudyReply:
        spec = decode_study(decode_json(request.spec_json, "spec_json"))
        return pb.PreviewStudyReply(preview_json=JSON.encode(preview(spec, list(request.deepen))).decode())

    async def DeepenStudy(self, request: pb.DeepenStudyRequest, context: Context) -> pb.Study:
        return await self._decide(request, Deepened(max_budget=request.max_budget))

    async def StopStudy(self, request: pb.StopStudyRequest, context: Context) -> pb.Study:
        return await self._decide(request, Stopped(reason=request.reason or "stopped by hand"))

    async def ChangeStudy(self, request: pb.ChangeStudyRequest, context: Context) -> pb.Study:
        match request.WhichOneof("change"):
            case "width":
                return await self._decide(request, Widened(width=request.width))
            case "space_json":
                space = decode(decode_json(request.space_json, "space_json"), dict[str, AnyParameter])
                return await self._decide(request, SpaceChanged(space=space))
            case "enqueue":
                configurations = tuple(from_values(one.params) for one in request.enqueue.configurations)
                return await self._decide(request, Proposed(configurations=configurations, source=ENQUEUED))
            case "retry":
                return await self._decide(request, partial(retries, trials=frozenset(request.retry.trials)))
            case "desirability_json":
                return await self._prefer(request)
            case "confirm_json":
                wanted = decode(decode_json(request.confirm_json, "confirm_json"), Confirm)
                wanted.check()
                return await self._decide(
                    request, Confirming(finalists=wanted.finalists, delta=wanted.delta, runs=wanted.runs)
                )
        raise InvalidSpec(
            "change is missing; accepted is one of width, space_json, enqueue, retry, desirability_json, confirm_json."
        )

    async def _once(self, request: Any, reply_type: type[M], effect: Callable[[Conn], Awaitable[M]]) -> M:
        """Change a study once, folded ahead of the transaction: what that folds is not kept, since it may be undone."""
        with contextlib.suppress(NotFound):  # to be said by the change, unless that was answered before
            async with self.pool.connection() as conn:
                row = await studies.by_name(conn, request.study.project, request.study.name)
            await self.decider.warm(row.id)
        reply = await once(self.pool, request, reply_type, effect)
        self.bell.ring()
        return reply

    async def _prefer(self, request: pb.ChangeStudyRequest) -> pb.Study:
        """Another preference over the same runs, and the scores that follow from it, in one transaction."""
        wanted = decode_json(request.desirability_json, "desirability_json")

        async def effect(conn: Conn) -> pb.Study:
            row = await studies.by_name(conn, request.study.project, request.study.name)
            await self.decider.prefer(conn, row.id, wanted)
            return await describe(conn, await studies.by_name(conn, row.project, row.name))

        await self._once(request, pb.Study, effect)
        return await self.GetStudy(request.study, None)

    async def PreviewChange(self, request: pb.PreviewChangeRequest, context: Context) -> pb.PreviewStudyReply:
        async with self.pool.connection() as conn:
            row = await studies.by_name(conn, request.study.project, request.study.name)
        deeper = request.WhichOneof("change") == "max_budget"
        change = Deepened(max_budget=request.max_budget) if deeper else Widened(width=request.width)
        found = outlook(await self.decider.search(row.id), change)
        return pb.PreviewStudyReply(preview_json=JSON.encode(found).decode())

    async def _decide(
        self, request: pb.DeepenStudyRequest | pb.ChangeStudyRequest | pb.StopStudyRequest, event: Event | Choice
    ) -> pb.Study:
        async def effect(conn: Conn) -> pb.Study:
            row = await studies.by_name(conn, request.study.project, request.study.name)
            await self.decider.decide_within(conn, row.id, event)
            return await describe(conn, await studies.by_name(conn, row.project, row.name))

        return await self._once(request, pb.Study, effect)

    async def AddTrial(self, request: pb.AddTrialRequest, context: Context) -> pb.AddTrialReply:
        async def effect(conn: Conn) -> pb.AddTrialReply:
            row = await studies.by_name(conn, request.study.project, request.study.name)
            decided = await self.decider.decide_within(
                conn, row.id, TrialAdded(configuration=from_values(request.params))
            )
            created = next(d for d in decided.decisions if isinstance(d, CreateTrial))
            return pb.AddTrialReply(trial=created.trial)

        return await self._once(request, pb.AddTrialReply, effect)

    async def PauseStudy(self, request: pb.StudyName, context: Context) -> pb.Study:
        return await self._set_state(request, StudyState.PAUSED)

    async def ResumeStudy(self, request: pb.StudyName, context: Context) -> pb.Study:
        resumed = await self._set_state(request, StudyState.ACTIVE)
        await self.decider.decide(StudyId(resumed.id))  # a study with nothing left to do is idle, not active
        self.bell.ring()
        return await self.GetStudy(request, context)

    async def _set_state(self, request: pb.StudyName, state: StudyState) -> pb.Study:
        async with self.pool.connection() as conn:
            row = await studies.lock(conn, (await studies.by_name(conn, request.project, request.name)).id)
            if row.state == StudyState.STOPPED:
                raise WrongState(f"Study {row.name!r} is stopped, which is final; accepted is a study that is not.")
            await studies.set_state(conn, row.id, state)
            return await describe(conn, await studies.by_name(conn, row.project, row.name))

    async def GetBest(self, request: pb.GetBestRequest, context: Context) -> pb.Best:
        async with self.pool.connection() as conn:
            row = await studies.by_name(conn, request.project, request.name)
        search = await self.decider.search(row.id)
        for _ in range(BEST_TRIES):
            async with self.pool.connection() as conn:
                known = await studies.outcomes(conn, row.id)
            with contextlib.suppress(KeyError):  # a pass under way has folded what it has not committed yet
                return await best(search, known, settled=request.settled)
        raise Busy(f"Study {row.name!r} is decided upon at this moment.")

    async def GetCurves(self, request: pb.GetCurvesRequest, context: Context) -> pb.GetCurvesReply:
        async with self.pool.connection() as conn:
            row = await studies.by_name(conn, request.project, request.name)
            trials, _ = await studies.counts(conn, row.id)
            if not 0 <= request.trial < trials:
                raise NotFound(f"Study {row.name!r} has no trial {request.trial}; it has {trials}.")
            points, more = await curves.page(conn, row.id, request.trial, request.from_step)
        return pb.GetCurvesReply(series=to_series(points), more=more)

    async def GetLogs(self, request: pb.GetLogsRequest, context: Context) -> pb.GetLogsReply:
        async with self.pool.connection() as conn:
            row = await studies.by_name(conn, request.project, request.name)
            trials, _ = await studies.counts(conn, row.id)
            if request.HasField("trial") and not 0 <= request.trial < trials:
                raise NotFound(f"Study {row.name!r} has no trial {request.trial}; it has {trials}.")
            found = await studies.logs(conn, row.id, request.trial if request.HasField("trial") else None)
        return pb.GetLogsReply(logs=[pb.Log(**one) for one in found])

    async def ListTrials(self, request: pb.StudyName, context: Context) -> pb.ListTrialsReply:
        async with self.pool.connection() as conn:
            row = await studies.by_name(conn, request.project, request.name)
            rows = await studies.trials(conn, row.id)
        found: dict[int, pb.Trial] = {}
        for r in rows:
            trial = found.setdefault(
                r["no"],
                pb.Trial(
                    no=r["no"],
                    bracket=r["bracket"],
                    index=r["index"],
                    source=r["source"],
                    params=to_values(r["params"]),
                    repeat=r["repeat"],
                ),
            )
            level = pb.TrialLevel(
                level=r["level"], budget=r["budget"], state=r["state"], values=r["values"], message=r["message"],
                has_score=r["score"] is not None, score=r["score"] or 0.0,
            )  # fmt: skip
            trial.levels.append(level)
        return pb.ListTrialsReply(trials=list(found.values()))

    async def ExplainStudy(self, request: pb.StudyName, context: Context) -> pb.Explanation:
        async with self.pool.connection() as conn:
            row = await studies.by_name(conn, request.project, request.name)
            open_tasks = await studies.open_tasks(conn, row.id)
            given_back = await studies.given_back(conn, row.id)
            found = await workers.listed(conn)
            shares = {share.name: share for share in await projects.shares(conn)}
        search = await self.decider.search(row.id)
        exceeded = await self.decider.exceeded(row.id)
        now = time.monotonic()
        cooling = {one.id: end - now for one in found if (end := self.health.cools_until(one.id, now)) is not None}
        return pb.Explanation(
            sentences=[self.pool.refused] * bool(self.pool.refused)
            + obstacles(row, search, open_tasks, found, shares.get(row.project), given_back, cooling, exceeded),
            trials=[
                pb.TrialReason(trial=r.trial, level=r.level, code=r.code, sentence=r.sentence) for r in reasons(search)
            ],
        )

    async def WatchStudy(self, request: pb.WatchStudyRequest, context: Context) -> AsyncIterator[pb.StudyEvent]:
        after = request.after
        while True:
            async with self.pool.connection() as conn:
                row = await studies.by_name(conn, request.study.project, request.study.name)
                found = await ledger.events(conn, row.id, after=after, limit=500)
            state = StudyState(row.state)
            for seq, kind, body, decisions in found:
                yield pb.StudyEvent(
                    seq=seq, kind=kind, body_json=JSON.encode(body).decode(), decisions_json=JSON.encode(decisions).decode(),
                    state=to_study_state(state),
                )  # fmt: skip
                after = seq
            if not found and (state is StudyState.STOPPED or (request.until_idle and state is StudyState.IDLE)):
                return
            if not found:
                await self.bell.wait(1.0)


def check_same(spec: StudySpec, row: StudyRow, *, load_if_exists: bool) -> None:
    """Raise ``AlreadyExists`` unless the caller said to load and the stored spec is equal up to ``run``."""
    if not load_if_exists:
        raise AlreadyExists(
            f"name is {spec.name!r}, a study there is already in project {spec.project!r}; accepted is a free name.",
            hint="Or load_if_exists.",
        )
    mine, stored = encode(spec) | {"run": None}, encode(decode_study(row.spec)) | {"run": None}
    if different := sorted(key for key in mine if mine[key] != stored[key]):
        raise AlreadyExists(
            f"Study {spec.name!r} exists with another {different[0]}; accepted is an equal spec or a free name."
        )


async def describe(conn: Conn, row: StudyRow) -> pb.Study:
    """A study's row as a message, with its counts."""
    message = _stored(row)
    message.trials, tasks = await studies.counts(conn, row.id)
    message.tasks.update(tasks)
    return message


def _stored(row: StudyRow) -> pb.Study:
    return pb.Study(
        id=row.id, project=row.project, name=row.name, state=to_study_state(StudyState(row.state)),
        spec_json=JSON.encode(row.spec).decode(), max_budget=row.max_budget, seq=row.next_seq - 1, spent=row.spent,
        reserved=row.reserved, campaign=str(row.campaign_id or ""),
    )  # fmt: skip


def next_deepening(search: Search) -> pb.Deepening | None:
    """What the next deepening would add, and what starting again would cost instead; ``None`` when there is none."""
    if search.spec.method.name in ("fixed", "asha"):
        return None
    wanted = search.ladder.budget(search.ladder.top) * search.ladder.eta
    try:
        found = outlook(search, Deepened(max_budget=wanted))
    except IsolossError:
        return None
    added = found["added_budget"] + found["retrained_budget"]
    return pb.Deepening(max_budget=wanted, added_budget=added, restart_budget=found["restart_budget"])
