"""Preemptions at random moments: ``poe preemptions`` (200), or ``python tests/storm/preemptions.py --preemptions 20 --seed 3``.

A campaign of two sizes runs twice on four workers with real processes: once in peace, and once while workers are told to
leave (SIGTERM, as Slurm and spot machines do) or are killed without a word, each coming back after a moment. The trainer
is a program of its own: it saves every eighth step, where its decay begins, and when it is told to leave, and logs every step that it runs
to a file of its own. Both runs must have the same configurations and the same results, and no preemption may cost more than the steps since
the last checkpoint.
"""

# ruff: noqa: T201  it prints what happened

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import textwrap
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import psycopg

from isoloss.client.blocking import Campaign, Client
from isoloss.testing.cluster import Cluster, wait_until
from isoloss.testing.oracles import violations

WORKERS: Final = 4
EVERY: Final = 8  # steps between two checkpoints; no decay is longer
SILENT: Final = 0.1  # of the preemptions are kills without a word
LONGEST: Final = 3600.0
PROGRAM: Final = f"""
    import json, math, os, pathlib, signal, sys, time
    env = os.environ
    save, resume = pathlib.Path(env["ISOLOSS_SAVE_TO"]), env["ISOLOSS_RESUME_FROM"]
    lr, n = float(env["ISOLOSS_LR"]), float(sys.argv[1])
    begun, to, fork = (int(env["ISOLOSS_" + name]) for name in ("BUDGET_FROM", "BUDGET_TO", "DECAY_FROM"))
    step, total = 0, 0.0  # a state that only the steps themselves lead to
    if resume:  # not what DONE says: who has lost the lease and does not know it yet may still be saving there
        step, total = begun, float(pathlib.Path(resume, f"state-{{begun}}").read_text())
    assert step == begun, (step, begun)
    asked, saved = [], []
    signal.signal(signal.SIGTERM, lambda *_: asked.append(1))
    def checkpoint():
        if step in saved or not step: return
        (save / f"state-{{step}}").write_text(repr(total))
        (save / "draft").write_text(str(step)); (save / "draft").replace(save / "DONE")
        saved.append(step)
        for old in saved[:-2]: (save / f"state-{{old}}").unlink(missing_ok=True)
    log = os.open(pathlib.Path(sys.argv[2], ":".join((*save.parts[-3:], str(os.getpid())))), os.O_WRONLY | os.O_CREAT)
    def note():
        os.write(log, f"{{step}} {{total!r}} {{time.time()}}\\n".encode())
        os.fsync(log)
    def measure():
        loss = 2 + (math.log10(lr) + 2 - 0.3 * math.log10(n)) ** 2 + 400 / n**0.5 + 5 / step + 1e-3 * total
        with open(env["ISOLOSS_METRICS"], "a") as file:
            file.write(json.dumps({{"step": step, "val_loss": loss, "total": total}}) + "\\n")
    note()
    if step == to: measure()  # whoever ran all of it died before it was told
    while step < to:
        time.sleep(float(sys.argv[3]))
        step += 1
        total += math.log(1 + lr * step) * math.sin(step)
        note()
        measure()
        if step <= fork and (step % {EVERY} == 0 or step == fork or asked): checkpoint()
        if asked and step < to: sys.exit(75 if saved else 1)
"""


@dataclass(frozen=True, slots=True)
class Ran:
    """What one process of the trainer ran: the steps it reached, the state and the time at each; it began at the first."""

    study: str
    trial: int
    task: int
    epoch: int
    reached: tuple[tuple[int, str, float], ...]

    @property
    def key(self) -> tuple[int, int]:
        return self.task, self.epoch

    @property
    def begun(self) -> float:
        return self.reached[0][2]


def ran(log: Path) -> list[Ran]:
    """All that trainers logged in a folder, in the order of their beginnings."""
    found = []
    for file in log.iterdir():
        study, trial, attempt, _ = file.name.split(":")
        _, task, epoch = map(int, attempt.split("-"))
        lines = [line.split() for line in file.read_text().splitlines()]
        if lines:
            reached = tuple((int(step), state, float(at)) for step, state, at in lines)
            found.append(Ran(study, int(trial), task, epoch, reached))
    return sorted(found, key=lambda one: one.begun)


def start(cluster: Cluster, number: int, **how: Any) -> None:
    """Start a worker (again), which takes the place of the one that was."""
    worker = cluster.worker(f"spot-{number}", everything=True, **how)
    cluster.workers.remove(worker)
    cluster.workers[number : number + 1] = [worker]


def program_in(folder: Path) -> tuple[Path, Path]:
    """The trainer as a file, and the folder for its logs."""
    program, log = folder / "program.py", folder / "steps"
    program.write_text(textwrap.dedent(PROGRAM))
    log.mkdir()
    return program, log


