"""What a loss law is to the code that fits it, and the points it is fitted to.

A form says ln L as a function of its constants θ and of the logarithms x of the columns it needs, with the exact
Jacobian. Everything else (many starts, robust loss, bootstrap, back-tests, mixtures) is the same for all of them and
knows no form by name. Fitting is done about the centre of x, where constants are least entangled; ``shift`` brings θ
home.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from isoloss.errors import InvalidSpec
from isoloss.laws.observation import NUMBERS, Observations
from isoloss.laws.solve import Floats, Prior, RobustLoss, Solution, best, solve

NOTHING: Final[Mapping[str, float]] = MappingProxyType({})  # no further columns
RENAME: Final = "Name another column with --columns theirs=ours."
N_AND_D: Final = ("n_params", "n_tokens")
DERIVED: Final[dict[str, tuple[str, Callable[[Floats], Floats]]]] = {
    "6 N^2": ("n_params", lambda N: 6 * N**2),
    "6 D^2": ("n_tokens", lambda D: 6 * D**2),
}


class LossForm(Protocol):
    """A loss law over the logarithms x (columns, n) of its ``columns``.

    ``names`` are its constants in the order of θ, of which θ holds those in ``logarithms`` as logarithms. θ after
    ``shift`` belongs to x − ``origin``.
    """

    @property
    def name(self) -> str:
        """What users call it."""

    @property
    def equation(self) -> str:
        """The law in one line."""

    @property
    def source(self) -> str:
        """Paper and equation."""

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns of an observation it needs."""

    @property
    def names(self) -> tuple[str, ...]:
        """The constants."""

    @property
    def logarithms(self) -> frozenset[str]:
        """The constants that θ and ``constants`` hold as logarithms."""

    @property
    def origin(self) -> tuple[float, ...]:
        """Where in x a finished θ is centred, one a column."""

    def centre(self, x: Floats) -> Floats:
        """Where in x (columns, n) to centre the fit, (columns,)."""

    def design(self, x: Floats) -> Floats:
        """Whatever of the centred x can be computed once for all θ."""

    def log_loss(self, theta: Floats, design: Floats) -> tuple[Floats, Floats]:
        """Give ln L (S, n) and its Jacobian (S, n, p) at θ (S, p)."""

    def shift(self, theta: Floats, by: Floats) -> Floats:
        """θ (…, p) about a centre as θ about another that lies ``by`` (columns,) below it."""

    def constants(self, theta: Floats) -> Floats:
        """The named constants (…, p) at a finished θ (…, p)."""

    def bounds(self, loss: Floats) -> tuple[Floats, Floats]:
        """Least and greatest θ, each (p,), for losses of this size."""

    def starts(self, x: Floats, loss: Floats, robust: RobustLoss) -> Floats:
        """Where to start, (S, p), about the centre of x."""


@dataclass(frozen=True, slots=True)
class Problem:
    """A form, the logarithms x (columns, n) of its points, their losses (n,) and ρ, ready for the solver."""

    form: LossForm
    x: Floats
    loss: Floats
    robust: RobustLoss
    centre: Floats = field(init=False)
    design: Floats = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "centre", self.form.centre(self.x))
        object.__setattr__(self, "design", self.form.design(self.x - self.centre[:, None]))

    def residuals(self, theta: Floats) -> tuple[Floats, Floats]:
        """Residuals ln L predicted − ln L observed, (S, n), and the Jacobian (S, n, p), about the centre."""
        value, jacobian = self.form.log_loss(theta, self.design)
        return value - np.log(self.loss), jacobian

    def bounds(self) -> tuple[Floats, Floats]:
        """Least and greatest θ about the centre."""
        return self.form.bounds(self.loss)

    def starts(self) -> Floats:
        """The form's starts about the centre."""
        return self.form.starts(self.x - self.centre[:, None], self.loss, self.robust)

    def solve(
        self, starts: Floats, *, weights: Floats | None = None, prior: Prior | None = None, tolerance: float = 1e-9
    ) -> tuple[Floats, Solution]:
        """Every end (S, p) and the best of them, about the centre."""
        ends = solve(
            self.residuals,
            starts,
            loss=self.robust,
            weights=weights,
            prior=prior,
            bounds=self.bounds(),
            tolerance=tolerance,
        )
        return ends.theta, best(ends)

    def finished(self, theta: Floats) -> Floats:
        """θ (…, p) about the centre as θ about the form's origin."""
        return self.form.shift(theta, self.centre - np.array(self.form.origin))


def predict(form: LossForm, theta: Floats, x: Floats) -> Floats:
    """L (S, n) at finished θ (S, p) and logarithms x (columns, n)."""
    design = form.design(x - np.array(form.origin)[:, None])
    return np.exp(form.log_loss(np.atleast_2d(theta), design)[0])


def linearised(form: LossForm, theta: Floats, x: Floats) -> tuple[Floats, Floats]:
    """Give ln L (n,) and its Jacobian (n, p) at a finished θ (p,) and logarithms x (columns, n)."""
    value, jacobian = form.log_loss(theta[None], form.design(x - np.array(form.origin)[:, None]))
    return value[0], jacobian[0]


def columns_of(form: LossForm, observations: Observations) -> Floats:
    """X (columns, n) of the observations; ``InvalidSpec`` naming the form and the column that is missing."""
    return _inputs(form, lambda name: _column(form, observations, name))


def target(form: LossForm, n_params: float, n_tokens: float, given: Mapping[str, float]) -> Floats:
    """X (columns, 1) of one run; ``given`` are its further columns. ``InvalidSpec`` names the one that is missing."""
    known = {"n_params": n_params, "n_tokens": n_tokens, **given}

    def column(name: str) -> Floats:
        if name not in known or not 0 < known[name] < np.inf:
            raise _missing(
                form, name, f"it is {known.get(name)!r} for the run asked for", f"--given {name}=8B gives it."
            )
        return np.array([known[name]])

    return _inputs(form, column)


def at_edge(theta: Floats, bounds: tuple[Floats, Floats]) -> NDArray[np.bool_]:
    """Which parameters of θ (…, p) lie at an edge of what was allowed."""
    low, high = bounds
    return np.asarray((theta <= low + 1e-6) | (theta >= high - 1e-6))


def _inputs(form: LossForm, column: Callable[[str], Floats]) -> Floats:
    plain: tuple[str, Callable[[Floats], Floats]]
    rows = []
    for name in form.columns:
        plain = DERIVED.get(name, (name, lambda values: values))
        rows.append(np.log(plain[1](column(plain[0]))))
    return np.array(rows)


def _column(form: LossForm, observations: Observations, name: str) -> Floats:
    if name in NUMBERS:
        return observations.column(name)
    values = [row.extras.get(name) for row in observations]
    for number, value in enumerate(values, start=1):
        if not isinstance(value, float | int) or not 0 < value < np.inf:
            raise _missing(form, name, f"it is {value!r} in row {number}")
    return np.array(values, dtype=np.float64)


def _missing(form: LossForm, name: str, found: str, hint: str = RENAME) -> InvalidSpec:
    return InvalidSpec(f"{form.name} needs the column {name}, and {found}; accepted is a number above 0.", hint=hint)
