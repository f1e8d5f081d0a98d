"""What the laws see: finished (and diverged) runs as frozen values, and the same runs as columns.

A law is only as good as the runs it was shown, so this file is strict: a bad value is refused with its row, column and
what is accepted, recipes are not mixed by accident, and ``hash`` says which observations a fit has seen.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from isoloss.domain.quantity import parse_count
from isoloss.errors import InvalidSpec
from isoloss.laws.expression import evaluate

Floats = NDArray[np.float64]
NUMBERS: Final = ("n_params", "n_tokens", "loss", "lr", "batch_tokens", "flops")
WORDS: Final = ("status", "run", "recipe", "n_params_count")
RECIPE: Final = ("schedule", "parameterization", "optimizer", "data", "tokenizer", "loss_name")
COUNTS: Final = ("total", "active", "non_embedding")
COUNTED: Final = (
    "unique_tokens",
    "n_experts",
    "n_active",
    "seq_len",
    "warmup_tokens",
    "batch_seqs",
)  # extras, 7B allowed
ALIASES: Final = {  # what others call our columns
    "n_params": ("n", "params", "parameters", "num_params", "model_size", "size"),
    "n_tokens": ("d", "tokens", "train_tokens", "num_tokens", "data_size"),
    "loss": ("val_loss", "final_loss", "train_loss", "eval_loss", "lm_loss"),
    "lr": ("learning_rate", "peak_lr", "max_lr", "lr_max"),
    "batch_tokens": ("batch_size", "bsz", "bs", "batch", "global_batch_size"),
}
SEQUENCES: Final = 4096  # a batch below it, of a model of SIZEABLE parameters, is likely counted in sequences
SIZEABLE: Final = 10_000_000
VARIED: Final = (
    "weight_decay",
    "warmup_tokens",
    "unique_tokens",
    "n_experts",
    "n_active",
)  # extras that make another run
CHECKPOINTS: Final = 3  # lengths of runs alike in all else from which they look like one run's checkpoints


class Status(StrEnum):
    """How a run ended: ``ok`` with its loss, ``diverged``, or ``truncated`` before its schedule's end."""

    OK = "ok"
    DIVERGED = "diverged"
    TRUNCATED = "truncated"


def canonical_recipe(recipe: Mapping[str, object] | str) -> str:
    """One spelling of a recipe: sorted JSON of its entries; a string stays as it is."""
    if isinstance(recipe, str):
        return recipe
    return json.dumps(dict(recipe), sort_keys=True, separators=(",", ":"), default=str) if recipe else ""