def campaign(program: Path, log: Path, step_seconds: float) -> dict[str, Any]:
    """Two sizes, a learning rate, rungs of 20 to 80 tokens."""
    return {
        "name": "spot", "target": {"n_params": 1_000_000, "n_tokens": 1000},
        "sizes": [{"name": f"n{n}", "n_params": n, "set": {"n": n}} for n in (10_000, 40_000)],
        "tokens": {"min": 20, "max": 80, "eta": 2}, "fidelity": {"mode": "branch", "decay": 0.1},
        "space": {"lr": {"type": "float", "low": 1e-4, "high": 1e-1, "log": True}}, "objective": {"metric": "val_loss"},
        "fixed": {"batch_tokens": 1}, "recipe": {"parameterization": "sp", "optimizer": "adamw"},
        "run": {"command": [sys.executable, str(program), "{n}", str(log), str(step_seconds)]}, "seed": 3,
    }  # fmt: skip


class Arm:
    """One run of the campaign on workers of its own."""

    def __init__(self, cluster: Cluster, client: Client, step_seconds: float) -> None:
        self.cluster, self.client = cluster, client
        program, self.log = program_in(cluster.home)
        for number in range(WORKERS):
            start(cluster, number)
        self.campaign: Campaign = client.launch_campaign(campaign(program, self.log, step_seconds))
        self.begun = time.monotonic()

    def preempt(self, rng: random.Random) -> str:
        """Tell a worker to leave, or kill it; another comes in its place."""
        number, silent = rng.randrange(WORKERS), rng.random() < SILENT
        process = self.cluster.workers[number].process
        process.send_signal(signal.SIGKILL if silent else signal.SIGTERM)
        process.wait(30)
        time.sleep(rng.random() * 0.5)
        start(self.cluster, number)
        return "killed" if silent else "told to leave"

    def active(self) -> bool:
        """Whether anything is still to be run."""
        return any(study.state == "active" for study in self.client.studies()) or not self.client.studies()

    def result(self) -> dict[str, Any]:
        """Who was measured where, by configuration, and every step that was run."""
        found: dict[str, Any] = {}
        for info in self.client.studies():
            for trial in self.client.study(info.name).trials():
                for level in trial.levels:
                    found[f"{info.name} {sorted(trial.params.items())} {level.level}"] = (
                        level.state,
                        dict(level.values),
                    )
        return found

    def steps(self) -> Counter[str]:
        """How often each step of each trial was run."""
        return Counter(f"{one.study} {one.trial} {step}" for one in ran(self.log) for step, _, _ in one.reached[1:])


def run(preemptions: int, seed: int, step_seconds: float) -> dict[str, Any]:
    """Both runs, and what is to be said of them."""
    rng, kinds = random.Random(seed), Counter[str]()
    with Cluster(lease_seconds=3.0) as cluster, cluster.client() as client:
        peace = Arm(cluster, client, 0.01)
        time.sleep(2)
        wait_until(lambda: not peace.active(), LONGEST, what="the campaign in peace")
        undisturbed, calm, seconds = peace.result(), peace.steps(), time.monotonic() - peace.begun
    print(f"in peace: {len(undisturbed)} results, {calm.total()} steps, {seconds:.0f} s", file=sys.stderr, flush=True)
    with Cluster(lease_seconds=3.0) as cluster, cluster.client() as client:
        storm = Arm(cluster, client, step_seconds)
        time.sleep(2)
        while storm.active() and kinds.total() < preemptions:
            kinds[storm.preempt(rng)] += 1
            time.sleep(rng.random() * 0.8)
            if kinds.total() % 20 == 0:
                print(f"{kinds.total()} preemptions, {len(storm.result())} tasks", file=sys.stderr, flush=True)
        wait_until(lambda: not storm.active(), LONGEST, what="the campaign under preemptions")
        disturbed, ran = storm.result(), storm.steps()
        with psycopg.connect(cluster.dsn) as conn:
            broken = violations(conn)
        failed = [row[0] for row in cluster.rows("SELECT message FROM attempt WHERE outcome = 'failed'")]
        ended = dict(cluster.rows("SELECT outcome::text, count(*) FROM attempt GROUP BY 1"))
    again = ran.total() - len(ran)
    return {
        "preemptions": dict(kinds), "results": len(undisturbed), "same": disturbed == undisturbed, "violations": broken,
        "attempts": ended, "failed": failed, "steps": calm.total(), "steps_again": again,
        "again_a_preemption": round(again / max(1, kinds.total()), 3), "most_times_a_step": max(ran.values()),
        "never_run": len(set(calm) - set(ran)),
    }  # fmt: skip


def main() -> None:
    """Run, print, and fail when anything differs, or a preemption cost more than a checkpoint interval."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--preemptions", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--step-seconds", type=float, default=0.5)
    flags = parser.parse_args()
    told = run(flags.preemptions, flags.seed, flags.step_seconds)
    print(json.dumps(told, indent=1))
    enough = sum(told["preemptions"].values()) == flags.preemptions
    fine = (
        enough
        and told["same"]
        and not told["violations"]
        and not told["never_run"]
        and told["again_a_preemption"] <= EVERY
    )
    sys.exit(os.EX_OK if fine else 1)


if __name__ == "__main__":
    main()
