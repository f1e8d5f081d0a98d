"""The contract as an environment and as files: everything a command's placeholders can say, under ``ISOLOSS_*``."""

from __future__ import annotations

import json
import socket
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
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    ranks = {"PET_NPROC_PER_NODE": str(job.run["gpus"])} if job.run.get("gpus") else {}
    return {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "PET_MASTER_PORT": port, **ranks}


def write_params(folder: Path, params: Mapping[str, Any]) -> None:
    """The parameters as ``params.json`` and ``params.yaml``."""
    (folder / "params.json").write_text(json.dumps(params, indent=1) + "\n")
    (folder / "params.yaml").write_text(yaml.safe_dump(dict(params), sort_keys=False))


def text(value: Any) -> str:
    """A parameter as a word: booleans as JSON writes them, floats in full precision."""
    return json.dumps(value) if isinstance(value, bool | float) else str(value)
