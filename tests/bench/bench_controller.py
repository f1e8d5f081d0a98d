"""The controller beside Optuna's gRPC proxy: trial cycles over one private Postgres with fsync on, in one run.

``poe bench-controller``            trial cycles, ours and the rival's in turn, medians over the rounds
``poe bench-controller --only ours --rounds 1 --seconds 4``

A cycle asks for a trial of five parameters, reports ``R`` times and tells the result. Both sides find a study that
has 1,000 finished trials. CPU is that of the clients, of the server with its processes, and of Postgres, a cycle.
"""

# ruff: noqa: T201  a bench prints

from __future__ import annotations

import argparse
import contextlib
import os
import random
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

from load import Cycle, Latencies, Load, closed_loop, timed

HISTORY: Final = 1000
SPACE: Final[dict[str, dict[str, Any]]] = {
    "lr": {"type": "float", "low": 1e-5, "high": 1e-1, "log": True},
    "wd": {"type": "float", "low": 1e-6, "high": 1e-2, "log": True},
    "dropout": {"type": "float", "low": 0.0, "high": 0.5},
    "layers": {"type": "int", "low": 1, "high": 12},
    "act": {"type": "categorical", "choices": ["relu", "gelu", "silu"]},
}


# ---- ours --------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def ours(home: Path, dsn: str) -> Iterator[tuple[str, int]]:
    """A controller process; its address and pid."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    command = [sys.executable, "-m", "isoloss.cli", "up", "--dsn", dsn, "--listen", address, "--dash", "127.0.0.1:0"]
    with (home / "controller.log").open("ab") as sink:
        process = subprocess.Popen(command, env={**os.environ, "ISOLOSS_HOME": str(home)}, stdout=sink, stderr=sink)
    from isoloss.client.transport import wait_until_serving

    try:
        if not wait_until_serving(address, 60):
            raise SystemExit((home / "controller.log").read_text()[-3000:])
        yield address, process.pid
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)


def our_study(address: str, sampler: str, history: int) -> str:
    """A study with so many finished trials."""
    import isoloss

    name = f"bench-{random.SystemRandom().randrange(10**9)}"
    with isoloss.connect(address, start=False) as client:
        study = client.create_study(
            name, space=SPACE, objective={"metric": "loss", "goal": "minimize"},
            method={"name": "fixed", "sampler": sampler, "budget": 100}, budget={"unit": "steps"},
        )  # fmt: skip
        rng = random.Random(1)
        study.optimize(lambda _: {"loss": rng.random()}, n_trials=history, n_jobs=4)
    return name


def our_client(number: int, address: str, name: str, reports: int, joined: bool) -> Cycle:
    """A client of the SDK; ``joined`` tells and asks in one call."""
    import isoloss

    study = isoloss.connect(address, start=False).study(name)
    rng = random.Random(number)
    held: list[Any] = []

    def cycle(latencies: Latencies) -> int:
        trial = held.pop() if held else timed(latencies, "ask", study.ask, wait_seconds=10)
        for step in range(1, reports + 1):
            trial.report(step, loss=rng.random())
        if joined:
            held.append(timed(latencies, "tell_and_ask", study.tell_and_ask, trial, loss=rng.random()))
        else:
            timed(latencies, "tell", study.tell, trial, loss=rng.random())
        return 1

    return cycle


# ---- the rival ---------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def optunas(home: Path, url: str) -> Iterator[tuple[str, int]]:
    """Optuna's proxy as a process; its port and pid."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    code = (
        "import sys, warnings; warnings.simplefilter('ignore'); import optuna\n"
        "from concurrent.futures import ThreadPoolExecutor\n"
        "storage = optuna.storages.RDBStorage(sys.argv[1], engine_kwargs={'pool_size': 40, 'max_overflow': 60})\n"
        "optuna.storages.run_grpc_proxy_server(optuna.storages.get_storage(storage), host='127.0.0.1',\n"
        "    port=int(sys.argv[2]), thread_pool=ThreadPoolExecutor(10))\n"
    )
    with (home / "optuna.log").open("ab") as sink:
        process = subprocess.Popen([sys.executable, "-c", code, url, str(port)], stdout=sink, stderr=sink)
    try:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            time.sleep(0.2)
        yield str(port), process.pid
    finally:
        process.kill()
        process.wait(30)


def distributions() -> dict[str, Any]:
    """The space in Optuna's words."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    return {
        "lr": FloatDistribution(1e-5, 1e-1, log=True), "wd": FloatDistribution(1e-6, 1e-2, log=True),
        "dropout": FloatDistribution(0.0, 0.5), "layers": IntDistribution(1, 12),
        "act": CategoricalDistribution(["relu", "gelu", "silu"]),
    }  # fmt: skip


def optuna_study(url: str, history: int) -> str:
    """A study of Optuna's with so many finished trials, added through its own interface."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    name, space, rng = f"bench-{random.SystemRandom().randrange(10**9)}", distributions(), random.Random(1)
    study = optuna.create_study(storage=optuna.storages.RDBStorage(url), study_name=name)
    sampler = optuna.samplers.RandomSampler(seed=1)
    trials = []
    for _ in range(history):
        params = {n: sampler.sample_independent(study, None, n, d) for n, d in space.items()}  # type: ignore[arg-type]
        trials.append(optuna.trial.create_trial(params=params, distributions=space, value=rng.random()))
    study.add_trials(trials)
    return name


