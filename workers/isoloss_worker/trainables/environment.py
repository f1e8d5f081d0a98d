"""The contract as an environment and as files: everything a command's placeholders can say, under ``ISOLOSS_*``."""

from __future__ import annotations

import json
import os
import socket
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import yaml

from isoloss_worker.job import Job

METRICS_FILE: Final = "metrics.jsonl"


def facts(job: Job, folder: Path) -> dict[str, str]:
    """What a placeholder may name besides parameters, as text; ``folder`` holds the files of this attempt."""
    return {
        "params_file": str(folder / "params.json"),
        "budget_from": str(job.budget_from),
        "budget_to": str(job.budget_to),
        "decay_from": str(job.decay_from),
        "resume_from": job.resume_from,
        "save_to": job.save_to,
        "seed": str(job.seed),
        "gpus": str(job.run.get("gpus") or 0),
        "nodes": str(job.run.get("nodes") or 1),
    }


def variables(job: Job, folder: Path) -> dict[str, str]:
    """The same as environment variables; a parameter ``lr`` is ``ISOLOSS_LR``, unless that name is one of ours."""
    own = {f"ISOLOSS_{name.upper()}": value for name, value in facts(job, folder).items()}
    own |= {
        "ISOLOSS_METRICS": str(folder / METRICS_FILE),
        "ISOLOSS_PARAMS": json.dumps(job.params),
        "ISOLOSS_STUDY": job.study,
        "ISOLOSS_TRIAL": str(job.trial),
        "ISOLOSS_LEVEL": str(job.level),
    }
    return {f"ISOLOSS_{name.upper()}": text(value) for name, value in job.params.items()} | own


def gpu_environment(gpu_ids: Sequence[str]) -> dict[str, str]:
    """What makes a process see these GPUs and no others; nothing where there are none."""
    return {"CUDA_VISIBLE_DEVICES": ",".join(gpu_ids), "CUDA_DEVICE_ORDER": "PCI_BUS_ID"} if gpu_ids else {}


def rendezvous(job: Job) -> dict[str, str]:
    """Where the ranks of a run meet: a port of its own on this machine, for ``torch.distributed`` and for ``torchrun``.

    ``torchrun`` reads ``PET_*`` where its arguments say nothing, so that two runs on one machine do not meet at 29500; it
    starts a rank for each GPU unless it is told otherwise.
    """
    with socket.socket() as probe:
        probe.bind(("", 0))
        port = str(probe.getsockname()[1])
    nodes = int(job.run.get("nodes") or 1)
    host = "127.0.0.1" if nodes == 1 else os.environ.get("SLURMD_NODENAME") or socket.gethostname()
    own = {"MASTER_ADDR": host, "MASTER_PORT": port, "PET_MASTER_PORT": port}
    if job.run.get("gpus"):
        own["PET_NPROC_PER_NODE"] = str(job.run["gpus"])
    if nodes > 1:
        own |= {
            "PET_NNODES": str(nodes), "PET_RDZV_BACKEND": "c10d", "PET_RDZV_ENDPOINT": f"{host}:{port}",
            "PET_RDZV_ID": uuid.uuid4().hex,
        }  # fmt: skip
    return own


def across_nodes(argv: Sequence[str], run: Mapping[str, Any]) -> list[str]:
    """The command as it is started: by ``srun`` where it spans nodes, once on each."""
    nodes = int(run.get("nodes") or 1)
    if nodes == 1:
        return list(argv)
    return [
        "srun",
        f"--nodes={nodes}",
        f"--ntasks={nodes}",
        "--ntasks-per-node=1",
        "--overlap",
        "--kill-on-bad-exit=1",
        *argv,
    ]


def write_params(folder: Path, params: Mapping[str, Any]) -> None:
    """The parameters as ``params.json`` and ``params.yaml``."""
    (folder / "params.json").write_text(json.dumps(params, indent=1) + "\n")
    (folder / "params.yaml").write_text(yaml.safe_dump(dict(params), sort_keys=False))


def text(value: Any) -> str:
    """A parameter as a word: booleans as JSON writes them, floats in full precision."""
    return json.dumps(value) if isinstance(value, bool | float) else str(value)
