"""Joining a controller from elsewhere: what `up --listen` makes and prints, the file, and the templates for clusters."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from isoloss import errors
from isoloss.cli import run
from isoloss.client.join import Join, fingerprint_of, read_join
from isoloss.testing.cluster import wait_until

EXAMPLES = Path(__file__).parents[2] / "platform" / "examples"


@pytest.fixture(scope="module")
def place() -> Iterator[tuple[Path, dict[str, str], dict[str, Any]]]:
    """A controller that listens on every address, its environment, and what it said."""
    home = Path(tempfile.mkdtemp(prefix="isoloss-"))
    home.chmod(0o711)
    environment = {k: v for k, v in os.environ.items() if not k.startswith("ISOLOSS_")} | {"ISOLOSS_HOME": str(home)}
    command = [sys.executable, "-m", "isoloss.cli", "up", "--listen", "0.0.0.0:0", "--dash", "127.0.0.1:0", "--json"]
    with subprocess.Popen(
        [*command, "--reached-as", "127.0.0.1"], env=environment, stdout=subprocess.PIPE, text=True
    ) as up:
        assert up.stdout is not None
        yield home, environment, json.loads(up.stdout.readline())
        up.terminate()
        assert up.wait(20) == 0
    shutil.rmtree(home, ignore_errors=True)


def isoloss(environment: dict[str, str], *words: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "isoloss.cli", *words, "--json"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def elsewhere(environment: dict[str, str], folder: Path) -> dict[str, str]:
    """The environment of another machine: nothing of the controller's home."""
    return environment | {"ISOLOSS_HOME": str(folder)}


def test_one_line_joins_a_worker_and_the_owner_needs_nothing(
    place: tuple[Path, dict[str, str], dict[str, Any]], tmp_path: Path
) -> None:
    home, environment, said = place
    join = read_join(said["worker_join"])
    assert join.fingerprint == said["ca_fingerprint"] == fingerprint_of((home / "certs" / "ca.pem").read_text())
    assert {oct((home / name).stat().st_mode & 0o777) for name in ("worker.join", "admin.join")} == {"0o600"}
    copied = tmp_path / "worker.join"
    join.write(copied)
    command = [
        sys.executable,
        "-m",
        "isoloss.cli",
        "worker",
        "start",
        "--join",
        str(copied),
        "--name",
        "far",
        "--allow",
        "train:main",
    ]
    with subprocess.Popen(command, env=elsewhere(environment, tmp_path / "far"), cwd=EXAMPLES) as worker:
        wait_until(lambda: isoloss(environment, "worker", "ls")["workers"], 30)
        assert join.token not in Path(f"/proc/{worker.pid}/cmdline").read_text()
        isoloss(environment, "study", "launch", str(EXAMPLES / "tiny_lr.yaml"))
        wait_until(lambda: isoloss(environment, "study", "show", "tiny-lr")["state"] == "idle", 60)
        admin = elsewhere(environment, tmp_path / "me") | {"ISOLOSS_JOIN": said["admin_join"]}
        assert isoloss(admin, "study", "best", "tiny-lr")["value"] < 0.5
        worker.terminate()
        assert worker.wait(30) == 0


def test_a_file_that_others_can_read_that_is_none_or_was_changed_is_refused_in_words(
    place: tuple[Path, dict[str, str], dict[str, Any]], tmp_path: Path
) -> None:
    join = read_join(place[2]["worker_join"])
    file = tmp_path / "w.join"
    join.write(file)
    file.chmod(0o640)
    with pytest.raises(errors.InvalidSpec, match=r"can be read by others \(mode 640\); accepted is mode 600"):
        read_join(str(file))
    for text, said in (("{}", "is none"), ('{"address": 1}', "is none"), ("no json", "is none")):
        file.write_text(text)
        file.chmod(0o600)
        with pytest.raises(errors.InvalidSpec, match=said):
            read_join(str(file))
    Join(address=join.address, ca=join.ca, fingerprint="0" * 64, token=join.token).write(file)
    with pytest.raises(errors.InvalidSpec, match="a CA of another fingerprint"):
        read_join(str(file))
    with pytest.raises(errors.InvalidSpec, match="No such file"):
        read_join(str(tmp_path / "nowhere"))


