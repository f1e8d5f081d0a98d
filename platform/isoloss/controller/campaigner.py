"""The campaigner: executes what ``laws/plan.py`` decides, under the campaign's row lock, so that it happens once."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from concurrent.futures import BrokenExecutor
from typing import Any, Final

import structlog

from isoloss.controller import decider as deciding
from isoloss.controller.decider import Decider
from isoloss.controller.duty import Bell
from isoloss.controller.fitter import FORM, Fitter, observations
from isoloss.domain.campaign import (
    TARGET,
    CampaignSpec,
    Size,
    decode_campaign,
    deepen_to,
    deepenings,
    largest,
    levels_added,
    n_params_of,
    study_of,
    target_study,
)
from isoloss.domain.ids import CampaignId
from isoloss.domain.space import Choice, Range, Scalar, active
from isoloss.domain.spec import StudySpec, encode
from isoloss.domain.study import CampaignState, StudyState
from isoloss.errors import AlreadyExists, FitFailed, IsolossError, WrongState
from isoloss.laws.plan import (
    CONFIRMATION,
    AddTrial,
    BuyColumn,
    CampaignView,
    Deepen,
    Finish,
    LaunchStudy,
    Move,
    Stop,
    StudyView,
    nearest,
    next_moves,
)  # fmt: skip
from isoloss.search.events import Deepened, Stopped, TrialAdded
from isoloss.search.geometry import campaign_cells, confirmable, ladder_of, plan_of
from isoloss.search.preview import preview
from isoloss.store import campaigns, limits, studies
from isoloss.store.campaigns import CampaignRow
from isoloss.store.pool import Conn, Pool
from isoloss.store.studies import StudyRow

log = structlog.get_logger()
PAUSE: Final = 0.05
IDLE_PAUSE: Final = 0.5  # as long as there is no campaign: the rings are all of others' studies
LEAST_OF_A_RING: Final = 3  # different runs: the space is too coarse, or its edge too near, to learn from fewer
CONFIRMED: Final = "confirmed"  # the form under which the forecast of the confirmed cell is kept


class Campaigner:
    """Moves every live campaign on."""

    name: Final = "campaigner"
    seconds: Final = 1.0

    def __init__(self, pool: Pool, bell: Bell, decider: Decider, fitter: Fitter) -> None:
        self.pool = pool
        self.bell = bell
        self.decider = decider
        self.fitter = fitter
        self.pause = IDLE_PAUSE

    async def once(self) -> int:
        """Make the moves that are due; returns how many."""
        async with self.pool.connection() as conn:
            rows = await campaigns.listed(conn, live=True)
        self.pause = PAUSE if rows else IDLE_PAUSE
        made = 0
        for row in rows:
            try:
                made += await self.advance(row.id)
            except (IsolossError, BrokenExecutor) as error:  # one campaign's trouble is not the others'
                log.warning("campaign.not_moved", campaign=row.name, error=str(error))
        return made

    async def advance(self, campaign_id: CampaignId) -> int:
        """The due moves of one campaign, made under its lock; a fit they need is made before it."""
        await self._refit_if_idle(campaign_id)
        spent, offer = await self._offer(campaign_id)
        async with self.pool.connection() as conn:
            row = await campaigns.lock(conn, campaign_id)
            if row.state not in (CampaignState.SEARCHING, CampaignState.CONFIRMING):
                return 0
            spec = decode_campaign(row.spec)
            rows = await studies.listed(conn, campaign_id=row.id)
            view = await _view(conn, spec, row, rows)
            fresh = spent == await campaigns.bought(conn, row.id)  # else another controller has bought meanwhile
            moves = next_moves(view, await _forecast(conn, spec, row, rows), offer if fresh else ())
            for move in moves:
                await self._make(conn, spec, row, rows, move)
        if moves:
            self.bell.ring()
        if any(isinstance(move, Stop) for move in moves):
            await self.fitter.refit(row)  # it is not live any more, and its last forecast has to see everything
        return len(moves)

    async def _refit_if_idle(self, campaign_id: CampaignId) -> None:
        """Once nothing runs, the forecast must have seen everything that was observed."""
        async with self.pool.connection() as conn:
            row = await campaigns.lock(conn, campaign_id)
            sizes = [study for study in await studies.listed(conn, campaign_id=row.id) if study.size != TARGET]
        if sizes and all(study.state == StudyState.IDLE for study in sizes):
            await self.fitter.refit(row)

    async def _offer(self, campaign_id: CampaignId) -> tuple[float, tuple[AddTrial, ...]]:
        """What single runs have cost so far, and those worth buying next once all sizes are idle."""
        async with self.pool.connection() as conn:
            row = await campaigns.lock(conn, campaign_id)
            spec = decode_campaign(row.spec)
            spent = await campaigns.bought(conn, row.id)
            members = await studies.listed(conn, campaign_id=row.id)
            found = await campaigns.newest_fit(conn, row.id, "lr-batch")
            # once the target's study is there too, nothing more is bought
            idle = len(members) == len(spec.sizes) and all(study.state == StudyState.IDLE for study in members)
            trials = sum([(await studies.counts(conn, study.id))[0] for study in members])
        if spec.plan is None or found is None or not idle or spent >= float(spec.plan.flops):
            return spent, ()
        loop, left = asyncio.get_running_loop(), float(spec.plan.flops) - spent
        work = (row.spec, row.max_tokens, found[1], left, trials)
        return spent, await loop.run_in_executor(self.fitter.executor, buyable, *work)

    async def _make(
        self, conn: Conn, spec: CampaignSpec, row: CampaignRow, rows: Sequence[StudyRow], move: Move
    ) -> None:
        match move:
            case LaunchStudy():
                if move.size == TARGET:
                    await self._confirm(conn, spec, row)
                else:
                    size = next(size for size in spec.sizes if size.name == move.size)
                    n_params = n_params_of(spec, size, size.name)
                    await _launch(conn, row, study_of(spec, size), size=size.name, n_params=n_params)
            case BuyColumn():
                await buy_column(conn, spec, row, move.max_tokens)
            case Deepen():
                await self.decider.decide(_of(rows, move.size).id, events=[Deepened(max_budget=move.max_tokens)])
            case AddTrial():
                wanted = TrialAdded(configuration=runnable(spec, move.params), level=move.level)
                await self.decider.decide(_of(rows, move.size).id, events=[wanted])
            case Finish():
                await campaigns.set_state(conn, row.id, CampaignState.DONE, reason=move.reason)
            case Stop():
                await stop(conn, self.decider, row, move.reason)
        log.info("campaign.moved", campaign=row.name, move=type(move).__name__)

    async def _confirm(self, conn: Conn, spec: CampaignSpec, row: CampaignRow) -> None:
        """Begin the study of the cell to confirm, and keep what the laws say of it now: its outcome is held against that."""
        size, n_params, n_tokens = await _cell(conn, spec, row)
        await _launch(conn, row, target_study(spec, size, n_tokens), size=TARGET, n_params=n_params)
        await campaigns.set_state(conn, row.id, CampaignState.CONFIRMING)
        rows, loop = await observations(conn, row), asyncio.get_running_loop()
        body = await loop.run_in_executor(self.fitter.executor, foretold, row.spec, rows, n_params, n_tokens)
        found = await campaigns.newest_fit(conn, row.id, FORM)
        await campaigns.save_fit(conn, row.id, CONFIRMED, found[0] if found else "", body)


async def _forecast(
    conn: Conn, spec: CampaignSpec, row: CampaignRow, rows: Sequence[StudyRow]
) -> Mapping[str, Any] | None:
    """The forecast to confirm: frozen once its study is there, before that the newest for the target."""
    if any(study.size == TARGET for study in rows):
        frozen = await campaigns.newest_fit(conn, row.id, CONFIRMED)
        if frozen:
            return frozen[1]
    target = n_params_of(spec, spec.target, TARGET), float(spec.target.n_tokens)
    found = await campaigns.newest_forecast(conn, row.id, *target)
    return found[0] if found else None


def foretold(
    mapping: Mapping[str, Any], rows: list[dict[str, Any]], n_params: float, n_tokens: float
) -> dict[str, Any]:
    """What the laws say of a cell from every run but its own; runs in the process pool."""
    from isoloss.laws.campaign import fit_campaign
    from isoloss.laws.observation import Observations

    seen, seed = Observations.from_rows(rows), decode_campaign(mapping).seed
    others = seen.select((seen.n_params != n_params) | (seen.n_tokens != n_tokens))
    try:
        return fit_campaign(others, seed=seed).forecast(n_params, n_tokens).to_mapping()
    except FitFailed:  # its own runs are needed for a fit: then that is said
        found = fit_campaign(seen, seed=seed).forecast(n_params, n_tokens).to_mapping()
        return found | {"warnings": ["this cell's own runs are among those fitted", *found["warnings"]]}


def buyable(
    mapping: Mapping[str, Any], max_tokens: int, fit: Mapping[str, Any], budget: float, trials: int
) -> tuple[AddTrial, ...]:
    """The best purchase of ``budget`` FLOPs in the cells of a campaign at ``max_tokens``; empty when none is worth it.

    Runs in the process pool, with plain data in and out. ``trials`` so far turn the ring of runs.
    """
    import numpy as np

    from isoloss.laws.design import GOLDEN, Outlook, purchases
    from isoloss.laws.evidence import Fit

    spec = decode_campaign(mapping)
    target = n_params_of(spec, spec.target, TARGET), float(spec.target.n_tokens)
    places = campaign_cells(spec, max_tokens)
    cheaper = [place for place, (n, d) in places.items() if n * d < target[0] * target[1]]
    if not cheaper:
        return ()
    outlook = Outlook.by(Fit.from_mapping(fit), np.array([places[place] for place in cheaper]), target)
    offers = purchases(outlook, budget, turn=GOLDEN * trials)
    if not offers or (spec.plan is not None and spec.plan.thrifty and not offers[0].worth):
        return ()
    size_name, level = cheaper[offers[0].cell]
    wanted = offers[0].to_mapping()["runs"]
    snapped = [runnable(spec, run) for run in wanted]
    distinct = [run for place, run in enumerate(wanted) if snapped[place] not in snapped[:place]]
    if len(distinct) < LEAST_OF_A_RING:
        return ()
    return tuple(AddTrial(params=run, size=size_name, level=level) for run in distinct)


async def stop(conn: Conn, decider: Decider, row: CampaignRow, reason: str = "") -> None:
    """End a campaign and its studies for good, all of it or nothing; under its lock. What has ended keeps its reason."""
    if row.state == CampaignState.STOPPED:
        return
    for study in await studies.listed(conn, campaign_id=row.id):
        if study.state != StudyState.STOPPED:
            said = f"campaign {row.name} was stopped" + (f": {reason}" if reason else "")
            await decider.decide_within(conn, study.id, Stopped(reason=said))
    await campaigns.set_state(conn, row.id, CampaignState.STOPPED, reason=reason)


async def exhausted(conn: Conn, spec: CampaignSpec, row: CampaignRow) -> tuple[str, str]:
    """The limit that is used up, and the one that runs of any cell would exceed; each empty when there is none."""
    most = {name: value for name, value in encode(spec.limits).items() if value is not None}
    if not most:
        return "", ""
    used = await limits.used(conn, row.id)
    spent = next((limits.said(name, used[name], value) for name, value in most.items() if used[name] >= value), "")
    spent = spent or await limits.refused(conn, row.id)
    left = await limits.left(conn, row.id, spec.limits)
    if spent or confirmable(spec, row.max_tokens, left.left / CONFIRMATION) is not None:
        return spent, spent
    return "", f"{left.limit}: {left.left:.3g} FLOPs are left, and {CONFIRMATION} runs of the cheapest cell take more"


async def _cell(conn: Conn, spec: CampaignSpec, row: CampaignRow) -> tuple[Size | None, float, float]:
    """The cell to confirm with what is left of the limits: the target's, or the dearest that three runs can afford."""
    left = await limits.left(conn, row.id, spec.limits)
    found = confirmable(spec, row.max_tokens, left.left / CONFIRMATION)
    return found or (None, n_params_of(spec, spec.target, TARGET), float(spec.target.n_tokens))


