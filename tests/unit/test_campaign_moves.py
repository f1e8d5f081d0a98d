"""A campaign's next moves: launched, deepened, confirmed, finished, each once, whatever the order of news."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from isoloss.laws.plan import (
    AddTrial,
    BuyColumn,
    CampaignView,
    Deepen,
    Finish,
    LaunchStudy,
    Outcome,
    Stop,
    StudyView,
    confirmation,
    nearest,
    next_moves,
    verdict,
)  # fmt: skip

FORECAST: dict[str, Any] = {"lr": 0.01, "batch_tokens": 300.0}


def view(**changes: Any) -> CampaignView:
    base = CampaignView(
        studies=[StudyView(size=size, wanted=4, max_tokens=4, idle=True) for size in ("a", "b")],
        max_tokens=4, eta=2, deepen_to=None, confirm=True,
    )  # fmt: skip
    return replace(base, **changes)


def test_what_is_not_launched_is_launched_first() -> None:
    studies = [StudyView(size="a", wanted=4), StudyView(size="b", wanted=4, max_tokens=4)]
    assert next_moves(view(studies=studies), None) == (LaunchStudy(size="a"),)


def test_a_column_is_bought_only_when_every_study_is_idle() -> None:
    busy = [StudyView(size="a", wanted=4, max_tokens=4, idle=True), StudyView(size="b", wanted=4, max_tokens=4)]
    assert next_moves(view(studies=busy, deepen_to=8), None) == ()
    assert next_moves(view(deepen_to=8), None) == (BuyColumn(max_tokens=8),)
    rounded = [StudyView(size="a", wanted=7, max_tokens=7, idle=True)]
    assert next_moves(view(deepen_to=8, max_tokens=7, studies=rounded), None) == (), "8 was reached, in whole batches"
    assert next_moves(view(confirm=False), None) == (Finish(),), "a campaign that confirms nothing ends with its search"


def test_studies_behind_the_campaign_are_deepened_to_it() -> None:
    behind = [StudyView(size="a", wanted=8, max_tokens=4), StudyView(size="b", wanted=16, max_tokens=8, idle=True)]
    moves = (Deepen(size="a", max_tokens=8), Deepen(size="b", max_tokens=16))
    assert next_moves(view(studies=behind, max_tokens=16), None) == moves


def test_confirmation_waits_for_a_forecast_and_is_made_once() -> None:
    assert next_moves(view(), None) == ()
    assert next_moves(view(), FORECAST) == (LaunchStudy(size="target"),)
    three = next_moves(view(target_trials=0), FORECAST)
    assert [type(move) for move in three] == [AddTrial] * 3
    assert next_moves(view(target_trials=1), FORECAST) == three[1:], "a controller died after the first"
    assert next_moves(view(target_trials=3), FORECAST) == ()
    assert next_moves(view(target_trials=3, target_idle=True), FORECAST) == (Finish(),)


def test_a_used_limit_stops_everything_and_one_too_small_for_the_target_ends_the_search() -> None:
    fresh = [StudyView(size="a", wanted=4)]
    assert next_moves(view(studies=fresh, exhausted="limits.flops"), FORECAST) == (Stop(reason="limits.flops"),)
    poor = view(unaffordable="limits.flops")
    assert next_moves(poor, FORECAST) == (Finish(reason="limits.flops"),)
    assert next_moves(replace(poor, deepen_to=8), FORECAST) == (BuyColumn(max_tokens=8),), "the search goes on before"
    assert len(next_moves(replace(poor, target_trials=1), FORECAST)) == 2, "what was begun is finished"


def test_neighbours_stand_on_both_sides_of_the_forecast() -> None:
    rates = [params["lr"] for params in confirmation(FORECAST)]
    assert rates == pytest.approx([0.01, 0.005, 0.02])
    assert nearest(300, [128, 256, 512]) == 256 and nearest(380, [128, 256, 512]) == 512


def test_a_diverged_neighbour_is_told_as_such_and_never_as_a_win() -> None:
    from isoloss.cli.story import _compared

    assert _compared({"loss": None, "status": "diverged"}, 2.0) == "diverged"
    assert _compared({"loss": 2.1, "status": "ok"}, 2.0) == "+5.0 %"


def test_single_runs_are_bought_after_the_columns_and_before_the_confirmation() -> None:
    offer = [AddTrial(params={"lr": 0.01}, size="a", level=1)]
    assert next_moves(view(deepen_to=8), FORECAST, offer) == (BuyColumn(max_tokens=8),)
    assert next_moves(view(), FORECAST, offer) == tuple(offer)
    assert next_moves(view(target_trials=0), FORECAST, offer) == next_moves(view(target_trials=0), FORECAST)
    busy = [StudyView(size="a", wanted=4, max_tokens=4)]
    assert next_moves(view(studies=busy), FORECAST, offer) == ()


def test_the_verdict_is_go_widen_or_buy_and_waits_for_its_own_point() -> None:
    forecast = {"loss_interval": [2.9, 3.1]}
    point, worse, better = (Outcome(lr=lr, loss=loss) for lr, loss in ((0.01, 3.0), (0.005, 3.001), (0.02, 2.98)))
    assert verdict(forecast, {}) == verdict(forecast, {1: worse}) == ("", "")
    assert verdict(forecast, {0: point, 1: worse}) == ("", "")
    assert verdict(forecast, {0: point, 1: worse, 2: worse})[0] == "go"
    word, why = verdict(forecast, {0: point, 1: worse, 2: better})
    assert word == "buy" and "0.02 is 0.67 % better" in why
    assert verdict({"loss_interval": [2.9, 2.95]}, {0: point, 1: worse, 2: worse})[0] == "widen"
    assert verdict(forecast, {0: Outcome(lr=0.01, loss=None, status="diverged")}) == (
        "widen", "the run at the forecast is diverged: search more learning rates around it",
    )  # fmt: skip


def test_a_confirmation_without_a_loss_law_has_a_verdict_too() -> None:
    point, better = Outcome(lr=0.01, loss=3.0), Outcome(lr=0.02, loss=2.9)
    assert verdict({"loss_interval": None}, {0: point, 1: point, 2: point})[0] == "widen"
    assert verdict({"loss_interval": None}, {0: point, 1: better})[0] == "buy"
