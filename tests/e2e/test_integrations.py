"""Curves where a team already looks, and the trainers of other libraries: real packages, each skipped where it is not installed.

TensorBoard is always there; the others come with ``poe integrations``.
"""

from __future__ import annotations

import json
import signal
import sys
import textwrap
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from isoloss.cli import run
from isoloss.client.blocking import Client, Study
from isoloss.client.forward import Forwarder, sink_of
from isoloss.testing.cluster import Cluster, until_idle, wait_until

TRAINER = """
    import time
    def fine(trial):
        for step in trial.steps():
            trial.report(step, val_loss=1 / step + trial.params["lr"], grad_norm=2.0)
            time.sleep(0.02)
        (trial.save_to / "state").write_text("x")
"""
TRANSFORMERS = """
    import sys, time, torch, isoloss, isoloss.callbacks
    from transformers import Trainer, TrainingArguments
    trial = isoloss.current_trial()
    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = torch.nn.Linear(4, 1)
        def forward(self, x, labels=None):
            time.sleep(float(sys.argv[1]))
            loss = (self.linear(x).squeeze(-1) - labels).square().mean()
            return {"loss": loss, "logits": self.linear(x)}
    torch.manual_seed(0)
    rows = [{"x": x, "labels": x.sum()} for x in torch.randn(64, 4)]
    arguments = TrainingArguments(
        output_dir="out-" + str(trial.save_to.name), max_steps=1000, learning_rate=trial.params["lr"], logging_steps=1,
        per_device_train_batch_size=4, report_to=[], save_strategy="no", use_cpu=True, disable_tqdm=True,
    )
    trainer = Trainer(Model(), arguments, train_dataset=rows, eval_dataset=rows, callbacks=[isoloss.callbacks.transformers()])
    resume = sorted(trial.resume_from.glob("checkpoint-*")) if trial.resume_from else []
    trainer.train(resume_from_checkpoint=str(resume[-1]) if resume else None)
"""
LIGHTNING = """
    import sys, time, torch, lightning, isoloss, isoloss.callbacks
    trial = isoloss.current_trial()
    class Model(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.linear = torch.nn.Linear(4, 1)
        def training_step(self, batch, index):
            time.sleep(float(sys.argv[1]))
            loss = (self.linear(batch[0]).squeeze(-1) - batch[1]).square().mean()
            self.log("loss", loss)
            return loss
        def configure_optimizers(self): return torch.optim.SGD(self.parameters(), lr=trial.params["lr"])
    torch.manual_seed(0)
    x = torch.randn(64, 4)
    rows = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, x.sum(1)), batch_size=4)
    trainer = lightning.Trainer(
        max_epochs=1000, log_every_n_steps=1, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, callbacks=[isoloss.callbacks.lightning()],
    )
    trainer.fit(Model(), rows, ckpt_path=str(trial.resume_from / "trainer.ckpt") if trial.resume_from else None)
"""


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with Cluster(lease_seconds=3) as cluster:
        (cluster.home / "trainer.py").write_text(textwrap.dedent(TRAINER))
        (cluster.home / "hf.py").write_text(textwrap.dedent(TRANSFORMERS))
        (cluster.home / "pl.py").write_text(textwrap.dedent(LIGHTNING))
        yield cluster


@pytest.fixture
def client(cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Client]:
    monkeypatch.setenv("ISOLOSS_HOME", str(tmp_path / "home"))  # where it is remembered what was forwarded
    with cluster.client() as client:
        yield client
    cluster.kill_workers()


def launch(client: Client, name: str, task: Mapping[str, Any], *, metric: str = "val_loss", trials: int = 2) -> Study:
    return client.launch_study(
        {
            "name": name, "space": {"lr": {"type": "float", "low": 1e-3, "high": 1e-1, "log": True}},
            "objective": {"metric": metric}, "method": {"name": "fixed", "budget": 10}, "run": dict(task),
            "limits": {"trials": trials},
        }
    )  # fmt: skip


class Kept:
    """A sink that remembers."""

    def __init__(self) -> None:
        self.points: dict[str, list[tuple[int, dict[str, float]]]] = {}

    def write(self, run: str, params: Mapping[str, Any], points: Any) -> None:
        assert set(params) == {"lr"}
        self.points.setdefault(run, []).extend((step, dict(values)) for step, values in points)

    def close(self) -> None:
        pass


