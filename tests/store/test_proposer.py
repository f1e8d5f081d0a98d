"""The proposer: every study has its model's proposals, and a model that fails is its own study's trouble alone."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from concurrent.futures import BrokenExecutor, ThreadPoolExecutor
from typing import Any

import pytest
from structlog.testing import capture_logs

from isoloss.controller import decider as deciding
from isoloss.controller import proposer as proposing
from isoloss.controller.decider import Decider
from isoloss.controller.duty import Bell
from isoloss.controller.proposer import Proposer
from isoloss.domain.ids import StudyId
from isoloss.domain.spec import StudySpec, decode_study, encode
from isoloss.errors import InvalidSpec
from isoloss.search.answers import ProposalRequest
from isoloss.search.events import Proposed
from isoloss.search.proposals import propose
from isoloss.store.pool import Pool

InStore = Callable[[Callable[[Pool], Awaitable[Any]]], Any]


def study(name: str) -> StudySpec:
    space = {"x": {"type": "float", "low": 0.1, "high": 1}}
    method = {"name": "fixed", "budget": 1, "sampler": "law", "prior": {"x": {"center": 0.5}}}
    return decode_study({"name": name, "space": space, "objective": {"metric": "loss"}, "method": method})


async def launched(pool: Pool, *names: str) -> list[StudyId]:
    ids = []
    for name in names:
        async with pool.connection() as conn:
            row = await deciding.create(conn, study(name), mapping=encode(study(name)), trainable="")
        assert row is not None
        ids.append(row.id)
    return ids


@pytest.mark.parametrize("error", [InvalidSpec("method.sampler is law, which failed."), BrokenExecutor("killed")])
def test_a_failing_model_stops_no_other_study_and_is_asked_again_later(
    in_store: InStore, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    asked: list[str] = []

    def model(spec: StudySpec, request: ProposalRequest) -> Proposed:
        asked.append(spec.name)
        if spec.name == "bad" and asked.count("bad") < 3:
            raise error
        return propose(spec, request)

    monkeypatch.setattr(proposing, "propose", model)

    async def body(pool: Pool) -> None:
        decider = Decider(pool, Bell())
        bad, good, last = await launched(pool, "bad", "good", "last")
        with ThreadPoolExecutor(1) as executor:
            proposer = Proposer(pool, decider, executor)
            with capture_logs() as logs:
                assert await proposer.once() == 16
            assert sorted(asked) == ["bad", "good", "last"]
            said = [entry for entry in logs if entry["event"] == "proposer.failed"]
            assert [(e["study"], e["sampler"], e["asked_again_in"]) for e in said] == [("bad", "law", 2.0)]
            for study_id in (bad, good, last):
                assert (await decider.decide(study_id, ask=8)).created == 8, "an ask never waits for a model"
            await proposer.once()
            assert asked.count("bad") == 1, "not in a hot loop, however long its ledger"
            for times in (2, 3):
                await passed(proposer, bad)
                await proposer.once()
                assert asked.count("bad") == times
            assert bad not in proposer._failed
            assert sources(await decider.search(bad)) == {"random"}
            assert sources(await decider.search(good)) == {"random", "law"}

    in_store(body)


async def passed(proposer: Proposer, study_id: StudyId) -> None:
    """The pause is over."""
    times, again = proposer._failed[study_id]
    assert again > asyncio.get_running_loop().time() + 2.0**times - 1
    proposer._failed[study_id] = (times, 0.0)


def sources(search: Any) -> set[str]:
    return {search.trial(number).source for number in range(search.trials)}
