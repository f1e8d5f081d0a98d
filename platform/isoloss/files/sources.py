"""Where other tools keep their runs: a table, an Optuna storage, a TensorBoard folder, a W&B project.

Each becomes a list of ``Run``: what is known of it by their names, nested names joined by dots, and its curves. What any
of it means is said later (``imports``). A tool's library is imported only for its own sources.
"""

from __future__ import annotations

import ast
import importlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import yaml

from isoloss.errors import InvalidSpec, NotFound
from isoloss.files.tables import FORMATS, read_rows

Curve = Sequence[tuple[float, float]]  # (step, value), in order
ACCEPTED: Final = (
    "a CSV, JSONL or parquet file, a TensorBoard folder, an Optuna URL (sqlite:///runs.db, journal:///runs.log) or "
    "wandb://ENTITY/PROJECT"
)
HPARAMS: Final = "_hparams_/session_start_info"
WORDS_FOR_NUMBERS: Final = ("NaN", "Infinity", "-Infinity")  # how W&B sends what JSON cannot say
NOT_FINITE: Final = re.compile(r"\b(?:nan|NaN|inf|Infinity)\b")


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One run as its tool tells it; ``loss`` is the name of what the tool itself calls the objective, if it does."""

    name: str = ""
    columns: Mapping[str, Any] = field(default_factory=dict)
    curves: Mapping[str, Curve] = field(default_factory=dict)
    state: str = ""
    loss: str = ""


def read_source(source: str, *, study: str = "", histories: bool = False) -> list[Run]:
    """The runs of a source; of an Optuna storage only of ``study``, if it is named.

    ``histories`` asks W&B for whole curves, which takes a call a run; its summaries hold the last values. Raises
    ``NotFound`` for what is not there, ``InvalidSpec`` for what cannot be read or needs a package.
    """
    scheme, separator, rest = source.partition("://")
    if scheme == "wandb" and separator:
        return _wandb(rest, histories=histories)
    if separator:
        return _optuna(source, study)
    path = Path(source)
    if path.is_dir():
        return _tensorboard(path)
    if path.suffix in (".db", ".sqlite", ".sqlite3"):
        raise InvalidSpec(f"{source} is no table; accepted is {ACCEPTED}.", hint=f"Did you mean sqlite:///{source}?")
    if not path.exists() and not FORMATS.keys() & set(path.suffixes):
        raise NotFound(f"there is no file or folder {source}.", hint=f"Accepted is {ACCEPTED}.")
    return [_of_row(row) for row in read_rows(path)]


def flatten(value: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every leaf of nested mappings with its dotted name; W&B's ``{value: …, desc: …}`` is the value."""
    for name, item in value.items():
        if isinstance(item, Mapping) and item and set(item) <= {"value", "desc"}:
            yield f"{prefix}{name}", item.get("value")
        elif isinstance(item, Mapping):
            yield from flatten(item, f"{prefix}{name}.")
        elif not isinstance(item, list | tuple):
            yield f"{prefix}{name}", item


# ---- tables --------------------------------------------------------------------------------------------------------


def _of_row(row: Mapping[str, Any]) -> Run:
    """A row of a table; a cell that holds a mapping, as W&B's exports do, becomes a column an entry."""
    columns = dict(flatten({name: _opened(cell) for name, cell in row.items()}))
    said = {name.lower(): str(cell) for name, cell in columns.items() if cell not in (None, "")}
    name = next((said[key] for key in ("run", "run_name", "name") if key in said), "")
    return Run(name=name, columns=columns, state=said.get("status", said.get("state", "")))


def _opened(cell: Any) -> Any:
    """The mapping that a text cell spells, in JSON or as Python prints it; any other cell as it is."""
    if not (isinstance(cell, str) and cell.startswith("{") and cell.endswith("}")):
        return cell
    for read, text in ((json.loads, cell), (ast.literal_eval, NOT_FINITE.sub("1e999", cell))):
        try:
            found = read(text)
        except (ValueError, SyntaxError):
            continue
        return found if isinstance(found, dict) else cell
    return cell


# ---- Optuna --------------------------------------------------------------------------------------------------------


def _optuna(url: str, study: str) -> list[Run]:
    optuna = _needed("optuna", "an Optuna storage", "controller")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = _storage(optuna, url)
    try:
        names = sorted(optuna.get_all_study_names(storage))
        trials = {
            name: optuna.load_study(study_name=name, storage=storage).get_trials(deepcopy=False)
            for name in names
            if not study or name == study
        }
    except Exception as error:  # whatever its backend raises
        raise InvalidSpec(f"{url} cannot be read as an Optuna storage: {error}.") from error
    if not trials:
        raise NotFound(f"there is no study {study!r} in {url}; it has {', '.join(names) or 'none'}.")
    return [_of_trial(trial, name, several=len(trials) > 1) for name, found in trials.items() for trial in found]


def _storage(optuna: Any, url: str) -> Any:
    """A storage that is only looked at: no file is made, and no table."""
    scheme, _, rest = url.partition(":///")
    if scheme in ("sqlite", "journal") and not Path(rest).is_file():
        raise NotFound(f"there is no file {rest or url}.", hint="An absolute path has four slashes: sqlite:////…")
    if scheme == "journal":
        journal = optuna.storages.journal
        return optuna.storages.JournalStorage(journal.JournalFileBackend(rest))
    try:
        return optuna.storages.RDBStorage(url, skip_table_creation=True)
    except Exception as error:  # SQLAlchemy's many, and missing drivers
        raise InvalidSpec(f"{url} cannot be opened as an Optuna storage: {error}.") from error


