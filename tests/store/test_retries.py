"""Every call that writes is safe to make again: the whole table of methods, each said twice to two controllers (I7).

The second of them is another process as far as anybody can tell: it shares nothing with the first but the database.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import msgspec
import pytest
from google.protobuf.json_format import MessageToDict

from isoloss.controller.access import METHODS, READ
from isoloss.controller.campaign_service import CampaignService, LawService
from isoloss.controller.campaigner import Campaigner
from isoloss.controller.decider import Decider
from isoloss.controller.dispatch import Dispatcher
from isoloss.controller.duty import Bell
from isoloss.controller.fitter import Fitter
from isoloss.controller.study_service import StudyService
from isoloss.controller.work_service import TrialService, WorkerService
from isoloss.domain.ids import CampaignId
from isoloss.store.pool import Pool
from isoloss.v1 import campaign_pb2, common_pb2, study_pb2, work_pb2

InStore = Callable[[Callable[[Pool], Awaitable[Any]]], Any]
KEY = common_pb2.Idempotency(key="said twice")
NAME = study_pb2.StudyName(project="default", name="s")
BIG = campaign_pb2.CampaignName(project="default", name="big")
STUDY: dict[str, Any] = {
    "name": "s", "space": {"x": {"type": "float", "low": 0.0, "high": 1.0}}, "run": {"gpt": {}},
    "desirability": {"loss": {"shape": "smaller", "target": 0, "limit": 1}}, "method": {"min_budget": 1, "max_budget": 9},
}  # fmt: skip
CAMPAIGN: dict[str, Any] = {
    "name": "big", "target": {"n_params": "7B", "n_tokens": "140B"}, "tokens": {"min": "1B", "max": "3B", "eta": 3},
    "sizes": [{"name": "60m", "n_params": "60M"}], "run": {"command": ["train"]},
    "space": {"lr": {"type": "float", "low": 1e-4, "high": 1e-2, "log": True}},
    "fixed": {"batch_tokens": 262144}, "observations": ["own.csv"],
}  # fmt: skip
OWN = [
    {"run": f"{n}-{d}-{lr}", "n_params_count": "non_embedding", "n_params": n * 1e6, "n_tokens": d * 1e9, "lr": lr, "batch_tokens": 262144,
     "loss": 1.7 + 400 / (n * 1e6) ** 0.34 + 410 / (d * 1e9) ** 0.28 + 0.02 * (lr / 1e-3 - 1) ** 2}
    for n in (60, 120) for d in (1, 3) for lr in (5e-4, 1e-3, 2e-3)
]  # fmt: skip


REGISTER = work_pb2.RegisterRequest(worker_id="w", incarnation="i", slots=3, allowed=work_pb2.Allowed(gpt=True))
ASK = work_pb2.AskRequest(study=NAME, holder="p")
CHECKPOINT = common_pb2.Checkpoint(step=1, path="/a", manifest_json='{"w": 1}')
COMPLETE: dict[str, Any] = {"complete": common_pb2.Ending.Complete(values={"loss": 0.5}, checkpoint=CHECKPOINT)}
FAIL: dict[str, Any] = {"fail": common_pb2.Ending.Fail(retryable=True, message="boom")}
SERIES = common_pb2.Series(metric="loss", first=1, stride=1, samples=[0.5])


class House:
    """The services of one controller, without its duties: nothing moves but what is called."""

    def __init__(self, pool: Pool, executor: Executor) -> None:
        bell, ttl = Bell(), timedelta(seconds=30)
        decider = Decider(pool, bell, ttl)
        dispatcher = Dispatcher(pool, decider, bell, ttl)
        fitter = Fitter(pool, bell, executor)
        self.campaigner = Campaigner(pool, bell, decider, fitter)
        self.services: dict[str, Any] = {
            "StudyService": StudyService(pool, decider, bell, dispatcher.health),
            "TrialService": TrialService(dispatcher), "WorkerService": WorkerService(dispatcher),
            "CampaignService": CampaignService(pool, decider, bell),
            "LawService": LawService(pool, fitter),
        }  # fmt: skip

    async def call(self, method: str, request: Any) -> Any:
        service, _, name = method.partition("/")
        return await getattr(self.services[service], name)(request, None)

    async def study(self, then: str = "") -> study_pb2.StudyName:
        """There is a study, and perhaps one call that takes its name was made."""
        await self.call("StudyService/CreateStudy", creating())
        if then:
            await self.call(f"StudyService/{then}", NAME)
        return NAME

    async def campaign(self) -> campaign_pb2.CampaignName:
        launched = await self.call("CampaignService/LaunchCampaign", launching())
        await self.campaigner.advance(CampaignId(launched.id))
        return BIG

    async def worker(self) -> None:
        await self.call("WorkerService/Register", REGISTER)

    async def lease(self, slots: int = 1) -> list[common_pb2.LeaseKey]:
        await self.study()
        await self.worker()
        reply = await self.call(
            "WorkerService/Lease", work_pb2.LeaseRequest(worker_id="w", incarnation="i", slots=slots)
        )
        return [lease.key for lease in reply.leases]

    async def ending(self, *, cancelled: bool = False, **outcome: Any) -> work_pb2.FinishRequest:
        (key,) = await self.lease()
        if cancelled:
            await self.call("StudyService/StopStudy", study_pb2.StopStudyRequest(study=NAME))
        return work_pb2.FinishRequest(endings=[common_pb2.Ending(key=key, series=[SERIES], **outcome)])

    async def changing(self, **change: Any) -> study_pb2.ChangeStudyRequest:
        """A change of a study with two results and a failed task."""
        outcomes: tuple[dict[str, Any], ...] = (COMPLETE, COMPLETE, {"fail": common_pb2.Ending.Fail()})
        endings = [common_pb2.Ending(key=key, **said) for key, said in zip(await self.lease(3), outcomes, strict=True)]
        await self.call("WorkerService/Finish", work_pb2.FinishRequest(endings=endings))
        return study_pb2.ChangeStudyRequest(idempotency=KEY, study=NAME, **change)


def creating() -> study_pb2.CreateStudyRequest:
    return study_pb2.CreateStudyRequest(idempotency=KEY, spec_json=text(STUDY))


def launching() -> campaign_pb2.LaunchCampaignRequest:
    return campaign_pb2.LaunchCampaignRequest(
        idempotency=KEY, spec_json=text(CAMPAIGN), observations_json=[text(run) for run in OWN]
    )


def text(value: Any) -> str:
    return msgspec.json.encode(value).decode()


Prepared = Callable[[House], Awaitable[Any]]  # what there is before the call, and the request of it


def after(there: Callable[[House], Awaitable[Any]], make: Callable[[Any], Any]) -> Prepared:
    async def prepared(house: House) -> Any:
        return make(await there(house))

    return prepared


def of_study(kind: type[Any], **fields: Any) -> Prepared:
    return after(House.study, lambda name: kind(idempotency=KEY, study=name, **fields))


def ending(*, cancelled: bool = False, **outcome: Any) -> Prepared:
    return lambda house: house.ending(cancelled=cancelled, **outcome)


def changing(**change: Any) -> Prepared:
    return lambda house: house.changing(**change)


def beating(keys: list[common_pb2.LeaseKey]) -> work_pb2.HeartbeatRequest:
    return work_pb2.HeartbeatRequest(worker_id="w", keys=keys, checkpoint_root="/a")


def reporting(keys: list[common_pb2.LeaseKey]) -> work_pb2.ReportRequest:
    held = [work_pb2.HeldCheckpoint(key=key, checkpoint=CHECKPOINT) for key in keys]
    return work_pb2.ReportRequest(
        batches=[common_pb2.SeriesBatch(key=key, series=[SERIES]) for key in keys], checkpoints=held
    )


async def nothing(_: House) -> None:
    """There is nothing before the call."""


VALUE = common_pb2.Value(number=0.5)
ENQUEUED = study_pb2.Configurations(configurations=[study_pb2.Configuration(params={"x": VALUE})])
CASES: dict[str, dict[str, Prepared]] = {  # method: its ways to be called
    "StudyService/CreateStudy": {"": after(nothing, lambda _: creating())},
    "StudyService/DeepenStudy": {"": of_study(study_pb2.DeepenStudyRequest, max_budget=27)},
    "StudyService/AddTrial": {"": of_study(study_pb2.AddTrialRequest, params={"x": VALUE})},
    "StudyService/StopStudy": {"": of_study(study_pb2.StopStudyRequest)},
    "StudyService/PauseStudy": {"": House.study},
    "StudyService/ResumeStudy": {"": lambda house: house.study(then="PauseStudy")},
    "StudyService/ChangeStudy": {
        "width": changing(width=2), "enqueue": changing(enqueue=ENQUEUED),
        "space_json": changing(space_json=text({"x": {"type": "float", "low": -1.0, "high": 1.0}})),
        "retry": changing(retry=study_pb2.TrialNumbers(trials=[2])),
        "desirability_json": changing(desirability_json=text({"loss": {"shape": "smaller", "target": 0, "limit": 2}})),
        "confirm_json": changing(confirm_json=text({"finalists": 2})),
    },
    "CampaignService/LaunchCampaign": {"": after(nothing, lambda _: launching())},
    "CampaignService/DeepenCampaign": {
        "": after(House.campaign, lambda name: campaign_pb2.DeepenCampaignRequest(idempotency=KEY, campaign=name, max_tokens=9e9))
    },
    "CampaignService/ConfirmCampaign": {"": House.campaign},
    "CampaignService/StopCampaign": {"": House.campaign},
    "LawService/FitLaw": {
        "": after(House.campaign, lambda name: campaign_pb2.FitLawRequest(campaign=name, form="campaign"))
    },
    "TrialService/Ask": {"": after(House.study, lambda _: ASK)},
    "TrialService/Heartbeat": {"": after(House.lease, beating)},
    "TrialService/Report": {"": after(House.lease, reporting)},
    "TrialService/Tell": {"complete": ending(**COMPLETE), "fail": ending(**FAIL)},
    "TrialService/TellAndAsk": {"": after(ending(**COMPLETE), lambda told: work_pb2.TellAndAskRequest(tell=told, ask=ASK))},
    "WorkerService/Register": {"": after(nothing, lambda _: REGISTER)},
    "WorkerService/Lease": {"": after(lambda house: house.lease(), lambda keys: work_pb2.LeaseRequest(worker_id="w", incarnation="i", slots=2, holding=[keys[0].task_id]))},
    "WorkerService/Heartbeat": {"": after(House.lease, beating)},
    "WorkerService/Report": {"": after(House.lease, reporting)},
    "WorkerService/Finish": {
        "complete": ending(**COMPLETE), "diverge": ending(diverge=common_pb2.Ending.Diverge(step=1)),
        "fail": ending(**FAIL), "fail for good": ending(fail=common_pb2.Ending.Fail()),
        "release": ending(release=common_pb2.Ending.Release(checkpoint=CHECKPOINT)),
        "cancelled": ending(cancelled=True, **COMPLETE),
        "cancelled, released": ending(cancelled=True, release=common_pb2.Ending.Release()),
    },
    "WorkerService/Drain": {"": after(House.worker, lambda _: work_pb2.DrainRequest(worker_id="w"))},
}  # fmt: skip
LOOKS = {"WorkerService/Wanted"}  # workers may ask it, and it changes nothing
WRITES = {method.removeprefix("/isoloss.v1.") for method, rule in METHODS.items() if rule.roles != READ} - LOOKS
MOVES = ["seen_at", "expires_at", "secret_hash", "at"]  # what a repetition may renew
TABLES = """
    SELECT relname FROM pg_class WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace
       AND relname NOT IN ('migration', 'control_plane', 'dedup') ORDER BY 1"""


async def rows(pool: Pool) -> dict[str, list[Any]]:
    """Every row there is, without what a repetition may renew."""
    async with pool.connection() as conn:
        tables = [row[0] for row in await (await conn.execute(TABLES)).fetchall()]
        found = {}
        for table in tables:
            query = f"SELECT (to_jsonb(t) - %s::text[])::text FROM {table} t ORDER BY 1".encode()
            found[table] = await (await conn.execute(query, [MOVES])).fetchall()
        return found


def answer(reply: Any) -> Any:
    """A reply without the secrets of its leases, which are new each time."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(one) for key, one in value.items() if key != "secret"}
        return [plain(one) for one in value] if isinstance(value, list) else value

    return plain(MessageToDict(reply))


def test_every_method_that_writes_is_in_this_table_with_all_it_may_say() -> None:
    assert set(CASES) == WRITES
    changes = study_pb2.ChangeStudyRequest.DESCRIPTOR.oneofs_by_name["change"].fields
    assert set(CASES["StudyService/ChangeStudy"]) == {field.name for field in changes}


@pytest.mark.parametrize(("method", "way"), [(method, way) for method, ways in CASES.items() for way in ways])
def test_a_call_made_again_changes_nothing_more_and_is_answered_the_same(
    in_store: InStore, method: str, way: str
) -> None:
    async def body(pool: Pool) -> None:
        with ThreadPoolExecutor(1) as executor:
            first, second = House(pool, executor), House(pool, executor)
            request = await CASES[method][way](first)
            before = await rows(pool)
            reply = await first.call(method, request)
            once = await rows(pool)
            assert once != before or method.endswith("Heartbeat"), "it writes"
            again = await second.call(method, request)
            assert await rows(pool) == once
            assert answer(again) == answer(reply)

    in_store(body)
