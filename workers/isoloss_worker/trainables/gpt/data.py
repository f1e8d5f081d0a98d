"""What is trained on: text as bytes (the standard library's own source, or the user's), or the user's token files.

Sequence ``i`` of the training stream is a function of (seed, i) alone, whatever the batch size, so every trial of a
study reads the same text in the same order, and a resumed run goes on exactly where it was.
"""

from __future__ import annotations

import hashlib
import os
import sysconfig
from functools import lru_cache
from pathlib import Path
from typing import Final

import numpy as np
import torch

from isoloss.client.locate import home
from isoloss.domain.spec import Gpt
from isoloss.errors import TrainableFailed
from isoloss_worker.trainables.gpt import tokens
from isoloss_worker.trainables.gpt.model import BYTES
from isoloss_worker.trainables.gpt.tokens import Tokens

STDLIB: Final = "stdlib"
HELD_OUT_EVERY: Final = 20  # one file in twenty is never trained on
LEAST_BYTES: Final = 100_000


class Corpus:
    """Tokens to train on and tokens held out, mapped from disk; ``digest`` names them in the recipe."""

    def __init__(self, train: Tokens, held_out: Tokens, *, vocabulary: int, digest: str) -> None:
        self.train = train
        self.held_out = held_out
        self.vocabulary = vocabulary
        self.digest = digest

    def batch(self, seed: int, first: int, count: int, context: int) -> torch.Tensor:
        """Sequences ``first … first + count - 1`` of the stream, int64, (count, context + 1)."""
        places = [offset(seed, first + i, self.train.places(context)) for i in range(count)]
        return self._read(self.train, places, context)

    def windows(self, n_tokens: int, context: int) -> torch.Tensor:
        """Fixed windows of the held-out text, evenly spaced, int64, (n_tokens // context, context + 1)."""
        count = max(1, n_tokens // context)
        places = np.linspace(0, self.held_out.places(context) - 1, count).astype(np.int64)
        return self._read(self.held_out, places.tolist(), context)

    def _read(self, of: Tokens, places: list[int], context: int) -> torch.Tensor:
        rows = of.rows(places, context)
        if (highest := int(rows.max())) >= self.vocabulary:  # on a GPU it would end the process and say nothing
            raise tokens.beyond(highest, self.vocabulary)
        return torch.from_numpy(rows.astype(np.int64))


def offset(seed: int, index: int, size: int) -> int:
    """Where sequence ``index`` of the stream begins: a counter hashed with the seed (splitmix64)."""
    mask = (1 << 64) - 1
    z = (index * 0x9E3779B97F4A7C15 + (seed + 1) * 0xD1B54A32D192ED03) & mask
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
    return (z ^ (z >> 31)) % size


def corpus_of(spec: Gpt) -> Corpus:
    """What ``run.gpt.data`` names: token files where a vocabulary is said, else text."""
    if spec.vocabulary is None:
        return load(spec.data)
    train, held_out, digest = tokens.load(spec.data, spec.vocabulary, spec.dtype, spec.context)
    return Corpus(train, held_out, vocabulary=spec.vocabulary, digest=digest)


@lru_cache(maxsize=2)
def load(source: str) -> Corpus:
    """The corpus named ``stdlib``, or of a path; raises ``TrainableFailed`` when there is too little of it."""
    files = _files(source)
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file}:{file.stat().st_size};".encode())
    folder = home() / "data" / digest.hexdigest()[:16]
    if not (folder / "held_out.bin").exists():
        _write(folder, files)
    parts = [np.memmap(folder / f"{name}.bin", dtype=np.uint8, mode="r") for name in ("train", "held_out")]
    if min(map(len, parts)) < LEAST_BYTES // HELD_OUT_EVERY:
        raise TrainableFailed(f"run.gpt.data is {source!r}, too little text; accepted is a corpus of at least 100 kB.")
    train, held_out = (Tokens([part]) for part in parts)
    return Corpus(train, held_out, vocabulary=BYTES, digest=digest.hexdigest()[:16])


def _files(source: str) -> list[Path]:
    if source == STDLIB:
        root = Path(sysconfig.get_path("stdlib"))
        return sorted(
            p for p in root.rglob("*.py") if not {"site-packages", "dist-packages", "test", "tests"} & set(p.parts)
        )
    path = Path(source)
    if path.is_dir():
        return sorted(p for p in path.rglob("*") if p.is_file())
    if path.is_file():
        return [path]
    raise TrainableFailed(
        f"run.gpt.data is {source!r}, which is not there; accepted is {STDLIB!r}, a folder or a file of text."
    )


def _write(folder: Path, files: list[Path]) -> None:
    """Train and held-out bytes; a single file is cut, a folder is dealt file by file."""
    if not files:
        raise TrainableFailed("run.gpt.data holds no file; accepted is a corpus of at least 100 kB.")
    if len(files) < HELD_OUT_EVERY:
        text = b"\n".join(file.read_bytes() for file in files)
        cut = len(text) - len(text) // HELD_OUT_EVERY
        train, held_out = text[:cut], text[cut:]
    else:
        train = b"\n".join(f.read_bytes() for i, f in enumerate(files) if i % HELD_OUT_EVERY)
        held_out = b"\n".join(f.read_bytes() for f in files[::HELD_OUT_EVERY])
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in (("train", train), ("held_out", held_out)):  # held_out last: it marks the folder as whole
        draft = folder / f"{name}.{os.getpid()}"
        draft.write_bytes(content)
        draft.replace(folder / f"{name}.bin")
