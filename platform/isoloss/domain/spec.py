"""The study spec: what a user writes, decoded strictly (an unknown key is refused with its path) and checked once.

Everything past this edge trusts the values. ``decode_study`` is the only way in from a mapping; ``encode`` the way out.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal, TypeVar

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from isoloss.domain.objective import (
    AnyDesirability,
    Category,
    Goal,
    Objective,
    check_desirability,
    leaves,
    metrics_needed,
)
from isoloss.domain.prior import Prior, check_prior
from isoloss.domain.quantity import Count, Seconds, parse_count, parse_duration
from isoloss.domain.space import AnyParameter, Choice, Scalar, Space, check_space
from isoloss.errors import InvalidSpec

MOST_FINALISTS: Final = 16
NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
T = TypeVar("T")


Schedule = Literal["constant", "wsd", "cosine", "linear"]


class Method(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How the study searches: iterative-deepening Hyperband or the same machine with parts switched off.

    ``sha`` is the first bracket of synchronous ``hyperband``, ``asha`` has no quotas, ``fixed`` no rungs. What is left
    out is said by ``resolved``, so that a stored spec says what runs.
    """

    name: Literal["idhb", "hyperband", "sha", "asha", "fixed"] = "idhb"
    min_budget: Count | None = None
    max_budget: Count | None = None
    budget: Count | None = None
    eta: Annotated[int, Meta(ge=2, le=64)] = 3
    variant: Literal["settled", "efficient", "discarding", "preserving"] | None = None
    sync: bool | None = None
    brackets: Annotated[str, Meta(pattern=r"^(all|first:[1-9][0-9]*)$")] | None = None
    order: Literal["auto", "eager", "patient"] | None = None
    width: Annotated[int, Meta(ge=1)] | Literal["auto"] = 1  # iterations pooled; auto: one more whenever all ran
    sampler: Annotated[
        str, Meta(pattern=r"^(random|sobol|tpe|gp|cma|law|composite|nsga2|motpe|quadratic-pareto|[A-Z]\w*Sampler)$")
    ] = "sobol"
    prior: dict[str, Prior] = {}  # of the sampler law
    ahead: Annotated[int, Meta(ge=0, le=1024)] = 0  # tasks created before a slot asks for them

    def resolved(self) -> Method:
        """The method with everything said that depends on its name; idempotent."""
        sync = self.name in ("hyperband", "sha") if self.sync is None else self.sync
        said = {
            "variant": "discarding" if sync else "settled",
            "brackets": "all" if self.name == "hyperband" or (self.name == "idhb" and sync) else "first:1",
            "order": "eager" if self.name == "asha" else "auto",
        }
        left = {field: value for field, value in said.items() if getattr(self, field) is None}
        return msgspec.structs.replace(self, sync=sync, **left)


