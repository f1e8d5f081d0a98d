"""A kill storm over real processes: ``poe storm`` (30 rounds), or ``python tests/storm/storm.py --rounds 100 --seed 3``.

Two controllers on one Postgres with fsync on; four clients that ask, report and tell through either of them, and write
every acknowledgement they hear to a file of their own before they go on. Every round something is killed or frozen:
a controller, a client, a backend of Postgres, its postmaster. At the end every acknowledgement is in the database with
its value, the oracles and the replay of every ledger are clean, and no client has seen an error it could not wait out.
"""

# ruff: noqa: T201  it prints what happened

from __future__ import annotations

import argparse
import contextlib
import os
import random
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any, Final

import psutil
import psycopg
from judged import Fault, judged
from preemptions import EVERY, program_in, start

from isoloss.store.embedded import Embedded
from isoloss.testing.cluster import Cluster, wait_until
from isoloss.testing.oracles import violations

CLIENTS: Final = 4
WORKERS: Final = 2
SLOTS: Final = 2
LEASE_SECONDS: Final = 2.0
STEP_SECONDS: Final = 0.1
LEASE_STEPS: Final = int(LEASE_SECONDS / STEP_SECONDS)
MOST: Final = {  # steps run again: since the last save, and that one if it was not told yet; who is frozen tells nothing
    "worker": 2 * EVERY, "child": 2 * EVERY, "frozen worker": 2 * EVERY + LEASE_STEPS,
}  # fmt: skip
KINDS: Final = (
    "controller", "controller", "frozen controller", "backend", "client", "postgres", "both", *MOST,
)  # fmt: skip
CLIENT: Final = """
import os, random, sys, time
import isoloss
from isoloss import errors
address, log, seed = sys.argv[1:]
rng = random.Random(int(seed))
sink = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
def say(*words):
    os.write(sink, (" ".join(map(str, words)) + "\\n").encode())
    os.fsync(sink)
study = isoloss.connect(address, start=False, patience=120).study("storm")
while True:
    try:
        trial = study.ask(wait_seconds=5)
    except errors.WrongState:
        time.sleep(0.2)
        continue
    except errors.IsolossError as error:
        say("ERROR ask", type(error).__name__, error)
        continue
    loss = trial.params["x"] + rng.random()
    try:
        for step in range(trial.budget_from + 1, trial.budget_to + 1):
            trial.report(step, loss=loss)
        time.sleep(rng.random() * 0.05)
        study.tell(trial, loss=loss)
        say("ACK", trial.key.task_id, repr(loss), time.time())
    except errors.LeaseLost:
        say("LOST", trial.key.task_id)
    except errors.IsolossError as error:
        say("ERROR tell", type(error).__name__, error)
"""
SPEC: Final[dict[str, Any]] = {
    "name": "storm", "space": {"x": {"type": "float", "low": 0.0, "high": 1.0}}, "objective": {"metric": "loss"},
    "method": {"min_budget": 1, "max_budget": 27, "width": "auto"}, "seed": 1,
}  # fmt: skip
WORK: Final[dict[str, Any]] = {
    "name": "work", "space": {"lr": {"type": "float", "low": 1e-4, "high": 1e-1, "log": True}},
    "objective": {"metric": "val_loss"}, "method": {"min_budget": 8, "max_budget": 128, "eta": 4, "width": "auto"}, "seed": 2,
}  # fmt: skip
BACKENDS: Final = "SELECT pid FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
STARTS: Final = """
    SELECT extract(epoch FROM started_at)::float8 FROM attempt WHERE worker_id = %s AND started_at > to_timestamp(%s)"""
SEEN: Final = "SELECT seen_at > to_timestamp(%s) FROM worker WHERE id = %s"


