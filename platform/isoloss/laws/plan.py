"""What a campaign does next, as a pure function of how it stands and what its laws say.

A campaign launches a study for every size, deepens all of them by one column of D whenever they are idle and the spec
asks for more, then buys single runs while the design (``design.py``) finds some worth their price, and at the end runs
the target's own cell at the forecast and at two neighbours in learning rate. The caller executes the moves and asks
again; asking twice gives the same moves, so a controller may die in between.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

NEARLY: Final = 0.75  # largest D are rounded to whole batches; the next column is at least twice as far
NEIGHBOUR: Final = 2.0  # the neighbours' factor in learning rate
CONFIRMATION: Final = 3  # runs of the target's cell
CLEARLY: Final = 0.0025  # a neighbour better by this fraction of the loss is on a better side; less is run noise


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """One run of the confirmation: its learning rate, and its loss unless it ended otherwise."""

    lr: float
    loss: float | None
    status: str = "ok"


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyView:
    """How one size stands; ``max_tokens`` is 0 until its study is launched, ``wanted`` where the campaign has it be."""

    size: str
    wanted: int
    max_tokens: int = 0
    idle: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class CampaignView:
    """How a campaign stands. ``target_trials``: runs of the target's cell so far; ``None`` until its study is launched.

    ``exhausted`` names the limit that is used up, ``unaffordable`` the one that any confirmation would exceed.
    """

    studies: Sequence[StudyView]
    max_tokens: int
    eta: int
    deepen_to: float | None
    confirm: bool
    target_trials: int | None = None
    target_idle: bool = False
    exhausted: str = ""
    unaffordable: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class LaunchStudy:
    """Begin the study of a size, or of the target."""

    size: str


@dataclass(frozen=True, slots=True, kw_only=True)
class BuyColumn:
    """Raise the campaign's largest D."""

    max_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Deepen:
    """Bring a size's study to the D the campaign wants of it."""

    size: str
    max_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AddTrial:
    """Run one cell once at this learning rate and batch: the target's, or that of a size at a level of its study."""

    params: Mapping[str, float]
    size: str = "target"
    level: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Finish:
    """The outcome is in, or for this reason there will be none: the campaign is done."""

    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stop:
    """A limit is used up: the campaign and its studies end for good."""

    reason: str


Move = LaunchStudy | BuyColumn | Deepen | AddTrial | Finish | Stop


def next_moves(
    campaign: CampaignView, forecast: Mapping[str, Any] | None, offer: Sequence[AddTrial] = ()
) -> tuple[Move, ...]:
    """The moves to make now; none while studies run, or while there is no forecast to act on.

    ``forecast`` is the mapping of `law forecast --json` for the target, fitted to everything observed so far;
    ``offer`` are the runs worth buying next, when the campaign may buy any.
    """
    if campaign.exhausted:
        return (Stop(reason=campaign.exhausted),)
    if missing := [s for s in campaign.studies if s.max_tokens == 0]:
        return tuple(LaunchStudy(size=study.size) for study in missing)
    if behind := [s for s in campaign.studies if s.max_tokens < s.wanted]:
        return tuple(Deepen(size=study.size, max_tokens=study.wanted) for study in behind)
    if not all(study.idle for study in campaign.studies):
        return ()
    if campaign.deepen_to is not None and campaign.max_tokens < campaign.deepen_to * NEARLY:
        return (BuyColumn(max_tokens=campaign.max_tokens * campaign.eta),)
    if offer and campaign.target_trials is None:
        return tuple(offer)
    return _confirming(campaign, forecast) if campaign.confirm else (Finish(),)


def _confirming(campaign: CampaignView, forecast: Mapping[str, Any] | None) -> tuple[Move, ...]:
    """The moves that run the target's cell, once the search is done."""
    if campaign.target_trials is None and campaign.unaffordable:
        return (Finish(reason=campaign.unaffordable),)
    if forecast is None:
        return ()
    if campaign.target_trials is None:
        return (LaunchStudy(size="target"),)
    if wanted := confirmation(forecast)[campaign.target_trials :]:
        return tuple(AddTrial(params=params) for params in wanted)
    return (Finish(),) if campaign.target_idle else ()


def confirmation(forecast: Mapping[str, Any]) -> tuple[dict[str, float], ...]:
    """The forecast's own point first, then its neighbours at half and at twice the learning rate."""
    rates = (forecast["lr"], forecast["lr"] / NEIGHBOUR, forecast["lr"] * NEIGHBOUR)
    return tuple({"lr": rate, "batch_tokens": forecast["batch_tokens"]} for rate in rates)


def verdict(forecast: Mapping[str, Any], outcomes: Mapping[int, Outcome]) -> tuple[str, str]:
    """What a confirmation says, ``go``, ``widen`` or ``buy``, and why; both empty until its own point has ended.

    ``forecast`` is of the cell that was run, ``outcomes`` by place in ``confirmation`` (0 is the forecast's point).
    """
    point = outcomes.get(0)
    if point is None:
        return "", ""
    if point.loss is None:
        return "widen", f"the run at the forecast is {point.status}: search more learning rates around it"
    better = [one for place, one in outcomes.items() if place and one.loss and one.loss < point.loss * (1 - CLEARLY)]
    if better:
        best = min(better, key=lambda one: one.loss or math.inf)
        gain = 100 * (1 - (best.loss or math.inf) / point.loss)
        return "buy", f"lr {best.lr:.3g} is {gain:.2f} % better than the forecast's {point.lr:.3g}: buy runs around it"
    if forecast["loss_interval"] is None:
        return "widen", f"loss {point.loss:.4g} cannot be held against a forecast: the runs allow no loss law"
    low, high = forecast["loss_interval"]
    if not low <= point.loss <= high:
        return (
            "widen",
            f"loss {point.loss:.4g} is outside the interval {low:.4g} to {high:.4g}: the laws miss something",
        )
    if len(outcomes) < CONFIRMATION:
        return "", ""
    return "go", f"loss {point.loss:.4g} is inside the interval, and no neighbour is better by {100 * CLEARLY:g} %"


def nearest(value: float, choices: Sequence[float]) -> float:
    """The choice nearest to ``value`` on a logarithmic scale; both above 0."""
    return min(choices, key=lambda choice: abs(math.log(choice / value)))
