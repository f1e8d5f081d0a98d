"""What a spec cannot tell from its rungs, said before anything runs: sentences, never refusals."""

from __future__ import annotations

from typing import Any

from isoloss.domain.space import Choice, Range
from isoloss.domain.spec import StudySpec
from isoloss.search.geometry import ladder_of


def cautions(spec: StudySpec) -> list[str]:
    """Rungs that end inside the warm-up, and rungs too short to rank weight decay."""
    return [*_warm_up(spec), *_weight_decay(spec)]


def _warm_up(spec: StudySpec) -> list[str]:
    name, lowest = f"warmup_{spec.budget.unit}", ladder_of(spec).budget(0)
    longest = _bounds(spec, name)[1]
    if longest is None or longest < lowest:
        return []
    return [
        f"{name} is up to {longest:g} and the lowest rung ends at {lowest}: it ranks runs that are still warming up. "
        f"A larger method.min_budget or a shorter warm-up avoids that."
    ]


def _weight_decay(spec: StudySpec) -> list[str]:
    """AdamW forgets over 1/(lr · wd) steps (Wang & Aitchison 2024): before that weight decay has shown no effect."""
    rate, decay = _bounds(spec, "lr")[1], _bounds(spec, "weight_decay")[1]
    if "weight_decay" not in spec.space or not rate or not decay:
        return []
    ladder, a_step = ladder_of(spec), _a_step(spec)
    if a_step is None:
        return []
    needed = a_step / (rate * decay)
    if not (short := [budget for budget in ladder.budgets if budget < needed]):
        return []
    return [
        f"Rungs up to {short[-1]} {spec.budget.unit} are shorter than 1/(lr · weight_decay), at least {needed:.3g} "
        f"{spec.budget.unit} in this space: they cannot rank weight_decay."
    ]


def _a_step(spec: StudySpec) -> float | None:
    """The budget of one optimizer step, the smallest of the space; ``None`` when the unit does not say."""
    return {"steps": 1.0, "tokens": _bounds(spec, "batch_tokens")[0]}.get(spec.budget.unit)


def _bounds(spec: StudySpec, name: str) -> tuple[float | None, float | None]:
    """The smallest and largest value a run may have: of the space, else as fixed, else of the built-in GPT."""
    parameter = spec.space.get(name)
    if isinstance(parameter, Range):
        return parameter.low, parameter.high
    gpt: Any = spec.run.gpt if spec.run is not None else None
    known = parameter.choices if isinstance(parameter, Choice) else (spec.fixed.get(name, getattr(gpt, name, None)),)
    numbers = [float(value) for value in known if isinstance(value, int | float)]
    return (min(numbers), max(numbers)) if numbers else (None, None)
