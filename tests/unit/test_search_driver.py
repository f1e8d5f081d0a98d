"""The Driver, its streams and its proposals: a whole study in memory."""

from __future__ import annotations

import math
import subprocess
import sys
from typing import Any

import pytest

from isoloss.domain.spec import decode_study
from isoloss.errors import InvalidSpec, WrongState
from isoloss.search import Ask, Driver
from isoloss.search.events import Asked, Idle
from isoloss.search.optuna_samplers import distributions, from_optuna, to_optuna, tpe
from isoloss.search.proposals import BEST, LATEST, seen
from isoloss.search.replay import replay
from isoloss.search.streams import BLOCK, RandomStream, SobolStream, stream

SPACE: dict[str, Any] = {
    "lr": {"type": "float", "low": 1e-4, "high": 1e-1, "log": True},
    "momentum": {"type": "float", "low": 0, "high": 1, "step": 0.3},
    "layers": {"type": "int", "low": 1, "high": 9, "log": True},
    "width": {"type": "int", "low": 8, "high": 30, "step": 8},
    "batch": {"type": "ordinal", "choices": [8, 16, 32]},
    "act": {"type": "categorical", "choices": ["relu", "gelu"]},
}


def source(**changes: Any) -> dict[str, Any]:
    method = {"min_budget": 1, "max_budget": 9, "sampler": "random", "brackets": "all"} | changes.pop("method", {})
    return {"name": "driven", "space": SPACE, "objective": {"metric": "loss"}, "method": method} | changes


def loss(ask: Ask) -> float:
    return (math.log(float(ask.params["lr"])) + 5) ** 2 + abs(int(ask.params["batch"]) - 16) / 8 + 1 / ask.budget_to


def run(driver: Driver, metric: Any = lambda ask: {"loss": loss(ask)}) -> int:
    count = 0
    while (ask := driver.ask()) is not None:
        driver.tell(ask.trial, ask.budget_to, metric(ask))
        count += 1
    return count


@pytest.mark.parametrize("sampler", ["random", "sobol", "tpe"])
def test_a_study_runs_is_deepened_and_replays(sampler: str) -> None:
    driver = Driver(source(method={"sampler": sampler}, fixed={"seed": 3}))
    assert run(driver) >= 22
    first = driver.best()
    assert first is not None and first.params["seed"] == 3 and first.value == first.metrics["loss"]
    assert run(driver.deepen(27)) >= 47 and driver.ask() is None
    best = driver.best()
    assert best is not None and best.value <= first.value and best.desirability is None
    assert replay(driver.spec, [e for e, _ in driver.ledger], [made for _, made in driver.ledger]).ok
    sources = {driver.search.trial(t).source for t in range(driver.search.trials)}
    assert sources == ({"tpe", "random"} if sampler == "tpe" else {sampler})
    again = Driver(source(method={"sampler": sampler}, fixed={"seed": 3}))
    run(again)
    again.deepen(27)
    run(again)
    assert [*again.ledger, (Asked(n=1), (Idle(),))] == driver.ledger


def test_maximising_is_minimising_the_negative() -> None:
    """S11."""
    low, high = Driver(source()), Driver(source(objective={"metric": "loss", "goal": "maximize"}))
    run(low)
    run(high, lambda ask: {"loss": -loss(ask)})
    assert [made for _, made in low.ledger] == [made for _, made in high.ledger]
    assert low.best().value == -high.best().value  # type: ignore[union-attr]


def test_a_desirability_is_ranked_softly_and_answered_hard() -> None:
    spec = source(
        desirability={
            "loss": {"shape": "smaller", "target": 0.5, "limit": 4},
            "seconds": {"shape": "smaller", "target": 5, "limit": 60, "importance": 0.5},
        }
    )
    del spec["objective"]
    driver = Driver(spec)
    run(driver, lambda ask: {"loss": loss(ask), "seconds": float(ask.params["layers"]) * 4})
    best = driver.best()
    assert best is not None and best.desirability is not None and best.value == best.desirability.overall
    assert 0 < best.value <= 1 and best.desirability.limiting in ("loss", "seconds")


