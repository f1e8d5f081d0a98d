"""Trials of several GPUs: real ``torchrun`` on two processes, ranks that die, slots joined, and none that starve.

The GPUs are names only: what the tests look at is who is given which, and two processes that meet over gloo.
"""

from __future__ import annotations

import os
import signal
import sys
import textwrap
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from isoloss.client.blocking import Client, Study
from isoloss.testing.cluster import Cluster, until_idle, wait_until

DDP = """
    import json, os, pathlib, signal, sys, time
    import torch, torch.distributed as dist
    import isoloss

    trial = isoloss.current_trial()
    dist.init_process_group("gloo")
    rank, world = dist.get_rank(), dist.get_world_size()
    assert trial.rank == rank and world == trial.gpus * trial.nodes == int(os.environ["WORLD_SIZE"])
    torch.manual_seed(trial.seed)
    model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(4, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=trial.params["lr"])
    begun = 0
    if trial.resume_from:
        state = torch.load(trial.resume_from / "state.pt")
        model.load_state_dict(state["model"]); begun = state["step"]
    assert begun == trial.budget_from, (begun, trial.budget_from)
    asked = False
    def ask(*_):
        global asked
        asked = True
    signal.signal(signal.SIGTERM, ask)

    def save(step):
        if rank == 0:
            torch.save({"model": model.state_dict(), "step": step}, trial.save_to / "state.pt")
            (trial.save_to / "DONE").write_text(str(step))
        dist.barrier()

    folder = pathlib.Path(sys.argv[1])
    (folder / f"rank{rank}").write_text(f"{os.getpid()} {os.environ['CUDA_VISIBLE_DEVICES']} {os.environ['MASTER_PORT']}")
    inputs = torch.randn(8, 4, generator=torch.Generator().manual_seed(rank))
    for step in range(begun + 1, trial.budget_to + 1):
        optimizer.zero_grad()
        loss = model(inputs).square().mean()
        loss.backward()
        optimizer.step()
        total = torch.tensor([loss.item(), float(asked)])
        dist.all_reduce(total)
        trial.report(step, val_loss=total[0].item() / world)
        time.sleep(float(os.environ.get("STEP_SECONDS", "0")))
        if total[1] > 0 or step == trial.decay_from:
            save(step)
        if total[1] > 0:
            sys.exit(75)
    dist.destroy_process_group()
"""
PLAIN = """
    import os, time
    def fine(trial):
        time.sleep(float(os.environ.get("STEP_SECONDS", "0.2")))
        trial.report(trial.budget_to, val_loss=1.0)
        (trial.save_to / "seen").write_text(os.environ.get("CUDA_VISIBLE_DEVICES", ""))
"""


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with Cluster(lease_seconds=2) as cluster:
        (cluster.home / "ddp.py").write_text(textwrap.dedent(DDP))
        (cluster.home / "plain.py").write_text(textwrap.dedent(PLAIN))
        yield cluster


@pytest.fixture
def client(cluster: Cluster) -> Iterator[Client]:
    with cluster.client() as client:
        yield client
        for study in client.studies():
            if study.state != "stopped":
                client.study(study.name).stop()
    cluster.kill_workers()


def launch(client: Client, name: str, run: Mapping[str, Any], *, trials: int = 1, budget: int = 4) -> Study:
    return client.launch_study(
        {
            "name": name, "space": {"lr": {"type": "float", "low": 1e-3, "high": 1e-1, "log": True}},
            "objective": {"metric": "val_loss"}, "method": {"name": "fixed", "budget": budget}, "run": dict(run),
            "limits": {"trials": trials},
        }
    )  # fmt: skip


def torchrun(cluster: Cluster, name: str, step_seconds: float = 0.0) -> dict[str, Any]:
    folder = cluster.home / name
    folder.mkdir()
    return {
        "command": ["torchrun", str(cluster.home / "ddp.py"), str(folder)], "gpus": 2,
        "env": {"STEP_SECONDS": str(step_seconds)},
    }  # fmt: skip


