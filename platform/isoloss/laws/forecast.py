"""From fits to a prediction that is never a bare number: interval, plateau, regret and how far it extrapolates.

Loss laws are mixed by their roll-outs (``mixture.py``); the interval of the loss adds the regret of training at the
predicted setting.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

import numpy as np

from isoloss.domain.quantity import format_count
from isoloss.errors import InvalidSpec
from isoloss.laws import mixture, steplaw, surface
from isoloss.laws.basin import TYPICAL, Basin
from isoloss.laws.evidence import Fit
from isoloss.laws.inference import interval
from isoloss.laws.lines import LINES, foretold
from isoloss.laws.lossform import NOTHING
from isoloss.laws.observation import entries
from isoloss.laws.solve import Floats

PLACES: Final[dict[str, Callable[[Fit, float, float], tuple[Floats, Floats]]]] = {
    "lr-batch": surface.predict,
    "steplaw": steplaw.predict,
}
PLATEAU: Final = 0.0025  # the ranges given are those within .25 % of the least loss
ELSEWHERE: Final = {"loss": 0.02, "octaves": 1.0}  # sd of what another recipe may change: ln loss, lr and batch
FAR: Final = 10.0  # times beyond the data: a forecast says so


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """The prediction for one cell (N, D) at ``level``; ``None`` where no given fit speaks of it.

    ``lr_range`` and ``batch_range`` are where the loss stays within .25 % of its least; ``expected_regret`` is the mean
    fraction of loss lost by training at the point prediction; ``extrapolation`` says how many times outside the data N
    and D lie (1 = inside).
    """

    n_params: float
    n_tokens: float
    level: float
    loss: float | None = None
    loss_interval: tuple[float, float] | None = None
    lr: float | None = None
    lr_interval: tuple[float, float] | None = None
    lr_range: tuple[float, float] | None = None
    batch_tokens: float | None = None
    batch_tokens_interval: tuple[float, float] | None = None
    batch_range: tuple[float, float] | None = None
    expected_regret: float | None = None
    timescale: float | None = None
    timescale_interval: tuple[float, float] | None = None
    weight_decay: float | None = None
    weight_decay_interval: tuple[float, float] | None = None
    critical_batch_tokens: float | None = None
    critical_batch_tokens_interval: tuple[float, float] | None = None
    extrapolation: dict[str, float]
    warnings: tuple[str, ...] = ()

    def to_mapping(self) -> dict[str, Any]:
        """The JSON of ``law forecast --json``."""
        pairs = {name: list(value) if (value := getattr(self, name)) is not None else None for name in PAIRS}
        plain = ("n_params", "n_tokens", "loss", "lr", "batch_tokens", "level", "expected_regret", "extrapolation")
        lines = {name: value for name in OF_LINES if (value := getattr(self, name)) is not None}
        return {
            **{name: getattr(self, name) for name in plain},
            **{PAIRS[name]: value for name, value in pairs.items()},
            **lines,
            **{f"{name}_interval": list(getattr(self, f"{name}_interval")) for name in lines},
            "warnings": list(self.warnings),
        }


OF_LINES: Final = ("timescale", "weight_decay", "critical_batch_tokens")  # said only where a fit speaks of them
PAIRS: Final = {
    "loss_interval": "loss_interval",
    "lr_interval": "lr_interval",
    "lr_range": "lr_range_0.25pct",
    "batch_tokens_interval": "batch_tokens_interval",
    "batch_range": "batch_range_0.25pct",
}


def forecast(
    fits: Sequence[Fit],
    n_params: float,
    n_tokens: float,
    level: float = 0.9,
    given: Mapping[str, float] = NOTHING,
    recipe: Mapping[str, str] = MappingProxyType({}),
) -> Forecast:
    """The loss and its optimum at N = ``n_params``, D = ``n_tokens`` by all of ``fits`` together.

    Loss laws are mixed (``mixture.py``); the optimum comes from the first fit that speaks of it. ``given`` are the
    further columns that a law needs (``unique_tokens``), ``recipe`` how the run will be trained, as far as it is said; where
    that is not the fits' recipe, or theirs differ, intervals widen by ``ELSEWHERE``. Deterministic. Raises ``InvalidSpec`` when there is no fit, a
    count is not above 0 or missing, or ``level`` is not within (0, 1).
    """
    for name, value in (("n_params", n_params), ("n_tokens", n_tokens)):
        if not 0 < value < np.inf:
            raise InvalidSpec(f"{name} is {value!r}; accepted is a number above 0.")
    if not fits or not 0 < level < 1:
        raise InvalidSpec(
            f"a forecast of {len(fits)} fits at level {level!r}; accepted is at least one fit, level in (0, 1)."
        )
    place = next((fit for fit in fits if fit.form in PLACES), None)
    losses = mixture.components(fits)
    apart = _apart(fits, recipe)
    found: dict[str, Any] = {}
    regret = np.zeros(1)
    if place is not None:
        found, regret = _optimum(place, fits, n_params, n_tokens, level, doubt=ELSEWHERE["octaves"] * bool(apart))
    if losses:
        if apart:
            regret = _doubted(regret, ELSEWHERE["loss"], losses[0].seed)
        point, draws = mixture.sample(losses, n_params, n_tokens, given, regret)
        found |= {"loss": point, "loss_interval": interval(draws, level)}
    lines = [fit for fit in fits if fit.form in LINES]
    for fit in lines:
        for name, (value, low, high) in foretold(fit, n_params, n_tokens, given).items():
            found = {
                name: value,
                f"{name}_interval": (low, high),
            } | found  # what a surface says of the batch goes first
    used = [*([place] if place else []), *losses, *lines]
    beyond = {key: max(fit.support.beyond(n_params, n_tokens)[key] for fit in used) for key in ("n_params", "n_tokens")}
    warnings = tuple(
        dict.fromkeys((*apart, *_warnings(beyond, losses), *(note for fit in used for note in fit.warnings)))
    )
    return Forecast(n_params=n_params, n_tokens=n_tokens, level=level, extrapolation=beyond, warnings=warnings, **found)


def _optimum(
    place: Fit, fits: Sequence[Fit], n_params: float, n_tokens: float, level: float, *, doubt: float
) -> tuple[dict[str, Any], Floats]:
    """Learning rate and batch with intervals and plateaus, and the regret (ln loss) of the point under every draw.

    ``doubt`` (octaves) is a further sd of both.
    """
    (u, v), draws = PLACES[place.form](place, n_params, n_tokens)
    draws = draws + doubt * np.random.default_rng(place.seed).standard_normal(draws.shape)
    shape = next((surface.basin(fit) for fit in fits if fit.form == "lr-batch"), TYPICAL)
    reach_u, reach_v = shape.reach(float(np.log1p(PLATEAU)))
    found: dict[str, Any] = {
        "lr": float(2.0**u),
        "lr_interval": _octaves(draws[:, 0], level),
        "lr_range": (float(2.0 ** (u + reach_u[0])), float(2.0 ** (u + reach_u[1]))),
    }
    if np.isfinite(v):
        found |= {
            "batch_tokens": float(2.0**v),
            "batch_tokens_interval": _octaves(draws[:, 1], level),
            "batch_range": (float(2.0 ** (v + reach_v[0])), float(2.0 ** (v + reach_v[1]))),
        }
    regret = _regret(shape, u - draws[:, 0], v - draws[:, 1] if np.isfinite(v) else np.zeros(len(draws)))
    return found | {"expected_regret": float(np.mean(np.expm1(regret)))}, regret


def _doubted(sample: Floats, sd: float, seed: int) -> Floats:
    """A sample of ln loss with a further normal error."""
    rng = np.random.default_rng(seed)
    return np.asarray(rng.choice(sample, size=mixture.SAMPLES) + sd * rng.standard_normal(mixture.SAMPLES))


def _apart(fits: Sequence[Fit], recipe: Mapping[str, str]) -> list[str]:
    """A warning where the fits' recipes differ, and for every entry of ``recipe`` that theirs do not say."""
    known = sorted({fit.recipe for fit in fits if fit.recipe})
    found = (
        [f"these fits are of different recipes ({', '.join(known)}): intervals are widened"] if len(known) > 1 else []
    )
    for name, value in recipe.items():
        others = sorted({entries(fit.recipe).get(name, "not recorded") for fit in fits} - {value})
        if others:
            found.append(f"the run has {name} {value}, the observations {', '.join(others)}: intervals are widened")
    return found


def _octaves(draws: Floats, level: float) -> tuple[float, float]:
    low, high = interval(draws, level)
    return float(2.0**low), float(2.0**high)


def _regret(shape: Basin, du: Floats, dv: Floats) -> Floats:
    """The ln loss above the least at (du, dv) octaves off; a run that far off would be stopped at twice the loss."""
    return np.minimum(shape.excess(du, dv), np.log(2.0))


def _warnings(beyond: dict[str, float], losses: list[Fit]) -> list[str]:
    found = [f"{name} lies {format_count(x)} times outside the observations" for name, x in beyond.items() if x > FAR]
    if len(losses) == 1:
        found.append(f"one loss law ({losses[0].form}): its interval knows nothing of other forms")
    return found
