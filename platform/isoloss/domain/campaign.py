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
from isoloss.domain.quantity import Count
from isoloss.domain.space import AnyParameter, Choice, Scalar
from isoloss.domain.spec import (
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

LEARNED: Final = ("lr", "batch_tokens")  # what a forecast is a prior of
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


class PerParam(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Columns as ratios D / N, so that a larger size trains on more."""

    min: Count
    max: Count


class Tokens(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The columns of D: from ``min`` to ``max`` by ``eta``, the same for every size, or ``per_param`` of each.

    The campaign deepens by itself up to ``deepen_to``, which is in the measure of the maximum. All sizes have equally
    many columns, and are deepened by equally many.
    """

    min: Count | None = None
    max: Count | None = None
    per_param: PerParam | None = None
    eta: Annotated[int, Meta(ge=2)] = 2
    deepen_to: Count | None = None

    @property
    def stated(self) -> tuple[float, float]:
        """The smallest and the largest column as they are written: tokens, or ratios."""
        low, high = (self.min, self.max) if self.per_param is None else (self.per_param.min, self.per_param.max)
        return float(low or 0), float(high or 0)


class CampaignLimits(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What all studies of a campaign together may use; once it is used, the campaign buys nothing more."""

    gpu_hours: Count | None = None
    flops: Count | None = None


class Buying(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Once its columns are searched, a campaign buys runs for up to ``flops``, in whichever cells teach most per FLOP.

    It stops before that when no purchase saves as much compute at the target as it costs, unless ``thrifty`` is off.
    """

    flops: Count
    thrifty: bool = True


class CampaignSpec(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a campaign asks; ``confirm`` runs the target's cell at the forecast once the search is done.

    ``observations`` are files of runs the user owns already; their rows travel beside the spec, and cost nothing. The
    sampler ``law`` draws later configurations around the forecast of the laws fitted so far.
    """

    name: str
    project: str = "default"
    target: Goal
    sizes: tuple[Size, ...]
    tokens: Tokens
    fidelity: Fidelity = Fidelity(mode="branch", decay=0.2)
    space: dict[str, AnyParameter]
    objective: Objective = Objective(metric="val_loss")
    sampler: Literal["random", "sobol", "tpe", "law"] = "sobol"
    fixed: dict[str, Scalar] = {}
    recipe: dict[str, Scalar] = {}
    observations: tuple[str, ...] = ()
    run: Run
    limits: CampaignLimits = CampaignLimits()
    plan: Buying | None = None
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
    if spec.plan is not None and not spec.plan.flops > 0:
        raise InvalidSpec(f"plan.flops is {spec.plan.flops:g}; accepted is a number above 0.")
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
    given = [name for name in ("min", "max", "per_param") if getattr(tokens, name) is not None]
    if given not in (["min", "max"], ["per_param"]):
        raise InvalidSpec(f"tokens has {', '.join(given) or 'no columns'}; accepted is min and max, or per_param.")
    field = "tokens" if tokens.per_param is None else "tokens.per_param"
    low, high = tokens.stated
    if not 0 < low <= high:
        raise InvalidSpec(f"{field}.min is {low:g} and max {high:g}; accepted is 0 < min ≤ max.")
    if tokens.deepen_to is not None:
        _steps(tokens, tokens.deepen_to, "tokens.deepen_to")


def _steps(tokens: Tokens, maximum: float, field: str) -> int:
    """How many columns above the spec's own a maximum is; ``InvalidSpec`` when it is between two or below."""
    steps = math.log(max(maximum, 1e-300) / tokens.stated[1]) / math.log(tokens.eta)
    if steps < 0.5 or abs(steps - round(steps)) > 1e-6:
        raise InvalidSpec(
            f"{field} is {maximum:g}; accepted is max, {tokens.stated[1]:g}, times a power of eta {tokens.eta}."
        )
    return round(steps)


def columns_of(spec: CampaignSpec, size: Size) -> tuple[float, float]:
    """The smallest and the largest D of a size, before rounding to the ladder's unit.

    With ``per_param`` the smallest follows from the largest, so that every size has the same number of columns.
    """
    low, high = spec.tokens.stated
    if spec.tokens.per_param is None:
        return low, high
    levels = math.floor(math.log(high / low) / math.log(spec.tokens.eta) + 1e-9)
    top = round(high * n_params_of(spec, size, f"sizes.{size.name}"))
    return float(top // spec.tokens.eta**levels), float(top)


def largest(spec: CampaignSpec) -> Size:
    """The size with the largest D, in which the campaign's maximum is counted."""
    return max(spec.sizes, key=lambda size: columns_of(spec, size)[1])


def deepen_to(spec: CampaignSpec) -> float | None:
    """The D of the largest size up to which the campaign deepens by itself."""
    if spec.tokens.deepen_to is None:
        return None
    return spec.tokens.deepen_to / spec.tokens.stated[1] * columns_of(spec, largest(spec))[1]


def wanted_tokens(spec: CampaignSpec, *, max_tokens: float, max_per_param: float) -> float:
    """The D of the largest size that a deepening asks for; ``InvalidSpec`` when it names the other measure."""
    per_param = spec.tokens.per_param is not None
    ours, theirs = ("max_per_param", "max_tokens") if per_param else ("max_tokens", "max_per_param")
    given = {"max_tokens": max_tokens, "max_per_param": max_per_param}
    if given[theirs] or not given[ours]:
        raise InvalidSpec(
            f"{theirs} is {given[theirs]:g} and the spec's tokens are {'per_param' if per_param else 'the same for all sizes'}; "
            f"accepted is {ours}.",
            hint=f"`isoloss campaign deepen --{ours.replace('_', '-')}`.",
        )
    if not per_param:
        return max_tokens
    return columns_of(spec, largest(spec))[1] * float(spec.tokens.eta) ** _steps(
        spec.tokens, max_per_param, "max_per_param"
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
    low, high = columns_of(spec, size)
    method = {
        "name": "idhb", "min_budget": low, "max_budget": high, "eta": spec.tokens.eta,
        "brackets": "all", "sampler": spec.sampler,
    }  # fmt: skip
    if spec.sampler == "law":
        method["prior"] = {name: _whole(spec.space[name]) for name in LEARNED if name in spec.space}
    return _study(spec, f"{spec.name}-{size.name}", size, method=method, limits={}, gpus=size.gpus)


def _whole(parameter: AnyParameter) -> dict[str, float]:
    """A prior as wide as a parameter: what is believed before the laws have spoken."""
    ends = parameter.choices if isinstance(parameter, Choice) else (parameter.low, parameter.high)
    low, high = min(map(float, ends)), max(map(float, ends))
    return {"center": math.sqrt(low * high), "spread": max((high / low) ** 0.25, 1.01)}


def target_study(spec: CampaignSpec, size: Size | None = None, n_tokens: float = 0.0) -> StudySpec:
    """The study of the cell that is confirmed, the target's own or a ``size`` at ``n_tokens``.

    It sweeps nothing: it runs what is added to it.
    """
    method = {"name": "fixed", "budget": n_tokens or spec.target.n_tokens}
    gpus = size.gpus if size else 0
    return _study(spec, f"{spec.name}-{TARGET}", size or spec.target, method=method, limits={"trials": 0}, gpus=gpus)


def levels_added(spec: CampaignSpec, max_tokens: float) -> int:
    """How many columns a campaign at this largest D has beyond its spec's own."""
    return round(math.log(max_tokens / columns_of(spec, largest(spec))[1]) / math.log(spec.tokens.eta))


def deepenings(spec: CampaignSpec, size: Size, max_tokens: float) -> list[float]:
    """The largest D of a size after every deepening on the way to a campaign at ``max_tokens``."""
    top = columns_of(spec, size)[1]
    return [top * spec.tokens.eta**k for k in range(1, levels_added(spec, max_tokens) + 1)]


def next_column(spec: CampaignSpec, max_tokens: float) -> str:
    """The flag that buys the next column, of a campaign that is at ``max_tokens``."""
    if spec.tokens.per_param is None:
        return f"--max-tokens {max_tokens * spec.tokens.eta:.0f}"
    ratio = spec.tokens.stated[1] * spec.tokens.eta ** (levels_added(spec, max_tokens) + 1)
    return f"--max-per-param {ratio:.15g}"


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
