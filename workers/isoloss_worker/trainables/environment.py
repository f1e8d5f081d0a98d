"""The contract as an environment and as files: everything a command's placeholders can say, under ``ISOLOSS_*``."""

from __future__ import annotations

import json
from collections.abc import Mapping
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


def write_params(folder: Path, params: Mapping[str, Any]) -> None:
    """The parameters as ``params.json`` and ``params.yaml``."""
    (folder / "params.json").write_text(json.dumps(params, indent=1) + "\n")
    (folder / "params.yaml").write_text(yaml.safe_dump(dict(params), sort_keys=False))


def text(value: Any) -> str:
    """A parameter as a word: booleans as JSON writes them, floats in full precision."""
    return json.dumps(value) if isinstance(value, bool | float) else str(value)
