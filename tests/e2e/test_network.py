"""What a network does to a study: nothing. Lines that are slow, cut, reset, parted, or up and dead."""

from __future__ import annotations

import math
import random
import textwrap
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import grpc
import psycopg
import pytest

import isoloss
from isoloss.client.blocking import Study
from isoloss.client.credentials import found
from isoloss.client.transport import CALL_SECONDS
from isoloss.controller.server import OPTIONS
from isoloss.search.driver import Driver
from isoloss.testing.cluster import Cluster, until_idle
from isoloss.testing.controller import controller, temporary_home
from isoloss.testing.network import Network
from isoloss.testing.oracles import violations

pytestmark = pytest.mark.long
FAULTS: Final = ("delay", "crawl", "part", "cut", "reset", "swallow")
HALF_OPEN: Final = (("up",), ("down",), ("up", "down"))
NOTICED_SECONDS: Final = 25.0  # a line that is up and dead: 20 s of silence, and a new connection
TRAINER = """
    import time
    def loss(x, step): return (x - 0.3) ** 2 + 1 / step
    def train(trial):
        for step in trial.steps():
            time.sleep(0.15)
            trial.report(step, loss=loss(trial.params["x"], step))
"""
SPEC: Final[dict[str, Any]] = {
    "name": "stormy", "space": {"x": {"type": "float", "low": 0.0, "high": 1.0}}, "objective": {"metric": "loss"},
    "method": {"min_budget": 1, "max_budget": 27, "brackets": "first:2", "sync": True}, "seed": 4,
    "run": {"function": "trainer:train"},
}  # fmt: skip
Results = dict[tuple[Any, float], float]


def loss(x: float, step: float) -> float:
    return float((x - 0.3) ** 2 + 1 / step)


def undisturbed() -> Results:
    driver, ended = Driver(SPEC), Results()
    while (ask := driver.ask()) is not None:
        x = float(ask.params["x"])
        ended[x, ask.budget_to] = loss(x, ask.budget_to)
        driver.tell(ask.trial, ask.budget_to, {"loss": loss(x, ask.budget_to)})
    return ended


def results(study: Study) -> Results:
    return {(t.params["x"], level.budget): level.values["loss"] for t in study.trials() for level in t.levels}


def storm(network: Network, seed: int) -> None:
    """Every fault twice in an order of the seed, in some twenty seconds."""
    rng = random.Random(seed)
    for fault in rng.sample(FAULTS, len(FAULTS), counts=[2] * len(FAULTS)):
        match fault:
            case "delay":
                network.delay = rng.random()
            case "crawl":
                network.rate = rng.uniform(500, 3000)
            case "part":
                network.held = True
            case "cut":
                network.cut()
            case "reset":
                network.reset()
            case "swallow":
                links = [link for link in network.links if not link.swallowed]
                rng.choice(links).swallowed.update(rng.choice(HALF_OPEN))
        time.sleep(rng.uniform(1.0, 2.0))
        network.delay, network.rate, network.held = 0.0, math.inf, False


def test_a_study_through_a_failing_network_ends_as_one_undisturbed_and_loses_no_lease() -> None:
    acknowledged: dict[int, float] = {}
    with Cluster() as cluster, Network(cluster.address) as network:
        (cluster.home / "trainer.py").write_text(textwrap.dedent(TRAINER))
        with isoloss.connect(network.address, start=False, patience=60) as client:
            study = client.launch_study(SPEC)
            for name in ("one", "two"):
                cluster.worker(name, allow=("trainer:train",), address=network.address)

            def program() -> None:
                idle = False
                while not idle:
                    trial, idle = study.ask_or_idle(wait_seconds=5)
                    if trial is not None:
                        time.sleep(0.15 * (trial.budget_to - trial.budget_from))
                        value = loss(trial.params["x"], trial.budget_to)
                        study.tell(trial, loss=value)
                        acknowledged[trial.key.task_id] = value

            with ThreadPoolExecutor(1) as beside:
                told = beside.submit(program)
                storm(network, seed=7)
                told.result(60)
            until_idle(study, 60)
            assert results(study) == undisturbed()
            assert set(cluster.attempts("stormy")) == {"ok"}, "a lease outlives the longest silence of a line"
            stored = dict(cluster.rows("SELECT task_id, (\"values\" ->> 'loss')::float8 FROM result"))
            assert acknowledged and acknowledged.items() <= stored.items()
        with psycopg.connect(cluster.dsn) as conn:
            assert violations(conn) == []


def test_a_line_that_is_up_and_dead_is_given_up_before_it_costs_a_lease() -> None:
    with temporary_home(), controller() as local:

        def seconds(ways: tuple[str, ...]) -> float:
            with Network(local.address) as network, isoloss.connect(network.address, start=False) as client:
                study = client.launch_study({**SPEC, "name": "-".join(ways)})
                trial = study.ask()
                network.swallow(*ways)  # the calls' connection, which the pulse shares
                begun = time.monotonic()
                study.tell(trial, loss=1.0)
                return time.monotonic() - begun

        with ThreadPoolExecutor(len(HALF_OPEN)) as pool:
            assert max(pool.map(seconds, HALF_OPEN)) < NOTICED_SECONDS


def test_a_reply_that_crawls_is_slow_and_not_dead() -> None:
    class Long(grpc.GenericRpcHandler):
        def service(self, _: grpc.HandlerCallDetails) -> Any:
            return grpc.unary_unary_rpc_method_handler(lambda _, __: bytes(400_000))

    server = grpc.server(ThreadPoolExecutor(1), handlers=[Long()], options=OPTIONS)
    with Network(f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}") as network:
        server.start()
        network.rate = 15_000.0
        with found().channel(network.address) as channel:
            begun = time.monotonic()
            channel.unary_unary("/any/call")(b"", timeout=CALL_SECONDS)
            assert time.monotonic() - begun > NOTICED_SECONDS
        server.stop(0)
