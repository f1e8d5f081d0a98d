"""Campaigns and laws over the wire."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import msgspec

from isoloss.controller import fitter as fitting
from isoloss.controller.campaigner import CONFIRMED, buy_column, exhausted, stop
from isoloss.controller.decider import Decider
from isoloss.controller.duty import Bell
from isoloss.controller.fitter import Fitter
from isoloss.controller.idempotency import once
from isoloss.domain.campaign import (
    TARGET,
    CampaignSpec,
    campaign_mapping,
    decode_campaign,
    n_params_of,
    study_of,
    target_study,
    wanted_tokens,
)
from isoloss.domain.study import CampaignState
from isoloss.errors import AlreadyExists, FitFailed, InvalidSpec, NotFound, WrongState
from isoloss.laws.campaign import CampaignFit
from isoloss.laws.observation import Observations
from isoloss.laws.plan import Outcome, verdict
from isoloss.search.geometry import plan_of
from isoloss.store import campaigns, studies
from isoloss.store.campaigns import CampaignRow
from isoloss.store.pool import Conn, Pool
from isoloss.store.studies import StudyRow
from isoloss.v1 import campaign_pb2 as pb
from isoloss.v1 import campaign_pb2_grpc
from isoloss.wire.states import to_campaign_state
from isoloss.wire.values import decode_json, to_values

Context = Any  # grpc.aio.ServicerContext, generic in its stubs only
JSON = msgspec.json.Encoder()


class CampaignService(campaign_pb2_grpc.CampaignServiceServicer):
    """Launch, look at, deepen, confirm and stop campaigns."""

    def __init__(self, pool: Pool, decider: Decider, bell: Bell) -> None:
        self.pool = pool
        self.decider = decider
        self.bell = bell

    async def LaunchCampaign(self, request: pb.LaunchCampaignRequest, context: Context) -> pb.Campaign:
        spec = decode_campaign(decode_json(request.spec_json, "spec_json"))
        own = _own(spec, [decode_json(text, "observations_json") for text in request.observations_json])

        async def effect(conn: Conn) -> pb.Campaign:
            mapping = campaign_mapping(spec)
            plan_of(target_study(spec))
            top = max(
                (plan_of(study_of(spec, size)).ladder for size in spec.sizes), key=lambda one: one.budget(one.top)
            )
            row = await campaigns.insert(conn, mapping, max_tokens=top.budget(top.top), confirm=spec.confirm, own=own)
            if row is None:
                row = await campaigns.by_name(conn, spec.project, spec.name)
                _check_same(spec, row, load_if_exists=request.load_if_exists)
                if own != await campaigns.own(conn, row.id):
                    raise AlreadyExists(
                        f"Campaign {spec.name!r} exists with other runs in observations; accepted are equal files or a free name."
                    )
            return await describe(conn, row)

        reply = await once(self.pool, request, pb.Campaign, effect)
        self.bell.ring()
        return reply

    async def GetCampaign(self, request: pb.CampaignName, context: Context) -> pb.Campaign:
        async with self.pool.connection() as conn:
            return await describe(conn, await campaigns.by_name(conn, request.project, request.name))

    async def ListCampaigns(self, request: pb.ListCampaignsRequest, context: Context) -> pb.ListCampaignsReply:
        async with self.pool.connection() as conn:
            rows = await campaigns.listed(conn, project=request.project)
            return pb.ListCampaignsReply(campaigns=[await describe(conn, row) for row in rows])

    async def DeepenCampaign(self, request: pb.DeepenCampaignRequest, context: Context) -> pb.Campaign:
        async def effect(conn: Conn) -> pb.Campaign:
            name = request.campaign
            row = await campaigns.lock(conn, (await campaigns.by_name(conn, name.project, name.name)).id)
            spec = decode_campaign(row.spec)
            wanted = wanted_tokens(spec, max_tokens=request.max_tokens, max_per_param=request.max_per_param)
            await buy_column(conn, spec, row, int(wanted))
            return await describe(conn, await campaigns.by_name(conn, name.project, name.name))

        reply = await once(self.pool, request, pb.Campaign, effect)
        self.bell.ring()
        return reply

    async def ConfirmCampaign(self, request: pb.CampaignName, context: Context) -> pb.Campaign:
        async with self.pool.connection() as conn:
            row = await campaigns.lock(conn, (await campaigns.by_name(conn, request.project, request.name)).id)
            if row.state == CampaignState.STOPPED:
                said = f"stopped ({row.reason})" if row.reason else "stopped"
                raise WrongState(f"Campaign {row.name!r} is {said}, which is final; accepted is one that is not.")
            if (await campaigns.newest_fit(conn, row.id, CONFIRMED)) is not None and row.state == CampaignState.DONE:
                raise WrongState(
                    f"Campaign {row.name!r} was confirmed; accepted is one that was not.",
                    hint="`isoloss campaign show` has the verdict; `campaign plan` the runs to buy by hand.",
                )
            if row.state != CampaignState.CONFIRMING:
                _, beyond = await exhausted(conn, decode_campaign(row.spec), row)
                if beyond:
                    raise WrongState(
                        f"Campaign {row.name!r} cannot confirm ({beyond}); accepted is one with room for it."
                    )
                await campaigns.set_state(conn, row.id, CampaignState.SEARCHING, confirm=True)
            reply = await describe(conn, await campaigns.by_name(conn, request.project, request.name))
        self.bell.ring()
        return reply

    async def StopCampaign(self, request: pb.CampaignName, context: Context) -> pb.Campaign:
        async with self.pool.connection() as conn:
            row = await campaigns.lock(conn, (await campaigns.by_name(conn, request.project, request.name)).id)
            await stop(conn, self.decider, row)
        self.bell.ring()
        return await self.GetCampaign(request, context)

    async def WatchCampaign(self, request: pb.CampaignName, context: Context) -> AsyncIterator[pb.Campaign]:
        before = None
        while True:
            message = await self.GetCampaign(request, context)
            if message != before:
                before = message
                yield message
            if message.state in (pb.CAMPAIGN_STATE_DONE, pb.CAMPAIGN_STATE_STOPPED):
                return
            await self.bell.wait(1.0)

    async def ListObservations(self, request: pb.CampaignName, context: Context) -> pb.ListObservationsReply:
        async with self.pool.connection() as conn:
            row = await campaigns.by_name(conn, request.project, request.name)
            rows = await fitting.observations(conn, row)
        return pb.ListObservationsReply(rows_json=[JSON.encode(r).decode() for r in rows])


class LawService(campaign_pb2_grpc.LawServiceServicer):
    """Laws over a campaign's observations."""

    def __init__(self, pool: Pool, fitter: Fitter) -> None:
        self.pool = pool
        self.fitter = fitter

    async def FitLaw(self, request: pb.FitLawRequest, context: Context) -> pb.LawFit:
        """Refit the campaign now, then answer the form's fit."""
        async with self.pool.connection() as conn:
            row = await campaigns.by_name(conn, request.campaign.project, request.campaign.name)
        await self.fitter.refit(row)
        return await self.GetFit(request, context)

    async def GetFit(self, request: pb.FitLawRequest, context: Context) -> pb.LawFit:
        async with self.pool.connection() as conn:
            row = await campaigns.by_name(conn, request.campaign.project, request.campaign.name)
            found = await campaigns.newest_fit(conn, row.id, request.form)
        if found is None:
            raise NotFound(
                f"Campaign {row.name!r} has no fit of form {request.form!r} yet.", hint="See `isoloss law catalogue`."
            )
        return pb.LawFit(form=request.form, observation_hash=found[0], fit_json=JSON.encode(found[1]).decode())

    async def Forecast(self, request: pb.ForecastRequest, context: Context) -> pb.ForecastReply:
        async with self.pool.connection() as conn:
            row = await campaigns.by_name(conn, request.campaign.project, request.campaign.name)
            found = await campaigns.newest_fit(conn, row.id, fitting.FORM)
        if found is None:
            raise FitFailed(f"Campaign {row.name!r} has too few observations for a fit.", hint="Wait for more cells.")
        spec = decode_campaign(row.spec)
        n_params = request.n_params or n_params_of(spec, spec.target, TARGET)
        body = (
            CampaignFit.from_mapping(found[1])
            .forecast(n_params, request.n_tokens or float(spec.target.n_tokens))
            .to_mapping()
        )
        return pb.ForecastReply(forecast_json=JSON.encode(body).decode())