async def buy_column(conn: Conn, spec: CampaignSpec, row: CampaignRow, max_tokens: int) -> None:
    """Raise the campaign's largest D and note what that adds, and what starting again would cost; under its lock."""
    if row.state not in (CampaignState.SEARCHING, CampaignState.CONFIRMING, CampaignState.DONE):
        raise WrongState(f"Campaign {row.name!r} is {row.state}; accepted is one that is not stopped.")
    spent, _ = await exhausted(conn, spec, row)
    if spent:
        raise WrongState(f"Campaign {row.name!r} has used what it may ({spent}); accepted is one below its limits.")
    if max_tokens <= row.max_tokens:
        raise WrongState(f"max_tokens is {max_tokens} and the campaign is at {row.max_tokens}; accepted is more.")
    biggest = largest(spec)
    plan = plan_of(study_of(spec, biggest))
    for maximum in [*deepenings(spec, biggest, max_tokens)[:-1], float(max_tokens)]:
        plan = plan.deepened(maximum)
    added = restart = 0.0
    for size in spec.sizes:
        steps, study = deepenings(spec, size, max_tokens), study_of(spec, size)
        costs = [preview(study, steps[: k + 1]) for k in range(levels_added(spec, row.max_tokens), len(steps))]
        added += sum(cost["added_resumed_budget"] for cost in costs)
        restart += costs[-1]["resumed_budget"]
    top = plan.ladder.budget(plan.ladder.top)
    await campaigns.set_deepened(conn, row.id, max_tokens=top, added=added, restart=restart)


