"""Curves where a team already looks: TensorBoard, Weights & Biases or MLflow, a run for every trial, by the trial's name.

What was forwarded is remembered in a file, so that a forwarder may be stopped and started again; it only ever adds
points of later steps. Each package is imported when it is asked for.
"""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Protocol

import msgspec

from isoloss.client.blocking import Study
from isoloss.errors import InvalidSpec, IsolossError

Points = Sequence[tuple[int, Mapping[str, float]]]
OPEN: Final = frozenset(("leased", "cancelling"))
KINDS: Final = "tensorboard:FOLDER, wandb:PROJECT or wandb:ENTITY/PROJECT, mlflow:URI"


class Sink(Protocol):
    """Where curves go."""

    def write(self, run: str, params: Mapping[str, Any], points: Points) -> None:
        """Add points to a run, which begins with its first; ``params`` are its configuration."""

    def close(self) -> None:
        """Nothing more comes."""


class TensorBoard:
    """Event files in a folder a run."""

    def __init__(self, folder: str) -> None:
        from tensorboard.summary import Writer

        self._open: Callable[[str], Any] = Writer
        self._folder = Path(folder)
        self._writers: dict[str, Any] = {}

    def write(self, run: str, params: Mapping[str, Any], points: Points) -> None:
        """Add points to a run."""
        writer = self._writers.get(run)
        if writer is None:
            writer = self._writers[run] = self._open(str(self._folder / run))
        for step, values in points:
            for metric, value in values.items():
                writer.add_scalar(metric, value, step)
        (self._folder / run / "hparams.yaml").write_bytes(msgspec.yaml.encode(dict(params)))
        writer.flush()

    def close(self) -> None:
        """Close the files."""
        for writer in self._writers.values():
            writer.close()


class WandB:
    """A run of a project; signed in, or offline, as the ``wandb`` package is."""

    def __init__(self, target: str) -> None:
        import wandb

        entity, _, project = target.rpartition("/")
        self._begin = lambda run, params: wandb.init(
            entity=entity or None, project=project, name=run, id=run_id(run), config=dict(params), resume="allow",
            reinit="create_new",
        )  # fmt: skip
        self._runs: dict[str, Any] = {}

    def write(self, run: str, params: Mapping[str, Any], points: Points) -> None:
        """Add points to a run."""
        if run not in self._runs:
            self._runs[run] = self._begin(run, params)
        for step, values in points:
            self._runs[run].log(dict(values), step=step)

    def close(self) -> None:
        """Finish what was begun here; a run that goes on is resumed by its id."""
        for run in self._runs.values():
            run.finish()


class MLflow:
    """A run of the experiment that is named as the study is."""

    def __init__(self, uri: str, experiment: str) -> None:
        from mlflow.tracking import MlflowClient

        self._client = MlflowClient(tracking_uri=uri)
        found = self._client.get_experiment_by_name(experiment)
        self._experiment = found.experiment_id if found else self._client.create_experiment(experiment)
        self._runs: dict[str, str] = {}

    def write(self, run: str, params: Mapping[str, Any], points: Points) -> None:
        """Add points to a run."""
        from mlflow.entities import Metric, Param

        if run not in self._runs:
            self._runs[run] = self._begun(run) or self._client.create_run(self._experiment, run_name=run).info.run_id
            config = [Param(str(name), str(value)) for name, value in params.items()]
            self._client.log_batch(self._runs[run], params=config)
        now = int(time.time() * 1000)
        metrics = [Metric(name, value, now, step) for step, values in points for name, value in values.items()]
        for first in range(0, len(metrics), 1000):  # the server takes no more at once
            self._client.log_batch(self._runs[run], metrics=metrics[first : first + 1000])

    def _begun(self, run: str) -> str | None:
        found = self._client.search_runs([self._experiment], f"attributes.run_name = '{run}'", max_results=1)
        return str(found[0].info.run_id) if found else None

    def close(self) -> None:
        """Every batch was a call of its own."""


def sink_of(text: str, study: str) -> Sink:
    """The sink that ``--to`` names; ``InvalidSpec`` for another, or where its package is not installed."""
    kind, _, target = text.partition(":")
    makers: dict[str, Callable[[], Sink]] = {
        "tensorboard": lambda: TensorBoard(target), "wandb": lambda: WandB(target), "mlflow": lambda: MLflow(target, study),
    }  # fmt: skip
    if kind not in makers or not target:
        raise InvalidSpec(f"--to is {text!r}; accepted is {KINDS}.")
    try:
        with answering(text):
            return makers[kind]()
    except ImportError as error:
        raise InvalidSpec(
            f"--to is {text!r}, and {error.name or kind} is not installed here; accepted is {KINDS}, with its package.",
            hint=f"pip install 'isoloss[{kind}]'",
        ) from None


@contextlib.contextmanager
def answering(to: str) -> Iterator[None]:
    """Say in a sentence what a service or its package objects to."""
    try:
        yield
    except (IsolossError, ImportError):
        raise
    except Exception as error:
        raise InvalidSpec(f"--to is {to!r}, which refuses: {type(error).__name__}: {str(error)[:500]}") from error


class Forwarder:
    """One study's curves to one sink; ``memory`` is the file that remembers the last step of every trial."""

    def __init__(self, study: Study, sink: Sink, memory: Path) -> None:
        self._study, self._sink, self._memory = study, sink, memory
        self._last: dict[int, int] = {}
        self._seen: dict[int, list[tuple[int, str]]] = {}
        if memory.exists():
            self._last = msgspec.json.decode(memory.read_bytes(), type=dict[int, int])

    def forward(self) -> int:
        """What is new of every trial; returns how many points that were."""
        count = 0
        for trial in self._study.trials():
            levels = [(level.level, level.state) for level in trial.levels]
            if self._seen.get(trial.number) == levels and not OPEN & {level.state for level in trial.levels}:
                continue  # nothing has run since
            self._seen[trial.number] = levels
            points = self._study.curves(trial.number, from_step=self._last.get(trial.number, -1) + 1)
            if points:
                self._sink.write(f"{self._study.name}-{trial.number}", trial.params, points)
                self._remember(trial.number, points[-1][0])
                count += sum(len(values) for _, values in points)
        return count

    def _remember(self, trial: int, step: int) -> None:
        """Write down at once what was sent: the next trial's may be refused."""
        self._last[trial] = step
        self._memory.parent.mkdir(parents=True, exist_ok=True)
        draft = self._memory.with_suffix(".draft")
        draft.write_bytes(msgspec.json.encode(self._last))
        draft.replace(self._memory)


def memory_of(home: Path, study: Study, to: str) -> Path:
    """Where it is remembered what was forwarded from a study of this controller to a sink."""
    which = f"{to} {study.transport.address}"
    return home / "forward" / f"{study.project}-{study.name}-{run_id(which)}.json"


def run_id(text: str) -> str:
    """A short name without any sign that a service would refuse."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]
