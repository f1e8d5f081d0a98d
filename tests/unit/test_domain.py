"""Words, numbers, spaces and the rule of endings."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isoloss.domain.campaign import (
    campaign_mapping,
    decode_campaign,
    deepen_to,
    largest,
    n_params_of,
    next_column,
    study_of,
    target_study,
    wanted_tokens,
)
from isoloss.domain.lease import Ending, judge
from isoloss.domain.quantity import Seconds, format_count, parse_count, parse_duration
from isoloss.domain.space import AnyParameter, Categorical, Float, Int, Ordinal, check_configuration, configuration_at
from isoloss.domain.spec import decode_study, encode
from isoloss.domain.task import MAX_FAILURES, MAX_INFRA_FAILURES, NEXT, TERMINAL, TaskState, check_move
from isoloss.errors import InvalidSpec, WrongState
from isoloss.search.geometry import ladder_of


@pytest.mark.parametrize(
    ("text", "value"), [("7B", 7e9), ("1.2T", 1.2e12), ("140b", 1.4e11), ("1e-4", 1e-4), ("3_000", 3000), (5, 5)]
)
def test_counts_are_read_as_people_write_them(text: str | int, value: float) -> None:
    assert parse_count(text, "x") == pytest.approx(value)


@pytest.mark.parametrize("text", ["", "7Q", "B", "1e", "nan", "inf", True])
def test_what_is_no_count_is_named(text: Any) -> None:
    with pytest.raises(InvalidSpec, match=r"target\.n_params is .*; accepted is a number"):
        parse_count(text, "target.n_params")


@given(st.floats(1, 1e15))
def test_a_formatted_count_reads_back_nearly(value: float) -> None:
    assert parse_count(format_count(value), "x") == pytest.approx(value, rel=6e-3)


def test_durations() -> None:
    assert [parse_duration(t, "x") for t in ("90s", "5m", "2h", "3d", "10")] == [90, 300, 7200, 259200, 10]
    for below in ("-5", -5, "-2h"):
        with pytest.raises(InvalidSpec, match="x is .*; accepted is a duration such as .*, from 0"):
            parse_duration(below, "x")


LR: dict[str, Any] = {"lr": {"type": "float", "low": 1e-3, "high": 1e-1, "log": True}}
GPT_STUDY: dict[str, Any] = {
    "name": "s", "space": {"lr": {"type": "float", "low": 0.1, "high": 1}}, "objective": {"metric": "loss"},
    "method": {"min_budget": 512, "max_budget": 1536}, "budget": {"unit": "tokens"}, "run": {"gpt": {"width": 32, "depth": 3}},
}  # fmt: skip


def test_a_studys_parameters_are_known_where_every_run_has_the_same() -> None:
    assert decode_study(GPT_STUDY).n_params == 12 * 3 * 32**2
    assert decode_study(GPT_STUDY | {"fixed": {"width": 64}}).n_params == 12 * 3 * 64**2
    assert decode_study(GPT_STUDY | {"run": {"command": ["train"]}}).n_params is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"limits": {"wall": "soon"}}, r"limits\.wall: .*'soon'; accepted is a duration"),
        ({"limits": {"wall": 0}}, r"limits\.wall is 0; accepted is a number above 0"),
        ({"limits": {"gpu_hours": -1}}, r"limits\.gpu_hours is -1; accepted is a number above 0"),
        (
            {"limits": {"flops": "1e18"}, "run": {"command": ["train"]}},
            r"limits\.flops is 1e\+18 .* budget\.unit tokens; accepted",
        ),
        ({"limits": {"flops": "1e18"}, "budget": {"unit": "steps"}}, r"not known with budget\.unit steps"),
        (
            {"limits": {"flops": "1e18"}, "space": {"width": {"type": "ordinal", "choices": [16, 32]}}},
            r"accepted is unit flops, or unit tokens with run\.gpt of one width",
        ),
    ],
)
def test_a_limit_that_cannot_be_kept_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidSpec, match=message):
        decode_study(GPT_STUDY | change)
    decode_study(GPT_STUDY | {"limits": {"wall": "2h", "gpu_hours": 300, "flops": "1e18"}})


SPACE: dict[str, AnyParameter] = {
    "lr": Float(low=1e-4, high=1e-1, log=True), "step": Float(low=0, high=1, step=0.25), "n": Int(low=2, high=8),
    "m": Int(low=1, high=1000, log=True), "c": Categorical(choices=("a", "b")), "o": Ordinal(choices=(1, 2, 4)),
}  # fmt: skip


@given(st.lists(st.floats(0, 1, exclude_max=True), min_size=6, max_size=6))
def test_every_point_of_the_cube_is_a_configuration_of_the_space(point: list[float]) -> None:
    check_configuration(SPACE, configuration_at(SPACE, point))


def test_both_ends_of_a_whole_range_are_reached_evenly() -> None:
    counted = [SPACE["n"].at((i + 0.5) / 7000) for i in range(7000)]
    assert {counted.count(n) for n in range(2, 9)} == {1000}


@pytest.mark.parametrize(
    ("configuration", "message"),
    [
        ({}, "lacks c"),
        ({"lr": 1.0}, r"params\.lr is 1\.0; accepted is a number from 0\.0001 to 0\.1"),
        ({"zz": 1}, "zz is not in the space"),
    ],
)
def test_a_configuration_that_does_not_fit_is_named(configuration: dict[str, Any], message: str) -> None:
    whole = configuration_at(SPACE, [0.5] * 6) | configuration if configuration else {}
    with pytest.raises(InvalidSpec, match=message):
        check_configuration(SPACE, whole)


def test_a_study_spec_survives_its_own_encoding() -> None:
    spec = decode_study(
        {"name": "s", "space": {k: encode(v) for k, v in SPACE.items()}, "method": {"min_budget": "1K", "max_budget": "27K"},
         "desirability": {"a": {"shape": "smaller", "target": 1, "limit": 2}}, "limits": {"total_budget": "1M"},
         "run": {"command": ["python", "t.py"], "timeout": "2h"}, "fidelity": {"mode": "branch"}}
    )  # fmt: skip
    assert decode_study(encode(spec)) == spec
    assert spec.fidelity.decay_fraction == 0.2 and spec.run is not None and spec.run.timeout == Seconds(7200)


def test_columns_per_parameter_are_each_sizes_own_and_equally_many() -> None:
    ratios = {"per_param": {"min": 0.1, "max": 2.7}, "eta": 3, "deepen_to": 8.1}
    for n_params in (12345, 54321, 999983):
        sizes = [{"name": "a", "n_params": n_params}, {"name": "b", "n_params": 10 * n_params}]
        spec = decode_campaign(
            CAMPAIGN | {"tokens": ratios, "sizes": sizes, "fidelity": {"mode": "resume"}, "space": LR}
        )
        small, big = (ladder_of(study_of(spec, size)) for size in spec.sizes)
        assert small.top == big.top == 3 and largest(spec) is spec.sizes[1]
        assert abs(big.budgets[-1] - 27 * n_params) <= 256 and abs(small.budgets[-1] - 2.7 * n_params) <= 256
        assert deepen_to(spec) == pytest.approx(81 * n_params, abs=2)
        assert wanted_tokens(spec, max_tokens=0, max_per_param=24.3) == pytest.approx(243 * n_params, abs=9)
        assert next_column(spec, big.extended(1).budgets[-1]) == "--max-per-param 24.3"
        with pytest.raises(
            InvalidSpec, match=r"max_tokens is 5 and the spec's tokens are per_param; accepted is max_per_param"
        ):
            wanted_tokens(spec, max_tokens=5, max_per_param=0)
        with pytest.raises(InvalidSpec, match=r"max_per_param is 9; accepted is max, 2\.7, times a power of eta 3"):
            wanted_tokens(spec, max_tokens=0, max_per_param=9)
    same = decode_campaign(CAMPAIGN)
    assert wanted_tokens(same, max_tokens=65536, max_per_param=0) == 65536
    with pytest.raises(
        InvalidSpec, match=r"max_per_param is 9 and the spec's tokens are the same .*; accepted is max_tokens"
    ):
        wanted_tokens(same, max_tokens=0, max_per_param=9)


kinds = st.sampled_from(["complete", "diverge", "fail", "release", "expire"])


@given(kind=kinds, state=st.sampled_from([TaskState.LEASED, TaskState.CANCELLING]), failures=st.integers(0, 3),
       infra=st.integers(0, 3), loss=st.floats(), retryable=st.booleans(), named=st.booleans())  # fmt: skip
def test_every_ending_makes_a_listed_move_and_a_result_exactly_when_it_is_final(
    kind: Any, state: TaskState, failures: int, infra: int, loss: float, retryable: bool, named: bool
) -> None:
    ending = Ending(kind=kind, values={"loss" if named else "acc": loss}, retryable=retryable)
    move = judge(ending, state=state, failures=failures, infra_failures=infra, needed=("loss",))
    check_move(state, move.state)
    assert (move.status is not None) == (move.state in TERMINAL)
    assert all(math.isfinite(value) for value in move.values.values())
    if move.status == "ok":
        assert math.isfinite(move.values["loss"])
    if move.state is TaskState.READY:
        assert failures + move.failures < MAX_FAILURES or not move.failures
        assert infra + move.infra_failures < MAX_INFRA_FAILURES or not move.infra_failures


def test_final_states_are_final() -> None:
    for state in TERMINAL - {TaskState.FAILED}:
        assert NEXT[state] == frozenset()
        with pytest.raises(WrongState, match="it is final"):
            check_move(state, TaskState.READY)
    assert NEXT[TaskState.FAILED] == {TaskState.READY}  # retried


CAMPAIGN: dict[str, Any] = {
    "name": "c", "target": {"n_tokens": "1M", "set": {"width": 128}}, "tokens": {"min": 8192, "max": 32768},
    "sizes": [{"name": "a", "set": {"width": 32}}, {"name": "b", "set": {"width": 64}}], "run": {"gpt": {}},
    "space": {"lr": {"type": "float", "low": 1e-3, "high": 1e-1, "log": True}, "batch_tokens": {"type": "ordinal", "choices": [128, 512]}},
}  # fmt: skip


def test_each_size_of_a_campaign_is_a_study_with_all_brackets_in_branch_mode() -> None:
    spec = decode_campaign(CAMPAIGN)
    study = study_of(spec, spec.sizes[1])
    assert (study.name, study.method.brackets, study.fidelity.mode, study.budget.multiple) == (
        "c-b",
        "all",
        "branch",
        512,
    )
    assert study.run is not None and study.run.gpt is not None and study.run.gpt.width == 64
    assert n_params_of(spec, spec.sizes[1], "b") == 12 * 2 * 64**2
    assert target_study(spec).limits.trials == 0
    assert decode_campaign(campaign_mapping(spec)) == spec


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sizes": []}, "sizes is empty"),
        ({"sizes": [{"name": "target"}]}, "none of them 'target'"),
        ({"space": {"x": {"type": "float", "low": 0, "high": 1}}}, "a space with lr in it"),
        (
            {"space": CAMPAIGN["space"] | {"batch_tokens": {"type": "ordinal", "choices": [128, 200]}}},
            "batch_tokens has 128",
        ),
        ({"run": {"command": ["x"]}}, r"n_params is missing"),
        ({"sizes": [{"name": "a", "set": {"wdith": 3}}]}, "wdith"),
        ({"targt": 1}, "unknown key `targt`"),
        ({"objective": {"metric": "acc", "goal": "maximize"}}, "accepted is minimize"),
        ({"limits": {"flops": 0}}, r"limits\.flops is 0; accepted is a number above 0"),
        ({"limits": {"trials": 3}}, r"limits: unknown key `trials`"),
        ({"tokens": {"min": 8192}}, r"tokens has min; accepted is min and max, or per_param"),
        ({"tokens": {}}, r"tokens has no columns; accepted"),
        (
            {"tokens": {"min": 1, "max": 2, "per_param": {"min": 1, "max": 2}}},
            r"tokens has min, max, per_param; accepted",
        ),
        (
            {"tokens": {"per_param": {"min": 5, "max": 4}}},
            r"tokens\.per_param\.min is 5 and max 4; accepted is 0 < min",
        ),
        ({"tokens": {"per_param": {"min": 1, "max": 4}, "deepen_to": 6}}, "accepted is max, 4, times a power of eta 2"),
        ({"tokens": {"min": 8192, "max": 32768, "deepen_to": 65537}}, "times a power of eta 2"),
    ],
)
def test_a_campaign_that_cannot_be_is_refused_with_its_path(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidSpec, match=message):
        decode_campaign(CAMPAIGN | change)