async def _view(conn: Conn, spec: CampaignSpec, row: CampaignRow, rows: Sequence[StudyRow]) -> CampaignView:
    by_size = {study.size: study for study in rows}
    target = by_size.get(TARGET)
    spent, unaffordable = await exhausted(conn, spec, row)
    return CampaignView(
        studies=[
            StudyView(
                size=size.name, wanted=_wanted(spec, size, row.max_tokens),
                max_tokens=study.max_budget if (study := by_size.get(size.name)) else 0,
                idle=study is not None and study.state == StudyState.IDLE,
            )
            for size in spec.sizes
        ],
        max_tokens=row.max_tokens, eta=spec.tokens.eta, deepen_to=deepen_to(spec), confirm=row.confirm,
        target_trials=(await studies.counts(conn, target.id))[0] if target else None,
        target_idle=target is not None and target.state == StudyState.IDLE, exhausted=spent, unaffordable=unaffordable,
    )  # fmt: skip


def _wanted(spec: CampaignSpec, size: Size, max_tokens: int) -> int:
    """The largest budget of a size's study in a campaign at ``max_tokens``."""
    ladder = ladder_of(study_of(spec, size)).extended(levels_added(spec, max_tokens))
    return ladder.budget(ladder.top)


async def _launch(conn: Conn, row: CampaignRow, study: StudySpec, *, size: str, n_params: float) -> None:
    created = await deciding.create(
        conn, study, mapping=encode(study), trainable=trainable_of(encode(study)), campaign_id=row.id, size=size,
        n_params=n_params,
    )  # fmt: skip
    if created is None:
        raise AlreadyExists(
            f"Study {study.name!r} exists and is not of campaign {row.name!r}; accepted is a free name."
        )


def trainable_of(spec: Mapping[str, Any]) -> str:
    """What a worker must allow to run a study: its kind and its name, or nothing for the SDK's own studies."""
    run = spec.get("run")
    if not run:
        return ""
    if run.get("gpt"):
        return "gpt"
    return f"function:{run['function']}" if run.get("function") else "command:" + " ".join(run["command"])


def runnable(spec: CampaignSpec, wanted: Mapping[str, float]) -> dict[str, Scalar]:
    """The configuration of the space nearest to what the laws want; other parameters take the middle of their range."""
    configuration: dict[str, Scalar] = {}
    for name, parameter in spec.space.items():
        value = wanted.get(name)
        if value is None:
            configuration[name] = parameter.at(0.5)
        elif isinstance(parameter, Range):
            configuration[name] = min(parameter.high, max(parameter.low, value))
        elif isinstance(parameter, Choice):
            numbers = [float(c) for c in parameter.choices if isinstance(c, int | float)]
            configuration[name] = parameter.choices[numbers.index(nearest(value, numbers))]
    return active(spec.space, configuration)


def _of(rows: Sequence[StudyRow], size: str) -> StudyRow:
    return next(row for row in rows if row.size == size)