def entries(recipe: str) -> dict[str, str]:
    """The entries of a canonical recipe; a recipe that is one word has none."""
    if not recipe.startswith("{"):
        return {}
    found: dict[str, object] = json.loads(recipe)
    return {name: str(value) for name, value in found.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """One run: N parameters, D tokens, how it was trained and what came out.

    ``loss`` is in nats per token (NaN when diverged), ``lr`` the peak learning rate, ``batch_tokens`` tokens per step,
    ``flops`` the run's training compute (6 N D when not given). NaN in ``lr`` or ``batch_tokens`` means not known.
    ``recipe`` is whatever must not differ between runs of one law; ``extras`` are further columns for ``where``.
    """

    n_params: float
    n_tokens: float
    loss: float = math.nan
    lr: float = math.nan
    batch_tokens: float = math.nan
    flops: float = math.nan
    status: Status = Status.OK
    run: str = ""
    seed: int = 0
    recipe: str = ""
    n_params_count: str = "total"
    extras: Mapping[str, float | str] = field(default_factory=dict)

    @classmethod
    def from_row(cls, row: Mapping[str, Any], *, number: int = 1) -> Observation:
        """An observation from one row of a table (its columns as in the class, counts may have suffixes).

        Recipe columns (``RECIPE``) are folded into ``recipe``; ``batch_seqs`` ×
        ``seq_len`` becomes ``batch_tokens``. Other columns are extras, among them unique_tokens, n_experts and n_active for
        the forms that need them. Raises ``InvalidSpec`` naming the row ``number``, the column, the value and what is
        accepted.
        """
        given = {name: value for name, value in row.items() if value is not None and value != ""}
        given = with_batch_tokens(given, number)
        for name in ("n_params", "n_tokens"):
            if name not in given:
                raise _absent(name, row, number)
        if "loss" not in row and given.get("status", Status.OK) == Status.OK:
            raise _absent("loss", row, number)
        numbers = {name: _number(given[name], name, number) for name in NUMBERS if name in given}
        status = _one_of(given.get("status", Status.OK), "status", tuple(Status), number)
        count = _one_of(given.get("n_params_count", "total"), "n_params_count", COUNTS, number)
        recipe = given.get("recipe", {name: given[name] for name in RECIPE if name in given})
        known = {*NUMBERS, *WORDS, "seed"} | (set() if "recipe" in given else set(RECIPE))
        observation = cls(
            **numbers,
            status=Status(status),
            n_params_count=count,
            run=str(given.get("run", "")),
            seed=int(_number(given.get("seed", 0), "seed", number, signed=True)),
            recipe=canonical_recipe(recipe),
            extras={name: _extra(value, name, number) for name, value in given.items() if name not in known},
        )
        _check(observation, number)
        return observation

    def to_row(self) -> dict[str, float | int | str | None]:
        """The observation as a row for a table; unknown numbers are ``None``."""
        row: dict[str, float | int | str | None] = {}
        for name in NUMBERS:
            value = getattr(self, name)
            row[name] = None if math.isnan(value) else value
        words = {"status": self.status.value, "run": self.run, "seed": self.seed, "recipe": self.recipe}
        return row | words | {"n_params_count": self.n_params_count} | dict(self.extras)


def meant(name: str, columns: Iterable[str]) -> str | None:
    """Which of ``columns`` is likely ours called ``name`` under another name; ``None`` when none is."""
    plain = {column.strip().lower().replace(" ", "_").replace("-", "_"): column for column in columns}
    known = next((plain[alias] for alias in (name, *ALIASES.get(name, ())) if alias in plain), None)
    near = difflib.get_close_matches(name, plain, 1, 0.7)
    return known or (plain[near[0]] if near else None)


def _absent(name: str, row: Mapping[str, Any], number: int) -> InvalidSpec:
    if name in row:
        return InvalidSpec(f"row {number}: {name} is empty; accepted is a number above 0.")
    likely = meant(name, map(str, row))
    return InvalidSpec(
        f"row {number} has no {name}; the columns are {', '.join(map(str, row)) or 'none'}.",
        hint=f"Did you mean --columns {likely}={name}?"
        if likely
        else "Name another column with --columns theirs=ours.",
    )


def with_batch_tokens(row: Mapping[str, Any], number: int) -> dict[str, Any]:
    """The row with ``batch_tokens`` = ``batch_seqs`` × ``seq_len``, unless it says so itself or says neither."""
    missing = [name for name in ("batch_seqs", "seq_len") if row.get(name) in (None, "")]
    if row.get("batch_tokens") not in (None, "") or "batch_seqs" in missing:
        return dict(row)
    if missing:
        raise InvalidSpec(f"row {number}: batch_seqs without seq_len; accepted are both, or batch_tokens.")
    return dict(row) | {
        "batch_tokens": _number(row["batch_seqs"], "batch_seqs", number) * _number(row["seq_len"], "seq_len", number)
    }


def _number(value: Any, name: str, row: int, *, signed: bool = False) -> float:
    if name in ("loss", "lr", "flops") and str(value).strip().lower() == "nan":
        return math.nan
    number = parse_count(value.item() if isinstance(value, np.generic) else value, f"row {row}: {name}")
    if number <= 0 and not signed:
        raise InvalidSpec(f"row {row}: {name} is {value!r}; accepted is a number above 0.")
    return number


def _one_of(value: Any, name: str, accepted: Sequence[str], row: int) -> str:
    if value not in accepted:
        raise InvalidSpec(f"row {row}: {name} is {value!r}; accepted is one of {', '.join(accepted)}.")
    return str(value)


def _plain(value: Any) -> float | str:
    try:
        return float(value)
    except (TypeError, ValueError):
        return str(value)


def _extra(value: Any, name: str, row: int) -> float | str:
    return _number(value, name, row) if name in COUNTED else _plain(value)


def _check(observation: Observation, row: int) -> None:
    for name in NUMBERS:
        value = getattr(observation, name)
        if not (math.isnan(value) or 0 < value < math.inf):
            raise InvalidSpec(f"row {row}: {name} is {value!r}; accepted is a finite number above 0.")
    if math.isnan(observation.n_params + observation.n_tokens):
        raise InvalidSpec(f"row {row}: n_params and n_tokens are needed; accepted are numbers above 0.")
    if observation.status is not Status.DIVERGED and math.isnan(observation.loss):
        raise InvalidSpec(
            f"row {row}: loss is missing, the status is {observation.status.value!r}; accepted is a number above 0.",
            hint="A run without a loss has status diverged.",
        )


def _alike(row: Observation, *more: object) -> tuple[object, ...]:
    """What two runs share that were trained alike; NaN equals NaN here."""
    varied = (row.extras.get(name) for name in VARIED)
    shared = (
        row.n_params,
        row.lr,
        row.batch_tokens,
        row.status,
        row.seed,
        row.recipe,
        row.n_params_count,
        *varied,
        *more,
    )
    return tuple(None if isinstance(value, float) and math.isnan(value) else value for value in shared)


@dataclass(frozen=True, eq=False)
class Observations:
    """Runs as columns of equal length, in the order they were given; never changed in place."""

    rows: tuple[Observation, ...]

    def __post_init__(self) -> None:
        for number, row in enumerate(self.rows, start=1):
            _check(row, number)

    @classmethod
    def from_rows(cls, rows: Iterable[Mapping[str, Any]]) -> Observations:
        """Observations from table rows; see ``Observation.from_row`` for columns and errors."""
        return cls(tuple(Observation.from_row(row, number=number) for number, row in enumerate(rows, start=1)))

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[Observation]:
        return iter(self.rows)

    def column(self, name: str) -> Floats:
        """A numeric column as float64, shape ``(len,)``; NaN where unknown."""
        return np.array([getattr(row, name) for row in self.rows], dtype=np.float64)

    @cached_property
    def n_params(self) -> Floats:
        """N, parameters."""
        return self.column("n_params")

    @cached_property
    def n_tokens(self) -> Floats:
        """D, tokens trained on."""
        return self.column("n_tokens")

    @cached_property
    def loss(self) -> Floats:
        """Final loss in nats per token."""
        return self.column("loss")

    @cached_property
    def lr(self) -> Floats:
        """Peak learning rate."""
        return self.column("lr")

    @cached_property
    def batch_tokens(self) -> Floats:
        """Tokens per optimizer step."""
        return self.column("batch_tokens")

    @cached_property
    def flops(self) -> Floats:
        """Training compute; 6 N D where it was not given."""
        given = self.column("flops")
        return np.where(np.isnan(given), 6.0 * self.n_params * self.n_tokens, given)

    @cached_property
    def ok(self) -> NDArray[np.bool_]:
        """True for finished runs: the ones a loss law may see."""
        return np.array([row.status is Status.OK for row in self.rows], dtype=bool)

    @cached_property
    def diverged(self) -> NDArray[np.bool_]:
        """True for diverged runs, whose loss is known only to be high."""
        return np.array([row.status is Status.DIVERGED for row in self.rows], dtype=bool)

    def select(self, mask: NDArray[np.bool_]) -> Observations:
        """The rows where ``mask`` (shape ``(len,)``) holds."""
        return Observations(tuple(row for row, keep in zip(self.rows, mask, strict=True) if keep))

    def where(self, expression: str) -> Observations:
        """The rows for which ``expression`` holds, such as ``n_tokens >= 2B and loss < 3.2``."""
        columns: dict[str, NDArray[Any]] = {name: self.column(name) for name in NUMBERS if name != "flops"}
        columns |= {"flops": self.flops, "seed": self.column("seed")}
        columns |= {name: np.array([str(getattr(row, name)) for row in self.rows]) for name in WORDS}
        for name in sorted({name for row in self.rows for name in row.extras}):
            columns[name] = np.array([row.extras.get(name, math.nan) for row in self.rows])
        recipes = [entries(row.recipe) for row in self.rows]
        for name in sorted({name for recipe in recipes for name in recipe} - set(columns)):
            columns[name] = np.array([recipe.get(name, "") for recipe in recipes])
        return self.select(evaluate(expression, columns, len(self)))

    def cautions(self) -> list[str]:
        """What is allowed and yet likely a mistake: batches in sequences, runs twice, checkpoints taken for runs, names."""
        return [*self._renamed(), *self._sequences(), *self._twice(), *self._checkpoints(), *self._active()]

    def _renamed(self) -> list[str]:
        columns = list(dict.fromkeys(name for row in self.rows for name in row.extras))
        absent = [name for name in ("lr", "batch_tokens") if np.isnan(self.column(name)).all()]
        likely = {name: meant(name, (column for column in columns if column != "batch_seqs")) for name in absent}
        return [
            f"no run has {name}, but there is a column {column}: did you mean --columns {column}={name}?"
            for name, column in likely.items()
            if column
        ]

    def _active(self) -> list[str]:
        pairs = [(row.n_params, row.extras["n_active"]) for row in self.rows if "n_active" in row.extras]
        wrong = sum(isinstance(active, float) and total <= active for total, active in pairs)
        if not wrong or all(row.n_params_count == "active" for row in self.rows) or wrong < len(pairs) / 2:
            return []
        return [
            f"n_params is not above n_active in {wrong} of {len(pairs)} rows: n_params are to be all parameters of a "
            "mixture of experts; if these are the active ones, say so in the column n_params_count."
        ]

    def _sequences(self) -> list[str]:
        few = (self.batch_tokens < SEQUENCES) & (self.n_params >= SIZEABLE)
        if not few.any():
            return []
        row = int(np.argmax(few))
        return [
            f"batch_tokens of {int(few.sum())} rows (row {row + 1}: {self.batch_tokens[row]:g}) looks like sequences: "
            "name that column batch_seqs and add seq_len."
        ]

    def _twice(self) -> list[str]:
        seen: dict[tuple[object, ...], int] = {}
        again = []
        for number, row in enumerate(self.rows, start=1):
            first = seen.setdefault(_alike(row, row.n_tokens, row.loss, row.extras.get("step")), number)
            if first != number:
                again.append((number, first))
        if not again:
            return []
        return [
            f"{len(again)} rows repeat others (row {again[0][0]} is row {again[0][1]}): a run that counts twice makes "
            "intervals too narrow."
        ]

    def _checkpoints(self) -> list[str]:
        lengths: dict[tuple[object, ...], set[float]] = {}
        for row in self.rows:
            if not row.run and not math.isnan(row.lr):
                lengths.setdefault(_alike(row), set()).add(row.n_tokens)
        if not (many := [found for found in lengths.values() if len(found) >= CHECKPOINTS]):
            return []
        return [
            f"{sum(map(len, many))} rows without run differ in nothing but n_tokens and loss: if they are checkpoints of one "
            "run, say which in the column run, so that they are not taken for independent runs."
        ]

    def hash(self) -> str:
        """Sha256 over the canonical content; the order of the rows does not matter."""
        lines = sorted(json.dumps(row.to_row(), sort_keys=True, separators=(",", ":")) for row in self.rows)
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()

    def recipe(self) -> str:
        """The recipe all runs share; empty when none is recorded or they differ."""
        found = {row.recipe for row in self.rows}
        return found.pop() if len(found) == 1 else ""

    def check_recipe(self, stamp: Mapping[str, Any]) -> None:
        """Raise ``InvalidSpec`` naming the first row whose recipe is not that of the columns in ``stamp``."""
        wanted = Observation.from_row({"n_params": 1, "n_tokens": 1, "loss": 1, **stamp})
        for number, row in enumerate(self.rows, start=1):
            for name in ("n_params_count", "recipe"):
                if (found := getattr(row, name)) != (accepted := getattr(wanted, name)):
                    raise InvalidSpec(
                        f"row {number}: {name} is {found!r}; accepted is the campaign's, {accepted!r}.",
                        hint=f"It is said by the columns n_params_count, {', '.join(RECIPE)}.",
                    )

    def one_recipe(self, *, pool: bool = False) -> Observations:
        """These observations, when they share one recipe and one way of counting N, or when ``pool`` says to mix.

        Raises ``InvalidSpec`` naming the recipes: a law over mixed recipes describes none of them.
        """
        for name in ("recipe", "n_params_count"):
            found = sorted({str(getattr(row, name)) for row in self.rows})
            if len(found) > 1 and not pool:
                raise InvalidSpec(
                    f"{name} differs between observations ({', '.join(map(repr, found[:3]))}); accepted is one.",
                    hint="Filter with --where, or pool them on purpose with --pool.",
                )
        return self
