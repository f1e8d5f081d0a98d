"""A campaign's columns on a real Postgres: bought once, to budgets that are whole steps."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import msgspec
import pytest

from isoloss.controller.campaign_service import CampaignService
from isoloss.controller.campaigner import Campaigner, buy_column
from isoloss.controller.decider import Decider
from isoloss.controller.duty import Bell
from isoloss.controller.fitter import Fitter
from isoloss.domain.campaign import campaign_mapping, decode_campaign
from isoloss.domain.ids import CampaignId
from isoloss.errors import InvalidSpec, WrongState
from isoloss.store import campaigns, studies
from isoloss.store.pool import Pool
from isoloss.v1 import campaign_pb2 as pb

InStore = Callable[[Callable[[Pool], Awaitable[Any]]], Any]
SPEC: dict[str, Any] = {
    "name": "big", "target": {"n_params": "7B", "n_tokens": "140B"}, "tokens": {"min": "1B", "max": "3B", "eta": 3},
    "sizes": [{"name": "60m", "n_params": "60M"}, {"name": "120m", "n_params": "120M"}], "run": {"command": ["train"]},
    "space": {"lr": {"type": "float", "low": 1e-4, "high": 1e-2, "log": True},
              "batch_tokens": {"type": "ordinal", "choices": [131072, 262144, 524288]}},
}  # fmt: skip


def test_a_maximum_that_is_no_multiple_of_the_batch_is_deepened_all_the_same(in_store: InStore) -> None:
    async def body(pool: Pool) -> None:
        spec = decode_campaign(SPEC)
        decider = Decider(pool, Bell())
        with ThreadPoolExecutor(1) as executor:
            campaigner = Campaigner(pool, Bell(), decider, Fitter(pool, Bell(), executor))
            async with pool.connection() as conn:
                row = await campaigns.insert(conn, campaign_mapping(spec), max_tokens=2999975936, confirm=False)
            assert row is not None
            assert await campaigner.advance(row.id) == 2
            for _ in range(2):
                async with pool.connection() as conn:
                    row = await campaigns.lock(conn, row.id)
                    await buy_column(conn, spec, row, row.max_tokens * 3)
                assert await campaigner.advance(row.id) == 2
                assert await campaigner.advance(row.id) == 0, "nothing is done twice"
            async with pool.connection() as conn:
                row = await campaigns.lock(conn, row.id)
                found = await studies.listed(conn, campaign_id=row.id)
                with pytest.raises(WrongState, match="accepted is more"):
                    await buy_column(conn, spec, row, row.max_tokens)
                with pytest.raises(InvalidSpec, match="not on the ladder"):
                    await buy_column(conn, spec, row, row.max_tokens * 2)
        assert row.deepened == 2 and row.max_tokens % 524288 == 0
        assert {study.max_budget for study in found} == {row.max_tokens}
        assert abs(row.max_tokens - 27e9) < 524288

    in_store(body)


def test_columns_per_parameter_are_deepened_by_the_same_number_of_levels_in_every_size(in_store: InStore) -> None:
    async def body(pool: Pool) -> None:
        spec = decode_campaign(SPEC | {"tokens": {"per_param": {"min": 5, "max": 45}, "eta": 3, "deepen_to": 135}})
        decider = Decider(pool, Bell())
        service = CampaignService(pool, decider, Bell())
        launch = pb.LaunchCampaignRequest(spec_json=msgspec.json.encode(campaign_mapping(spec)).decode())
        assert (await service.LaunchCampaign(launch, None)).max_tokens == pytest.approx(45 * 120e6, abs=262144)
        with ThreadPoolExecutor(1) as executor:
            campaigner = Campaigner(pool, Bell(), decider, Fitter(pool, Bell(), executor))

            async def budgets() -> list[int]:
                while await campaigner.advance(CampaignId(1)):
                    pass
                async with pool.connection() as conn:
                    return [study.max_budget for study in await studies.listed(conn, campaign_id=CampaignId(1))]

            assert await budgets() == pytest.approx([45 * 60e6, 45 * 120e6], abs=262144)
            wrong = pb.DeepenCampaignRequest(campaign=pb.CampaignName(project="default", name="big"), max_tokens=5e9)
            with pytest.raises(InvalidSpec, match="accepted is max_per_param"):
                await service.DeepenCampaign(wrong, None)
            right = pb.DeepenCampaignRequest(campaign=wrong.campaign, max_per_param=405)
            deepened = await service.DeepenCampaign(right, None)
            assert deepened.max_tokens == pytest.approx(405 * 120e6, abs=262144) and deepened.deepened_tokens > 0
            assert await budgets() == pytest.approx([405 * 60e6, 405 * 120e6], abs=262144)

    in_store(body)
