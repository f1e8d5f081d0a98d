"""Every spec in `platform/examples` decodes and has a price; the trainable of the smallest keeps the contract."""

from __future__ import annotations

import asyncio
import importlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from isoloss.domain.campaign import decode_campaign, study_of, target_study
from isoloss.domain.spec import decode_study
from isoloss.files.spec import load_spec
from isoloss.search.driver import Driver
from isoloss.search.preview import preview
from isoloss_worker.rehearsal import rehearse
from isoloss_worker.rehearsal_checks import Check

EXAMPLES = Path(__file__).parents[2] / "platform" / "examples"
STUDIES = (
    "tiny_lr.yaml", "tiny_lr_command.yaml", "gpt_study.yaml", "gpt_cost.yaml", "retrieval.yaml", "decoding.yaml", "merging.yaml",
)  # fmt: skip


def test_there_is_no_other_example() -> None:
    assert {file.name for file in EXAMPLES.glob("*.yaml")} == {*STUDIES, "campaign_tiny.yaml"}


@pytest.mark.parametrize("name", STUDIES)
def test_a_study_example_decodes_and_previews(name: str) -> None:
    spec = decode_study(load_spec(EXAMPLES / name))
    assert spec.run is not None
    assert preview(spec)["tasks"] > 5


def test_the_campaign_example_decodes_and_previews() -> None:
    spec = decode_campaign(load_spec(EXAMPLES / "campaign_tiny.yaml"))
    assert len(spec.sizes) == 3
    assert all(preview(study_of(spec, size))["tasks"] > 5 for size in spec.sizes)
    assert target_study(spec).method.name == "fixed"


def rehearsed(spec: Path, folder: Path, *sets: str) -> list[Check]:
    async def body() -> list[Check]:
        found = rehearse(decode_study(load_spec(spec, sets)), folder, 60.0)
        return [check async for check in found if isinstance(check, Check)]

    return asyncio.run(body())


@pytest.mark.parametrize("name", ["tiny_lr.yaml", "tiny_lr_command.yaml", "retrieval.yaml", "decoding.yaml"])
def test_the_example_trainer_keeps_the_contract(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(EXAMPLES)
    checks = rehearsed(EXAMPLES / name, tmp_path)
    assert all(check.ok for check in checks), checks
    assert [check.what for check in checks if check.what != "the curve continues in mid-run"] == [
        "it survives a kill in mid-run",
        "it leaves when asked to",
        "it runs to its end",
        "metrics come",
        "parameters arrive",
        "save_to is complete",
        "it goes on to the second rung",
        "the curve continues over the resume",
        "seconds per unit",
        "price of the plan",
    ]


@pytest.mark.long
def test_the_built_in_transformer_says_what_a_token_costs_beside_its_loss(tmp_path: Path) -> None:
    sets = ("method.min_budget=4K", "method.max_budget=8K", "run.gpt.warmup_tokens=1K")
    checks = rehearsed(EXAMPLES / "gpt_cost.yaml", tmp_path, *sets)
    assert all(check.ok for check in checks), checks
    metrics = next(check.detail for check in checks if check.what == "metrics come")
    assert "val_loss" in metrics and "cpu_us_per_token" in metrics


def test_merged_models_form_a_front_on_which_each_task_is_better_than_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    merging = importlib.import_module("merging")
    driver = Driver(load_spec(EXAMPLES / "merging.yaml", ("limits.trials=30",)))

    def losses(params: dict[str, Any]) -> dict[str, float]:
        measured: dict[str, float] = merging.main(SimpleNamespace(params=params, report=lambda *_, **__: None))
        return measured

    before, found = losses(dict.fromkeys(merging.TASKS, 0.0)), []
    while (ask := driver.ask()) is not None:
        found.append(losses(ask.params))
        driver.tell(ask.trial, ask.budget_to, found[-1])
    assert len(found) == 30 and {driver.search.trial(n).source for n in range(30)} > {"quadratic-pareto"}
    assert any(all(one[metric] < before[metric] for metric in before) for one in found), (
        "merging helps all three at once"
    )
    front = [
        result
        for (_, _), result in driver.search.tasks.items()
        if result and result.score is not None and result.score < 1
    ]
    assert 3 <= len(front) <= 30
