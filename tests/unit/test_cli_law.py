from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from isoloss.cli import NOUNS, run
from isoloss.cli.output import Output, dumps, show
from isoloss.files.tables import write_rows

HEAVY = {"numpy", "scipy", "grpc", "psycopg", "optuna", "torch", "ray", "statsmodels", "pandas", "isoloss.cli.law"}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    rows = []
    for N in (2e4, 8e4, 3.2e5):
        for D in (6e4, 1.8e5, 5.4e5):
            for _ in range(6):
                u, v = rng.uniform(-10, -5), float(rng.integers(7, 12))
                excess = 0.008 * (u + 7.2 + 0.5 * np.log2(N / 8e4)) ** 2 + 0.006 * (v - 9) ** 2
                loss = (1 + 0.8 * (N / 8e4) ** -0.3 + 0.9 * (D / 3e5) ** -0.35) * np.exp(excess)
                rows.append({"n_params": N, "tokens": D, "lr": 2.0**u, "batch_tokens": 2.0**v, "loss": loss})
    write_rows(tmp_path / "runs.csv", rows)
    return tmp_path / "runs.csv"


def test_fit_forecast_and_report_go_through_a_file(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fit_file = str(tmp_path / "fit.json")
    common = [str(data), "--columns", "tokens=n_tokens", "--json"]
    assert run(["law", "fit", *common, "--form", "campaign", "--bootstrap", "30", "--out", fit_file]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["fits"][0]["form"] == "lr-batch"
    assert "wrote" in err
    assert run(["law", "forecast", fit_file, "--n-params", "600K", "--n-tokens", "4M", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["loss_interval"][0] < found["loss"] < found["loss_interval"][1]
    assert run(["law", "forecast", fit_file, "--flops", "1e13", "--json"]) == 0
    frontier = json.loads(capsys.readouterr().out)
    assert 6 * frontier["n_params"] * frontier["n_tokens"] == pytest.approx(1e13)
    assert run(["law", "report", fit_file]) == 0
    assert "- **objective**:" in capsys.readouterr().out


def test_fit_answers_in_the_promised_shape(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        run(
            [
                "law",
                "fit",
                str(data),
                "--columns",
                "tokens=n_tokens",
                "--form",
                "chinchilla",
                "--bootstrap",
                "20",
                "--json",
            ]
        )
        == 0
    )
    made = json.loads(capsys.readouterr().out)
    assert {"form", "n_observations", "estimates", "level", "objective", "warnings"} <= set(made)
    assert set(made["estimates"]) == {"E", "A", "B", "alpha", "beta"}
    assert set(made["estimates"]["E"]) == {"value", "se", "low", "high", "verdict"}


def test_every_command_prints_a_table_for_people(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = [str(data), "--columns", "tokens=n_tokens"]
    commands = (
        ["catalogue"],
        ["compare", *table],
        ["backtest", *table, "--hold-out", "n_params > 1e5 and n_tokens > 5e5"],
        ["fit", *table, "--form", "lr-batch", "--bootstrap", "10", "--where", "n_params > 30K"],
    )
    for command in commands:
        assert run(["law", *command]) == 0, capsys.readouterr().err
        assert len(capsys.readouterr().out.splitlines()) > 3


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["law", "forecast", "none.json", "--flops", "1e20"], 3, "there is no file none.json"),
        (["law", "fit", "none.csv", "--form", "chinchilla", "--json"], 3, "there is no file none.csv"),
        (["law", "fit", "DATA", "--form", "hoffmann"], 2, "n_tokens"),
        (["law", "fit", "DATA", "--columns", "tokens=n_tokens", "--form", "hoffmann"], 2, "form is 'hoffmann'"),
        (
            ["law", "fit", "DATA", "--columns", "tokens=n_tokens", "--form", "kaplan", "--where", "loss > 99"],
            2,
            "keeps none",
        ),
        (
            ["law", "fit", "DATA", "--columns", "tokens=n_tokens", "--form", "kaplan", "--where", "n_params < 30K"],
            1,
            "needs",
        ),
        (["law", "fit", "DATA"], 2, "--form"),
        (["law", "fit", "DATA", "--form", "kaplan", "--bootstrap", "many"], 2, "many"),
        (["law", "forecast", "DATA", "--n-params", "7X", "--n-tokens", "1B"], 2, "FIT"),
        (["law", "forecast"], 2, ""),
        (["law", "nonsense"], 2, "nonsense"),
        (["nonsense"], 2, "nonsense"),
    ],
)
def test_an_error_is_one_sentence_on_stderr_with_its_exit_code(
    data: Path, words: list[str], code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([str(data) if word == "DATA" else word for word in words]) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert said in err
    assert "Traceback" not in err


def test_debug_adds_the_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["law", "report", "none.json", "--debug"]) == 3
    assert "Traceback" in capsys.readouterr().err


def test_ctrl_c_is_130(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("isoloss.files.tables.read_rows", interrupt)
    assert run(["law", "compare", str(data)]) == 130


def test_json_has_no_nan(capsys: pytest.CaptureFixture[str]) -> None:
    show(Output(json=True), {"a": float("nan"), "b": [float("inf"), 1.0]})
    assert json.loads(capsys.readouterr().out) == {"a": None, "b": [None, 1.0]}
    assert dumps({"x": (1, 2)}) == '{"x": [1, 2]}'


def test_help_imports_nothing_heavy() -> None:
    code = "import sys; from isoloss.cli import run; run(['--help']); print('\\n'.join(sys.modules), file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert all(noun in done.stdout for noun in NOUNS)
    assert not HEAVY & set(done.stderr.split("\n"))


def test_plan_says_which_runs_to_buy_and_what_they_save(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fit_file = str(tmp_path / "fit.json")
    run(["law", "fit", str(data), "--columns", "tokens=n_tokens", "--form", "lr-batch", "--out", fit_file])
    capsys.readouterr()
    target = ["--n-params", "1.28M", "--n-tokens", "4M"]
    assert (
        run(["law", "plan", fit_file, *target, "--budget", "1e13", "--batches", "512,1024", "--spend-all", "--json"])
        == 0
    )
    answer = json.loads(capsys.readouterr().out)
    assert 0 < answer["spent"] <= answer["budget"]
    assert answer["regret_after"] < answer["regret_now"]
    assert {r["batch_tokens"] for purchase in answer["purchases"] for r in purchase["runs"]} <= {512.0, 1024.0}
    assert run(["law", "plan", fit_file, *target, "--budget", "1e13", "--sizes", "9T"]) == 2
    assert "cheaper than the target" in capsys.readouterr().err
    assert run(["law", "plan", fit_file, "--n-params", "1M", "--budget", "1e13"]) == 2
    assert "--n-tokens" in capsys.readouterr().err


@pytest.fixture
def repeated(tmp_path: Path) -> Path:
    rows = [
        {
            "n_params": N,
            "n_tokens": D,
            "unique_tokens": D / k,
            "loss": 1.8 + 480 / N**0.35 + 2100 / (D / k**0.3) ** 0.37,
        }
        for N in (1e8, 4e8, 1.6e9)
        for D in (2e9, 8e9, 3.2e10)
        for k in (1, 4)
    ]
    write_rows(tmp_path / "repeated.csv", rows)
    return tmp_path / "repeated.csv"


def test_further_columns_of_a_run_are_given(repeated: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fit_file = str(repeated.with_name("fit.json"))
    run(["law", "fit", str(repeated), "--form", "data-constrained-free", "--bootstrap", "0", "--out", fit_file])
    capsys.readouterr()
    where = ["law", "forecast", fit_file, "--n-params", "3B", "--n-tokens", "60B"]
    losses = []
    for unique in ("60B", "10B"):
        assert run([*where, "--given", f"unique_tokens={unique}", "--json"]) == 0
        losses.append(json.loads(capsys.readouterr().out)["loss"])
    assert losses[0] < losses[1]
    for words, said in (
        ([], "--given unique_tokens=8B"),
        (["--given", "n_experts=8"], "accepted is unique_tokens"),
        (["--given", "unique_tokens=-1"], "--given unique_tokens"),
        (["--given", "unique_tokens"], "column=number"),
    ):
        assert run([*where, *words]) == 2
        assert said in capsys.readouterr().err


def test_a_profile_says_what_the_runs_hold_and_has_its_curve(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = ["law", "profile", str(data), "--columns", "tokens=n_tokens", "--form", "chinchilla"]
    assert run([*table, "--level", "0.8", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert (answer["form"], answer["level"]) == ("chinchilla", 0.8)
    assert [one["constant"] for one in answer["constants"]] == ["E", "A", "B", "alpha", "beta"]
    for one in answer["constants"]:
        assert one["verdict"] in ("identified", "weak", "not identified")
        assert (one["low"] is None) or one["low"] < one["value"]
        assert min(point["statistic"] for point in one["curve"]) < max(point["statistic"] for point in one["curve"])
    assert run(table) == 0
    assert "verdict" in capsys.readouterr().out
    assert run([*table[:-1], "lr-batch"]) == 2
    assert "accepted is a loss law" in capsys.readouterr().err


def test_loss_laws_alone_are_planned_for_the_forecast(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fit_file = str(data.with_name("fit.json"))
    run(["law", "fit", str(data), "--columns", "tokens=n_tokens", "--form", "chinchilla", "--out", fit_file])
    capsys.readouterr()
    plan = ["law", "plan", fit_file, "--n-params", "1.28M", "--n-tokens", "4M", "--budget", "1e13"]
    assert run([*plan, "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert 0 < answer["spent"] <= answer["budget"]
    assert answer["error_after"] < answer["error_now"]
    assert all(one["worth"] and one["runs"] == [{}] for one in answer["purchases"])
    assert run(plan) == 0
    assert "expected error of the forecast" in capsys.readouterr().out
    assert run([*plan, "--sizes", "9T"]) == 2
    assert "cheaper than the target" in capsys.readouterr().err
