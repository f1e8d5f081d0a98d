"""The catalogue of laws, and the one door to them: ``fit(form, observations) -> Fit``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Final

import numpy as np

from isoloss.errors import FitFailed, InvalidSpec
from isoloss.laws import isoflop, mixture, steplaw, surface
from isoloss.laws.caveats import with_caveats
from isoloss.laws.evidence import Backtest, Estimate, Fit
from isoloss.laws.frontier import mixed_frontier
from isoloss.laws.inference import RESAMPLE, check_resample
from isoloss.laws.lines import LINES
from isoloss.laws.lossforms import FAMILY, LOSS_FORMS
from isoloss.laws.losslaw import Settings, fit_loss_law, held_out_error, profile_law, report
from isoloss.laws.observation import Observations
from isoloss.laws.profile import Profile
from isoloss.laws.solve import parse_loss

__all__ = ["CATALOGUE", "Backtest", "Estimate", "Fit", "Form", "backtest", "compare", "fit"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """A law one can ask for: what it says, what it gives, which columns it needs and where it comes from."""

    name: str
    equation: str
    gives: str
    needs: str
    source: str


CATALOGUE: Final[dict[str, Form]] = {
    **{
        form.name: Form(
            name=form.name,
            equation=form.equation,
            gives="loss",
            needs=", ".join((*form.columns, "loss")),
            source=form.source,
        )
        for form in LOSS_FORMS.values()
    },
    "steplaw": Form(
        name="steplaw",
        equation=steplaw.EQUATION,
        gives="best lr and batch size",
        needs="n_params, n_tokens, lr, batch_tokens, loss; four cells with an interior optimum",
        source="Li et al. 2025, arXiv 2503.04715, eq. 1",
    ),
    "lr-batch": Form(
        name="lr-batch",
        equation=surface.EQUATION,
        gives="best lr and batch size, and the basin around them",
        needs="n_params, n_tokens, lr, batch_tokens, loss; any cells",
        source="a rotated LINEX basin with a moving centre; beliefs about exponents from the Step Law",
    ),
    **{
        name: Form(
            name=name,
            equation=isoflop.EQUATION,
            gives="best N and D at C",
            needs="n_params, n_tokens, loss" + (", run" if name == "envelope" else "; sizes at equal flops"),
            source=source,
        )
        for name, source in isoflop.FORMS.items()
    },
    **{
        line.name: Form(
            name=line.name,
            equation=line.equation,
            gives=line.gives,
            needs=", ".join(line.columns) + (", loss; three cells" if line.cells else "; three rows"),
            source=line.source,
        )
        for line in LINES.values()
    },
    "frontier": Form(
        name="frontier",
        equation=isoflop.EQUATION,
        gives="best N and D at C",
        needs="n_params, n_tokens, loss",
        source="isoflop where its grids allow it, else the frontier of chinchilla",
    ),
    "auto": Form(
        name="auto",
        equation="a mixture of loss laws, weighted by how well they foretold dearer runs from cheaper ones",
        gives="loss",
        needs="n_params, n_tokens, loss",
        source=", ".join(FAMILY),
    ),
}


def fit(
    form: str,
    observations: Observations,
    *,
    loss: str = "huber:1e-3",
    bootstrap: int = 200,
    seed: int = 0,
    level: float = 0.9,
    near: float | None = None,
    pool: bool = False,
    resample: str = "",
) -> Fit:
    """Fit the law called ``form`` to ``observations``.

    ``loss`` (huber:DELTA, lad, squared) is for loss laws; ``near`` makes the step law pool all runs within that
    fraction of their cell's best. ``resample`` says what a bootstrap draws: rows, runs or cells (``RESAMPLE``; empty: as the
    form does). Raises ``InvalidSpec`` for an unknown form, a bad setting or mixed recipes without ``pool``, ``FitFailed``
    when the observations do not determine the law.
    """
    if form not in CATALOGUE:
        raise InvalidSpec(f"form is {form!r}; accepted is one of {', '.join(CATALOGUE)}.")
    if near is not None and not 0 < near < 1:
        raise InvalidSpec(f"near is {near!r}; accepted is a fraction between 0 and 1, such as 0.0025.")
    drawn = RESAMPLE if form in LOSS_FORMS or form == "auto" else ("cells",) if form == "steplaw" else ()
    check_resample(resample, form, drawn)
    settings = replace(_settings(loss, bootstrap, seed, level), resample=resample)
    observations.one_recipe(pool=pool)
    fitters: dict[str, Callable[[], Fit]] = {
        "steplaw": lambda: steplaw.fit_step_law(observations, near=near, bootstrap=bootstrap, seed=seed, level=level),
        "lr-batch": lambda: surface.fit_surface(observations, seed=seed, level=level),
        "auto": lambda: _auto(observations, settings),
        "frontier": lambda: _frontier(observations, settings),
        **{name: partial(_isoflop, name, observations, settings) for name in isoflop.FORMS},
        **{name: partial(line.fit, observations, level=level, seed=seed) for name, line in LINES.items()},
    }
    made = fitters[form]() if form in fitters else fit_loss_law(LOSS_FORMS[form], observations, settings)
    return with_caveats(made, observations)


def profile(
    form: str, observations: Observations, *, loss: str = "huber:1e-3", level: float = 0.9, pool: bool = False
) -> tuple[Fit, dict[str, Profile]]:
    """The loss law called ``form`` fitted, and the profile likelihood of each of its constants (``profile.py``).

    Raises as ``fit`` does, and ``InvalidSpec`` for a form that is no single loss law.
    """
    if form not in LOSS_FORMS:
        raise InvalidSpec(f"form is {form!r}; accepted is a loss law: {', '.join(LOSS_FORMS)}.")
    settings = replace(_settings(loss, 0, 0, level), test=False)
    observations.one_recipe(pool=pool)
    made = fit_loss_law(LOSS_FORMS[form], observations, settings)
    return made, profile_law(LOSS_FORMS[form], observations, settings)


def optimum(form: str, observations: Observations, loss: str, C: float) -> tuple[float, float]:
    """N* and D* at ``C`` FLOP by the law called ``form``: a loss law's frontier, or sizes read off equal compute.

    Raises as ``fit`` does, and ``InvalidSpec`` for a form that knows no N*.
    """
    made = fit(form, observations, loss=loss, bootstrap=0, pool=True)
    if made.form in isoflop.FORMS:
        return isoflop.optimal(made, C)
    if not (laws := mixture.components([made])):
        raise InvalidSpec(f"form is {form!r}; accepted is one that gives N and D: {', '.join(FAMILY)}, frontier, auto.")
    return mixed_frontier(laws, C)


def compare(
    observations: Observations, *, loss: str = "huber:1e-3", bootstrap: int = 0, seed: int = 0, pool: bool = False
) -> list[Fit]:
    """Every loss law that can be fitted, least back-test error first; ``FitFailed`` when none can."""
    observations.one_recipe(pool=pool)
    ranked = _ranked(observations, _settings(loss, bootstrap, seed, 0.9))
    return [with_caveats(made, observations) for made in ranked]


def backtest(
    observations: Observations, hold_out: str, *, loss: str = "huber:1e-3", pool: bool = False
) -> dict[str, Backtest]:
    """Each loss law fitted without the rows where ``hold_out`` holds, and its error on them.

    Raises ``InvalidSpec`` when the expression holds out nothing or everything, ``FitFailed`` when the rest is too
    little.
    """
    observations.one_recipe(pool=pool)
    used = observations.select(observations.ok)
    test, train = used.where(hold_out), used.where(f"not ({hold_out})")
    if not len(test) or not len(train):
        raise InvalidSpec(
            f"hold-out {hold_out!r} takes {len(test)} of {len(used)} finished runs; accepted is some of them."
        )
    settings = _settings(loss, 0, 0, 0.9)
    found = {name: held_out_error(form, train, test, settings) for name, form in FAMILY.items()}
    return found | {"auto": report(mixture.held_out(_ranked(train, settings), test), train, test)}


def _settings(loss: str, bootstrap: int, seed: int, level: float) -> Settings:
    if not 0 < level < 1:
        raise InvalidSpec(f"level is {level!r}; accepted is a number between 0 and 1.")
    if bootstrap < 0 or seed < 0:
        raise InvalidSpec(f"bootstrap is {bootstrap} and seed {seed}; accepted are whole numbers from 0.")
    return Settings(robust=parse_loss(loss), bootstrap=bootstrap, seed=seed, level=level)


def _isoflop(form: str, observations: Observations, settings: Settings) -> Fit:
    return isoflop.fit_isoflop(
        form, observations, bootstrap=settings.bootstrap, seed=settings.seed, level=settings.level
    )


def _frontier(observations: Observations, settings: Settings) -> Fit:
    """Approach 2 while its own diagnosis finds nothing against it, approach 3 otherwise."""
    try:
        read = _isoflop("isoflop", observations, settings)
    except FitFailed as error:
        why = error.message
    else:
        if not read.warnings:
            return read
        why = "; ".join(read.warnings)
    law = fit_loss_law(LOSS_FORMS["chinchilla"], observations, settings)
    return replace(law, warnings=(f"frontier is chinchilla's, not isoflop's: {why}", *law.warnings))


def _auto(observations: Observations, settings: Settings) -> Fit:
    laws = _ranked(observations, settings)
    shares = mixture.weights(laws)
    heaviest = laws[int(np.argmax(shares))]
    said = ", ".join(f"{law.form} {share:.0%}" for law, share in sorted(zip(laws, shares, strict=True), key=_falling))
    note = f"auto mixes {said} by their roll-outs; the constants are those of {heaviest.form}"
    return replace(
        heaviest,
        form="auto",
        equation=f"{heaviest.form}: {heaviest.equation}",
        warnings=(note, *heaviest.warnings),
        components=tuple(laws),
    )


def _falling(entry: tuple[Fit, float]) -> float:
    return -entry[1]


def _ranked(observations: Observations, settings: Settings) -> list[Fit]:
    fits, problems = [], []
    for form in FAMILY.values():
        try:
            fits.append(fit_loss_law(form, observations, settings))
        except FitFailed as error:
            problems.append(error)
    if not fits:
        raise problems[0]
    return sorted(fits, key=lambda fit: fit.backtest.error if fit.backtest else float("inf"))
