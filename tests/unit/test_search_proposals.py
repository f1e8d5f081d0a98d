"""Models behind one protocol: inside the space, the same for the same arguments, better than chance, honest when they fail."""

from __future__ import annotations

import math
import pickle
from typing import Any

import pytest

from isoloss.domain.space import Configuration, Space, check_configuration
from isoloss.domain.spec import StudySpec, decode_study
from isoloss.errors import InvalidSpec
from isoloss.search import Driver, optuna_samplers, proposals
from isoloss.search.answers import ProposalRequest
from isoloss.search.events import Asked, CreateTask, TaskDone
from isoloss.search.proposals import BEST, LATEST, check_sampler, propose, proposer
from isoloss.search.streams import RandomStream

SPACE: dict[str, Any] = {
    "lr": {"type": "float", "low": 1e-5, "high": 1e-1, "log": True},
    "layers": {"type": "int", "low": 2, "high": 8},
    "act": {"type": "categorical", "choices": ["gelu", "relu"]},
    "batch": {"type": "ordinal", "choices": [8, 16, 32]},
    "dropout": {"type": "float", "low": 0, "high": 0.3, "when": {"layers": {"ge": 4}}},
}
LAW: dict[str, Any] = {"sampler": "law", "prior": {"lr": {"center": 1e-3}, "batch": {"center": 16, "spread": 3}}}


def study(space: dict[str, Any] = SPACE, **method: Any) -> StudySpec:
    base = {"min_budget": 1, "max_budget": 9, "sampler": "tpe"}
    return decode_study({"name": "p", "space": space, "objective": {"metric": "loss"}, "method": base | method})


def history(space: Space, n: int = 40, seed: int = 0) -> tuple[tuple[dict[str, Any], float], ...]:
    stream = RandomStream(space, seed=seed, bracket=0)
    drawn = [stream.configuration(index) for index in range(n)]
    return tuple((configuration, loss(configuration)) for configuration in drawn)


def loss(configuration: Configuration) -> float:
    return (math.log(float(configuration["lr"])) + 7) ** 2 + abs(float(configuration.get("dropout", 0.3)) - 0.1)


@pytest.mark.parametrize("sampler", ["tpe", "gp", "cma", "law", "TPESampler", "NSGAIISampler", "CmaEsSampler"])
def test_every_sampler_proposes_points_of_the_space_and_the_same_again(sampler: str) -> None:
    spec = study(sampler=sampler, **({"prior": LAW["prior"]} if sampler == "law" else {}))
    check_sampler(spec)
    known = history(spec.space)
    n = 2 if sampler == "gp" else 6  # a second each
    request = ProposalRequest(n=n, seed=3, level=1, history=known, pending=tuple(c for c, _ in known[:2]))
    first, again = propose(spec, request), propose(pickle.loads(pickle.dumps(spec)), request)  # noqa: S301
    assert first == again and len(first.configurations) == n and first.source == sampler
    for configuration in first.configurations:
        check_configuration(spec.space, configuration)
        assert ("dropout" in configuration) == (int(configuration["layers"]) >= 4)


@pytest.mark.parametrize("sampler", ["tpe", "cma", pytest.param("gp", marks=pytest.mark.long)])
def test_a_model_comes_closer_than_chance(sampler: str) -> None:
    space = {name: {"type": "float", "low": 0, "high": 1} for name in "xyz"}
    spec = study(space, sampler=sampler)

    def quadratic(configuration: Configuration) -> float:
        return sum((float(value) - 0.3) ** 2 for value in configuration.values())

    chance = RandomStream(spec.space, seed=1, bracket=0)
    known = [(c, quadratic(c)) for c in (chance.configuration(index) for index in range(16))]
    for turn in range(10):
        request = ProposalRequest(n=4, seed=turn, level=0, history=tuple(known), pending=())
        known += [(c, quadratic(c)) for c in propose(spec, request).configurations]
    others = [quadratic(chance.configuration(index)) for index in range(16, 56)]
    assert sorted(value for _, value in known[16:])[20] < 0.5 * sorted(others)[20]


