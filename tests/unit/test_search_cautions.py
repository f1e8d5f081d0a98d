"""What is said, or refused, about rungs that cannot tell what they are asked."""

from __future__ import annotations

from typing import Any

import pytest

from isoloss.domain.spec import StudySpec, decode_study
from isoloss.errors import InvalidSpec
from isoloss.search.cautions import cautions
from isoloss.search.preview import preview

LR = {"type": "float", "low": 1e-4, "high": 1e-2, "log": True}


def study(**changes: Any) -> StudySpec:
    source = {"name": "c", "space": {"lr": LR}, "objective": {"metric": "loss"},
              "method": {"min_budget": 100, "max_budget": 900}}  # fmt: skip
    return decode_study(source | changes)


def test_a_rung_inside_the_warm_up_is_named() -> None:
    assert cautions(study()) == [] == cautions(study(fixed={"warmup_steps": 99}))
    (said,) = cautions(study(fixed={"warmup_steps": 100}))
    assert "warmup_steps is up to 100 and the lowest rung ends at 100" in said
    tokens = {"unit": "tokens", "multiple": 1}
    (said,) = cautions(study(budget=tokens, run={"gpt": {"warmup_tokens": "1K", "batch_tokens": 64}}))
    assert "warmup_tokens is up to 1000" in said


@pytest.mark.parametrize(
    ("high", "named"), [(1.0, "up to 900"), (0.5, "up to 900"), (2.0, "up to 300"), (1.2, "up to 300")]
)
def test_rungs_shorter_than_the_timescale_cannot_rank_weight_decay(high: float, named: str) -> None:
    decay = {"type": "float", "low": 0.01, "high": high}
    space = {"lr": LR | {"high": 1e-3}, "weight_decay": decay}
    (said,) = cautions(study(space=space))
    assert named in said and "cannot rank weight_decay" in said
    assert cautions(study(space=space | {"lr": LR | {"high": 10.0}, "weight_decay": decay | {"high": 1.0}})) == []
    tokens = {"unit": "tokens", "multiple": 8}
    batch = {"type": "ordinal", "choices": [4, 8]}
    (said,) = cautions(study(space=space | {"batch_tokens": batch}, budget=tokens))
    assert f"at least {4e3 / high:.3g} tokens" in said


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
@pytest.mark.parametrize("mode", ["resume", "branch"])
def test_a_schedule_that_ends_at_its_budget_is_refused_unless_every_rung_is_a_run_of_its_own(
    schedule: str, mode: str
) -> None:
    with pytest.raises(InvalidSpec, match=f"fidelity.schedule is {schedule} with fidelity.mode {mode}"):
        study(fidelity={"mode": mode, "schedule": schedule})
    gpt = {"gpt": {"schedule": schedule}}
    with pytest.raises(InvalidSpec, match=f"run.gpt.schedule is {schedule} with fidelity.mode {mode}"):
        study(fidelity={"mode": mode}, run=gpt)
    whole = study(fidelity={"mode": "fresh", "schedule": schedule})
    priced = preview(whole)
    assert priced["billed_budget"] == priced["total_budget"] > priced["resumed_budget"]
    with pytest.raises(InvalidSpec, match="accepted there is run.gpt.schedule"):
        study(fidelity={"mode": "fresh", "schedule": schedule}, run=gpt)