def _own(spec: CampaignSpec, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The runs the user owned before, as they are stored: checked, and without the recipe, which is the campaign's."""
    if bool(rows) != bool(spec.observations):
        raise InvalidSpec(
            f"observations names {len(spec.observations)} files and {len(rows)} runs came; accepted are both or neither: "
            "the client reads the files."
        )
    found = Observations.from_rows(rows)
    found.check_recipe(spec.stamp)
    return [{k: v for k, v in row.to_row().items() if k not in ("recipe", "n_params_count")} for row in found]


def _check_same(spec: CampaignSpec, row: CampaignRow, *, load_if_exists: bool) -> None:
    if not load_if_exists:
        raise AlreadyExists(
            f"name is {spec.name!r}, a campaign there is already in project {spec.project!r}; accepted is a free name.",
            hint="Or load_if_exists.",
        )
    mine, stored = campaign_mapping(spec), campaign_mapping(decode_campaign(row.spec))
    if different := sorted(key for key in mine if mine[key] != stored[key]):
        raise AlreadyExists(
            f"Campaign {spec.name!r} exists with another {different[0]}; accepted is an equal spec or a free name."
        )


async def describe(conn: Conn, row: CampaignRow) -> pb.Campaign:
    """A campaign's row as a message, with its studies, its forecast and its outcome."""
    spec = decode_campaign(row.spec)
    target = n_params_of(spec, spec.target, TARGET), float(spec.target.n_tokens)
    results = await campaigns.results(conn, row.id)
    flops, _ = await campaigns.cost(conn, row.id)
    forecast = await campaigns.newest_forecast(conn, row.id, *target)
    members = await studies.listed(conn, campaign_id=row.id)
    own = len(await campaigns.own(conn, row.id))
    frozen = await campaigns.newest_fit(conn, row.id, CONFIRMED)
    said = verdict(frozen[1], _ended(results, spec)) if frozen else ("", "")
    return pb.Campaign(
        id=row.id, project=row.project, name=row.name, state=to_campaign_state(CampaignState(row.state)),
        spec_json=JSON.encode(row.spec).decode(), max_tokens=row.max_tokens,
        studies=[await _study(conn, study, spec, results) for study in members],
        observations=own + sum(result["size"] != TARGET for result in results), own_observations=own,
        forecast_json=JSON.encode(forecast[0]).decode() if forecast else "",
        outcomes=[_outcome(result, spec) for result in results if result["size"] == TARGET],
        searched_flops=flops, target_flops=6 * target[0] * target[1], deepened_tokens=row.deepened_tokens,
        restart_tokens=row.restart_tokens, deepened=row.deepened, reason=row.reason,
        verdict=said[0], verdict_reason=said[1], confirmed_json=JSON.encode(frozen[1]).decode() if frozen else "",
    )  # fmt: skip


def _ended(results: list[dict[str, Any]], spec: CampaignSpec) -> dict[int, Outcome]:
    """The confirmation's runs by their place in it."""
    return {
        result["index"]: Outcome(
            lr=result["params"]["lr"], status=result["status"],
            loss=result["values"].get(spec.objective.metric) if result["status"] == "ok" else None,
        )
        for result in results
        if result["size"] == TARGET
    }  # fmt: skip


async def _study(conn: Conn, study: StudyRow, spec: CampaignSpec, results: list[dict[str, Any]]) -> pb.CampaignStudy:
    trials, counted = await studies.counts(conn, study.id)
    losses = [r["values"][spec.objective.metric] for r in results if r["size"] == study.size and r["status"] == "ok"]
    return pb.CampaignStudy(
        name=study.name, size=study.size or "", n_params=study.n_params or 0.0, state=study.state, trials=trials,
        tasks_done=sum(counted.get(state, 0) for state in ("done", "failed", "cancelled")),
        tasks_open=sum(counted.get(state, 0) for state in ("ready", "leased", "cancelling")),
        has_best=bool(losses), best=min(losses, default=0.0), max_budget=study.max_budget,
    )  # fmt: skip


def _outcome(result: dict[str, Any], spec: CampaignSpec) -> pb.Outcome:
    return pb.Outcome(
        params=to_values(result["params"]), status=result["status"],
        loss=result["values"].get(spec.objective.metric) if result["status"] == "ok" else None,
        index=result["index"],
    )  # fmt: skip
