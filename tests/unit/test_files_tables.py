from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from isoloss.domain.campaign import decode_campaign
from isoloss.errors import InvalidSpec, NotFound
from isoloss.files.tables import read_observations, read_own, read_rows, write_rows

ROWS: list[dict[str, Any]] = [
    {"n_params": 6e7, "n_tokens": 2e9, "loss": 2.9, "lr": 1e-3, "batch_tokens": 65536.0, "run": 'a,"b"'},
    {"n_params": 6e7, "n_tokens": 2e9, "loss": None, "lr": 1e-1, "batch_tokens": 65536.0, "status": "diverged"},
]


@pytest.mark.parametrize("name", ["x.csv", "x.jsonl", "x.csv.gz", "x.jsonl.gz", "x.parquet"])
def test_observations_survive_every_format(tmp_path: Path, name: str) -> None:
    if name.endswith("parquet"):
        pytest.importorskip("pyarrow")
    write_rows(tmp_path / name, ROWS)
    seen = read_observations(tmp_path / name)
    assert (len(seen), int(seen.diverged.sum()), seen.rows[0].run) == (2, 1, 'a,"b"')
    write_rows(tmp_path / "again.jsonl", [row.to_row() for row in seen])
    assert read_observations(tmp_path / "again.jsonl").hash() == seen.hash()


def test_columns_are_renamed_and_a_batch_in_sequences_becomes_tokens(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("N, tokens,final,batch_seqs,seq_len\n60M,2B,2.9,32,2K\n")
    seen = read_observations(tmp_path / "x.csv", ["N=n_params,tokens=n_tokens", "final=loss"])
    assert (seen.n_params[0], seen.loss[0], seen.batch_tokens[0]) == (6e7, 2.9, 64000.0)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("n_params,n_tokens,loss\n1M,1B\n", "line 2"),
        ("n_params,n_tokens,loss\n1M,1B,2,3\n", "line 2"),
        ("n_params,n_tokens,loss\n", "no rows"),
        ("n_params,loss\n1M,2\n", "row 1 has no n_tokens"),
        ("n_params,n_tokens,loss,batch_seqs\n1M,1B,2,8\n", "seq_len"),
        ('n_params,n_tokens,loss\n"1M,1B,2\n', "line"),
    ],
)
def test_a_bad_table_is_refused_with_its_place(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "x.csv").write_text(text)
    with pytest.raises(InvalidSpec) as caught:
        read_observations(tmp_path / "x.csv")
    assert words in caught.value.message


def test_what_is_no_table_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text('{"a": 1}\n[2]\n')
    (tmp_path / "y.jsonl").write_text("{nope\n")
    (tmp_path / "z.csv.gz").write_text("not gzip")
    for name in ("x.jsonl", "y.jsonl", "z.csv.gz", "x.xlsx"):
        with pytest.raises(InvalidSpec):
            read_rows(tmp_path / name)
    with pytest.raises(NotFound):
        read_rows(tmp_path / "none.csv")
    with pytest.raises(InvalidSpec, match="theirs=ours"):
        read_observations(_one(tmp_path), ["loss"])
    with pytest.raises(InvalidSpec, match="the columns are"):
        read_observations(_one(tmp_path), ["nope=loss"])


def test_parquet_without_pyarrow_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(InvalidSpec) as caught:
        read_rows(tmp_path / "x.parquet")
    assert "isoloss[parquet]" in caught.value.hint


def _one(folder: Path) -> Path:
    write_rows(folder / "one.csv", ROWS[:1])
    return folder / "one.csv"


OWN = "n_params,n_tokens,loss,lr,batch_tokens,n_params_count,optimizer,run\n"
RUN = "60M,2B,2.9,1e-3,65536,non_embedding,{},\n"


def campaign(*files: str) -> Any:
    return decode_campaign(
        {"name": "c", "target": {"n_params": "1B", "n_tokens": "20B"}, "sizes": [{"name": "a", "n_params": "60M"}],
         "tokens": {"min": "1B", "max": "4B"}, "space": {"lr": {"type": "float", "low": 1e-4, "high": 1e-2, "log": True}},
         "recipe": {"optimizer": "adamw", "seq_len": 2048}, "run": {"command": ["train"]}, "observations": list(files)}
    )  # fmt: skip


def test_a_campaigns_own_runs_are_read_from_every_file_and_have_a_name(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(OWN + RUN.format("adamw") + RUN.format("adamw").replace(",\n", ",first\n"))
    write_rows(tmp_path / "b.jsonl", [row | {"n_params_count": "non_embedding", "optimizer": "adamw"} for row in ROWS])
    rows = read_own(campaign("a.csv", "b.jsonl"), tmp_path)
    assert [row["run"] for row in rows] == ["a.csv#1", "first", 'a,"b"', "b.jsonl#2"]
    assert {row["recipe"] for row in rows} == {'{"optimizer":"adamw"}'}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            OWN + RUN.format("adamw") + RUN.format("muon"),
            r"observations a\.csv: row 2: recipe is .*muon.*; accepted is the",
        ),
        (OWN + RUN.format(""), r"row 1: recipe is ''; accepted is the campaign's, '.*adamw"),
        ("n_params,n_tokens,loss,optimizer\n1M,1B,2,adamw\n", r"row 1: n_params_count is 'total'; accepted is"),
        (OWN + RUN.format("adamw").replace("2.9", "-1"), r"observations a\.csv: row 1: loss is '-1'; accepted"),
        ("n_params,loss\n1M,2\n", r"observations a\.csv: row 1 has no n_tokens; the columns are"),
    ],
)
def test_an_own_run_that_is_none_or_of_another_recipe_names_file_row_and_column(
    tmp_path: Path, text: str, words: str
) -> None:
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(InvalidSpec, match=words):
        read_own(campaign("a.csv"), tmp_path)
    with pytest.raises(NotFound, match=r"there is no file .*b\.csv"):
        read_own(campaign("b.csv"), tmp_path)


def test_a_configuration_of_a_csv_has_the_values_of_its_parameters(tmp_path: Path) -> None:
    from isoloss.domain.space import Categorical, Float, Int, Space
    from isoloss.files.tables import read_configurations

    space: Space = {
        "lr": Float(low=0, high=1),
        "layers": Int(low=1, high=9),
        "act": Categorical(choices=("gelu", 2, True)),
    }
    file = tmp_path / "known.csv"
    file.write_text("lr,layers,act\n1e-3,4,gelu\n0.5,,2\n")
    assert read_configurations(file, space) == [{"lr": 1e-3, "layers": 4, "act": "gelu"}, {"lr": 0.5, "act": 2}]
    file.write_text("lr\nfast\n")
    with pytest.raises(InvalidSpec, match=r"known.csv row 1: lr is 'fast'; accepted is a number from 0 to 1"):
        read_configurations(file, space)
    file.write_text("speed\n1\n")
    with pytest.raises(InvalidSpec, match=r"the column 'speed'; accepted are lr, layers, act"):
        read_configurations(file, space)
