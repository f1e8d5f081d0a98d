"""Token files: what a tokenizer wrote, mapped from disk and read in place, whatever their size.

A file is little-endian uint16 or uint32 and nothing else (as nanoGPT writes), or that behind the 1,024-byte header of
llm.c's shards, which says its type. ``data`` is one file, whose last twentieth is held out, or a folder whose ``.bin``
files have ``train`` or ``val`` in their names.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from isoloss.errors import TrainableFailed

Dtype = Literal["uint16", "uint32"]
HEADERS: Final[dict[int, Dtype]] = {20240520: "uint16", 20240801: "uint32"}  # by the first int32 of llm.c's shards
HEADER_BYTES: Final = 1024
HELD_OUT_PART: Final = 20  # of a single file
PROBES: Final = 16  # places of a file that are looked at before anything is trained
PROBE_TOKENS: Final = 8192

Array = NDArray[Any]


class Tokens:
    """Files in a row; no sequence reaches from one into the next."""

    def __init__(self, parts: Sequence[Array]) -> None:
        self.parts = [part.view(np.ndarray) for part in parts]  # slices of a memmap cost three times as much
        self.sizes = np.array([len(part) for part in parts])

    def places(self, context: int) -> int:
        """How many sequences of ``context + 1`` tokens there are."""
        return int(self._counts(context).sum())

    def rows(self, places: Sequence[int], context: int) -> Array:
        """The sequences that begin at these places, (count, context + 1)."""
        counts = self._counts(context)
        ends = np.cumsum(counts)
        which = np.searchsorted(ends, places, side="right")
        begins = np.asarray(places) - (ends - counts)[which]
        pairs = zip(which.tolist(), begins.tolist(), strict=True)
        return np.stack([self.parts[part][begin : begin + context + 1] for part, begin in pairs])

    def _counts(self, context: int) -> NDArray[np.int64]:
        counts: NDArray[np.int64] = np.maximum(self.sizes - context - 1, 0)
        return counts


def load(source: str, vocabulary: int, dtype: Dtype | None, context: int) -> tuple[Tokens, Tokens, str]:
    """Tokens to train on, tokens held out and a digest of both; raises ``TrainableFailed`` for what they cannot be."""
    path, digest = Path(source), hashlib.blake2b(digest_size=8)
    groups = [[_open(file, dtype, vocabulary) for file in files] for files in _files(path)]
    for part in (part for group in groups for part in group):
        digest.update(_probe(part, vocabulary, source))
    if len(groups) == 1:
        whole = groups[0][0]
        cut = len(whole) - len(whole) // HELD_OUT_PART
        groups = [[whole[:cut]], [whole[cut:]]]
    train, held_out = map(Tokens, groups)
    if not (train.places(context) and held_out.places(context)):
        raise TrainableFailed(
            f"run.gpt.data is {source!r}, with {train.sizes.sum()} tokens to train on and {held_out.sizes.sum()} held "
            f"out; accepted are more than run.gpt.context, {context}, of both."
        )
    return train, held_out, digest.hexdigest()


def beyond(highest: int, vocabulary: int) -> TrainableFailed:
    """The error of a token that the vocabulary has not."""
    return TrainableFailed(
        f"run.gpt.vocabulary is {vocabulary}, and run.gpt.data holds token {highest}; accepted is at least {highest + 1}.",
        hint="" if highest < 1 << 16 else "If its tokens have two bytes, say dtype: uint16.",
    )


def _files(path: Path) -> list[list[Path]]:
    """The one file, or the files to train on and those held out."""
    if path.is_file():
        return [[path]]
    if path.is_dir():
        groups = [sorted(path.glob(f"*{word}*.bin")) for word in ("train", "val")]
        if all(groups):
            return groups
    raise TrainableFailed(
        f"run.gpt.data is {str(path)!r} with a vocabulary, and holds no token files; accepted is a .bin file, or a folder "
        "with *train*.bin and *val*.bin."
    )


def _open(file: Path, dtype: Dtype | None, vocabulary: int) -> Array:
    with file.open("rb") as handle:
        magic = int.from_bytes(handle.read(4), "little")
    headed = HEADERS.get(magic)
    if headed and dtype and headed != dtype:
        raise TrainableFailed(
            f"run.gpt.dtype is {dtype!r}, and the header of {file} says {headed}; accepted is {headed}."
        )
    stated = headed or dtype or ("uint16" if vocabulary <= 1 << 16 else "uint32")
    if stated == "uint16" and vocabulary > 1 << 16:
        raise TrainableFailed(
            f"run.gpt.vocabulary is {vocabulary}, and the tokens of {file} are uint16; accepted are at most 65536, or uint32."
        )
    skipped, width = HEADER_BYTES if headed else 0, np.dtype(stated).itemsize
    size = file.stat().st_size - skipped
    if size <= 0 or size % width:
        raise TrainableFailed(
            f"{file} of run.gpt.data has {max(size, 0)} bytes of tokens; accepted are whole tokens of {width} bytes "
            f"({stated}), at least one."
        )
    return np.memmap(file, dtype=np.dtype(stated).newbyteorder("<"), mode="r", offset=skipped)


def _probe(part: Array, vocabulary: int, source: str) -> bytes:
    """A digest of a file's size and of what stands at some places of it; what stands there is in the vocabulary."""
    digest = hashlib.blake2b(str((part.dtype.str, len(part))).encode())
    for begin in np.linspace(0, max(0, len(part) - PROBE_TOKENS), PROBES).astype(int):
        piece = part[begin : begin + PROBE_TOKENS]
        digest.update(piece.tobytes())
        if (highest := int(piece.max())) >= vocabulary:
            raise beyond(highest, vocabulary)
        if piece.dtype.itemsize == 2 and len(piece) > 2 and piece[::2].any() and not piece[1::2].any():
            raise TrainableFailed(
                f"run.gpt.dtype is 'uint16', and every second token of run.gpt.data, {source!r}, is 0; accepted for such a "
                "file is 'uint32'."
            )
    return digest.digest()
