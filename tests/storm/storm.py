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
from pathlib import Path
from typing import Any, Final

import psycopg

from isoloss.store.embedded import Embedded
from isoloss.testing.cluster import Cluster, wait_until
from isoloss.testing.oracles import violations

CLIENTS: Final = 4
LEASE_SECONDS: Final = 2.0
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


class Storm:
    """The cluster, its second controller and the clients."""

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
        with cluster.client() as client:
            client.launch_study(SPEC)
        for number in range(CLIENTS):
            self.start_client(number)

    @property
    def dsn(self) -> str:
        return Embedded(home=self.cluster.home / "postgres").dsn

    def log(self, number: int) -> Path:
        return self.cluster.home / f"client-{number}.log"

    def start_client(self, number: int) -> None:
        house = (self.cluster, self.second)[number % 2]
        command = [sys.executable, "-c", CLIENT, house.address, str(self.log(number)), str(self.rng.random())[2:8]]
        process = subprocess.Popen(command, env=house.environment, stderr=subprocess.DEVNULL)
        self.clients[number : number + 1] = [process]

    def said(self, clients: Iterable[int] = range(CLIENTS)) -> list[list[str]]:
        lines = []
        for number in clients:
            with contextlib.suppress(FileNotFoundError):
                lines += [line.split() for line in self.log(number).read_text().splitlines()]
        return lines

    def acks(self, clients: Iterable[int] = range(CLIENTS)) -> list[tuple[int, float, float]]:
        return [(int(w[1]), float(w[2]), float(w[3])) for w in self.said(clients) if w[0] == "ACK" and len(w) == 4]

    def round(self) -> str:
        """Kill or freeze something; returns what."""
        house = self.rng.choice((self.cluster, self.second))
        kind = self.rng.choice(
            ("controller", "controller", "frozen controller", "backend", "client", "postgres", "both")
        )
        hurt = [*range(CLIENTS)]  # whose recovery counts
        if "controller" in kind:
            hurt = [number for number in hurt if (self.cluster, self.second)[number % 2] is house]
        begun = time.time()
        match kind:
            case "controller":
                house.kill_controller()
                house.start_controller()
            case "frozen controller":
                house.signal_controller(signal.SIGSTOP)
                time.sleep(LEASE_SECONDS * 1.5)
                house.signal_controller(signal.SIGCONT)
            case "backend":
                with contextlib.suppress(psycopg.Error), psycopg.connect(self.dsn, autocommit=True) as conn:
                    pids = conn.execute(
                        "SELECT pid FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
                    ).fetchall()
                    os.kill(self.rng.choice(pids)[0], signal.SIGKILL)  # Postgres restarts all of itself
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
        what = f"an answer after {kind}"
        wait_until(lambda: any(at > begun + 0.01 for _, _, at in self.acks(hurt)), 60, what=what)
        first = min(at for _, _, at in self.acks(hurt) if at > begun + 0.01)
        self.recoveries.setdefault(kind, []).append(first - begun)
        time.sleep(0.5 + self.rng.random())
        return kind

    def end(self) -> dict[str, Any]:
        """Stop the clients, and hold what they heard against the database."""
        for process in self.clients:
            process.kill()
            process.wait()
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
        lost = [task for task, loss, _ in acks if stored.get(task) != loss]
        return {
            "acknowledged": len(acks), "lost": len(lost), "violations": found, "errors": errors[:5],
            "attempts": attempts and attempts[0], "again": attempts and attempts[1],
            "lost_leases": sum(words[0] == "LOST" for words in self.said()),
            "recovery": {
                kind: {"n": len(s), "median": round(statistics.median(s), 2), "max": round(max(s), 2)}
                for kind, s in sorted(self.recoveries.items())
            },
        }  # fmt: skip


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
    """Run, print, and fail when anything was lost, wrong, or an error to a client."""
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("--rounds", type=int, default=30)
    ask.add_argument("--seed", type=int, default=int(time.time()) % 10_000)
    given = ask.parse_args()
    found = run(given.rounds, given.seed)
    print(f"seed {given.seed}, {given.rounds} rounds")
    for name, value in found.items():
        print(f"  {name}: {value}")
    sys.exit(bool(found["lost"] or found["violations"] or found["errors"]))


if __name__ == "__main__":
    main()
