"""The campaign spec: sizes to be searched for a target, and the study each size becomes.

Each size is one study whose rungs are token budgets, with all brackets on, so that every column of D also holds
configurations that were not selected at a smaller D. In ``branch`` mode the result at a level is a finished run at
(N, D): the fork leaves the trunk at (1 - δ)·D and the decay ends at exactly D.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta, Struct

from isoloss.domain.objective import Objective
from isoloss.domain.space import AnyParameter, Choice, Scalar
from isoloss.domain.spec import (
    Count,
    Fidelity,
    Gpt,
    Run,
    StudySpec,
    check_name,
    check_use,
    decode,
    decode_study,
    encode,
)
from isoloss.errors import InvalidSpec

TARGET: Final = "target"  # the size of the study that runs the target's cell


class Size(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One model size; ``set`` goes into ``run.gpt``, or into the parameters of every run of a command or function."""

    name: str
    n_params: Count | None = None
    gpus: Annotated[int, Meta(ge=0)] = 0
    set: dict[str, Scalar] = {}


class Goal(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The run that cannot be swept."""

    n_tokens: Count
    n_params: Count | None = None
    schedule: str = "wsd"
    set: dict[str, Scalar] = {}


class Tokens(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The columns of D: from ``min`` to ``max`` by ``eta``; the campaign deepens by itself up to ``deepen_to``."""

    min: Count
    max: Count
    eta: Annotated[int, Meta(ge=2)] = 2
    deepen_to: Count | None = None


class CampaignLimits(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What all studies of a campaign together may use; once it is used, the campaign buys nothing more."""

    gpu_hours: Count | None = None
    flops: Count | None = None


class CampaignSpec(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a campaign asks; ``confirm`` runs the target's cell at the forecast once the search is done.

    ``observations`` are files of runs the user owns already; their rows travel beside the spec, and cost nothing.
    """

    name: str
    project: str = "default"
    target: Goal
    sizes: tuple[Size, ...]
    tokens: Tokens
    fidelity: Fidelity = Fidelity(mode="branch", decay=0.2)
    space: dict[str, AnyParameter]
    objective: Objective = Objective(metric="val_loss")
    sampler: Literal["random", "sobol", "tpe"] = "sobol"
    fixed: dict[str, Scalar] = {}
    recipe: dict[str, Scalar] = {}
    observations: tuple[str, ...] = ()
    run: Run
    limits: CampaignLimits = CampaignLimits()
    confirm: bool = False
    seed: int = 0

    @property
    def stamp(self) -> dict[str, Scalar]:
        """The columns that say under which recipe an observation was made: the same for all of a campaign."""
        return {"n_params_count": "non_embedding", **self.recipe}


def decode_campaign(source: Mapping[str, Any]) -> CampaignSpec:
    """A checked campaign spec; ``InvalidSpec`` names the path, the value and what is accepted."""
    spec = decode(source, CampaignSpec)
    check_name(spec.name, "name")
    spec.run.check()
    if not spec.sizes:
        raise InvalidSpec("sizes is empty; accepted is at least one size.")
    names = [size.name for size in spec.sizes]
    if len(set(names)) != len(names) or TARGET in names:
        raise InvalidSpec(f"sizes are named {', '.join(names)}; accepted are different names, none of them {TARGET!r}.")
    if spec.objective.goal != "minimize":
        raise InvalidSpec(f"objective.goal is {spec.objective.goal!r}; accepted is minimize: laws are of losses.")
    _check_columns(spec.tokens)
    check_use(gpu_hours=spec.limits.gpu_hours, flops=spec.limits.flops)
    if "lr" not in spec.space:
        raise InvalidSpec(f"space has {', '.join(spec.space) or 'nothing'}; accepted is a space with lr in it.")
    for name in ("lr", "batch_tokens"):
        if name in spec.space and spec.space[name].conditions:
            raise InvalidSpec(f"space.{name}.when is set; accepted is none: the laws need {name} of every run.")
    for size in spec.sizes:
        n_params_of(spec, size, f"sizes.{size.name}")
        study_of(spec, size)
    n_params_of(spec, spec.target, TARGET)
    target_study(spec)
    return spec


def _check_columns(tokens: Tokens) -> None:
    if tokens.deepen_to is None:
        return
    steps = math.log(tokens.deepen_to / tokens.max) / math.log(tokens.eta)
    if steps < 0.5 or abs(steps - round(steps)) > 1e-6:
        raise InvalidSpec(
            f"tokens.deepen_to is {tokens.deepen_to:g}; accepted is max, {tokens.max:g}, times a power of eta {tokens.eta}."
        )


def n_params_of(spec: CampaignSpec, size: Size | Goal, field: str) -> float:
    """Parameters of a size: as stated, else computed for the built-in GPT."""
    if size.n_params is not None:
        return float(size.n_params)
    if spec.run.gpt is None:
        raise InvalidSpec(f"{field}.n_params is missing; accepted is a count such as 60M.")
    return float(_gpt(spec.run.gpt, size.set, field).n_params)


def study_of(spec: CampaignSpec, size: Size) -> StudySpec:
    """The study of one size; each size has a seed of its own, so that together they see more of the space."""
    method = {
        "name": "idhb", "min_budget": spec.tokens.min, "max_budget": spec.tokens.max, "eta": spec.tokens.eta,
        "brackets": "all", "sampler": spec.sampler,
    }  # fmt: skip
    return _study(spec, f"{spec.name}-{size.name}", size, method=method, limits={}, gpus=size.gpus)


def target_study(spec: CampaignSpec) -> StudySpec:
    """The study of the target's own cell: no sweep, only the runs that are added to it."""
    method = {"name": "fixed", "budget": spec.target.n_tokens}
    return _study(spec, f"{spec.name}-{TARGET}", spec.target, method=method, limits={"trials": 0}, gpus=0)


def deepenings(spec: CampaignSpec, max_tokens: float) -> list[float]:
    """The largest D of every deepening on the way from the spec's own to ``max_tokens``."""
    count = round(math.log(max_tokens / spec.tokens.max) / math.log(spec.tokens.eta))
    return [float(spec.tokens.max) * spec.tokens.eta**k for k in range(1, count + 1)]


def _study(
    spec: CampaignSpec, name: str, size: Size | Goal, *, method: Mapping[str, Any], limits: Mapping[str, Any], gpus: int
) -> StudySpec:
    run, fixed = encode(spec.run), dict(spec.fixed)
    place = spec.sizes.index(size) if isinstance(size, Size) else len(spec.sizes)
    if spec.run.gpt is not None:
        run["gpt"] = encode(_gpt(spec.run.gpt, size.set, name))
    else:
        fixed |= size.set
    if gpus:
        run["gpus"] = gpus
    return decode_study(
        {
            "name": name, "project": spec.project, "space": encode(spec.space), "objective": encode(spec.objective),
            "method": dict(method), "budget": {"unit": "tokens", "multiple": _multiple(spec)},
            "fidelity": encode(spec.fidelity), "fixed": fixed, "run": run, "limits": dict(limits),
            "seed": 1009 * spec.seed + place,
        }
    )  # fmt: skip


def _gpt(base: Gpt, changes: Mapping[str, Scalar], field: str) -> Gpt:
    try:
        return decode({**encode(base), **changes}, Gpt)
    except InvalidSpec as error:
        raise InvalidSpec(f"{field}.set: {error.message}") from None


def _multiple(spec: CampaignSpec) -> int:
    """The unit of the ladder: the largest batch, which every batch divides, so that every budget is whole steps."""
    batch = spec.space.get("batch_tokens")
    if batch is None:
        fallback = spec.run.gpt.batch_tokens if spec.run.gpt else 1
        return int(spec.fixed.get("batch_tokens", fallback))
    if not isinstance(batch, Choice) or not all(isinstance(c, int) and c > 0 for c in batch.choices):
        raise InvalidSpec("space.batch_tokens is no list of whole numbers; accepted is ordinal choices of tokens.")
    sizes = sorted(int(choice) for choice in batch.choices)
    if odd := [size for size in sizes if sizes[-1] % size]:
        raise InvalidSpec(
            f"space.batch_tokens has {odd[0]}; accepted are batches that divide the largest, {sizes[-1]}."
        )
    return sizes[-1]


def campaign_mapping(spec: CampaignSpec) -> dict[str, Any]:
    """The spec as plain JSON-able data."""
    body: dict[str, Any] = encode(spec)
    return msgspec.json.decode(msgspec.json.encode(body))  # type: ignore[no-any-return]
