"""Text as bytes: the standard library's own source by default, or a folder or file of the user's.

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
from numpy.typing import NDArray

from isoloss.client.locate import home
from isoloss.errors import TrainableFailed

STDLIB: Final = "stdlib"
HELD_OUT_EVERY: Final = 20  # one file in twenty is never trained on
LEAST_BYTES: Final = 100_000


class Corpus:
    """Bytes to train on and bytes held out, mapped from disk; ``digest`` names them in the recipe."""

    def __init__(self, train: NDArray[np.uint8], held_out: NDArray[np.uint8], digest: str) -> None:
        self.train = train
        self.held_out = held_out
        self.digest = digest

    def batch(self, seed: int, first: int, count: int, context: int) -> torch.Tensor:
        """Sequences ``first … first + count - 1`` of the stream, int64, (count, context + 1)."""
        offsets = [offset(seed, first + i, len(self.train) - context - 1) for i in range(count)]
        rows = np.stack([self.train[o : o + context + 1] for o in offsets])
        return torch.from_numpy(rows.astype(np.int64))

    def windows(self, n_tokens: int, context: int) -> torch.Tensor:
        """Fixed windows of the held-out text, evenly spaced, int64, (n_tokens // context, context + 1)."""
        count = max(1, n_tokens // context)
        offsets = np.linspace(0, len(self.held_out) - context - 2, count).astype(np.int64)
        rows = np.stack([self.held_out[o : o + context + 1] for o in offsets])
        return torch.from_numpy(rows.astype(np.int64))


def offset(seed: int, index: int, size: int) -> int:
    """Where sequence ``index`` of the stream begins: a counter hashed with the seed (splitmix64)."""
    mask = (1 << 64) - 1
    z = (index * 0x9E3779B97F4A7C15 + (seed + 1) * 0xD1B54A32D192ED03) & mask
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
    return (z ^ (z >> 31)) % size


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
    return Corpus(parts[0], parts[1], digest.hexdigest()[:16])


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
