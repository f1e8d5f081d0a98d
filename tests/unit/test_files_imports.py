"""Runs of other tools as observations: real Optuna storages and TensorBoard folders, exports as W&B writes them."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from isoloss.cli import run
from isoloss.domain.campaign import decode_campaign
from isoloss.errors import InvalidSpec, NotFound
from isoloss.files.imports import Imported, LastOf, import_runs
from isoloss.files.sources import Run, read_source
from isoloss.files.tables import read_observations, read_own, read_rows, write_rows


def imported(source: str, columns: Mapping[str, str] | None = None, curve: str = "", **constants: str) -> Imported:
    chosen = LastOf.parse(curve) if curve else None
    runs = read_source(source, histories=curve not in ("", "last"))
    return import_runs(runs, columns=columns or {}, constants=constants, curve=chosen)


def column(found: Imported, name: str) -> list[Any]:
    return [row[name] for row in found.rows]


# ---- Optuna --------------------------------------------------------------------------------------------------------


@pytest.fixture
def storage(tmp_path: Path) -> str:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    url = f"sqlite:///{tmp_path / 'runs.db'}"
    study = optuna.create_study(storage=url, study_name="sweep")

    def objective(trial: Any) -> float:
        lr = trial.suggest_float("lr", 1e-4, 1e-2, log=True)
        trial.set_user_attr("n_tokens", 2e9)
        trial.set_user_attr("model", {"n_params": 60_000_000})
        if trial.number == 1:
            trial.report(3.5, 10)
            trial.report(3.3, 20)
            raise optuna.TrialPruned
        if trial.number == 2:
            raise RuntimeError
        if trial.number == 3:
            trial.report(math.nan, 10)
            return math.nan
        for step, loss in ((10, 3.4), (20, 2.8), (30, 3.0 + lr)):
            trial.report(loss, step)
        return float(3.0 + lr)

    study.optimize(objective, n_trials=6, catch=RuntimeError)
    study.ask()
    optuna.create_study(storage=url, study_name="other")
    return url


@pytest.mark.filterwarnings("ignore")
def test_an_optuna_study_is_understood_as_it_stands(storage: str) -> None:
    found = imported(storage)
    assert column(found, "status") == ["ok", "truncated", "diverged", "ok", "ok"]
    assert found.dropped == {"failed without a loss": 1, "not finished": 1}
    assert [loss and round(loss) for loss in column(found, "loss")] == [3, 3, None, 3, 3]
    assert found.columns["n_params"] == "model.n_params" and found.columns["loss"] == "value"
    assert {"study", "trial"} <= set(found.extras)
    assert round(column(imported(storage, curve="min"), "loss")[0], 9) == 2.8
    assert column(imported(storage, curve="mean:2"), "loss")[1] == pytest.approx(3.4)


@pytest.mark.filterwarnings("ignore")
def test_a_storage_is_only_looked_at_and_its_studies_are_named(storage: str, tmp_path: Path) -> None:
    assert read_source(storage, study="other") == []
    with pytest.raises(NotFound, match=r"no study 'nope' in .*; it has other, sweep"):
        read_source(storage, study="nope")
    with pytest.raises(NotFound, match="there is no file"):
        read_source(f"sqlite:///{tmp_path}/none.db")
    assert not (tmp_path / "none.db").exists()
    with pytest.raises(InvalidSpec, match="is no table") as caught:
        read_source(str(tmp_path / "runs.db"))
    assert caught.value.hint == f"Did you mean sqlite:///{tmp_path / 'runs.db'}?"
    (tmp_path / "text.db").write_text("no database")
    with pytest.raises(InvalidSpec, match="cannot be"):
        read_source(f"sqlite:///{tmp_path}/text.db")


def test_an_optuna_journal_is_read(tmp_path: Path) -> None:
    import optuna
    from optuna.storages.journal import JournalFileBackend

    path = tmp_path / "runs.log"
    study = optuna.create_study(storage=optuna.storages.JournalStorage(JournalFileBackend(str(path))))
    study.optimize(lambda trial: trial.suggest_float("lr", 1e-4, 1e-2) + 2, n_trials=2)
    assert len(imported(f"journal:///{path}", n_params="60M", n_tokens="2B").rows) == 2


# ---- TensorBoard ---------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore")
def test_a_tensorboard_folder_becomes_a_run_a_folder(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="the extra isoloss[tensorboard] is not installed")
    from torch.utils.tensorboard import SummaryWriter

    for name, lr in (("a", 1e-3), ("b", 1e-2)):
        with SummaryWriter(str(tmp_path / name)) as writer:
            for step in range(5):
                writer.add_scalar("val/loss", 4 - step / 4 + (step == 4), step * 100)
            writer.add_hparams({"lr": lr, "batch_tokens": 65536}, {"hparam/final": 1.0})
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "hparams.yaml").write_text("lr: 1e-4\nbatch_tokens: 65536\n")
    with SummaryWriter(str(tmp_path / "c")) as writer:
        writer.add_scalar("val/loss", float("nan"), 0)
    found = imported(str(tmp_path), {"val/loss": "loss"}, n_params="60M", n_tokens="2B")
    assert column(found, "run") == ["a", "b", "c"] and column(found, "status") == ["ok", "ok", "diverged"]
    assert [float(lr) for lr in column(found, "lr")] == [1e-3, 1e-2, 1e-4]
    assert column(found, "loss") == [4.0, 4.0, None] and column(found, "step") == [400, 400, 0]
    assert column(imported(str(tmp_path), {"val/loss": "loss"}, "min", n_params="1M", n_tokens="1B"), "loss")[0] == 3.25


def test_a_folder_without_events_and_a_missing_package_say_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(NotFound, match="holds no TensorBoard event file"):
        read_source(str(tmp_path))
    (tmp_path / "events.out.tfevents.1").write_bytes(b"")
    for module in ("tensorboard", "tensorboard.backend.event_processing.event_accumulator"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(InvalidSpec, match="needs tensorboard") as caught:
        read_source(str(tmp_path))
    assert caught.value.hint == "pip install 'isoloss[tensorboard]'"


# ---- Weights & Biases ----------------------------------------------------------------------------------------------

EXPORT: tuple[
    tuple[dict[str, Any], dict[str, Any], str], ...
] = (  # as the export script of its documentation writes a project: dictionaries as Python prints them
    ({"_step": 99, "val_loss": 2.9}, {"optim": {"lr": 1e-3}, "n_params": 6e7, "batch": 32}, "sunny-1"),
    ({"_step": 99, "val_loss": float("nan")}, {"optim": {"lr": 1e-1}, "n_params": 6e7, "batch": 32}, "stormy-2"),
    ({}, {"optim": {"lr": 1e-2}, "n_params": 6e7, "batch": 32}, "lost-3"),
)
NAMES = {"summary.val_loss": "loss", "config.batch": "batch_seqs"}


def test_a_wandb_export_is_opened(tmp_path: Path) -> None:
    rows = [{"summary": str(s), "config": str(c), "name": name} for s, c, name in EXPORT]
    write_rows(tmp_path / "project.csv", rows)
    found = imported(str(tmp_path / "project.csv"), NAMES, seq_len="2048", n_tokens="2B", n_params_count="total")
    assert column(found, "lr") == [1e-3, 1e-1] and column(found, "run") == ["sunny-1", "stormy-2"]
    assert column(found, "batch_tokens") == [65536, 65536] and column(found, "status") == ["ok", "diverged"]
    assert found.dropped == {"no loss": 1}
    assert found.columns["lr"] == "config.optim.lr" and found.columns["n_tokens"] == "--set n_tokens=2B"
    assert found.columns["batch_tokens"] == "batch_seqs × seq_len" and found.columns["status"] == "how the run ended"
    write_rows(
        tmp_path / "flat.csv", [{"Name": "r", "State": "crashed", "loss": 3, "n_params": "1M", "n_tokens": "1B"}]
    )
    (row,) = imported(str(tmp_path / "flat.csv")).rows
    assert (row["run"], row["status"]) == ("r", "truncated")


def test_a_wandb_project_is_read_by_its_public_api(monkeypatch: pytest.MonkeyPatch) -> None:
    def made(place: int) -> SimpleNamespace:
        summary, config, name = EXPORT[place]
        history = [{"_step": step, "val_loss": 3.5 - step / 10 if place != 1 else "NaN"} for step in range(10)]
        return SimpleNamespace(
            name=name, id=f"id{place}", state=("finished", "failed", "running")[place], config=config, summary=SimpleNamespace(_json_dict=summary),
            scan_history=lambda: iter(history),
        )  # fmt: skip

    asked: list[str] = []

    def projects_runs(project: str) -> list[SimpleNamespace]:
        asked.append(project)
        return [made(place) for place in range(3)]

    module = ModuleType("wandb")
    module.Api = lambda: SimpleNamespace(runs=projects_runs)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "wandb", module)
    found = imported("wandb://team/gpt", NAMES, seq_len="2048", n_tokens="2B")
    assert asked == ["team/gpt"] and column(found, "status") == ["ok", "diverged"]
    assert found.dropped == {"not finished": 1}
    assert column(imported("wandb://team/gpt", NAMES, "mean:3", seq_len="2K", n_tokens="2B"), "loss")[
        0
    ] == pytest.approx(2.7)
    with pytest.raises(InvalidSpec, match="wandb://ENTITY/PROJECT"):
        read_source("wandb://team")
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(InvalidSpec, match="needs wandb"):
        read_source("wandb://team/gpt")


# ---- the mapping ---------------------------------------------------------------------------------------------------


def runs(*rows: dict[str, Any]) -> list[Run]:
    return [
        Run(name=str(place), columns={"n_params": "1M", "n_tokens": "1B", "loss": 3.0} | row)
        for place, row in enumerate(rows)
    ]


def plainly(*rows: dict[str, Any], **columns: str) -> Imported:
    return import_runs(runs(*rows), columns=columns, constants={})


def test_rows_of_one_run_are_the_points_of_its_curve_when_a_choice_is_stated(tmp_path: Path) -> None:
    rows = [
        {"run": run, "_step": step, "val": loss, "lr": 1e-3 if step == 0 else "", "n_params": "1M", "n_tokens": "1B"}
        for run in "ab"
        for step, loss in ((2, 3.0), (0, 5.0), (1, 2.5))
    ]
    write_rows(tmp_path / "history.csv", rows)
    assert len(imported(str(tmp_path / "history.csv"), {"val": "loss"}).rows) == 6
    found = imported(str(tmp_path / "history.csv"), {"val": "loss"}, "last")
    assert column(found, "loss") == [3.0, 3.0] and [float(lr) for lr in column(found, "lr")] == [1e-3, 1e-3]
    assert column(imported(str(tmp_path / "history.csv"), {"val": "loss"}, "min"), "loss") == [2.5, 2.5]


def test_what_could_be_two_is_not_guessed_and_a_loss_never_is() -> None:
    found = plainly({"a.lr": 1, "b.lr": 2, "deep.seed": 3})
    assert "lr" not in found.columns and found.columns["seed"] == "deep.seed"
    assert found.notes == ["lr could be a.lr or b.lr: say which with --columns."]
    with pytest.raises(InvalidSpec, match=r"none of the 1 runs can be used: 1 × no loss\."):
        import_runs([Run(columns={"n_params": 1, "n_tokens": 1, "train.loss": 3})], columns={}, constants={})


def test_what_is_no_observation_is_left_out_and_counted() -> None:
    found = plainly({}, {"lr": "fast"}, {"lr": "fast"}, {"n_params": ""}, {"loss": math.inf}, {"loss": "x"})
    assert column(found, "status") == ["ok", "diverged"]
    assert found.dropped == {"lr is 'fast'": 2, "no n_params": 1, "no loss": 1}


def test_d_is_the_steps_times_the_batch_and_said_names_win() -> None:
    found = plainly(
        {"n_tokens": "", "max_steps": 1000, "bs": 32, "seq_len": "2K", "lr": 9, "rate": 1},
        max_steps="steps",
        bs="batch_seqs",
        rate="lr",
    )
    assert (column(found, "n_tokens"), column(found, "batch_tokens"), column(found, "lr")) == ([64e6], [64e3], [1])


@pytest.mark.parametrize(
    ("columns", "constants", "words"),
    [
        ({"los": "loss"}, {}, "--columns names 'los', which no run has; near it are loss"),
        ({"loss": "lr", "n_params": "lr"}, {}, "--columns names lr twice"),
        ({}, {"colour": "red"}, "--set names 'colour'; accepted are n_params"),
    ],
)
def test_a_wrong_mapping_says_what_there_is(columns: dict[str, str], constants: dict[str, str], words: str) -> None:
    with pytest.raises(InvalidSpec, match=words):
        import_runs(runs({}), columns=columns, constants=constants)


def test_a_choice_of_curve_is_one_of_three() -> None:
    for text in ("mean", "mean:0", "first"):
        with pytest.raises(InvalidSpec, match="accepted is last, min or mean:K"):
            LastOf.parse(text)


# ---- the command ---------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore")
def test_the_command_writes_what_law_fit_and_a_campaign_read(
    storage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "runs.jsonl"
    given = ["law", "import", storage, "--out", str(out), "--set", "batch_tokens=512K,parameterization=sp,schedule=wsd"]
    assert run([*given, "--json"]) == 0
    said, err = capsys.readouterr()
    told = json.loads(said)
    assert (told["runs"], told["observations"]) == (7, 5) and told["lacking"]["lr-batch"] == []
    assert "7 runs, 5 observations; 2 left out: 1 × " in err and "enough for chinchilla" in err
    seen = read_observations(out)
    assert len(seen) == 5 and seen.rows[0].recipe == '{"parameterization":"sp","schedule":"wsd"}'
    assert list(read_rows(out)[0])[:3] == ["n_params", "n_tokens", "loss"]
    assert run(["law", "fit", str(out), "--form", "lr-batch", "--bootstrap", "0", "--json"]) in (0, 1)
    assert "columns" not in capsys.readouterr().err
    assert run([*given[:4], str(tmp_path / "x.csv"), "--curve", "first"]) == 2


def test_a_campaign_takes_imported_runs_of_its_recipe(tmp_path: Path) -> None:
    spec = decode_campaign(
        {
            "name": "c", "target": {"n_params": "7B", "n_tokens": "140B"}, "run": {"command": ["train"]},
            "sizes": [{"name": "60m", "n_params": "60M"}], "tokens": {"min": 1_000_000, "max": 3_000_000},
            "space": {"lr": {"type": "float", "low": 1e-4, "high": 1e-2}, "batch_tokens": {"type": "ordinal", "choices": [1000]}},
            "recipe": {"optimizer": "adamw", "n_params_count": "non_embedding"}, "observations": ["own.csv"],
        }
    )  # fmt: skip
    write_rows(tmp_path / "theirs.csv", [{"N": "60M", "D": "2B", "val": 2.9, "rate": 1e-3, "bs": 32, "Name": "old"}])
    given = ["law", "import", str(tmp_path / "theirs.csv"), "--out", str(tmp_path / "own.csv")]
    given += ["--columns", "N=n_params,D=n_tokens,val=loss,rate=lr,bs=batch_seqs"]
    assert run([*given, "--set", "seq_len=2048,optimizer=adamw,n_params_count=non_embedding"]) == 0
    (row,) = read_own(spec, tmp_path)
    assert (row["run"], row["batch_tokens"], row["recipe"]) == ("old", 65536, '{"optimizer":"adamw"}')


def test_nothing_heavy_is_imported_for_a_table(tmp_path: Path) -> None:
    write_rows(tmp_path / "x.csv", [{"n_params": 1e6, "n_tokens": 1e9, "loss": 3}])
    code = (
        "import sys; from isoloss.files.sources import read_source; "
        f"read_source({str(tmp_path / 'x.csv')!r}); "
        "print({'optuna', 'torch', 'tensorboard', 'wandb', 'pandas'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
