"""The fitter: refits a campaign's laws when its observations changed, at most every few seconds, in another process."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections import defaultdict
from concurrent.futures import BrokenExecutor, Executor
from typing import Any, Final

import msgspec
import structlog

from isoloss.controller.duty import Bell
from isoloss.domain.campaign import TARGET, CampaignSpec, decode_campaign, n_params_of
from isoloss.domain.ids import CampaignId
from isoloss.domain.space import Scalar
from isoloss.errors import FitFailed, IsolossError
from isoloss.store import campaigns
from isoloss.store.campaigns import CampaignRow
from isoloss.store.pool import Conn, Pool

log = structlog.get_logger()
EVERY_SECONDS: Final = 5.0
SHARE: Final = 0.1  # of one core: a fit that took long is not made again soon
LEAST: Final = 8  # observations before the first fit: fewer say nothing
FORM: Final = "campaign"  # the joint fit, under which a campaign's newest evidence is kept
PICTURES: Final = "pictures"  # what the page draws of it


class Fitter:
    """Keeps every live campaign's laws and its forecast for the target up to date."""

    name: Final = "fitter"
    seconds: Final = EVERY_SECONDS
    pause: Final = 0.5  # rings are mostly others' results, and a fit waits for seconds anyway

    def __init__(self, pool: Pool, bell: Bell, executor: Executor) -> None:
        self.pool = pool
        self.bell = bell
        self.executor = executor
        self._fitted: dict[CampaignId, tuple[float, str]] = {}  # when to look again, what was seen
        self._locks: defaultdict[CampaignId, asyncio.Lock] = defaultdict(asyncio.Lock)

    async def once(self) -> int:
        """Refit the campaigns whose observations changed; always 0, so that the loop rests in between."""
        async with self.pool.connection() as conn:
            rows = await campaigns.listed(conn, live=True)
        for row in rows:
            if time.monotonic() >= self._fitted.get(row.id, (0.0, ""))[0]:
                try:
                    await self.refit(row)
                except IsolossError as error:  # one campaign's trouble is not the others'
                    log.warning("law.not_fitted", campaign=row.name, reason=error.message)
        return 0

    async def refit(self, row: CampaignRow) -> bool:
        """Fit what the campaign has observed; returns whether there was anything new to fit."""
        async with self._locks[row.id]:  # an older fit is never saved after a newer one
            return await self._refit(row)

    async def _refit(self, row: CampaignRow) -> bool:
        async with self.pool.connection() as conn:
            rows = await observations(conn, row)
        key = hashlib.sha256(msgspec.json.encode(rows)).hexdigest()
        if len(rows) < LEAST or self._fitted.get(row.id, (0.0, ""))[1] == key:
            return False
        begun = time.monotonic()
        try:
            fitted = await asyncio.get_running_loop().run_in_executor(self.executor, fit, row.spec, rows)
        except (IsolossError, BrokenExecutor) as error:  # broken: the process was killed, perhaps for its memory
            log.info("law.not_fitted", campaign=row.name, reason=str(error))
            self._fitted[row.id] = (begun + EVERY_SECONDS, key)
            return False
        await self._save(row, fitted)
        took = time.monotonic() - begun
        self._fitted[row.id] = (begun + max(EVERY_SECONDS, took / SHARE), key)
        log.info("law.fitted", campaign=row.name, observations=len(rows))
        self.bell.ring()
        return True

    async def _save(self, row: CampaignRow, fitted: dict[str, Any]) -> None:
        spec = decode_campaign(row.spec)
        async with self.pool.connection() as conn:
            await campaigns.save_fit(conn, row.id, FORM, fitted["hash"], fitted["campaign"])
            await campaigns.save_fit(conn, row.id, PICTURES, fitted["hash"], fitted["pictures"])
            for form, body in fitted["fits"].items():
                await campaigns.save_fit(conn, row.id, form, fitted["hash"], body)
            await campaigns.save_forecast(
                conn, row.id, n_params=n_params_of(spec, spec.target, TARGET), n_tokens=float(spec.target.n_tokens),
                n_observations=fitted["n"], observation_hash=fitted["hash"], body=fitted["forecast"],
            )  # fmt: skip


async def observations(conn: Conn, row: CampaignRow) -> list[dict[str, Any]]:
    """What the laws see, as rows of `isoloss law`: the runs the user owned before, then the campaign's."""
    spec = decode_campaign(row.spec)
    own = [{**one, **spec.stamp} for one in await campaigns.own(conn, row.id)]
    return own + observed(spec, await campaigns.results(conn, row.id))


def observed(spec: CampaignSpec, results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The campaign's results as rows; the target's own cell is the outcome and never among them."""
    rows = []
    for result in results:
        if result["size"] == TARGET:
            continue
        loss = result["values"].get(spec.objective.metric)
        rows.append(
            {
                "run": result["run"], "n_params": result["n_params"], "n_tokens": result["n_tokens"],
                "lr": _parameter(result, "lr"), "batch_tokens": _parameter(result, "batch_tokens"),
                "loss": loss if result["status"] == "ok" else None, "status": result["status"],
                "seed": spec.seed + result["repeat"], **spec.stamp,
            }
        )  # fmt: skip
    return rows


def _parameter(result: dict[str, Any], name: str) -> Scalar | None:
    """A parameter of a run: searched, fixed for the study, or the built-in GPT's own."""
    gpt = (result["spec"].get("run") or {}).get("gpt") or {}
    for source in (result["params"], result["spec"]["fixed"], gpt):
        if name in source:
            value: Scalar = source[name]
            return value
    return None


def fit(spec_mapping: dict[str, Any], rows: list[dict[str, Any]]) -> dict[str, Any]:
    """All laws of a campaign, its forecast and its pictures; runs in the process pool.

    Raises ``FitFailed`` whatever goes wrong: one campaign's trouble is not the others'.
    """
    try:
        return _fit(decode_campaign(spec_mapping), rows)
    except IsolossError:
        raise
    except Exception as error:
        raise FitFailed(f"the laws failed with {type(error).__name__}: {error}.") from error


def _fit(spec: CampaignSpec, rows: list[dict[str, Any]]) -> dict[str, Any]:
    from isoloss.laws.campaign import fit_campaign
    from isoloss.laws.observation import Observations
    from isoloss.laws.pictures import pictures

    seen = Observations.from_rows(rows)
    fitted = fit_campaign(seen, seed=spec.seed)
    target = n_params_of(spec, spec.target, TARGET), float(spec.target.n_tokens)
    found = fitted.forecast(*target)
    return {
        "pictures": pictures(fitted.fits, seen, target),
        "hash": fitted.observation_hash, "n": fitted.n_observations, "campaign": fitted.to_mapping(),
        "forecast": found.to_mapping(), "fits": {one.form: one.to_mapping() for one in fitted.fits},
    }  # fmt: skip
