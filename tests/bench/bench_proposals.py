"""What a proposal costs as the history grows, beside Optuna's own ask on the same history in the same run.

    python tests/bench/bench_proposals.py [--batch 8]

Ours is `propose` for a batch, a model built from the ledger each time and thinned to the best and the latest results;
Optuna's is `study.ask` on an in-memory study with the whole history, as its users have it.
"""

# ruff: noqa: T201  a bench prints

from __future__ import annotations

import argparse
import time
from statistics import median
from typing import Any

from isoloss.domain.spec import StudySpec, decode_study
from isoloss.search.answers import ProposalRequest
from isoloss.search.optuna_samplers import distributions
from isoloss.search.proposals import propose
from isoloss.search.streams import RandomStream

SIZES = (100, 1_000, 10_000)
ROUNDS = 5  # of all sizes in turn, the median of each: one round says little on a busy machine
SPACE = {name: {"type": "float", "low": 1e-4, "high": 1.0, "log": True} for name in "abcdef"}


def study(sampler: str) -> StudySpec:
    method = {"min_budget": 1, "max_budget": 9, "sampler": sampler}
    return decode_study({"name": "p", "space": SPACE, "objective": {"metric": "loss"}, "method": method})


def ours(sampler: str, known: list[tuple[dict[str, Any], float]], batch: int) -> float:
    """Seconds a proposal."""
    request = ProposalRequest(n=batch, seed=1, level=0, history=tuple(known), pending=())
    propose(study(sampler), ProposalRequest(n=1, seed=0, level=0, history=tuple(known[:20]), pending=()))  # warm
    began = time.perf_counter()
    propose(study(sampler), request)
    return (time.perf_counter() - began) / batch


def optunas(known: list[tuple[dict[str, Any], float]], batch: int) -> float:
    """Seconds an ask of Optuna's TPE."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    space = distributions(study("tpe").space)
    other = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=1))
    other.add_trials([optuna.create_trial(params=c, distributions=space, value=v) for c, v in known])
    began = time.perf_counter()
    for _ in range(batch):
        other.ask(space)
    return (time.perf_counter() - began) / batch


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=8)
    batch = parser.parse_args().batch
    stream = RandomStream(study("tpe").space, seed=0, bracket=0)
    known = [(c, sum(float(v) for v in c.values())) for c in (stream.configuration(k) for k in range(SIZES[-1]))]

    print(f"ms a proposal, batches of {batch}: " + ", ".join(f"{n} results" for n in SIZES) + "; last / first")

    def once() -> dict[str, list[float]]:
        rows = {name: [ours(name, known[:n], batch) for n in SIZES] for name in ("tpe", "cma", "gp")}
        return rows | {"optuna tpe": [optunas(known[:n], batch) for n in SIZES]}

    rounds = [once() for _ in range(ROUNDS)]
    for name in rounds[0]:
        row = [median(each) for each in zip(*(made[name] for made in rounds), strict=True)]
        print(f"{name:11}" + "".join(f"{1e3 * seconds:9.1f}" for seconds in row) + f"{row[-1] / row[0]:9.1f}x")


if __name__ == "__main__":
    main()