def ranks(cluster: Cluster, name: str) -> list[list[str]]:
    """What each rank wrote: its pid, the GPUs it sees, and where it meets the other."""
    return [path.read_text().split() for path in sorted((cluster.home / name).glob("rank*"))]


def resumed_from(cluster: Cluster, study: str) -> list[int]:
    query = """SELECT checkpoint.step FROM checkpoint JOIN task ON task.id = checkpoint.task_id
               JOIN study ON study.id = task.study_id WHERE study.name = %s ORDER BY checkpoint.at"""
    return [row[0] for row in cluster.rows(query, study)]


def curve(cluster: Cluster, study: str) -> list[int]:
    query = "SELECT step FROM dash_curve WHERE study = %s AND metric = 'val_loss' ORDER BY step"
    return [row[0] for row in cluster.rows(query, study)]


@pytest.mark.long
def test_torchrun_runs_unchanged_on_the_gpus_of_two_slots_and_two_runs_do_not_meet(
    cluster: Cluster, client: Client
) -> None:
    one = launch(client, "one", torchrun(cluster, "one", 0.1), budget=20)
    two = launch(client, "two", torchrun(cluster, "two", 0.1), budget=20)
    cluster.worker("box", slots=4, gpus="10,11,12,13", everything=True)
    wait_until(lambda: len(ranks(cluster, "one")) == len(ranks(cluster, "two")) == 2, 40, what="two runs at a time")
    assert next(worker for worker in client.workers() if worker["worker_id"] == "box")["leases"] == 2
    until_idle(one, 60)
    until_idle(two, 60)
    seen = {name: {tuple(rank[1:]) for rank in ranks(cluster, name)} for name in ("one", "two")}
    assert all(len(same) == 1 for same in seen.values()), "the ranks of a run share its GPUs and its port"
    (gpus, port), (others, other_port) = (next(iter(seen[name])) for name in ("one", "two"))
    assert {gpus, others} == {"10,11", "12,13"} and port != other_port
    assert [len(trial.levels) for trial in one.trials()] == [1] and cluster.attempts("one") == ["ok"]
    assert curve(cluster, "one") == list(range(1, 21)), "rank 0 alone reports"


@pytest.mark.long
def test_a_run_whose_rank_is_killed_is_run_again_from_its_start_and_leaves_no_rank_behind(
    cluster: Cluster, client: Client
) -> None:
    study = launch(client, "killed", torchrun(cluster, "killed", 0.3), budget=12)
    cluster.worker("killing", slots=2, gpus="20,21", everything=True)
    first = wait_until(lambda: len(found := ranks(cluster, "killed")) == 2 and found, 40)
    os.kill(int(first[1][0]), signal.SIGKILL)
    wait_until(lambda: cluster.attempts("killed")[:1] == ["failed"], 20)
    assert not Path("/proc", first[0][0]).exists(), "the other rank has ended with it"
    until_idle(study, 60)
    assert cluster.attempts("killed") == ["failed", "ok"]
    assert "exited with 1" in cluster.rows("SELECT message FROM attempt WHERE outcome = 'failed'")[0][0]


SRUN = """#!{python}
import os, signal, subprocess, sys
flags = [word for word in sys.argv[1:] if word.startswith("--")]
nodes = next(int(word.partition("=")[2]) for word in flags if word.startswith("--nodes="))
command = sys.argv[1 + next(k for k, word in enumerate(sys.argv[1:]) if not word.startswith("--")):]
steps = [
    subprocess.Popen(command, env={{**os.environ, "SLURM_NODEID": str(node), "SLURM_PROCID": str(node)}}, start_new_session=True)
    for node in range(nodes)
]
def pass_on(number, frame):
    for step in steps: os.killpg(step.pid, number)
signal.signal(signal.SIGTERM, pass_on)
sys.exit(max(step.wait() for step in steps))
"""


