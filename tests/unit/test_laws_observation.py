from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from isoloss.errors import InvalidSpec
from isoloss.laws.expression import evaluate
from isoloss.laws.inference import rerun_noise
from isoloss.laws.observation import Observation, Observations, Status

ROW = {"n_params": "60M", "n_tokens": "2B", "loss": "2.9", "lr": "1e-3", "batch_tokens": 65536}
counts = st.floats(1e3, 1e12)
observations = st.builds(
    Observation,
    n_params=counts,
    n_tokens=counts,
    loss=st.floats(0.1, 20),
    lr=st.floats(1e-6, 1),
    run=st.text(max_size=3),
)


def test_a_row_becomes_an_observation_with_suffixes_and_six_n_d() -> None:
    seen = Observations.from_rows([ROW])
    assert (seen.n_params[0], seen.n_tokens[0], seen.flops[0]) == (6e7, 2e9, 6 * 6e7 * 2e9)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"n_params": ""}, ["row 2", "n_params"]),
        ({"lr": "-1"}, ["row 2", "lr", "above 0"]),
        ({"loss": "abc"}, ["row 2", "loss", "abc"]),
        ({"loss": "inf"}, ["row 2", "loss", "inf"]),
        ({"loss": ""}, ["row 2", "loss", "ok"]),
        ({"status": "fine"}, ["row 2", "status", "fine", "ok, diverged, truncated"]),
        ({"n_params_count": "some"}, ["row 2", "n_params_count", "non_embedding"]),
    ],
)
def test_a_bad_value_is_refused_with_row_column_value_and_what_is_accepted(
    change: dict[str, str], words: list[str]
) -> None:
    with pytest.raises(InvalidSpec) as caught:
        Observations.from_rows([ROW, ROW | change])
    assert all(word in caught.value.message for word in words), caught.value.message


def test_a_diverged_run_needs_no_loss() -> None:
    (row,) = Observations.from_rows([ROW | {"loss": None, "status": "diverged"}])
    assert row.status is Status.DIVERGED
    assert math.isnan(row.loss)


@given(rows=st.lists(observations, min_size=1, max_size=6), data=st.data())
def test_the_hash_does_not_depend_on_the_order_of_rows_and_sees_every_change(
    rows: list[Observation], data: st.DataObject
) -> None:
    shuffled = data.draw(st.permutations(rows))
    assert Observations(tuple(rows)).hash() == Observations(tuple(shuffled)).hash()
    assert Observations(tuple(rows)).hash() != Observations((*rows, rows[0])).hash()


@given(row=observations)
def test_a_row_survives_the_round_trip(row: Observation) -> None:
    assert Observations.from_rows([row.to_row()]).hash() == Observations((row,)).hash()


def test_recipes_are_not_mixed_unless_pooled() -> None:
    seen = Observations.from_rows([ROW | {"schedule": "wsd"}, ROW | {"schedule": "cosine"}])
    with pytest.raises(InvalidSpec, match="recipe differs"):
        seen.one_recipe()
    assert seen.one_recipe(pool=True) is seen


def test_where_filters_by_numbers_words_and_arithmetic() -> None:
    seen = Observations.from_rows([ROW, ROW | {"n_tokens": "4B", "schedule": "wsd", "depth": 8}])
    assert len(seen.where("n_tokens >= 3B and loss < 3")) == 1
    assert len(seen.where("n_tokens / n_params > 40 or recipe == ''")) == 2
    assert len(seen.where("not (depth > 4)")) == 1
    assert len(seen.where("1e9 < n_tokens <= 2B")) == 1


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os')",
        "loss.real > 1",
        "[x for x in loss]",
        "loss",
        "loss >",
        "loss + 'a' > 1",
        "loss < 'a'",
        "nope > 1",
        "True",
        "(lambda: 1)() > 0",
        "loss[0] > 1",
        "loss > 1" + " and loss > 1" * 200,
        "1 if loss > 1 else 2",
        "~loss > 1",
        "(" * 300,
    ],
)
def test_where_refuses_everything_outside_its_language(text: str) -> None:
    seen = Observations.from_rows([ROW])
    with pytest.raises(InvalidSpec, match="where"):
        evaluate(text, {"loss": seen.loss}, 1)


def test_a_batch_in_sequences_becomes_tokens_and_counts_among_the_extras_are_numbers() -> None:
    sequences = {name: value for name, value in ROW.items() if name != "batch_tokens"} | {
        "batch_seqs": 32,
        "seq_len": "2K",
    }
    (row,) = Observations.from_rows([sequences | {"unique_tokens": "1B", "n_experts": "8", "n_active": "20M"}])
    assert (row.batch_tokens, row.extras["unique_tokens"], row.extras["n_experts"]) == (64e3, 1e9, 8.0)
    with pytest.raises(InvalidSpec, match="row 1: batch_seqs without seq_len"):
        Observations.from_rows([{name: value for name, value in sequences.items() if name != "seq_len"}])
    with pytest.raises(InvalidSpec, match="row 1: n_experts is 'many'"):
        Observations.from_rows([ROW | {"n_experts": "many"}])


def test_likely_mistakes_are_said_and_nothing_is_refused() -> None:
    plain = {"n_params": 6e7, "n_tokens": 2e9, "lr": 1e-3, "loss": 2.9}
    assert Observations.from_rows([ROW, ROW | {"seed": 1}, ROW | {"loss": 2.8}]).cautions() == []
    (sequences,) = Observations.from_rows([plain | {"batch_tokens": 65536}, plain | {"batch_tokens": 256}]).cautions()
    assert sequences.startswith("batch_tokens of 1 rows (row 2: 256) looks like sequences")
    assert Observations.from_rows([plain | {"n_params": 1e5, "batch_tokens": 256}]).cautions() == []
    (twice,) = Observations.from_rows([plain, plain | {"run": "again"}]).cautions()
    assert twice.startswith("1 rows repeat others (row 2 is row 1)")
    points = [plain | {"n_tokens": 1e9 * k, "loss": 3 - k / 10} for k in (1, 2, 3)]
    (checkpoints,) = Observations.from_rows(points).cautions()
    assert checkpoints.startswith("3 rows without run differ in nothing but n_tokens and loss")
    assert Observations.from_rows([point | {"run": "a"} for point in points]).cautions() == []


def test_the_noise_of_a_run_comes_from_runs_that_differ_in_their_seed_alone() -> None:
    rng = np.random.default_rng(0)
    pairs = [
        Observation(n_params=1e8, n_tokens=1e9, lr=lr, loss=3.0 * float(np.exp(0.002 * rng.normal())), seed=seed)
        for lr in np.geomspace(1e-4, 1e-2, 200)
        for seed in (0, 1)
    ]
    noise, freedom = rerun_noise(Observations(tuple(pairs)))
    assert freedom == 200 and noise == pytest.approx(0.002, rel=0.15)
    alone = Observations(tuple(row for row in pairs if row.seed == 0))
    assert rerun_noise(alone) == (0.0, 0)
    twice = Observations((pairs[0], pairs[0]))
    assert rerun_noise(twice) == (0.0, 0), "the same run given twice is no rerun"
