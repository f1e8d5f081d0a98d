"""A fit carries its evidence: what it saw, how the solver ended, how sure it is of each constant, its back-test."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec
import numpy as np

from isoloss.errors import InvalidSpec
from isoloss.laws.solve import Floats

KEPT_DRAWS: Final = 400


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """One constant: its value, standard error, interval at the fit's level, and whether the data determine it.

    ``verdict`` is ``identified``, ``weak`` or ``not identified``. ``None`` stands for a number that is not finite.
    """

    value: float
    se: float | None
    low: float | None
    high: float | None
    verdict: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Backtest:
    """The law refitted without the largest runs and asked for them: mean size and mean of predicted / observed − 1.

    ``held_out_flops`` is the geometric mean of 6 N D of the runs asked for, 0 where it was not kept.
    """

    held_out: int
    error: float
    bias: float
    largest_trained_flops: float
    held_out_flops: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Support:
    """What the observations span: least and most N (parameters) and D (tokens), and how many values of each.

    ``flops`` is the greatest 6 N D, 0 where it was not kept.
    """

    n_params: tuple[float, float]
    n_tokens: tuple[float, float]
    sizes: int
    columns: int
    flops: float = 0.0

    def beyond(self, n_params: float, n_tokens: float) -> dict[str, float]:
        """How many times outside the observed range a target lies, 1.0 when inside, for N and for D."""
        targets = {"n_params": (n_params, self.n_params), "n_tokens": (n_tokens, self.n_tokens)}
        return {name: max(x / high, low / x, 1.0) for name, (x, (low, high)) in targets.items()}


def support(n_params: Floats, n_tokens: Floats) -> Support:
    """The span of points N, D (each (n,))."""
    return Support(
        n_params=(float(n_params.min()), float(n_params.max())),
        n_tokens=(float(n_tokens.min()), float(n_tokens.max())),
        sizes=len(np.unique(n_params)),
        columns=len(np.unique(n_tokens)),
        flops=float((6 * n_params * n_tokens).max()),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """A law with its estimates and evidence.

    ``theta`` are the law's parameters in the order of ``parameters`` (coefficients as logarithms), ``covariance``
    theirs (p × p) and ``draws`` their bootstrap sample; forecasting needs nothing else but ``extra`` and, where the
    optimum is a field, its ``nodes`` (``field.py``). ``noise`` is
    the standard deviation of one run in ln loss; ``residual_rms`` is in the logarithm of what is fitted.
    ``backtest_note`` says why there is no back-test. ``rollouts`` are back-tests at several splits, the smallest
    training share first. ``recipe`` is that of its observations, empty where none was recorded. A mixture (form ``auto``) has the laws it mixes as ``components`` and otherwise the evidence
    of the heaviest.
    """

    form: str
    equation: str
    observation_hash: str
    n_observations: int
    estimates: dict[str, Estimate]
    level: float
    objective: float
    loss: str
    verdict: str
    starts: int
    agreeing: float
    parameters: tuple[str, ...]
    theta: tuple[float, ...]
    covariance: tuple[tuple[float, ...], ...]
    draws: tuple[tuple[float, ...], ...]
    residual_rms: float
    noise: float
    support: Support
    seed: int
    backtest: Backtest | None = None
    backtest_note: str = ""
    rollouts: tuple[Backtest, ...] = ()
    components: tuple[Fit, ...] = ()
    warnings: tuple[str, ...] = ()
    checklist: dict[str, str] = field(default_factory=dict)
    extra: dict[str, float] = field(default_factory=dict)
    nodes: tuple[tuple[float, ...], ...] = ()
    recipe: str = ""

    def sample(self) -> Floats:
        """The draws (B, p); the point alone when there are none."""
        return np.array(self.draws or (self.theta,), dtype=np.float64)

    def to_mapping(self) -> dict[str, Any]:
        """A JSON-able mapping: the shape of ``law fit --json`` and everything a forecast needs."""
        mapping: dict[str, Any] = msgspec.to_builtins(self)
        return mapping

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Any]) -> Fit:
        """The fit again; ``InvalidSpec`` with the path of what is wrong when it is no fit."""
        fit: Fit = decode(mapping, cls)
        return fit


def decode(mapping: Mapping[str, Any], kind: type[Any]) -> Any:
    """``mapping`` as the dataclass ``kind``; ``InvalidSpec`` with the path of what is wrong."""
    try:
        return msgspec.convert(mapping, kind)
    except msgspec.ValidationError as error:
        raise InvalidSpec(
            f"this is no fit: {error}.", hint="Write one with: isoloss law fit DATA --form F --out FIT"
        ) from error


def pack(values: Floats, *, most: int = KEPT_DRAWS) -> tuple[tuple[float, ...], ...]:
    """Rows of a matrix at seven significant digits, at most ``most`` of them evenly chosen."""
    chosen = values if len(values) <= most else values[np.linspace(0, len(values) - 1, most).astype(int)]
    return tuple(tuple(float(f"{x:.7g}") for x in row) for row in chosen)