class Storm:
    """The cluster, its second controller, the clients and the workers."""

    def __init__(self, cluster: Cluster, seed: int) -> None:
        self.cluster = cluster
        self.rng = random.Random(seed)
        self.second = Cluster(lease_seconds=LEASE_SECONDS)
        self.second.home = cluster.home / "second"
        self.second.home.mkdir()
        self.second._environment = {"ISOLOSS_DSN": self.dsn}
        self.second.start_controller()
        self.clients: list[subprocess.Popen[bytes]] = []
        self.recoveries: dict[str, list[float]] = {}
        self.deck: list[str] = []
        self.faults: list[Fault] = []
        self.program, self.steps = program_in(cluster.home)
        command = [sys.executable, str(self.program), "1e4", str(self.steps), str(STEP_SECONDS)]
        with cluster.client() as client:
            client.launch_study(SPEC)
            client.launch_study(WORK | {"run": {"command": command}})
        for number in range(CLIENTS):
            self.start_client(number)
        for number in range(WORKERS):
            self.start_worker(number)

    @property
    def dsn(self) -> str:
        return Embedded(home=self.cluster.home / "postgres").dsn

    def log(self, number: int) -> Path:
        return self.cluster.home / f"client-{number}.log"

    def start_client(self, number: int) -> None:
        house = (self.cluster, self.second)[number % 2]
        command = [sys.executable, "-c", CLIENT, house.address, str(self.log(number)), str(self.rng.random())[2:8]]
        process = subprocess.Popen(command, env=house.environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.clients[number : number + 1] = [process]

    def start_worker(self, number: int) -> None:
        start(self.cluster, number, slots=SLOTS, address=(self.cluster, self.second)[number % 2].address)

    def said(self, clients: Iterable[int] = range(CLIENTS)) -> list[list[str]]:
        lines = []
        for number in clients:
            with contextlib.suppress(FileNotFoundError):
                lines += [line.split() for line in self.log(number).read_text().splitlines()]
        return lines

    def acks(self, clients: Iterable[int] = range(CLIENTS)) -> list[tuple[int, float, float]]:
        return [(int(w[1]), float(w[2]), float(w[3])) for w in self.said(clients) if w[0] == "ACK" and len(w) == 4]

    def round(self) -> str:
        """Kill or freeze something, and wait until those it hurt are answered again; returns what."""
        if not self.deck:
            self.deck = self.rng.sample(KINDS, len(KINDS))
        kind = self.deck.pop()
        worker = self.ready_worker() if kind in MOST else None
        begun = time.time()
        if worker is not None:
            self.hurt_worker(kind, worker)
            answers = partial(self.starts, worker, begun)
        else:
            answers = partial(self.answers, self.hurt_service(kind), begun)
        first = min(wait_until(answers, 60, what=f"an answer after {kind}"))
        self.recoveries.setdefault(kind, []).append(first - begun)
        name = "" if worker is None else self.cluster.workers[worker].name
        self.faults.append(Fault(begun, kind, name, first - begun))
        time.sleep(0.5 + self.rng.random())
        return kind

    def answers(self, clients: Iterable[int], begun: float) -> list[float]:
        return [at for _, _, at in self.acks(clients) if at > begun + 0.01]

    def starts(self, worker: int, begun: float) -> list[float]:
        return [at for (at,) in self.rows(STARTS, self.cluster.workers[worker].name, begun)]

    def hurt_service(self, kind: str) -> Iterable[int]:
        """Kill or freeze what clients and workers depend on, or a client; returns the clients that it hurt."""
        house = self.rng.choice((self.cluster, self.second))
        match kind:
            case "controller":
                house.kill_controller()
                house.start_controller()
            case "frozen controller":
                house.signal_controller(signal.SIGSTOP)
                time.sleep(LEASE_SECONDS * 1.5)
                house.signal_controller(signal.SIGCONT)
            case "backend":
                backends = wait_until(lambda: self.rows(BACKENDS), 60, what="a backend of a controller")
                with contextlib.suppress(ProcessLookupError):
                    os.kill(self.rng.choice(backends)[0], signal.SIGKILL)  # Postgres restarts all of itself
            case "client":
                number = self.rng.randrange(CLIENTS)
                self.clients[number].kill()
                self.clients[number].wait()
                self.start_client(number)
            case "postgres" | "both":
                os.kill(self.cluster.postgres_pid(), signal.SIGKILL)
                if kind == "both":
                    self.cluster.kill_controller()
                    self.cluster.start_controller()
        return [n for n in range(CLIENTS) if "controller" not in kind or (self.cluster, self.second)[n % 2] is house]

    def rows(self, query: str, *values: Any) -> list[Any]:
        """What Postgres answers; nothing while it is down."""
        with contextlib.suppress(psycopg.Error):
            return self.cluster.rows(query, *values)
        return []

    def ready_worker(self) -> int:
        """A worker that has told what it had to tell since the last fault, and trains."""
        number, begun = self.rng.randrange(WORKERS), time.time()
        name = self.cluster.workers[number].name
        wait_until(lambda: self.rows(SEEN, begun, name) == [(True,)], 60, what=f"a beat of {name}")
        wait_until(lambda: len(self.below(number)) > SLOTS, 60, what=f"a trainer of {name} beside its warm children")
        return number

    def below(self, worker: int) -> list[psutil.Process]:
        return psutil.Process(self.cluster.workers[worker].process.pid).children(recursive=True)

    def hurt_worker(self, kind: str, number: int) -> None:
        """Kill a worker alone and see its children die, kill one of these, or freeze it while they go on."""
        worker, below = self.cluster.workers[number], self.below(number)
        match kind:
            case "worker":
                worker.kill()
                gone = "the end of a killed worker's children"
                wait_until(lambda: not any(map(lives, below)), 15, what=gone)
                self.start_worker(number)
            case "child":
                with contextlib.suppress(psutil.NoSuchProcess):
                    self.rng.choice(below).kill()
            case "frozen worker":
                worker.process.send_signal(signal.SIGSTOP)
                time.sleep(LEASE_SECONDS * 2)
                worker.process.send_signal(signal.SIGCONT)

    def end(self) -> dict[str, Any]:
        """Stop clients and workers, and hold what they heard and ran against the database."""
        for process in self.clients:
            process.kill()
            process.wait()
        for worker in self.cluster.workers:
            worker.terminate()
        acks, errors = self.acks(), [" ".join(words) for words in self.said() if words[0] == "ERROR"]
        with self.cluster.client() as client:
            client.study("storm").info()  # everything durable is decided now
        with psycopg.connect(self.dsn) as conn:
            found = violations(conn)
            stored: dict[int, float] = dict(
                conn.execute("SELECT task_id, (\"values\" ->> 'loss')::float8 FROM result").fetchall()
            )
            attempts = conn.execute("SELECT count(*), count(*) FILTER (WHERE epoch > 1) FROM attempt").fetchone()
        self.second.stop_controller()
        work, wrong, dear = judged(self.cluster, "work", self.steps, self.faults, MOST, STEP_SECONDS, LEASE_STEPS)
        if any(str(self.program) in (process.info["cmdline"] or ()) for process in psutil.process_iter(["cmdline"])):
            wrong.append("A trainer was left behind.")
        lost = [task for task, loss, _ in acks if stored.get(task) != loss]
        return {
            "acknowledged": len(acks), "lost": len(lost), "violations": found + wrong, "errors": errors[:5],
            "attempts": attempts and attempts[0], "again": attempts and attempts[1],
            "lost_leases": sum(words[0] == "LOST" for words in self.said()),
            "recovery": {
                kind: {"n": len(s), "median": round(statistics.median(s), 2), "max": round(max(s), 2)}
                for kind, s in sorted(self.recoveries.items())
            },
            "work": work, "dear": dear,
        }  # fmt: skip


def lives(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    return False


def run(rounds: int, seed: int) -> dict[str, Any]:
    """A storm of so many rounds."""
    with Cluster(lease_seconds=LEASE_SECONDS, fsync=True) as cluster:
        storm = Storm(cluster, seed)
        try:
            wait_until(lambda: len(storm.acks()) > 20, 60, what="the clients' first acknowledgements")
            for number in range(rounds):
                kind = storm.round()
                print(f"round {number + 1}: {kind}, {len(storm.acks())} acknowledged", file=sys.stderr, flush=True)
        except BaseException:
            for client in storm.clients:
                client.kill()
            with contextlib.suppress(AssertionError):
                storm.second.kill_controller()
            raise
        return storm.end()


def main() -> None:
    """Run, print, and fail when anything was lost, wrong, dearer than it may be, or an error to a client."""
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("--rounds", type=int, default=30)
    ask.add_argument("--seed", type=int, default=int(time.time()) % 10_000)
    ask.add_argument("--busy", action="store_true", help="the machine does other things too: whatever the faults cost")
    given = ask.parse_args()
    found = run(given.rounds, given.seed)
    print(f"seed {given.seed}, {given.rounds} rounds")
    for name, value in found.items():
        print(f"  {name}: {value}")
    sys.exit(bool(found["lost"] or found["violations"] or found["errors"] or (found["dear"] and not given.busy)))


if __name__ == "__main__":
    main()