@pytest.mark.long
def test_a_trial_of_two_nodes_is_one_torchrun_on_each_started_by_srun(
    cluster: Cluster, client: Client, tmp_path: Path
) -> None:
    srun = tmp_path / "srun"  # what Slurm's does, on one machine
    srun.write_text(SRUN.format(python=sys.executable))
    srun.chmod(0o755)
    task = torchrun(cluster, "nodes") | {"gpus": 1, "nodes": 2}
    study = launch(client, "nodes", task)
    cluster.worker("single", slots=1, gpus="60", everything=True)
    wait_until(lambda: any("run.nodes is 2 and no worker spans as many" in why for why in study.why()), 20)
    slurm = {
        "SLURM_JOB_NUM_NODES": "2", "SLURMD_NODENAME": "127.0.0.1", "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}",
    }  # fmt: skip
    cluster.worker("pair", slots=1, gpus="61", everything=True, nodes=2, environment=slurm)
    until_idle(study, 60)
    assert cluster.attempts("nodes") == ["ok"] and curve(cluster, "nodes") == [1, 2, 3, 4]
    assert [rank[1] for rank in ranks(cluster, "nodes")] == ["61", "61"]


@pytest.mark.long
def test_a_run_under_torchrun_that_is_preempted_goes_on_from_what_it_saved(cluster: Cluster, client: Client) -> None:
    study = launch(client, "preempted", torchrun(cluster, "preempted", 0.2), budget=20)
    spot = cluster.worker("spot", slots=2, gpus="30,31", everything=True)
    wait_until(lambda: len(ranks(cluster, "preempted")) == 2, 40)
    time.sleep(0.5)
    spot.process.send_signal(signal.SIGTERM)
    assert spot.process.wait(20) == 0
    assert cluster.attempts("preempted") == ["released"]
    (saved,) = resumed_from(cluster, "preempted")
    assert 0 < saved < 20
    cluster.worker("steady", slots=1, gpus="32,33", everything=True)
    until_idle(study, 60)
    assert cluster.attempts("preempted") == ["released", "ok"]
    assert curve(cluster, "preempted") == list(range(1, 21)), "no step is run twice"


def test_a_task_of_many_gpus_among_a_stream_of_small_ones_is_run_in_good_time(cluster: Cluster, client: Client) -> None:
    small = launch(client, "small", {"function": "plain:fine", "cwd": str(cluster.home)}, trials=400)
    cluster.worker(
        "busy", slots=5, gpus="40,41,42,43,44", everything=True
    )  # more than those that have just been killed
    wait_until(lambda: small.info().tasks.get("done", 0) > 4, 30)
    large = launch(client, "large", {"function": "plain:fine", "cwd": str(cluster.home), "gpus": 5})
    said = wait_until(lambda: [why for why in large.why() if "as many free at once" in why], 10)
    assert "'busy' lacks" in said[0]
    until_idle(large, 18)
    assert small.info().state == "active", "it did not wait for the others to end"
    (path,) = (row[0] for row in cluster.rows(
        "SELECT path FROM checkpoint JOIN task ON task.id = task_id JOIN study ON study.id = study_id WHERE name = 'large'"
    ))  # fmt: skip
    assert (cluster.home / path / "seen").read_text() == "40,41,42,43,44"
    done = small.info().tasks["done"]
    wait_until(lambda: small.info().tasks["done"] > done + 4, 20, what="the small ones go on")


def test_two_workers_of_one_machine_do_not_share_a_gpu_unless_one_worker_shares_it(
    cluster: Cluster, client: Client
) -> None:
    cluster.worker("first", slots=2, gpus="50", everything=True)
    wait_until(lambda: any(worker["worker_id"] == "first" for worker in client.workers()), 20)
    second = cluster.worker("second", gpus="51,50", everything=True)
    assert second.process.wait(20) == 2
    assert "GPU 50 is another worker's on this machine" in second.said
    wide = launch(client, "wide", {"function": "plain:fine", "gpus": 9})
    wait_until(lambda: any("run.gpus is 9 and no worker has more than" in sentence for sentence in wide.why()), 10)
