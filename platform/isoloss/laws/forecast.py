"""From fits to a prediction that is never a bare number: interval, plateau, regret and how far it extrapolates.

No form wins everywhere: on nine public data sets the best of four loss laws changes with the data, and one law's
bootstrap covers a fraction of what it claims. So several loss laws are mixed by their back-test errors, and the
interval adds, to every draw, the noise of a run, the back-test error grown with the distance to the target, and the
regret of training at the predicted setting.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from isoloss.domain.quantity import format_count
from isoloss.errors import InvalidSpec
from isoloss.laws import losslaw, steplaw, surface
from isoloss.laws.basin import TYPICAL, Basin
from isoloss.laws.evidence import Fit
from isoloss.laws.inference import interval
from isoloss.laws.lossforms import LOSS_FORMS
from isoloss.laws.solve import Floats

PLACES: Final[dict[str, Callable[[Fit, float, float], tuple[Floats, Floats]]]] = {
    "lr-batch": surface.predict,
    "steplaw": steplaw.predict,
}
PLATEAU: Final = 0.0025  # the ranges given are those within .25 % of the least loss
SAMPLES: Final = 4000
LEAST_ERROR: Final = 0.002  # a back-test error under this is luck
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
    extrapolation: dict[str, float]
    warnings: tuple[str, ...] = ()

    def to_mapping(self) -> dict[str, Any]:
        """The JSON of ``law forecast --json``."""
        pairs = {name: list(value) if (value := getattr(self, name)) is not None else None for name in PAIRS}
        plain = ("n_params", "n_tokens", "loss", "lr", "batch_tokens", "level", "expected_regret", "extrapolation")
        return {
            **{name: getattr(self, name) for name in plain},
            **{PAIRS[name]: value for name, value in pairs.items()},
            "warnings": list(self.warnings),
        }


PAIRS: Final = {
    "loss_interval": "loss_interval",
    "lr_interval": "lr_interval",
    "lr_range": "lr_range_0.25pct",
    "batch_tokens_interval": "batch_tokens_interval",
    "batch_range": "batch_range_0.25pct",
}


def forecast(fits: Sequence[Fit], n_params: float, n_tokens: float, level: float = 0.9) -> Forecast:
    """The loss and its optimum at N = ``n_params``, D = ``n_tokens`` by all of ``fits`` together.

    Loss laws are mixed; the optimum comes from the first fit that speaks of it. Deterministic. Raises ``InvalidSpec``
    when there is no fit, a count is not above 0, or ``level`` is not within (0, 1).
    """
    for name, value in (("n_params", n_params), ("n_tokens", n_tokens)):
        if not 0 < value < np.inf:
            raise InvalidSpec(f"{name} is {value!r}; accepted is a number above 0.")
    if not fits or not 0 < level < 1:
        raise InvalidSpec(
            f"a forecast of {len(fits)} fits at level {level!r}; accepted is at least one fit, level in (0, 1)."
        )
    place = next((fit for fit in fits if fit.form in PLACES), None)
    losses = [fit for fit in fits if fit.form in LOSS_FORMS]
    found: dict[str, Any] = {}
    regret = np.zeros(1)
    if place is not None:
        found, regret = _optimum(place, fits, n_params, n_tokens, level)
    if losses:
        point, draws = _loss(losses, n_params, n_tokens, regret)
        found |= {"loss": point, "loss_interval": interval(draws, level)}
    used = [*([place] if place else []), *losses]
    beyond = {key: max(fit.support.beyond(n_params, n_tokens)[key] for fit in used) for key in ("n_params", "n_tokens")}
    warnings = tuple(dict.fromkeys((*_warnings(beyond, losses), *(note for fit in used for note in fit.warnings))))
    return Forecast(n_params=n_params, n_tokens=n_tokens, level=level, extrapolation=beyond, warnings=warnings, **found)


def _optimum(
    place: Fit, fits: Sequence[Fit], n_params: float, n_tokens: float, level: float
) -> tuple[dict[str, Any], Floats]:
    """Learning rate and batch with intervals and plateaus, and the regret (ln loss) of the point under every draw."""
    (u, v), draws = PLACES[place.form](place, n_params, n_tokens)
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


def _octaves(draws: Floats, level: float) -> tuple[float, float]:
    low, high = interval(draws, level)
    return float(2.0**low), float(2.0**high)


def _regret(shape: Basin, du: Floats, dv: Floats) -> Floats:
    """The ln loss above the least at (du, dv) octaves off; a run that far off would be stopped at twice the loss."""
    return np.minimum(shape.excess(du, dv), np.log(2.0))


def _loss(losses: list[Fit], n_params: float, n_tokens: float, regret: Floats) -> tuple[float, Floats]:
    """The mixture's point and draws (SAMPLES,) of the loss, noise, model error and regret included."""
    rng = np.random.default_rng(losses[0].seed)
    errors = np.array([_model_error(fit, n_params, n_tokens) for fit in losses])
    weights = errors**-2.0 / np.sum(errors**-2.0)
    predictions = [losslaw.predict_loss(LOSS_FORMS[fit.form], fit, n_params, n_tokens, {}) for fit in losses]
    point = float(np.exp(np.sum(weights * np.log([value for value, _ in predictions]))))
    chosen = rng.choice(len(losses), size=SAMPLES, p=weights)
    ln_draws = np.array([np.log(rng.choice(predictions[k][1])) for k in chosen])
    noise = float(np.mean([fit.noise for fit in losses]))
    spread = np.hypot(noise, errors[chosen]) * rng.standard_normal(SAMPLES)
    return point, np.exp(ln_draws + spread + rng.choice(regret, size=SAMPLES))


def _model_error(fit: Fit, n_params: float, n_tokens: float) -> float:
    """A law's error at the target in ln loss: its back-test error, grown with distance in ln C, or its residuals."""
    if fit.backtest is None:
        return max(2 * fit.residual_rms, 2 * fit.noise, LEAST_ERROR)
    trained = np.log(fit.backtest.largest_trained_flops)
    tested = np.log(6 * fit.support.n_params[1] * fit.support.n_tokens[1])
    asked = np.log(6 * n_params * n_tokens)
    growth = np.clip((asked - trained) / max(tested - trained, 0.3), 1.0, 4.0)
    return float(1.25 * max(fit.backtest.error, LEAST_ERROR) * growth)


def _warnings(beyond: dict[str, float], losses: list[Fit]) -> list[str]:
    found = [f"{name} lies {format_count(x)} times outside the observations" for name, x in beyond.items() if x > FAR]
    if len(losses) == 1:
        found.append(f"one loss law ({losses[0].form}): its interval knows nothing of other forms")
    return found