class Budget(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The budget's unit, and the multiple of it at which a run can stop."""

    unit: Literal["steps", "tokens", "epochs", "flops", "seconds", "evaluations"] = "steps"
    multiple: Annotated[int, Meta(ge=1)] = 1


class Fidelity(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a longer rung reuses: the run itself, its trunk before the decay, or nothing."""

    mode: Literal["resume", "branch", "fresh"] = "resume"
    decay: Annotated[float, Meta(gt=0, lt=1)] | UnsetType = UNSET
    schedule: Schedule | UnsetType = UNSET  # of the user's own trainer; of the built-in GPT it is run.gpt.schedule
    keep: Literal["all", "needed", "planned"] | UnsetType = UNSET  # which checkpoints stay; search/retention.py

    @property
    def decay_fraction(self) -> float:
        """The last part of every rung that is decay; 0 unless the mode is ``branch``."""
        if self.mode != "branch":
            return 0.0
        return 0.2 if isinstance(self.decay, UnsetType) else self.decay

    @property
    def kept(self) -> Literal["all", "needed", "planned"]:
        """Which checkpoints stay; all unless the spec says otherwise."""
        return "all" if isinstance(self.keep, UnsetType) else self.keep


class Gpt(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The built-in decoder-only transformer; lr, batch_tokens and any of these may also be parameters of the space."""

    width: Annotated[int, Meta(ge=8)] = 64
    depth: Annotated[int, Meta(ge=1)] = 2
    head_width: Annotated[int, Meta(ge=4)] = 16
    context: Annotated[int, Meta(ge=8)] = 64
    data: str = (
        "stdlib"  # the standard library's source text, or a folder or file: of text, or with vocabulary of tokens
    )
    vocabulary: Annotated[int, Meta(ge=2, le=1 << 32)] | None = None  # of token files; text is read as bytes
    dtype: Literal["uint16", "uint32"] | None = None  # of token files; else what their header says, else uint16
    lr: Annotated[float, Meta(gt=0)] = 0.004
    batch_tokens: Annotated[int, Meta(ge=1)] = 512
    weight_decay: Annotated[float, Meta(ge=0)] = 0.1
    warmup_tokens: Count = Count(0)
    schedule: Literal["constant", "cosine", "linear"] = "constant"  # after the warm-up; cosine and linear end at zero
    eval_tokens: Annotated[int, Meta(ge=64)] = 32768
    precision: Literal["auto", "fp32", "bf16"] = "auto"  # auto: bf16 on a GPU; weights and optimizer are fp32 always
    compile: bool = False
    micro_batch: Annotated[int, Meta(ge=1)] | None = None  # sequences that pass at once; else all of a batch that fit
    save_every: Seconds = Seconds(600)  # on the way to a rung's fork

    @property
    def n_params(self) -> int:
        """Non-embedding parameters: 12 · depth · width² (attention 4, MLP 8)."""
        return 12 * self.depth * self.width**2


class Run(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a worker runs for one task: exactly one of a command, a function or the built-in GPT."""

    command: tuple[str, ...] | None = None
    function: Annotated[str, Meta(pattern=r"^[\w.]+:[\w.]+$")] | None = None
    gpt: Gpt | None = None
    gpus: Annotated[int, Meta(ge=0)] = 0  # of each node
    nodes: Annotated[int, Meta(ge=1)] = 1
    cwd: str | None = None
    env: dict[str, str] = {}
    timeout: Seconds | None = None
    checksum: bool = False  # sums of every checkpoint, looked at before it is resumed from
    metrics: dict[str, str] = {}  # ours: theirs

    def check(self) -> None:
        """Raise ``InvalidSpec`` unless exactly one trainable is named."""
        named = [name for name in ("command", "function", "gpt") if getattr(self, name) is not None]
        if len(named) != 1:
            raise InvalidSpec(f"run names {', '.join(named) or 'nothing'}; accepted is one of command, function, gpt.")
        if self.command is not None and not self.command:
            raise InvalidSpec("run.command is empty; accepted is a program and its arguments.")
        if self.nodes > 1 and self.command is None:
            raise InvalidSpec(
                f"run.nodes is {self.nodes}; accepted without run.command is 1: only programs span nodes."
            )


class Limits(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where a study ends by itself: at so many trials, so much budget over all tasks, so many failed tasks, so much use.

    All use is reserved before a task begins. ``total_budget`` and ``flops`` are known beforehand, and never passed. ``wall``, time
    since the study was created, and ``gpu_hours``, which sums every attempt until now, a CPU slot being one device, are foreseen
    from the tasks that are done: what takes longer than was foreseen is cancelled where one of the two is reached.
    """

    trials: Annotated[int, Meta(ge=0)] | None = None
    total_budget: Count | None = None
    failures: Annotated[int, Meta(ge=1)] | None = None
    wall: Seconds | None = None
    gpu_hours: Count | None = None
    flops: Count | None = None

    def cap(self, flops_per_unit: float | None) -> tuple[float, str] | None:
        """The most budget of all tasks together, in the study's unit, and the limit that says so in words; ``None`` for no limit."""
        found = []
        if self.total_budget is not None:
            found.append((float(self.total_budget), f"limits.total_budget: {self.total_budget:g}"))
        if self.flops is not None and flops_per_unit is not None:
            found.append((float(self.flops) / flops_per_unit, f"limits.flops: {self.flops:.4g}"))
        return min(found, default=None)


class Confirm(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """At the end so many finalists run again with other seeds, until one is the best with confidence 1 - ``delta``."""

    finalists: int = 4
    delta: float = 0.05
    runs: int = 40

    def check(self) -> None:
        """Raise ``InvalidSpec`` for a confirmation that cannot be."""
        if not 2 <= self.finalists <= MOST_FINALISTS:
            raise InvalidSpec(f"confirm.finalists is {self.finalists}; accepted are 2 to {MOST_FINALISTS}.")
        if not 0 < self.delta < 1:
            raise InvalidSpec(f"confirm.delta is {self.delta!r}; accepted is a probability such as 0.05.")
        if self.runs < 3 * self.finalists:
            raise InvalidSpec(f"confirm.runs is {self.runs}; accepted are three for each finalist or more.")


class StudySpec(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One question asked of a space, with its objective and its method."""

    name: str
    project: str = "default"
    space: dict[str, AnyParameter]
    objective: Objective | None = None
    objectives: dict[str, Goal] = {}
    desirability: dict[str, AnyDesirability] = {}
    method: Method = Method()
    budget: Budget = Budget()
    fidelity: Fidelity = Fidelity()
    fixed: dict[str, Scalar] = {}
    run: Run | None = None
    limits: Limits = Limits()
    confirm: Confirm | None = None
    weight: Annotated[float, Meta(gt=0)] = 1.0  # its slots beside other studies' of the project
    seed: Annotated[int, Meta(ge=0)] = 0

    @property
    def goal(self) -> str:
        """``minimize`` or ``maximize`` of the value people read: the metric, or the overall desirability."""
        return self.objective.goal if self.objective else "maximize"

    @property
    def metrics(self) -> tuple[str, ...]:
        """The metrics a finished task must report."""
        return metrics_needed(self.objective, self.desirability, self.objectives)

    @property
    def desirability_metrics(self) -> tuple[str, ...]:
        """Every metric of the preference, groups dissolved."""
        return tuple(leaves(self.desirability))

    def flops_per_unit(self, n_params: float | None) -> float | None:
        """FLOPs of one unit of the budget, where they are known: 6 N of a token."""
        if self.budget.unit == "tokens" and n_params is not None:
            return 6 * n_params
        return 1.0 if self.budget.unit == "flops" else None

    @property
    def devices(self) -> int:
        """How many devices a task takes, a CPU slot being one."""
        return 1 if self.run is None else max(1, self.run.gpus) * self.run.nodes

    @property
    def n_params(self) -> float | None:
        """N, where it is known and the same for every run: the built-in GPT whose size is not searched."""
        sizes = {"width", "depth"}
        if self.run is None or self.run.gpt is None or sizes & set(self.space):
            return None
        changes = {name: value for name, value in self.fixed.items() if name in sizes}
        return float(decode(encode(self.run.gpt) | changes, Gpt).n_params)


def check_name(value: str, field: str) -> None:
    """Raise ``InvalidSpec`` unless ``value`` can be a name in paths, tables and commands."""
    if not NAME.fullmatch(value):
        raise InvalidSpec(f"{field} is {value!r}; accepted are 1 to 128 letters, digits, '.', '_' and '-'.")


def check_study(spec: StudySpec) -> None:
    """Raise ``InvalidSpec`` for what types alone cannot say."""
    check_name(spec.name, "name")
    check_name(spec.project, "project")
    check_space(spec.space)
    check_goal(spec)
    if spec.confirm is not None:
        spec.confirm.check()
        if spec.objectives:
            raise InvalidSpec("confirm is set with objectives; accepted is one best, by objective or desirability.")
    if both := sorted(set(spec.fixed) & set(spec.space)):
        raise InvalidSpec(f"fixed.{both[0]} is also in the space; accepted is one of the two.")
    if spec.run is not None:
        spec.run.check()
        check_arguments(spec.run, spec.space)
    if not isinstance(spec.fidelity.decay, UnsetType) and spec.fidelity.mode != "branch":
        raise InvalidSpec(f"fidelity.decay is set with mode {spec.fidelity.mode}; accepted is mode branch.")
    check_use(wall=spec.limits.wall, gpu_hours=spec.limits.gpu_hours, flops=spec.limits.flops)
    if spec.limits.flops is not None and spec.flops_per_unit(spec.n_params) is None:
        raise InvalidSpec(
            f"limits.flops is {spec.limits.flops:g} and a run's FLOPs are not known with budget.unit {spec.budget.unit}; accepted is "
            "unit flops, or unit tokens with run.gpt of one width and depth (6 N a token)."
        )
    _check_schedule(spec)
    check_method(spec.method)
    check_prior(spec.space, spec.method.prior)


def check_goal(spec: StudySpec) -> None:
    """Raise ``InvalidSpec`` unless the spec says what to optimise once, and in a way that can be."""
    said = [name for name in ("objective", "objectives", "desirability") if getattr(spec, name)]
    if len(said) != 1:
        found = " and ".join(said) or "neither of objective and desirability"
        raise InvalidSpec(f"The spec has {found}; accepted is exactly one of objective, objectives, desirability.")
    if len(spec.objectives) == 1:
        raise InvalidSpec(
            f"objectives names only {next(iter(spec.objectives))}; accepted are two or more, or objective."
        )
    check_desirability(spec.desirability, {*spec.space, *spec.fixed})
    for metric, leaf in leaves(spec.desirability).items():
        parameter = spec.space.get(str(leaf.shape.formula))
        if isinstance(leaf.shape, Category) and isinstance(parameter, Choice):
            unknown = [str(choice) for choice in parameter.choices if str(choice) not in leaf.shape.values]
            if unknown:
                raise InvalidSpec(
                    f"desirability.{metric}.values lacks {unknown[0]!r}, a choice of {leaf.shape.formula}; accepted is a "
                    "d for every choice."
                )


def _check_schedule(spec: StudySpec) -> None:
    """A schedule that ends at the budget cannot go on to the next rung: each rung must be a run of its own."""
    field, schedule = "fidelity.schedule", spec.fidelity.schedule
    if spec.run is not None and spec.run.gpt is not None:
        if schedule is not UNSET:
            raise InvalidSpec(f"{field} is {schedule} with run.gpt; accepted there is run.gpt.schedule.")
        field, schedule = "run.gpt.schedule", spec.run.gpt.schedule
    if schedule in ("cosine", "linear") and spec.fidelity.mode != "fresh":
        raise InvalidSpec(
            f"{field} is {schedule} with fidelity.mode {spec.fidelity.mode}: it ends at its budget and cannot be resumed "
            "towards a larger one; accepted is mode fresh, or a schedule that is constant until a decay (mode branch)."
        )


def check_use(**limits: float | None) -> None:
    """Raise ``InvalidSpec`` for a limit on use that is not above 0."""
    for name, value in limits.items():
        if value is not None and value <= 0:
            raise InvalidSpec(f"limits.{name} is {value:g}; accepted is a number above 0.")


def check_arguments(run: Run, space: Space) -> None:
    """Raise ``InvalidSpec`` when the command names a parameter that some configurations lack."""
    words = " ".join(run.command or ()).replace("{{", "").replace("}}", "")
    for name, parameter in space.items():
        if parameter.conditions and f"{{{name}}}" in words:
            raise InvalidSpec(
                f"run.command has {{{name}}}, which space.{name}.when leaves out at times; accepted are {{params_file}}, "
                f"ISOLOSS_PARAMS and ISOLOSS_{name.upper()}, which say so."
            )


def check_method(method: Method) -> None:
    """Raise ``InvalidSpec`` unless the method's parts fit and its budgets are given, positive and in order."""
    _check_parts(method.resolved())
    if (method.sampler == "law") != bool(method.prior):
        said = "set" if method.prior else "missing"
        raise InvalidSpec(
            f"method.prior is {said} with sampler {method.sampler}; accepted is a prior with sampler law."
        )
    needed = ("budget",) if method.name == "fixed" else ("min_budget", "max_budget")
    for field in ("budget", "min_budget", "max_budget"):
        value = getattr(method, field)
        if (value is None) == (field in needed):
            raise InvalidSpec(
                f"method.{field} is {'missing' if value is None else f'{value:g}'} with method {method.name}; "
                f"accepted with it: {', '.join(needed)}."
            )
        if value is not None and value <= 0:
            raise InvalidSpec(f"method.{field} is {value:g}; accepted is a number above 0.")
    if method.min_budget is not None and method.max_budget is not None and method.min_budget > method.max_budget:
        raise InvalidSpec(
            f"method.min_budget is {method.min_budget:g} and max_budget {method.max_budget:g}; accepted is min ≤ max."
        )


def _check_parts(method: Method) -> None:
    plain = {"asha": ("settled", False, "first:1", "eager", 1), "fixed": ("settled", False, "first:1", "auto", 1)}
    parts = ("variant", "sync", "brackets", "order", "width")
    for part, accepted in zip(parts, plain.get(method.name, ()), strict=False):
        if (value := getattr(method, part)) != accepted:
            raise InvalidSpec(f"method.{part} is {value!r} with method {method.name}; accepted is to leave it out.")
    variants = ("discarding", "preserving", "efficient") if method.sync else ("settled", "efficient")
    if method.variant not in variants:
        raise InvalidSpec(
            f"method.variant is {method.variant!r} with sync {str(method.sync).lower()}; "
            f"accepted are {', '.join(variants)}."
        )


def checked(spec: StudySpec) -> StudySpec:
    """The spec with its method resolved and its space in order; ``InvalidSpec`` for what types alone cannot say.

    A point of the unit cube has a coordinate a parameter, in order. It is the order of keys in Postgres's jsonb, whatever
    the user's was, so that one spec draws the same configurations in a notebook and in the controller.
    """
    check_study(spec)
    return msgspec.structs.replace(
        spec, method=spec.method.resolved(), space=_ordered(spec.space), objectives=_ordered(spec.objectives)
    )


def _ordered(mapping: Mapping[str, T]) -> dict[str, T]:
    return {name: mapping[name] for name in sorted(mapping, key=lambda name: (len(name.encode()), name.encode()))}


def decode_study(source: Mapping[str, Any]) -> StudySpec:
    """A checked study spec from a mapping; ``InvalidSpec`` names the path, the value and what is accepted."""
    return checked(decode(source, StudySpec))


def decode(source: Mapping[str, Any], kind: type[T]) -> T:
    """A value of ``kind`` from a plain mapping; ``InvalidSpec`` with the path where it does not fit."""
    try:
        return msgspec.convert(source, kind, dec_hook=_quantity)
    except msgspec.ValidationError as error:
        raise InvalidSpec(_explain(str(error))) from None


def encode(value: Any) -> Any:
    """Plain JSON-able data of a spec; what equals its default is left out only where the spec says so."""
    return msgspec.to_builtins(value, enc_hook=float)


def _quantity(kind: type, value: Any) -> Any:
    try:
        if kind is Count and isinstance(value, str | int | float):
            return Count(parse_count(value, "the value"))
        if kind is Seconds and isinstance(value, str | int | float):
            return Seconds(parse_duration(value, "the value"))
    except InvalidSpec as error:  # msgspec adds the path to a ValueError
        raise ValueError(error.message) from None
    raise ValueError(f"Expected a number, got `{type(value).__name__}`")


def _explain(message: str) -> str:
    """Msgspec's sentence with the path first: ``method.eta: Expected `int` >= 2``."""
    text, _, where = message.partition(" - at `")
    path = where.rstrip("`").removeprefix("$").removeprefix(".")
    sentence = text.replace("Object contains unknown field", "unknown key").rstrip(".")
    return f"{path or 'The spec'}: {sentence}."
