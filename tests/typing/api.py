"""The public types are a promise: this file is checked by mypy, and never run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, assert_type

import isoloss
from isoloss.client.answers import BestTrial, StudyInfo
from isoloss.search import Driver


def train(trial: isoloss.Trial) -> None:
    """What a user writes."""
    for step in trial.steps():
        assert_type(step, int)
        trial.report(step, val_loss=1.0)


def notebook() -> None:
    """What a notebook does."""
    with isoloss.connect() as client:
        assert_type(client, isoloss.Client)
        study = client.create_study(
            "tiny", space={"lr": isoloss.Float(1e-4, 1e-1, log=True)}, objective=isoloss.minimize("val_loss"),
            method=isoloss.IDHB(min_budget=1, max_budget=27),
        )  # fmt: skip
        assert_type(study, isoloss.Study)
        assert_type(study.optimize(train).deepen(max_budget=81), isoloss.Study)
        assert_type(study.best_value, float)
        assert_type(study.best_params, Mapping[str, Any])
        assert_type(study.best_trial, BestTrial)
        assert_type(study.info(), StudyInfo)


async def service() -> None:
    """The same, async."""
    async with await isoloss.aio.connect() as client:
        study = await client.study("tiny")
        await study.optimize(train)
        assert_type(await study.best_value, float)


def memory() -> None:
    """Without any service."""
    driver = Driver({"name": "tiny"})
    while (ask := driver.ask()) is not None:
        assert_type(ask.budget_to, int)
        driver.tell(ask.trial, ask.budget_to, {"val_loss": 1.0})