def _of_trial(trial: Any, study: str, *, several: bool) -> Run:
    """Its parameters, attributes and values; reports are the curve of the one objective there may be."""
    values = trial.values or ()
    names = [f"values_{place}" for place in range(len(values))] if len(values) > 1 else ["value"]
    points = [(float(step), float(value)) for step, value in sorted(trial.intermediate_values.items())]
    return Run(
        name=f"{study}-{trial.number}" if several else str(trial.number),
        columns={"study": study, "trial": trial.number, **dict(flatten(trial.user_attrs)), **trial.params}
        | dict(zip(names, values, strict=False)),
        curves={"value": points} if points else {}, state=trial.state.name, loss="" if len(values) > 1 else "value",
    )  # fmt: skip


# ---- TensorBoard ---------------------------------------------------------------------------------------------------


def _tensorboard(folder: Path) -> list[Run]:
    """A run a folder with event files; hyperparameters are those of the HParams plugin or of a ``hparams.yaml``."""
    files = sorted(folder.rglob("*tfevents*"))
    if not files:
        raise NotFound(f"{folder} holds no TensorBoard event file.", hint=f"Accepted is {ACCEPTED}.")
    module = _needed(
        "tensorboard.backend.event_processing.event_accumulator", "a TensorBoard folder", "tensorboard"
    )  # fmt: skip
    runs = {path: _of_events(module, path) for path in sorted({file.parent for file in files})}
    for path, run in list(runs.items()):  # `add_hparams` writes what belongs to a run into a folder below it
        above = runs.get(path.parent)
        if above is not None and run.columns and not above.columns:
            runs[path.parent] = Run(columns=run.columns, curves={**run.curves, **above.curves})
            del runs[path]
    return [
        Run(name=path.relative_to(folder).as_posix() if path != folder else folder.name,
            columns=run.columns, curves=run.curves)
        for path, run in runs.items()
    ]  # fmt: skip


def _of_events(module: Any, path: Path) -> Run:
    seen = module.EventAccumulator(str(path), size_guidance={"scalars": 0, "tensors": 0})
    seen.Reload()
    curves = {tag: [(point.step, point.value) for point in seen.Scalars(tag)] for tag in seen.Tags()["scalars"]}
    for tag in seen.Tags()["tensors"]:
        if seen.SummaryMetadata(tag).plugin_data.plugin_name == "scalars":
            curves[tag] = [(point.step, _scalar(point.tensor_proto)) for point in seen.Tensors(tag)]
    return Run(columns=_hparams(seen) or _yaml(path / "hparams.yaml"), curves=curves)


def _scalar(tensor: Any) -> float:
    return float(importlib.import_module("tensorboard.util.tensor_util").make_ndarray(tensor).reshape(-1)[0])


def _hparams(seen: Any) -> dict[str, Any]:
    try:
        content = seen.SummaryMetadata(HPARAMS).plugin_data.content
    except KeyError:
        return {}
    plugin = importlib.import_module("tensorboard.plugins.hparams.plugin_data_pb2")
    found = plugin.HParamsPluginData.FromString(content).session_start_info.hparams
    return {name: getattr(value, value.WhichOneof("kind")) for name, value in found.items() if value.WhichOneof("kind")}


def _yaml(path: Path) -> dict[str, Any]:
    """Lightning's hyperparameters; what names a Python object is left out with the rest of the file."""
    if not path.is_file():
        return {}
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return dict(flatten(found)) if isinstance(found, dict) else {}


# ---- Weights & Biases ----------------------------------------------------------------------------------------------


def _wandb(project: str, *, histories: bool) -> list[Run]:
    if project.count("/") != 1 or not all(project.split("/")):
        raise InvalidSpec(f"source is 'wandb://{project}'; accepted is wandb://ENTITY/PROJECT.")
    wandb = _needed("wandb", "a W&B project", "wandb")
    try:
        return [_of_wandb(run, histories=histories) for run in wandb.Api().runs(project)]
    except Exception as error:  # its own errors for a missing project, a missing key, a missing network
        raise InvalidSpec(f"wandb://{project} cannot be read: {error}.", hint="Log in with: wandb login") from error


def _of_wandb(run: Any, *, histories: bool) -> Run:
    summary = getattr(run.summary, "_json_dict", run.summary)  # as its own export script does: plain all the way down
    told = {"config": dict(run.config), "summary": dict(summary)}
    columns = {name: value for name, value in flatten(told) if not name.startswith("config._")}
    curves: dict[str, list[tuple[float, float]]] = {}
    for row in run.scan_history() if histories else ():
        for name, value in row.items():
            if (isinstance(value, int | float) or value in WORDS_FOR_NUMBERS) and not name.startswith("_"):
                curves.setdefault(f"summary.{name}", []).append((float(row.get("_step", 0)), float(value)))
    return Run(name=run.name or run.id, columns=columns | {"id": run.id}, curves=curves, state=run.state)


def _needed(module: str, what: str, extra: str) -> Any:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        package = module.partition(".")[0]
        raise InvalidSpec(
            f"{what} needs {package}, which is not installed.", hint=f"pip install 'isoloss[{extra}]'"
        ) from error