def test_a_prior_is_drawn_from_and_clipped_to_the_range() -> None:
    spec = study(**LAW)
    made = propose(spec, ProposalRequest(n=200, seed=0, level=None, history=(), pending=())).configurations
    inside = sum(5e-4 <= float(c["lr"]) <= 2e-3 for c in made)
    assert 110 <= inside <= 160  # two thirds
    assert {c["batch"] for c in made} == {8, 16, 32}
    driver = Driver(study(**LAW))
    sources = [driver.search.trial(ask.trial).source for ask in (driver.ask() for _ in range(9)) if ask is not None]
    assert sources.count("law") == 6 and sources.count("random") == 3


@pytest.mark.parametrize(
    ("method", "said"),
    [
        ({"sampler": "law"}, "method.prior is missing with sampler law"),
        ({"sampler": "tpe", "prior": {"lr": {"center": 1e-3}}}, "method.prior is set with sampler tpe"),
        ({"sampler": "law", "prior": {"lr": {"center": 1}}}, "method.prior.lr.center is 1; accepted is a number from"),
        ({"sampler": "law", "prior": {"act": {"center": 1}}}, "accepted is a parameter of positive numbers"),
        ({"sampler": "law", "prior": {"speed": {"center": 1}}}, "method.prior.speed is not in the space"),
        ({"sampler": "best"}, "method.sampler"),
    ],
)
def test_a_sampler_or_prior_that_cannot_be_is_refused_in_the_spec(method: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidSpec, match=said):
        study(**method)


def test_a_sampler_that_is_not_there_is_refused_where_the_study_is_created(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InvalidSpec, match=r"method\.sampler is MagicSampler; accepted are .*tpe.*NSGAIISampler"):
        check_sampler(study(sampler="MagicSampler"))
    with pytest.raises(InvalidSpec, match="MagicSampler"):
        Driver(study(sampler="MagicSampler"))
    monkeypatch.setattr(proposals, "find_spec", lambda _: None)
    with pytest.raises(InvalidSpec, match=r"which needs torch; accepted is it where isoloss\[gpt\] is installed"):
        check_sampler(study(sampler="gp"))


def test_a_model_that_fails_or_leaves_the_space_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    spec, request = study(), ProposalRequest(n=1, seed=0, level=0, history=(), pending=())

    class Outside:
        def propose(self, **_: Any) -> tuple[dict[str, Any], ...]:
            return ({"lr": 5.0, "layers": 2, "act": "relu", "batch": 8},)

    monkeypatch.setitem(proposals.PROPOSERS, "tpe", lambda *_: Outside())
    with pytest.raises(InvalidSpec, match=r"method.sampler tpe: proposal 0\.lr is 5"):
        propose(spec, request)
    monkeypatch.setitem(proposals.PROPOSERS, "tpe", lambda *_: None)
    with pytest.raises(InvalidSpec, match="method.sampler is tpe, which failed with AttributeError"):
        propose(spec, request)


def test_classes_that_need_an_argument_are_not_offered() -> None:
    found = optuna_samplers.classes()
    assert "TPESampler" in found and "GridSampler" not in found and "BaseSampler" not in found
    assert proposer(study().space, study(sampler="NSGAIISampler").method) is not None


def test_a_driver_goes_on_with_its_stream_when_the_model_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(proposals.PROPOSERS, "tpe", lambda *_: None)
    driver = Driver(study())

    def run() -> None:
        while (ask := driver.ask()) is not None:
            driver.tell(ask.trial, ask.budget_to, {"loss": loss(ask.params)})

    with pytest.warns(RuntimeWarning, match="method.sampler is tpe, which failed with AttributeError"):
        run()
    assert driver.search.trials == 9 and driver.best() is not None
    assert {driver.search.trial(number).source for number in range(driver.search.trials)} == {"random"}


def test_a_request_is_as_large_as_a_model_looks_at() -> None:
    spec = decode_study(
        {
            "name": "p",
            "space": SPACE,
            "objective": {"metric": "loss"},
            "method": {"name": "fixed", "budget": 1, "sampler": "tpe"},
        }
    )
    driver = Driver(spec)
    for number in range(BEST + LATEST + 50):
        made = driver.search.apply(Asked())
        task = next(decision for decision in made if isinstance(decision, CreateTask))
        driver.search.apply(TaskDone(trial=task.trial, level=0, score=float(number)))
    request = driver.search.proposal_request()
    assert request is not None and len(request.history) == BEST + LATEST
    assert request.history[0][1] == 0.0 and request.history[-1][1] == BEST + LATEST + 49
