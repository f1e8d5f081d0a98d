"""Tables of runs: CSV, JSONL and parquet, read as rows and written as rows; ``.gz`` for the two texts.

The format is the file's suffix. Other people's column names come in by ``theirs=ours``.
"""

from __future__ import annotations

import csv
import gzip
import importlib
import io
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from isoloss.domain.campaign import CampaignSpec
from isoloss.domain.space import AnyParameter, Choice, Int, Scalar, Space
from isoloss.errors import InvalidSpec, NotFound
from isoloss.laws.observation import Observations

Row = dict[str, Any]
FORMATS: Final = {".csv": "csv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet"}


def read_observations(path: Path, columns: Iterable[str] = ()) -> Observations:
    """The observations in the file ``path``, its columns renamed by ``theirs=ours`` pairs.

    Raises ``NotFound`` without the file, ``InvalidSpec`` naming row, column and value for what is no observation.
    """
    rows = rename(read_rows(path), columns)
    if not rows:
        raise InvalidSpec(f"{path} has no rows; accepted is at least one run.")
    return Observations.from_rows(rows)


def read_own(spec: CampaignSpec, folder: Path) -> list[Row]:
    """The runs in the files that a campaign's ``observations`` name, as rows of `isoloss law`.

    A run without a name is called by its file and row. Raises ``NotFound`` without a file, ``InvalidSpec`` naming file, row and column for what is no observation or was
    made under another recipe.
    """
    rows: list[Row] = []
    for name in spec.observations:
        try:
            found = read_observations(folder / name)
            found.check_recipe(spec.stamp)
        except InvalidSpec as error:
            raise InvalidSpec(f"observations {name}: {error.message}", hint=error.hint) from None
        rows += [row.to_row() | {"run": row.run or f"{name}#{number}"} for number, row in enumerate(found, start=1)]
    return rows


def pairs(texts: Iterable[str], option: str, accepted: str) -> dict[str, str]:
    """``left=right`` pairs, several in one text separated by commas; the last equals sign divides."""
    found: dict[str, str] = {}
    for pair in (part for text in texts for part in text.split(",")):
        left, equals, right = (piece.strip() for piece in pair.rpartition("="))
        if not (left and equals and right):
            raise InvalidSpec(f"{option} has {pair!r}; accepted is {accepted}.")
        found[left] = right
    return found


def rename(rows: list[Row], columns: Iterable[str]) -> list[Row]:
    """Rows with columns renamed by ``theirs=ours`` (several may share one string, separated by commas)."""
    names = pairs(columns, "--columns", "theirs=ours")
    for theirs in names:
        if rows and not any(theirs in row for row in rows):
            raise InvalidSpec(f"--columns names {theirs!r}; the columns are {', '.join(rows[0])}.")
    taken = set(names.values())
    return [
        {names.get(name, name): value for name, value in row.items() if name in names or name not in taken}
        for row in rows
    ]


def read_rows(path: Path) -> list[Row]:
    """The rows of a CSV, JSONL or parquet file as mappings of column to value; text values as they stand."""
    kind = _kind(path)
    if not path.is_file():
        raise NotFound(f"there is no file {path}.")
    try:
        if kind == "parquet":
            return list(_pyarrow("pyarrow.parquet").read_table(path).to_pylist())
        text = (gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()).decode("utf-8-sig")
    except (OSError, EOFError, ValueError) as error:
        raise InvalidSpec(f"{path} cannot be read as {kind}: {error}.") from error
    return _csv_rows(text, path) if kind == "csv" else _jsonl_rows(text, path)


def read_configurations(path: Path, space: Space) -> list[dict[str, Scalar]]:
    """One configuration a row, with a column a parameter; an empty cell is a parameter that is left out.

    A CSV holds words: a number stands for itself, a choice for how it is written. What is no point of the space is
    refused by whoever takes it. Raises ``InvalidSpec`` naming file, row and column.
    """
    found = []
    for number, row in enumerate(read_rows(path), 1):
        if unknown := sorted(set(row) - set(space)):
            raise InvalidSpec(f"{path} has the column {unknown[0]!r}; accepted are {', '.join(space)}.")
        cells = {name: value for name, value in row.items() if value not in (None, "")}
        found.append({name: _value(space[name], cell, f"{path} row {number}: {name}") for name, cell in cells.items()})
    return found


def _value(parameter: AnyParameter, cell: Any, where: str) -> Scalar:
    if isinstance(parameter, Choice):
        return next((choice for choice in parameter.choices if str(choice) == str(cell)), cell)
    try:
        value = float(cell)
    except (TypeError, ValueError):
        raise InvalidSpec(f"{where} is {cell!r}; accepted is {parameter.describe()}.") from None
    return int(value) if isinstance(parameter, Int) and value.is_integer() else value


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write ``rows`` in the format of the suffix; columns are all keys in order of appearance, absent values empty."""
    kind, table = _kind(path), [dict(row) for row in rows]
    names = list(dict.fromkeys(name for row in table for name in row))
    if kind == "parquet":
        arrow = _pyarrow("pyarrow").Table.from_pylist([{name: row.get(name) for name in names} for row in table])
        _pyarrow("pyarrow.parquet").write_table(arrow, path)
        return
    buffer = io.StringIO(newline="")
    if kind == "csv":
        writer = csv.DictWriter(buffer, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows(table)
    else:
        buffer.writelines(json.dumps(row, default=str) + "\n" for row in table)
    data = buffer.getvalue().encode()
    path.write_bytes(gzip.compress(data, mtime=0) if path.suffix == ".gz" else data)


def _kind(path: Path) -> str:
    plain = path.with_suffix("") if path.suffix == ".gz" else path
    if plain.suffix not in FORMATS or (path.suffix == ".gz" and plain.suffix == ".parquet"):
        raise InvalidSpec(
            f"{path.name} ends in {path.suffix or 'nothing'}; accepted is .csv, .jsonl (both also .gz) or .parquet."
        )
    return FORMATS[plain.suffix]


def _csv_rows(text: str, path: Path) -> list[Row]:
    reader = csv.DictReader(io.StringIO(text, newline=""), restkey="", strict=True)
    rows = []
    try:
        for row in reader:
            if "" in row or None in row.values():
                raise InvalidSpec(f"{path} line {reader.line_num}: its fields are not as many as the columns.")
            rows.append({name.strip(): value.strip() for name, value in row.items()})
    except csv.Error as error:
        raise InvalidSpec(f"{path} line {reader.line_num}: {error}.") from error
    return rows


def _jsonl_rows(text: str, path: Path) -> list[Row]:
    rows = []
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise InvalidSpec(f"{path} line {number}: {error}; accepted is one JSON object a line.") from error
        if not isinstance(row, dict):
            raise InvalidSpec(f"{path} line {number} is {type(row).__name__}; accepted is one JSON object a line.")
        rows.append(row)
    return rows


def _pyarrow(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise InvalidSpec(
            "parquet files need pyarrow, which is not installed.", hint="pip install 'isoloss[parquet]'"
        ) from error
