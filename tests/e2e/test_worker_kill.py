"""A worker killed with -9 in mid-training costs what it had not saved and nothing else.

The study ends with the same configurations, the same settled rungs and, bit for bit, the same losses as one whose
workers were left alone.
"""

from __future__ import annotations

import json
import random
from typing import Any

import pytest

from isoloss.client.blocking import Study
from isoloss.testing.cluster import Cluster, wait_until

pytestmark = pytest.mark.long
pytest.importorskip("torch")

LEASED: Any = """
    SELECT task.id, task.level, task.decay_from, checkpoint.step FROM task JOIN study ON study.id = task.study_id
    JOIN lease ON lease.task_id = task.id
    LEFT JOIN checkpoint ON checkpoint.task_id = task.id AND checkpoint.epoch = task.epoch
    WHERE study.name = 'killed'"""
OUTCOMES = """
    SELECT attempt.task_id, array_agg(attempt.outcome::text ORDER BY attempt.epoch) FROM attempt
    JOIN task ON task.id = attempt.task_id JOIN study ON study.id = task.study_id
    WHERE study.name = 'killed' GROUP BY attempt.task_id"""


def spec(name: str, text: str) -> dict[str, Any]:
    return {
        "name": name, "space": {"lr": {"type": "float", "low": 1e-3, "high": 3e-2, "log": True}},
        "objective": {"metric": "val_loss"}, "method": {"min_budget": 32768, "max_budget": 131072, "eta": 2},
        "budget": {"unit": "tokens", "multiple": 512}, "fidelity": {"mode": "branch", "decay": 0.5}, "seed": 5,
        "run": {"gpt": {"width": 48, "depth": 2, "context": 64, "data": text, "eval_tokens": 2048}},
    }  # fmt: skip


def outcome(study: Study) -> tuple[Any, Any, Any]:
    """Configurations, rungs, and the loss of every task."""
    trials = study.trials()
    params = {trial.number: trial.params for trial in trials}
    losses = {(trial.number, level.level): level.values["val_loss"] for trial in trials for level in trial.levels}
    rungs = [{name: rung[name] for name in ("level", "quota", "settled")} for rung in study.info().rungs]
    return params, rungs, losses


def test_a_study_whose_workers_are_killed_ends_as_one_left_alone() -> None:
    with Cluster(lease_seconds=2) as cluster, cluster.client() as client:
        draw = random.Random(1)
        text = cluster.home / "text.txt"
        text.write_text(" ".join(draw.choice(("loss", "rate", "batch", "width", "token")) for _ in range(100_000)))

        quiet = client.launch_study(spec("quiet", str(text)))
        steady = cluster.worker("steady", everything=True)
        wait_until(lambda: quiet.info().state == "idle", 120, what="the study left alone")
        assert steady.terminate() == 0

        killed = client.launch_study(spec("killed", str(text)))
        first = cluster.worker("first", everything=True)
        wait_until(lambda: cluster.rows(LEASED), 60)
        first.kill()  # on its trunk, with nothing saved: begun again once its lease has run out
        second = cluster.worker("second", everything=True)
        (task, _, fork, _) = wait_until(
            lambda: next((row for row in cluster.rows(LEASED) if row[1] > 0 and row[3] is not None), None), 90
        )
        second.kill()  # in its decay: resumed at the fork, at once, since the same worker comes back
        third = cluster.worker("second", everything=True)
        wait_until(lambda: killed.info().state == "idle", 120, what="the study whose workers were killed")

        (params, rungs, losses), (same_params, same_rungs, same_losses) = outcome(killed), outcome(quiet)
        assert (params, rungs) == (same_params, same_rungs)
        shared = losses.keys() & same_losses.keys()  # results come in another order: an early promotion may differ
        assert len(shared) >= len(losses) - 1
        assert {key: losses[key] for key in shared} == {key: same_losses[key] for key in shared}
        assert (killed.best_params, killed.best_value) == (quiet.best_params, quiet.best_value)
        outcomes = dict(cluster.rows(OUTCOMES))
        assert outcomes[task] == ["expired", "ok"]
        assert sorted(map(len, outcomes.values()))[-3:-2] == [1], "two attempts were lost, and no other"
        started = [json.loads(line) for line in third.said.splitlines() if "task.started" in line]
        again = next(line for line in started if line["task"] == task and line["epoch"] == 2)
        assert again["budget_from"] == fork
