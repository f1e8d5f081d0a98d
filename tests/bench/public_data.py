"""The public tables under ISOLOSS_DATA_HOME as observations; none of them is part of this repository."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from isoloss.files.tables import read_rows
from isoloss.laws.observation import Observations

Row = dict[str, Any]
LARGEST = 4  # runs held out where the table names no target


def chinchilla_points(home: Path, *, outliers: bool = False) -> Observations:
    """The digitised points of Besiroglu et al. 2024, without the five largest losses unless ``outliers``."""
    rows = read_rows(home / "chinchilla_points" / "points.csv")
    kept = [row for row in rows if outliers or str(row["outlier5"]) != "True"]
    return _observations(kept, n_params="n_params", n_tokens="tokens", loss="loss", flops="flops")


def data_constrained(home: Path) -> Observations:
    """Muennighoff et al. 2023, 182 runs with repeated data."""
    rows = read_rows(home / "scalebench" / "data_constrained.csv.gz")
    return _observations(rows, n_params="params", n_tokens="tokens", loss="loss", unique_tokens="unique_tokens")


def farseer_pool(home: Path) -> Observations:
    """The 404 pool runs of Farseer."""
    return _observations(read_rows(home / "scalebench" / "farseer.csv.gz"), n_params="N", n_tokens="D", loss="loss")


def routed(home: Path, router: str) -> Observations:
    """Clark et al. 2022: the last step of one router's runs and of the dense ones."""

    def used(row: Row) -> bool:
        return (float(row["routing_frequency"]), float(row["k"]), float(row["seed"])) == (0.5, 1.0, 42.0)

    rows = [row for row in read_rows(home / "routed_lm" / "curves.csv.gz") if used(row)]
    last = _last(rows, "hyper_id", "step")
    kept = [{**row, "tokens": 1.3e11} for row in last if row["router_type"] in (router, "Dense")]
    return _observations(
        kept, n_params="dense_parameter_count", n_tokens="tokens", loss="loss_validation", n_experts="num_experts"
    )


def olmo_ladder(home: Path) -> Observations:
    """The final c4_en losses of the OLMo ladder."""
    rows = _last(read_rows(home / "olmo_ladder" / "val_losses.csv.gz"), "run", "step")
    return _observations(rows, n_params="n_params", n_tokens="tokens", loss="c4_en_loss")


def gemstones(home: Path, validation: str) -> Observations:
    """All checkpoints of the Gemstones on one validation set; those of a run share its name."""
    rows = [row for row in read_rows(home / "gemstones_val" / "val_losses.csv.gz") if row["val_set"] == validation]
    return _observations(rows, n_params="n_params", n_tokens="tokens", loss="loss", run="run")


def gadre(home: Path, train: str) -> Observations:
    """The over-training testbed on one training set, loss on C4."""
    rows = read_rows(home / "gadre_overtrain" / "losses.csv.gz")
    kept = [row for row in rows if row["train_set"] == train and row["val_set"] == "c4_val"]
    return _observations(kept, n_params="n_params", n_tokens="tokens", loss="loss")


def porian(home: Path) -> dict[tuple[str, ...], Observations]:
    """Porian et al. 2024, losses at fixed FLOP, by data set, FLOP count, hyper-parameters, warm-up, decay and split."""
    names = ("dataset", "param_count", "hparams", "warmup", "decay", "loss_split")
    groups: dict[tuple[str, ...], list[Row]] = {}
    for row in read_rows(home / "porian_isoflop" / "isoflop_points.csv.gz"):
        groups.setdefault(tuple(str(row[name]) for name in names), []).append(row)
    columns = {"n_params": "n_params", "n_tokens": "tokens", "loss": "loss", "flops": "flops"}
    return {name: _observations(rows, **columns) for name, rows in groups.items()}


def step_law_optima(home: Path) -> Observations:
    """The least loss of each cell of the Step Law table."""
    best: dict[tuple[float, float], float] = {}
    for row in read_rows(home / "steplaw_lr_bs" / "lr_bs_loss.csv.gz"):
        cell = (float(row["n_params_nonemb"]), float(row["tokens"]))
        best[cell] = min(best.get(cell, np.inf), float(row["loss"]))
    rows = [{"n_params": N, "n_tokens": D, "loss": loss} for (N, D), loss in best.items()]
    return Observations.from_rows(rows)


def nine(home: Path) -> dict[str, tuple[Observations, Observations]]:
    """Nine data sets, each as what one may see and the largest runs held out."""
    sets: dict[str, tuple[Observations, Callable[[Observations], np.ndarray[Any, Any]]]] = {
        "Chinchilla 240 (C > 1e21)": (chinchilla_points(home), lambda seen: seen.flops > 1e21),
        "OLMo ladder c4_en (3B)": (olmo_ladder(home), lambda seen: seen.n_params > 2e9),
        "Farseer (7 largest)": (farseer_pool(home), lambda seen: _largest(seen, 7)),
        **{
            f"Gemstones {name.removeprefix('fineweb_')} (> 1.7B)": (
                gemstones(home, name),
                lambda seen: seen.n_params > 1.7e9,
            )
            for name in ("fineweb_dclm", "fineweb_edu")
        },
        **{
            f"Gadre {name} (4 largest)": (gadre(home, name), lambda seen: _largest(seen, LARGEST))
            for name in ("c4_original", "rpj", "rw_original")
        },
        "Step Law cell optima (4 largest)": (step_law_optima(home), lambda seen: _largest(seen, LARGEST)),
    }
    return {name: (seen.select(~held(seen)), seen.select(held(seen))) for name, (seen, held) in sets.items()}


def _largest(seen: Observations, count: int) -> np.ndarray[Any, Any]:
    return np.isin(np.arange(len(seen)), np.argsort(seen.flops, kind="stable")[-count:])


def _last(rows: list[Row], group: str, step: str) -> list[Row]:
    found: dict[str, Row] = {}
    for row in sorted(rows, key=lambda row: float(row[step])):
        found[row[group]] = row
    return list(found.values())


def _observations(rows: list[Row], **columns: str) -> Observations:
    return Observations.from_rows([{ours: row[theirs] for ours, theirs in columns.items()} for row in rows])
