from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from isoloss.errors import InvalidSpec, NotFound
from isoloss.files.tables import read_observations, read_rows, write_rows

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
