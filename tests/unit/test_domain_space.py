"""Spaces: conditions, counting, and versions that only widen."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isoloss.client import words
from isoloss.domain.campaign import decode_campaign
from isoloss.domain.space import (
    AnyParameter,
    Space,
    active,
    cardinality,
    check_configuration,
    check_space,
    configuration_at,
    is_active,
)
from isoloss.domain.spec import decode_study, encode
from isoloss.domain.widening import widened
from isoloss.errors import InvalidSpec
from isoloss.search import Driver
from isoloss.search.streams import stream


def space_of(**parameters: Any) -> dict[str, AnyParameter]:
    """A space as a spec writes it."""
    spec = {"name": "s", "space": parameters, "objective": {"metric": "loss"}}
    return decode_study(spec | {"method": {"min_budget": 1, "max_budget": 9}}).space


LAYERS = {"type": "int", "low": 2, "high": 8}
SIZE = {"type": "ordinal", "choices": ["small", "medium", "large"]}
ACT = {"type": "categorical", "choices": ["relu", "gelu", "swiglu"]}
RATE = {"type": "float", "low": 0, "high": 0.3}
TREE: dict[str, Any] = {
    "drop": RATE | {"when": {"layers": {"ge": 4, "ne": 6}, "size": {"gt": "small"}}},
    "kind": ACT | {"when": {"drop": {"gt": 0.1}}},
    "beta": {"type": "float", "low": 1e-3, "high": 1, "log": True, "when": {"kind": {"in": ["gelu", "swiglu"]}}},
    "layers": LAYERS,
    "size": SIZE,
}

points = st.floats(0, 1, exclude_max=True)


@given(st.lists(points, min_size=5, max_size=5))
def test_a_configuration_has_its_active_parameters_and_no_other(point: list[float]) -> None:
    space = space_of(**TREE)
    found = configuration_at(space, point)
    check_configuration(space, found)
    drop = int(found["layers"]) in (4, 5, 7, 8) and found["size"] != "small"
    kind = drop and float(found["drop"]) > 0.1
    assert ("drop" in found, "kind" in found) == (drop, kind)
    assert ("beta" in found) == (kind and found["kind"] in ("gelu", "swiglu"))
    assert active(space, found) == found


@given(st.lists(points, min_size=5, max_size=5), st.permutations(list(TREE)))
def test_what_is_active_does_not_depend_on_the_order_of_the_space(point: list[float], names: list[str]) -> None:
    found = configuration_at(space_of(**TREE), point)
    check_configuration(space_of(**{name: TREE[name] for name in names}), found)


def test_a_space_with_conditions_survives_its_own_encoding() -> None:
    spec = {"name": "s", "space": TREE, "objective": {"metric": "m"}, "method": {"min_budget": 1, "max_budget": 9}}
    study = decode_study(spec)
    assert decode_study(encode(study)) == study
    assert "when" not in encode(study)["space"]["layers"]
    assert encode(study)["space"]["beta"]["when"] == {"kind": {"in": ("gelu", "swiglu")}}


def test_a_program_writes_the_same_conditions() -> None:
    written = words.Float(0, 0.3, when={"layers": {"ge": 4, "ne": 6}, "size": {"gt": "small"}})
    assert written == space_of(**TREE)["drop"]
    assert words.Categorical(["relu", "gelu", "swiglu"], when={"drop": {"gt": 0.1}}) == space_of(**TREE)["kind"]
    with pytest.raises(InvalidSpec, match="unknown key `above`"):
        words.Int(1, 2, when={"x": {"above": 1}})


@pytest.mark.parametrize(
    ("configuration", "message"),
    [
        ({"layers": 5, "size": "large"}, r"params lacks drop; accepted is a number from 0 to 0\.3"),
        (
            {"layers": 6, "size": "large", "drop": 0.1},
            r"params\.drop is 0\.1; accepted is that only when layers is ne 6",
        ),
        (
            {"layers": 5, "size": "large", "drop": 0.05, "kind": "relu"},
            "kind is 'relu'; accepted is that only when drop",
        ),
        ({"layers": 6, "drop": 0.1}, "params lacks size"),
        ({"layers": True, "size": "small"}, "layers is True"),
        ({"layers": 5, "size": "huge"}, "size is 'huge'; accepted is one of small, medium, large"),
    ],
)
def test_a_missing_and_a_superfluous_parameter_are_named(configuration: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidSpec, match=message):
        check_configuration(space_of(**TREE), configuration)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"a": RATE | {"when": {"b": {"ge": 1}}}}, r"space\.a\.when\.b is not in the space; accepted are a"),
        ({"a": RATE | {"when": {"a": {"ge": 0.1}}}}, r"space\.a\.when is a circle, a → a"),
        (
            {"a": RATE | {"when": {"b": {"ge": 0.1}}}, "b": RATE | {"when": {"c": {"ge": 0.1}}},
             "c": RATE | {"when": {"b": {"ge": 0.1}}}},
            r"space\.b\.when is a circle, b → c → b",
        ),
        ({"a": RATE | {"when": {"layers": {"ge": 9}}}, "layers": LAYERS}, r"when\.layers\.ge is 9, which it never is"),
        ({"a": RATE | {"when": {"layers": {"eq": 2.5}}}, "layers": LAYERS}, r"layers\.eq is 2\.5, which it never is"),
        ({"a": RATE | {"when": {"layers": {"gt": 8}}}, "layers": LAYERS}, r"when\.layers never holds"),
        ({"a": RATE | {"when": {"layers": {"gt": 3, "lt": 5, "ne": 4}}}, "layers": LAYERS}, "never holds"),
        ({"a": RATE | {"when": {"layers": {}}}, "layers": LAYERS}, "says nothing; accepted are eq, ne, ge"),
        ({"a": RATE | {"when": {"act": {"ge": "gelu"}}}, "act": ACT}, "asks a categorical for an order; accepted are eq"),
        ({"a": RATE | {"when": {"act": {"in": ["gelu", "tanh"]}}}, "act": ACT}, "in is 'tanh', which it never is"),
        ({"a": RATE | {"when": {"act": {"like": "gelu"}}}, "act": ACT}, "unknown key `like`"),
        ({"a": RATE | {"when": {"g": {"eq": 0.1}}}, "g": RATE | {"step": 0.25, "high": 1}}, "eq is 0.1, which it never"),
    ],
)  # fmt: skip
def test_a_condition_that_cannot_be_is_refused(parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidSpec, match=message):
        space_of(**parameters)


def test_a_condition_that_only_just_holds_is_taken() -> None:
    space = space_of(a=RATE | {"when": {"layers": {"gt": 3, "lt": 5}}}, layers=LAYERS)
    assert [is_active(space, "a", {"layers": n}) for n in (3, 4, 5)] == [False, True, False]


def test_a_command_cannot_name_a_parameter_that_may_be_absent() -> None:
    spec = {"name": "s", "objective": {"metric": "m"}, "method": {"min_budget": 1, "max_budget": 9},
            "space": {"layers": LAYERS, "drop": RATE | {"when": {"layers": {"ge": 4}}}}}  # fmt: skip
    with pytest.raises(InvalidSpec, match=r"run\.command has \{drop\}, which space\.drop\.when leaves out at times"):
        decode_study(spec | {"run": {"command": ["train", "--drop={drop}"]}})
    decode_study(spec | {"run": {"command": ["train", "{layers}", "{{drop}}", "{params_file}"]}})


@pytest.mark.parametrize("name", ["lr", "batch_tokens"])
def test_the_laws_need_their_parameters_of_every_run(name: str) -> None:
    parameters: dict[str, Any] = {
        "lr": RATE | {"low": 0.1},
        "batch_tokens": {"type": "ordinal", "choices": [128, 512]},
        "layers": LAYERS,
    }
    parameters[name] |= {"when": {"layers": {"ge": 4}}}
    with pytest.raises(InvalidSpec, match=rf"space\.{name}\.when is set"):
        decode_campaign({"name": "c", "target": {"n_tokens": "1M", "n_params": "1M"}, "space": parameters,
                         "tokens": {"min": 8192, "max": 32768}, "sizes": [{"name": "a"}], "run": {"gpt": {}}})  # fmt: skip


# ---- places and counts ---------------------------------------------------------------------------------------------

KINDS: dict[str, Any] = {
    "f": {"type": "float", "low": -2, "high": 5}, "g": {"type": "float", "low": 1e-5, "high": 10, "log": True},
    "s": {"type": "float", "low": 0.1, "high": 1, "step": 0.25}, "i": {"type": "int", "low": -3, "high": 40},
    "j": {"type": "int", "low": 1, "high": 5000, "log": True}, "k": {"type": "int", "low": 8, "high": 100, "step": 8},
    "o": SIZE, "c": ACT,
}  # fmt: skip


@pytest.mark.parametrize("name", KINDS)
@given(u=points, v=points)
def test_a_value_knows_its_place_and_places_are_in_order(name: str, u: float, v: float) -> None:
    parameter = space_of(x=KINDS[name])["x"]
    low, high = parameter.at(min(u, v)), parameter.at(max(u, v))
    assert 0 <= parameter.place(low) <= parameter.place(high) + 1e-12 and parameter.place(high) <= 1
    assert parameter.rank(low) <= parameter.rank(high)
    again = parameter.at(parameter.place(low))
    assert again == low or (
        parameter.size is None and math.isclose(float(again), float(low), rel_tol=1e-9, abs_tol=1e-9)
    )
    assert parameter.takes(low)


def test_a_space_is_counted() -> None:
    assert cardinality({}) == 1
    assert cardinality(space_of(**TREE)) is None
    kinds = {name: KINDS[name] for name in "sijkoc"}
    assert cardinality(space_of(**kinds)) == 4 * 44 * 5000 * 12 * 3 * 3
    tree = TREE | {
        "drop": TREE["drop"] | {"step": 0.1},
        "beta": {"type": "int", "low": 1, "high": 5, "when": TREE["beta"]["when"]},
    }
    space = space_of(**tree)
    middles = [[(k + 0.5) / (parameter.size or 1) for k in range(parameter.size or 1)] for parameter in space.values()]
    every = {tuple(configuration_at(space, point).items()) for point in itertools.product(*middles)}
    assert cardinality(space) == len(every)


@pytest.mark.parametrize("sampler", ["random", "sobol", "tpe"])
def test_a_bracket_draws_each_point_of_a_small_space_once(sampler: str) -> None:
    space = space_of(layers=LAYERS, drop=ACT | {"when": {"layers": {"ge": 7}}}, size=SIZE)
    count = cardinality(space)
    assert count == (5 + 2 * 3) * 3
    forward = stream(sampler, space, seed=3, bracket=1)
    drawn = [forward.configuration(index) for index in range(count + 20)]
    assert len({tuple(c.items()) for c in drawn[:count]}) >= count - 1  # the last may need more than 100 redraws
    assert len({tuple(c.items()) for c in drawn[: count // 2]}) == count // 2
    anyhow = stream(sampler, space, seed=3, bracket=1)
    assert [anyhow.configuration(index) for index in (40, 3, 40, 0, 22)] == [
        drawn[index] for index in (40, 3, 40, 0, 22)
    ]
    assert drawn != [stream(sampler, space, seed=3, bracket=2).configuration(index) for index in range(count + 20)]
    plain = stream(sampler, space_of(f=RATE), seed=3, bracket=1)
    assert type(plain).__name__ in ("RandomStream", "SobolStream")


def test_a_study_of_an_exhausted_and_of_an_empty_space_still_ends() -> None:
    spec = {"name": "s", "objective": {"metric": "m"}, "method": {"min_budget": 1, "max_budget": 9}}
    for parameters, count in (({}, 1), ({"c": ACT}, 3)):
        driver, seen = Driver(spec | {"space": parameters}), []
        while (ask := driver.ask()) is not None:
            seen.append(tuple(ask.params.items()))
            driver.tell(ask.trial, ask.budget_to, {"m": 1.0})
        assert len(set(seen)) == count and len(seen) > 9


def test_a_driver_runs_a_space_with_conditions() -> None:
    for sampler in ("sobol", "random"):
        driver = Driver({"name": "s", "space": TREE, "objective": {"metric": "m"},
                         "method": {"min_budget": 1, "max_budget": 27, "sampler": sampler, "brackets": "all"}})  # fmt: skip
        sizes = set()
        while (ask := driver.ask()) is not None:
            check_configuration(driver.spec.space, ask.params)
            sizes.add(len(ask.params))
            driver.tell(ask.trial, ask.budget_to, {"m": float(ask.params["layers"]) + float(ask.params.get("drop", 0))})
        assert sizes == {2, 3, 4, 5}


# ---- versions ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("f", {"low": -3, "high": 6}),
        ("s", {"low": -0.4, "high": 7}),
        ("k", {"low": 0}),
        ("o", {"choices": ["tiny", "small", "medium", "big", "large"]}),
        ("c", {"choices": ["tanh", "gelu", "relu", "swiglu"]}),
    ],
)
@given(point=st.lists(points, min_size=8, max_size=8))
def test_a_wider_space_keeps_every_point(name: str, change: dict[str, Any], point: list[float]) -> None:
    old, new = space_of(**KINDS), space_of(**KINDS | {name: KINDS[name] | change})
    widened(old, new)
    widened(old, old)
    found = configuration_at(old, point)
    check_configuration(new, found)
    assert all(new[key].takes(value) for key, value in found.items())
    with pytest.raises(InvalidSpec, match=rf"space\.{name}\."):
        widened(new, old)


@pytest.mark.parametrize(
    ("name", "parameter", "message"),
    [
        ("f", None, r"space\.f is gone; accepted are c, f, g"),
        ("z", RATE, r"space\.z is new"),
        ("f", KINDS["i"], r"space\.f\.type is int; accepted is float"),
        ("f", KINDS["f"] | {"low": -1}, r"space\.f\.low is -1; accepted is at most -2"),
        ("f", KINDS["f"] | {"high": 4}, r"space\.f\.high is 4; accepted is at least 5"),
        ("f", KINDS["f"] | {"step": 1}, r"space\.f\.step is 1\.0; accepted is none"),
        ("g", KINDS["g"] | {"log": False}, r"space\.g\.log is False; accepted is True"),
        ("s", KINDS["s"] | {"low": 0}, r"space\.s\.low is 0; accepted is 0\.1 less whole steps of 0\.25"),
        ("k", KINDS["k"] | {"low": 4}, r"space\.k\.low is 4; accepted is 8 less whole steps of 8"),
        ("c", ACT | {"choices": ["relu", "gelu"]}, r"space\.c\.choices lacks 'swiglu'"),
        ("o", SIZE | {"choices": ["medium", "small", "large"]}, r"accepted is the order \['small', 'medium', 'large'\]"),
        ("f", KINDS["f"] | {"when": {"i": {"ge": 3}}}, r"space\.f\.when\.i decides .* otherwise.* still says yes there"),
    ],
)  # fmt: skip
def test_what_narrows_or_moves_is_refused(name: str, parameter: Any, message: str) -> None:
    changed = {key: value for key, value in (KINDS | {name: parameter}).items() if value is not None}
    new = space_of(**changed)
    with pytest.raises(InvalidSpec, match=message):
        widened(space_of(**KINDS), new)


def test_a_new_space_has_to_be_one() -> None:
    with pytest.raises(InvalidSpec, match=r"space\.f has low 9 and high 5"):
        widened(space_of(**KINDS), space_of(**KINDS) | {"f": words.Float(9, 5)})


@pytest.mark.parametrize(
    ("before", "after", "kept"),
    [
        ({"layers": {"ge": 4}}, {"layers": {"gt": 3}}, True),
        ({"layers": {"ge": 4}}, {"layers": {"ge": 4, "le": 12}}, True),
        ({"layers": {"ge": 4}}, {"layers": {"ge": 5}}, False),
        ({"layers": {"ge": 4}}, {}, False),
        ({}, {"layers": {"ne": 5}}, False),
        ({}, {"layers": {"ne": 12}}, True),
        ({"size": {"in": ["large"]}}, {"size": {"in": ["large", "huge"]}}, True),
        ({"size": {"ge": "medium"}}, {"size": {"gt": "medium"}}, False),
    ],
)
def test_a_condition_may_only_change_for_new_values(before: Any, after: Any, kept: bool) -> None:
    old = space_of(drop=RATE | {"when": before}, layers=LAYERS, size=SIZE)
    sizes = {"type": "ordinal", "choices": ["small", "medium", "large", "huge"]}
    new = space_of(drop=RATE | {"when": after}, layers=LAYERS | {"high": 16}, size=sizes)
    if kept:
        widened(old, new)
        for n, size in itertools.product(range(2, 9), ("small", "medium", "large")):
            assert is_active(old, "drop", {"layers": n, "size": size}) == is_active(
                new, "drop", {"layers": n, "size": size}
            )
    else:
        with pytest.raises(InvalidSpec, match=r"space\.drop\.when"):
            widened(old, new)


def test_an_unknown_space_is_checked_as_such() -> None:
    space: Space = {"x": words.Float(0, 1, when={"y": {"eq": 1}})}
    with pytest.raises(InvalidSpec, match="is not in the space"):
        check_space(space)
