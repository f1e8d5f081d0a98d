"""Every spec in `platform/examples` decodes and has a price; the trainable of the smallest keeps the contract."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from isoloss.domain.campaign import decode_campaign, study_of, target_study
from isoloss.domain.spec import decode_study
from isoloss.files.spec import load_spec
from isoloss.search.preview import preview
from isoloss_worker.rehearsal import rehearse

EXAMPLES = Path(__file__).parents[2] / "platform" / "examples"
STUDIES = ("tiny_lr.yaml", "tiny_lr_command.yaml", "gpt_study.yaml", "retrieval.yaml")


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


@pytest.mark.parametrize("name", ["tiny_lr.yaml", "tiny_lr_command.yaml", "retrieval.yaml"])
def test_the_example_trainer_keeps_the_contract(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(EXAMPLES)
    checks = asyncio.run(rehearse(decode_study(load_spec(EXAMPLES / name)), tmp_path))
    assert all(check.ok for check in checks), checks
    assert [check.what for check in checks] == [
        "it survives a kill in mid-run",
        "it runs to its end",
        "parameters arrive",
        "metrics come",
        "save_to is complete",
        "it goes on to the second rung",
        "the curve continues over the resume",
        "seconds per unit",
        "price of the plan",
    ]