def test_curves_are_read_page_by_page_and_forwarded_once(
    cluster: Cluster, client: Client, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study = launch(client, "curves", {"function": "trainer:fine", "cwd": str(cluster.home)})
    cluster.worker("one", everything=True)
    sink = Kept()
    forwarder = Forwarder(study, sink, tmp_path / "memory.json")
    while study.info().state != "idle":
        forwarder.forward()
        time.sleep(0.05)
        forwarder = Forwarder(study, sink, tmp_path / "memory.json")  # as if started again
    forwarder.forward()
    for number in (0, 1):
        assert study.curves(number) == sink.points[f"curves-{number}"]
        assert [step for step, _ in study.curves(number)] == list(range(1, 11))
    assert study.curves(0, from_step=9) == study.curves(0)[-2:]
    assert forwarder.forward() == 0
    capsys.readouterr()
    assert run(["study", "curves", "curves", "1", "--address", cluster.address, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["points"][0]["step"] == 1 and told["points"][0]["grad_norm"] == 2.0
    assert run(["study", "curves", "curves", "7", "--address", cluster.address]) != 0
    assert "has no trial 7; it has 2" in capsys.readouterr().err


def test_tensorboard_has_a_run_for_every_trial(cluster: Cluster, client: Client, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    study = launch(client, "board", {"function": "trainer:fine", "cwd": str(cluster.home)})
    cluster.worker("one", everything=True)
    to = f"tensorboard:{tmp_path / 'runs'}"
    assert (
        run(["study", "forward", "board", "--to", to, "--follow", "--seconds", "0.2", "--address", cluster.address])
        == 0
    )
    assert run(["study", "forward", "board", "--to", to, "--address", cluster.address]) == 0, "which adds nothing"
    for number in (0, 1):
        seen = EventAccumulator(str(tmp_path / "runs" / f"board-{number}"))
        seen.Reload()
        steps = [event.step for event in seen.Tensors("val_loss")]
        assert steps == [step for step, _ in study.curves(number)] == list(range(1, 11))


@pytest.mark.parametrize("to", ["excel:file", "tensorboard:", "wandb"])
def test_a_sink_that_is_none_is_refused_with_those_there_are(to: str) -> None:
    with pytest.raises(Exception, match=r"--to is .*; accepted is tensorboard:FOLDER, wandb:PROJECT"):
        sink_of(to, "s")


def test_a_sink_without_its_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mlflow.tracking", None)
    with pytest.raises(Exception, match=r"mlflow.* is not installed here"):
        sink_of("mlflow:file:/tmp/x", "s")


def test_mlflow_has_a_run_for_every_trial(
    cluster: Cluster,
    client: Client,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    tracking = pytest.importorskip("mlflow.tracking")
    study = launch(client, "flow", {"function": "trainer:fine", "cwd": str(cluster.home)})
    cluster.worker("one", everything=True)
    until_idle(study, 60)
    uri = f"file:{tmp_path / 'mlruns'}"
    command = ["study", "forward", "flow", "--to", f"mlflow:{uri}", "--address", cluster.address]
    assert run(command) != 0
    assert f"--to is 'mlflow:{uri}', which refuses: MlflowException" in capsys.readouterr().err
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # a server would take another package
    assert run(command) == 0
    store = tracking.MlflowClient(tracking_uri=uri)
    found = store.search_runs([store.get_experiment_by_name("flow").experiment_id])
    assert {one.info.run_name for one in found} == {"flow-0", "flow-1"}
    history = store.get_metric_history(found[0].info.run_id, "val_loss")
    assert sorted(point.step for point in history) == list(range(1, 11)) and "lr" in found[0].data.params


def test_wandb_has_a_run_for_every_trial(
    cluster: Cluster, client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    study = launch(client, "bias", {"function": "trainer:fine", "cwd": str(cluster.home)})
    cluster.worker("one", everything=True)
    until_idle(study, 60)
    assert run(["study", "forward", "bias", "--to", "wandb:team/project", "--address", cluster.address]) == 0
    assert len(list(tmp_path.glob("wandb/offline-run-*/run-*.wandb"))) == 2


@pytest.mark.parametrize(("package", "program"), [("transformers", "hf.py"), ("lightning", "pl.py")])
def test_a_trainer_of_another_library_ends_at_its_budget_and_goes_on_from_what_it_saved(
    cluster: Cluster, client: Client, package: str, program: str
) -> None:
    pytest.importorskip(package)
    command = [sys.executable, str(cluster.home / program), "0.3"]
    study = launch(client, package, {"command": command, "cwd": str(cluster.home)}, metric="loss", trials=1)
    first = cluster.worker("first", everything=True)
    query = "SELECT count(*) FROM dash_curve WHERE study = %s AND metric = 'loss' AND step >= 2"
    wait_until(lambda: cluster.rows(query, package)[0][0], 60, what="two steps")
    first.process.send_signal(signal.SIGTERM)
    assert first.process.wait(30) == 0
    ((saved, outcome),) = cluster.rows(
        """SELECT checkpoint.step, attempt.outcome::text FROM checkpoint JOIN attempt USING (task_id, epoch)
           JOIN task ON task.id = task_id JOIN study ON study.id = study_id WHERE study.name = %s""", package,
    )  # fmt: skip
    assert outcome == "released" and 2 <= saved < 10
    cluster.worker("second", everything=True)
    until_idle(study, 60)
    points = study.curves(0)
    assert [step for step, values in points if "loss" in values] == list(range(1, 11))