def optuna_client(number: int, port: str, name: str, sampler: str, reports: int) -> Cycle:
    """A client of Optuna's proxy."""
    import warnings

    warnings.simplefilter("ignore")
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    drawn = {"random": optuna.samplers.RandomSampler, "tpe": optuna.samplers.TPESampler}[sampler](seed=os.getpid())
    storage = optuna.storages.GrpcStorageProxy(host="127.0.0.1", port=int(port))
    study = optuna.load_study(study_name=name, storage=storage, sampler=drawn)
    rng, space = random.Random(number), distributions()

    def cycle(latencies: Latencies) -> int:
        trial = timed(latencies, "ask", study.ask, space)
        for step in range(1, reports + 1):
            timed(latencies, "report", trial.report, rng.random(), step)
        timed(latencies, "tell", study.tell, trial, rng.random())
        return 1

    return cycle


# ---- one run -----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def postgres() -> Iterator[tuple[Path, str, int]]:
    """A private Postgres with fsync and synchronous_commit on: a folder, its DSN, the postmaster's pid."""
    from isoloss.store.embedded import Embedded

    folder = Path(tempfile.mkdtemp(prefix="isoloss-bench-"))
    folder.chmod(0o711)
    embedded = Embedded(home=folder / "postgres", fsync=True)
    keeper = embedded.start()
    try:
        keeper.execute("CREATE DATABASE rival")
        yield folder, embedded.dsn, int((embedded.data / "postmaster.pid").read_text().splitlines()[0])
    finally:
        embedded.stop(keeper)
        shutil.rmtree(folder, ignore_errors=True)


def row(label: str, loads: list[Load]) -> dict[str, Any]:
    """Medians over the rounds, printed as one line."""
    middle: Callable[[Callable[[Load], float]], float] = lambda what: statistics.median(what(load) for load in loads)  # noqa: E731
    ask = "ask" if loads[0].latencies.get("ask") else "tell_and_ask"
    parts = {name: middle(lambda load, name=name: load.cpu_ms[name]) for name in loads[0].cpu_ms}  # type: ignore[misc]
    found = {
        "rate": middle(lambda load: load.rate), "cpu": middle(lambda load: load.cpu), **parts,
        "p50": middle(lambda load: load.latency(ask, 0.5)), "p99": middle(lambda load: load.latency(ask, 0.99)),
        "first": middle(lambda load: load.first_ms),
    }  # fmt: skip
    errors = [error for load in loads for error in load.errors]
    each = " + ".join(f"{name} {value:.2f}" for name, value in parts.items())
    print(
        f"{label:44s} {found['rate']:8.1f}/s  CPU {found['cpu']:6.2f} ms ({each})  {ask} p50 {found['p50']:.2f} "
        f"p99 {found['p99']:.2f} ms  first {found['first']:.0f} ms{'  ERRORS ' + str(errors[:2]) if errors else ''}",
        flush=True,
    )
    return found


def main() -> None:
    """Run the cases in turn and print medians and ratios."""
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("--seconds", type=float, default=6.0)
    ask.add_argument("--rounds", type=int, default=3)
    ask.add_argument("--clients", type=int, default=8)
    ask.add_argument("--samplers", default="random,tpe")
    ask.add_argument("--reports", default="0,10")
    ask.add_argument("--history", type=int, default=HISTORY)
    ask.add_argument("--only", choices=["ours", "rival"])
    said = ask.parse_args()
    cases = [(s, int(r)) for s in said.samplers.split(",") for r in said.reports.split(",")]
    with postgres() as (home, dsn, postmaster):
        url = f"postgresql+psycopg://isoloss@/rival?host={home / 'postgres'}"
        for sampler, reports in cases:
            loads: dict[str, list[Load]] = {}
            for _ in range(said.rounds):
                if said.only != "rival":
                    with ours(home, dsn) as (address, pid):
                        watch = {"server": pid, "postgres": postmaster}
                        for joined in (False, True):
                            name = our_study(address, sampler, said.history)
                            loads.setdefault("one call" if joined else "two calls", []).append(
                                closed_loop(
                                    our_client, (address, name, reports, joined), clients=said.clients,
                                    seconds=said.seconds, watch=watch,
                                )
                            )  # fmt: skip
                if said.only != "ours":
                    name = optuna_study(url, said.history)
                    with optunas(home, url) as (port, pid):
                        watch = {"server": pid, "postgres": postmaster}
                        loads.setdefault("rival", []).append(
                            closed_loop(
                                optuna_client, (port, name, sampler, reports), clients=said.clients,
                                seconds=said.seconds, watch=watch,
                            )
                        )  # fmt: skip
            found = {
                who: row(f"{sampler}, {reports} reports, {said.clients} clients, {who}", ran)
                for who, ran in loads.items()
            }
            for who in found.keys() - {"rival"} if "rival" in found else ():
                rate, cpu = found[who]["rate"] / found["rival"]["rate"], found["rival"]["cpu"] / found[who]["cpu"]
                print(f"    {who}: {rate:.1f} times the rival's rate at 1/{cpu:.1f} of its CPU", flush=True)


if __name__ == "__main__":
    main()