def test_the_slurm_file_runs_a_worker_and_queues_it_again_when_its_time_is_over(
    place: tuple[Path, dict[str, str], dict[str, Any]], tmp_path: Path
) -> None:
    _, environment, said = place
    script, tools = tmp_path / "workers.sh", tmp_path / "bin"
    assert (
        run(["worker", "template", "slurm", "--gpus", "8", "--nodes", "2", "--slots", "1", "--out", str(script)]) == 0
    )
    text = script.read_text()
    assert {
        "#SBATCH --array=1-2",
        "#SBATCH --gpus-per-node=8",
        "#SBATCH --requeue",
        "#SBATCH --signal=B:TERM@120",
    } <= set(text.splitlines())
    tools.mkdir()
    for name, body in (
        ("isoloss", f'exec {sys.executable} -m isoloss.cli "$@"'),
        ("scontrol", f'echo "$@" >> {tmp_path}/scontrol'),
    ):
        (tools / name).write_text(f"#!/bin/sh\n{body}\n")
        (tools / name).chmod(0o755)
    slurm = elsewhere(environment, tmp_path / "node") | {
        "PATH": f"{tools}:{os.environ['PATH']}", "ISOLOSS_JOIN": said["worker_join"], "SLURM_JOB_ID": "71", "SLURM_ARRAY_JOB_ID": "70",
        "SLURM_ARRAY_TASK_ID": "2",
    }  # fmt: skip
    with subprocess.Popen(["bash", str(script)], env=slurm) as job:
        wait_until(
            lambda: any(w["worker_id"] == "slurm-70-2" for w in isoloss(environment, "worker", "ls")["workers"]), 30
        )
        job.send_signal(signal.SIGTERM)
        assert job.wait(30) == 0
    assert (tmp_path / "scontrol").read_text() == "requeue 70_2\n"
    bare = {name: value for name, value in slurm.items() if name != "ISOLOSS_JOIN"}
    done = subprocess.run(["bash", str(script)], env=bare, capture_output=True, text=True, check=False)
    assert done.returncode != 0 and "say where worker.join lies" in done.stderr


def test_the_other_files_are_what_their_clusters_read(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["worker", "template", "k8s", "--nodes", "3", "--gpus", "4", "--allow", "train:main"]) == 0
    deployment, claim = yaml.safe_load_all(capsys.readouterr().out)
    pod = deployment["spec"]["template"]["spec"]
    (worker,) = pod["containers"]
    assert deployment["spec"]["replicas"] == 3 and pod["terminationGracePeriodSeconds"] == 120
    assert worker["resources"]["limits"]["nvidia.com/gpu"] == 4 and "--allow train:main" in worker["command"][2]
    assert pod["volumes"][1]["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
    assert run(["worker", "template", "ray", "--nodes", "2", "--gpus", "1", "--allow-command", 'python "a b.py"']) == 0
    source = capsys.readouterr().out
    assert subprocess.run(["bash", "-n"], input=source, text=True, check=False).returncode == 0
    assert """--workers "${1:-2}" --gpus 1 --slots auto --allow-command 'python "a b.py"'""" in source
    assert run(["worker", "template", "ray", "--max", "8", "--gpus", "1"]) == 0
    assert '--join "$ISOLOSS_JOIN" --min 0 --max 8 --gpus 1' in capsys.readouterr().out
    assert run(["worker", "template", "k8s", "--min", "1", "--max", "9", "--gpus", "4"]) == 0
    text = capsys.readouterr().out
    assert 'isoloss_slots_wanted{trainable=~"function:train:main|gpt"}' in text, "a name between colons is no picture"
    deployment, _, scaled = yaml.safe_load_all(text)
    assert "replicas" not in deployment["spec"], "a number said again would undo what the autoscaler did"
    assert scaled["spec"]["scaleTargetRef"]["name"] == deployment["metadata"]["name"]
    assert (scaled["spec"]["minReplicaCount"], scaled["spec"]["maxReplicaCount"]) == (1, 9)
    assert scaled["spec"]["triggers"][0]["metadata"]["threshold"] == "4", "a pod's GPUs"
    assert run(["worker", "template", "slurm", "--leave-after", "10m"]) == 0
    assert "--grace 100s --leave-after 10m &" in capsys.readouterr().out
    for words, said in ((["k8s", "--min", "3", "--max", "2"], "--min is 3, --max 2; accepted with k8s and ray"),
                        (["ray", "--min", "1"], "--min is 1, --max None; accepted"), (["slurm", "--max", "2"], "--max 2; accepted"),
                        (["k8s", "--leave-after", "10m"], "--leave-after is 10m; accepted is, with slurm"),
                        (["slurm", "--leave-after", "soon"], "--leave-after is 'soon'; accepted is a duration")):  # fmt: skip
        assert run(["worker", "template", *words]) == 2
        assert said in capsys.readouterr().err
    assert run(["worker", "template", "slurm", "--trial-nodes", "2", "--gpus", "8"]) == 0
    pair = capsys.readouterr().out
    assert "#SBATCH --nodes=2\n#SBATCH --ntasks-per-node=1\n#SBATCH --gpus-per-node=8" in pair and "--nodes 2 &" in pair
    assert run(["worker", "template", "k8s", "--trial-nodes", "2"]) != 0
    assert "--trial-nodes is 2; accepted is" in capsys.readouterr().err
    assert run(["worker", "template", "slurm", "--nodes", "0"]) != 0
    assert "--nodes is 0; accepted is a whole number from 1" in capsys.readouterr().err
