"""Token files: read in place, each mistake about them named with what is accepted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from isoloss.domain.spec import Gpt
from isoloss.errors import InvalidSpec, TrainableFailed
from isoloss_worker.job import Job, Reporter

pytest.importorskip("torch")


def write(file: Path, tokens: Any, dtype: str = "uint16", *, magic: int = 0) -> str:
    header = np.zeros(256 if magic else 0, np.int32)
    header[:3] = (magic, 1, len(tokens)) if magic else ()
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(header.tobytes() + np.asarray(tokens).astype(dtype).tobytes())
    return str(file)


def corpus(data: str, vocabulary: int = 1000, **changes: Any) -> Any:
    from isoloss_worker.trainables.gpt.data import corpus_of

    return corpus_of(Gpt(context=8, data=data, vocabulary=vocabulary, **changes))


def count(size: int = 1000) -> Any:
    return np.arange(size)


@pytest.mark.parametrize(("dtype", "magic"), [("uint16", 0), ("uint16", 20240520), ("uint32", 20240801)])
def test_the_stream_is_what_the_file_holds_and_its_end_is_held_out(tmp_path: Path, dtype: str, magic: int) -> None:
    found = corpus(write(tmp_path / "tokens.bin", count(), dtype, magic=magic))
    rows = found.batch(seed=3, first=0, count=50, context=8)
    assert rows.shape == (50, 9) and (rows[:, 1:] == rows[:, :-1] + 1).all()
    assert rows.max() < 950 <= found.windows(400, 8).min()
    assert (rows[10:20] == found.batch(seed=3, first=10, count=10, context=8)).all()


def test_headerless_uint32_is_said_by_the_spec_and_taken_for_granted_where_uint16_is_too_small(tmp_path: Path) -> None:
    file = write(tmp_path / "tokens.bin", count() + 100_000, "uint32")
    assert corpus(file, 128_000).batch(0, 0, 4, 8).min() >= 100_000
    low = write(tmp_path / "low.bin", count(), "uint32")
    assert corpus(low, dtype="uint32").batch(0, 0, 4, 8).max() < 1000


def test_a_folder_has_shards_to_train_on_and_shards_held_out(tmp_path: Path) -> None:
    for i in range(3):
        write(tmp_path / f"d/fineweb_train_{i}.bin", count(100) + 100 * i, magic=20240520)
    write(tmp_path / "d/fineweb_val_0.bin", count(100) + 900)
    found = corpus(str(tmp_path / "d"))
    rows = found.batch(0, 0, 300, 8)
    assert {int(row[0]) // 100 for row in rows} == {0, 1, 2}
    assert all(int(row[0]) // 100 == int(row[-1]) // 100 for row in rows), "no sequence reaches into the next file"
    assert {int(t) for row in found.windows(8 * 92, 8) for t in row} == set(range(900, 999))


def test_places_are_counted_over_the_files_in_a_row() -> None:
    from isoloss_worker.trainables.gpt.tokens import Tokens

    tokens = Tokens([np.arange(12), np.arange(5), np.arange(20, 33)])
    assert tokens.places(8) == 3 + 0 + 4
    assert tokens.rows(range(7), 8)[:, 0].tolist() == [0, 1, 2, 20, 21, 22, 23]


def test_other_content_has_another_digest(tmp_path: Path) -> None:
    one = corpus(write(tmp_path / "a.bin", count())).digest
    assert corpus(write(tmp_path / "b.bin", count())).digest == one, "wherever it lies"
    assert corpus(write(tmp_path / "c.bin", count()[::-1])).digest != one


@pytest.mark.parametrize(
    ("content", "spec", "said"),
    [
        (count().astype("uint16"), {"vocabulary": 900},
         "run.gpt.vocabulary is 900, and run.gpt.data holds token 999; accepted is at least 1000"),
        (count().astype("uint16"), {"dtype": "uint32"}, "If its tokens have two bytes, say dtype: uint16"),
        (count().astype("uint32"), {},
         r"run.gpt.dtype is 'uint16', and every second token of .* is 0; accepted for such a file is 'uint32'"),
        (np.zeros(777, np.uint8), {}, r"tokens.bin of run.gpt.data has 777 bytes .* whole tokens of 2 bytes \(uint16\)"),
        (np.zeros(0, np.uint8), {}, "has 0 bytes of tokens; accepted are whole tokens of 2 bytes"),
        (count(40).astype("uint16"), {},
         "with 38 tokens to train on and 2 held out; accepted are more than run.gpt.context, 8, of both"),
        (count().astype("uint16"), {"vocabulary": 70_000, "dtype": "uint16"},
         "run.gpt.vocabulary is 70000, and the tokens of .* are uint16; accepted are at most 65536, or uint32"),
    ],
)  # fmt: skip
def test_a_file_that_is_not_what_the_spec_says_is_refused(
    tmp_path: Path, content: Any, spec: dict[str, Any], said: str
) -> None:
    (tmp_path / "tokens.bin").write_bytes(content.tobytes())
    with pytest.raises(TrainableFailed, match=said):
        corpus(str(tmp_path / "tokens.bin"), **spec)


def test_a_header_of_another_type_than_the_spec_says_is_refused(tmp_path: Path) -> None:
    file = write(tmp_path / "tokens.bin", count(), magic=20240520)
    with pytest.raises(TrainableFailed, match=r"run.gpt.dtype is 'uint32', and the header of .* says uint16"):
        corpus(file, dtype="uint32")


@pytest.mark.parametrize("name", ["nowhere", "empty"])
def test_a_place_without_token_files_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(TrainableFailed, match=r"holds no token files; accepted is a .bin file, or a folder with"):
        corpus(str(tmp_path / name))


def test_a_token_beyond_the_vocabulary_that_no_probe_met_is_refused_when_it_is_met(tmp_path: Path) -> None:
    tokens = np.zeros(1_000_000, np.uint16)
    found = corpus(write(tmp_path / "tokens.bin", tokens), 500)
    tokens[::7] = 600
    write(tmp_path / "tokens.bin", tokens)
    with pytest.raises(TrainableFailed, match="holds token 600; accepted is at least 601"):
        found.batch(0, 0, 4, 8)


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ({"data": "tokens.bin"}, "run.gpt.data is 'tokens.bin' and run.gpt.vocabulary is missing"),
        ({"dtype": "uint16"}, "run.gpt.dtype is 'uint16' and run.gpt.vocabulary is missing"),
    ],
)
def test_token_files_need_a_vocabulary(model: dict[str, Any], said: str) -> None:
    from isoloss_worker.trainables.gpt.train import train

    job = Job(
        study="s",
        trial=0,
        level=0,
        params={},
        budget_from=0,
        decay_from=512,
        budget_to=512,
        save_to="x",
        run={"gpt": model},
    )
    with pytest.raises(InvalidSpec, match=said):
        train(job, Reporter(lambda *_: None, lambda _: None))