def test_a_story_of_mistakes() -> None:
    driver = Driver(source())
    first, second, third = (driver.ask() for _ in range(3))
    assert first is not None and second is not None and third is not None
    with pytest.raises(InvalidSpec, match=r"metrics lacks loss; accepted are numbers for loss"):
        driver.tell(first.trial, 1, {"los": 1.0})
    with pytest.raises(InvalidSpec, match=r"budget is 2; accepted are the study's budgets 1, 3, 9"):
        driver.tell(first.trial, 2, {"loss": 1.0})
    with pytest.raises(WrongState, match="trial 7 at level 0 does not exist"):
        driver.tell(7, 1, {"loss": 1.0})
    driver.tell(first.trial, 1, {"loss": math.nan})
    driver.tell(second.trial, 1, None)
    assert driver.best() is None
    assert [driver.search.result(t, 0).status for t in (0, 1)] == ["diverged", "failed"]  # type: ignore[union-attr]
    with pytest.raises(InvalidSpec, match="nearest are 27 and 81"):
        driver.deepen(28)
    with pytest.raises(InvalidSpec, match=r"method\.eta"):
        Driver(source(method={"eta": 1}))


def test_importing_the_search_is_cheap() -> None:
    code = "import sys, isoloss.search; isoloss.search.Driver; print(*{'numpy', 'scipy', 'optuna'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


@pytest.mark.parametrize("kind", [RandomStream, SobolStream])
def test_a_stream_is_a_function_of_seed_bracket_and_index(kind: type[RandomStream | SobolStream]) -> None:
    space = decode_study(source()).space
    indices = [0, 1, 2, 63, 64, 65, 200, 3, 129, 0]
    forward = kind(space, seed=5, bracket=1)
    points = {index: forward.configuration(index) for index in range(201)}
    anyhow = kind(space, seed=5, bracket=1)
    assert [anyhow.configuration(index) for index in indices] == [points[index] for index in indices]
    assert points[0] != kind(space, seed=6, bracket=1).configuration(0)
    assert points[0] != kind(space, seed=5, bracket=2).configuration(0)
    assert len({point["lr"] for point in points.values()}) == 201


UNIT = {"type": "float", "low": 0, "high": 1}
PINNED = [[0.23663866470157546, 0.7992032681465686], [0.11318111419677734, 0.2405876163393259]]


def test_streams_never_change() -> None:
    """These numbers are part of the contract: a ledger written today must replay tomorrow."""
    space = decode_study(source(space={"x": UNIT, "y": UNIT})).space
    drawn = [stream(sampler, space, seed=7, bracket=1).configuration(3) for sampler in ("random", "sobol")]
    assert [list(configuration.values()) for configuration in drawn] == PINNED


def test_sobol_points_fill_the_cube_evenly() -> None:
    space = decode_study(source(space={"x": UNIT})).space
    drawn = stream("sobol", space, seed=1, bracket=0)
    cells = {int(float(drawn.configuration(index)["x"]) * BLOCK) for index in range(BLOCK)}
    assert len(cells) == BLOCK
    assert stream("sobol", {}, seed=1, bracket=0).configuration(0) == {}
    assert stream("random", {}, seed=1, bracket=0).configuration(0) == {}


def test_a_space_goes_to_optuna_and_back() -> None:
    space = decode_study(source()).space
    assert distributions(space)["momentum"].high == 0.9  # type: ignore[attr-defined]
    configuration = RandomStream(space, seed=0, bracket=0).configuration(0)
    assert from_optuna(space, to_optuna(space, configuration)) == configuration
    assert to_optuna(space, configuration | {"batch": 32})["batch"] == 2


def test_tpe_is_deterministic_learns_and_knows_what_is_pending() -> None:
    space = decode_study(source()).space
    drawn = RandomStream(space, seed=1, bracket=0)
    known = [drawn.configuration(k) for k in range(40)]
    history = [(c, (math.log(float(c["lr"])) + 5) ** 2) for c in known]
    ask = {"history": history, "pending": known[:3], "n": 12, "seed": 4}
    proposed = tpe(space).propose(**ask)  # type: ignore[arg-type]
    assert proposed == tpe(space).propose(**ask)  # type: ignore[arg-type]
    assert len(proposed) == 12 and all(space[k].contains(v) for c in proposed for k, v in c.items())
    apart = sorted(abs(math.log(float(c["lr"])) + 5) for c in proposed)
    assert apart[6] < sorted(abs(math.log(float(c["lr"])) + 5) for c in known)[20]
    off_grid = [(known[0] | {"momentum": 0.1234}, 0.0), *history]
    assert len(tpe(space).propose(history=off_grid, pending=(), n=1, seed=0)) == 1


def test_of_a_long_history_the_model_sees_the_best_and_the_latest() -> None:
    history = [({"x": i}, float(-i if i < 300 else i)) for i in range(BEST + LATEST + 500)]
    kept = seen(history)
    assert len(kept) == BEST + LATEST and kept[-1] == history[-1] and kept[0] == history[300 - BEST]
