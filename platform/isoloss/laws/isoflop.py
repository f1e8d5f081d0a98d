"""Compute-optimal model sizes read off curves of equal compute, without a loss law.

    N*(C) = G C^a,      D*(C) = C / (6 N*(C))

Three ways to the sizes, one power law through them:

- ``envelope``: approach 1 of Hoffmann et al. (2022). Along a ladder of C the training curve with the least loss names
  the size. Needs checkpoints (rows that share a ``run``).
- ``isoflop``: approach 2. A parabola of loss in ln N for every budget; its vertex is N*.
- ``isoflop-akima``: the pipeline of Porian et al. (2024, arXiv 2406.19146, §3). An Akima curve of ln loss in ln N
  through noisy copies; N* is the median of the copies' minima, its weight their spread. A copy whose minimum is at an
  edge is dropped, and a budget with more than half of its copies there.

Approach 2 is biased where α ≠ β, the more so on wide grids, and budgets whose grids drift off centre bend the exponent
too. The fit therefore says how its grids lie (``diagnose``) and, when a Chinchilla law can be fitted to the same runs,
what the same parabolas would get wrong on that law (``estimated_bias``); a bias above five percent is a warning that
says to use the law's own frontier instead.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np

from isoloss.errors import FitFailed
from isoloss.laws.checklist import checklist
from isoloss.laws.chinchilla import CHINCHILLA, ChinchillaLaw
from isoloss.laws.evidence import Estimate, Fit, pack, support
from isoloss.laws.inference import estimate, run_groups
from isoloss.laws.losslaw import Settings, fit_loss_law
from isoloss.laws.observation import Observations
from isoloss.laws.solve import Floats

EQUATION: Final = "N*(C) = G C^a; D*(C) = C / (6 N*(C))"
FORMS: Final = {
    "envelope": "Hoffmann et al. 2022, arXiv 2203.15556, approach 1",
    "isoflop": "Hoffmann et al. 2022, arXiv 2203.15556, approach 2",
    "isoflop-akima": "Porian et al. 2024, arXiv 2406.19146, section 3",
}
SAME: Final = 0.02  # ln C within which runs belong to one budget
LEAST: Final = 4  # runs of a budget that can show a minimum; Akima needs as many too
COPIES: Final = 1000
FINE: Final = 25  # points between two sizes on an Akima curve
SPACING: Final = 0.33  # of the grid's spacing: no minimum is known better
ENVELOPE: Final = 1500  # budgets along the envelope
BIASED: Final = 0.05


@dataclass(frozen=True, slots=True)
class Budget:
    """The runs of one C: ``flops``, and ln N ascending with ln loss, each (k,)."""

    flops: float
    ln_n: Floats
    ln_loss: Floats


@dataclass(frozen=True, slots=True)
class Sizes:
    """N* at every usable budget: ln C (m,), ln N* (m,), its sd (m,), and bootstrap copies (B, m; NaN where none)."""

    ln_c: Floats
    ln_n: Floats
    sd: Floats
    copies: Floats


def budgets(observations: Observations) -> tuple[Budget, ...]:
    """The finished runs grouped by compute, the best of each size; budgets of fewer than ``LEAST`` sizes are left out."""
    seen = observations.select(observations.ok)
    order = np.argsort(seen.flops, kind="stable")
    ln_c = np.log(seen.flops[order])
    breaks = np.flatnonzero(np.diff(ln_c) > SAME) + 1
    found = []
    for rows in np.split(order, breaks):
        sizes, at = np.unique(seen.n_params[rows], return_inverse=True)
        if len(sizes) >= LEAST:
            best = np.full(len(sizes), np.inf)
            np.minimum.at(best, at, seen.loss[rows])
            found.append(Budget(float(np.exp(np.mean(np.log(seen.flops[rows])))), np.log(sizes), np.log(best)))
    return tuple(found)


def vertices(groups: tuple[Budget, ...], weights: list[Floats] | None = None) -> Floats:
    """Ln N* (m,) by a parabola of loss in ln N each; NaN where it opens downwards or its vertex leaves the grid."""
    found = []
    for i, group in enumerate(groups):
        x = group.ln_n - group.ln_n.mean()
        design = np.column_stack([np.ones_like(x), x, x**2])
        root = np.sqrt(weights[i] if weights else np.ones_like(x))
        c = np.linalg.lstsq(design * root[:, None], np.exp(group.ln_loss) * root, rcond=None)[0]
        at = -c[1] / (2 * c[2]) if c[2] > 0 else np.nan
        found.append(at + group.ln_n.mean() if x[0] < at < x[-1] else np.nan)
    return np.array(found)


def by_parabolas(groups: tuple[Budget, ...], draws: int, rng: np.random.Generator) -> Sizes:
    """Approach 2; its copies resample the runs of every budget."""
    ln_n = vertices(groups)
    resampled = [
        [rng.multinomial(k, np.full(k, 1 / k)).astype(float) for g in groups for k in [len(g.ln_n)]]
        for _ in range(draws)
    ]
    copies = np.array([vertices(groups, weights) for weights in resampled]).reshape(draws, len(groups))
    return _kept(groups, ln_n, np.ones(len(groups)), copies)


def by_akima(groups: tuple[Budget, ...], draws: int, rng: np.random.Generator, *, noise: float) -> Sizes:
    """Porian's pipeline; ``noise`` is the sd of a run's loss (nats)."""
    from scipy.interpolate import Akima1DInterpolator

    middle, spread, copies = [], [], []
    for group in groups:
        x = group.ln_n
        noisy = np.exp(group.ln_loss)[:, None] + noise * rng.standard_normal((len(x), draws))
        grid = np.linspace(x[0], x[-1], (len(x) - 1) * FINE)
        lowest = np.argmin(Akima1DInterpolator(x, np.log(noisy))(grid), axis=0)
        edge = (lowest == 0) | (lowest == len(grid) - 1)
        at = np.where(edge, np.nan, grid[lowest])
        usable = edge.mean() <= 0.5
        middle.append(np.nanmedian(at) if usable else np.nan)
        sd = np.nanstd(at) if usable else np.nan
        spread.append(max(sd, SPACING * float(np.mean(np.diff(x)))) / np.sqrt(max(1 - edge.mean(), 1e-9)))
        copies.append(at)
    return _kept(groups, np.array(middle), np.array(spread), np.array(copies).reshape(len(groups), draws).T)


def by_envelope(observations: Observations, draws: int, rng: np.random.Generator) -> Sizes:
    """Approach 1: at every C of a fine ladder the size of the run whose curve is lowest; copies resample runs."""
    seen = observations.select(observations.ok)
    group = run_groups([row.run for row in seen])
    curves = []
    for run in range(int(group.max(initial=-1)) + 1):
        rows = np.flatnonzero(group == run)
        rows = rows[np.argsort(seen.flops[rows], kind="stable")]
        if len(rows) >= 2:
            curves.append((np.log(seen.flops[rows]), np.log(seen.loss[rows]), float(np.log(seen.n_params[rows[0]]))))
    if len({curve[2] for curve in curves}) < LEAST:
        raise FitFailed(
            f"envelope has training curves of {len({curve[2] for curve in curves})} sizes; it needs at least {LEAST}.",
            hint="Give several checkpoints a run: rows that share the column run.",
        )
    ladder = np.linspace(min(c[0][0] for c in curves), max(c[0][-1] for c in curves), ENVELOPE)
    height = np.array([np.interp(ladder, x, y, left=np.inf, right=np.inf) for x, y, _ in curves])
    sizes = np.array([size for *_, size in curves])

    def lowest(use: Floats) -> Floats:
        masked = np.where(use[:, None] > 0, height, np.inf)
        at = sizes[np.argmin(masked, axis=0)]
        inside = np.isfinite(masked.min(axis=0)) & (at > sizes.min()) & (at < sizes.max())
        return np.where(inside, at, np.nan)

    copies = [
        lowest(rng.multinomial(len(sizes), np.full(len(sizes), 1 / len(sizes))).astype(float)) for _ in range(draws)
    ]
    found = lowest(np.ones(len(sizes)))
    keep = np.isfinite(found)
    if len(np.unique(found[keep])) < 3:
        raise FitFailed(
            f"envelope names {len(np.unique(found[keep]))} sizes between the smallest and the largest; it needs 3."
        )
    thinned = np.array(copies).reshape(draws, ENVELOPE)[:, keep]
    return Sizes(ladder[keep], found[keep], np.ones(int(keep.sum())), thinned)


def _kept(groups: tuple[Budget, ...], ln_n: Floats, sd: Floats, copies: Floats) -> Sizes:
    keep = np.isfinite(ln_n)
    ln_c = np.log([group.flops for group in groups])
    return Sizes(ln_c[keep], ln_n[keep], sd[keep], copies[:, keep])


def power_law(sizes: Sizes) -> tuple[Floats, Floats]:
    """(ln G, a) by least squares weighted by 1/sd², (2,), and of every copy (B, 2)."""

    def line(y: Floats) -> Floats:
        known = np.isfinite(y)
        weight = known / sizes.sd**2
        total = weight.sum(axis=1, keepdims=True)
        x0, y0 = ((weight * v).sum(axis=1, keepdims=True) / total for v in (sizes.ln_c, np.where(known, y, 0.0)))
        x, z = sizes.ln_c - x0, np.where(known, y, 0.0) - y0
        slope = (weight * x * z).sum(axis=1) / (weight * x**2).sum(axis=1)
        return np.column_stack([y0[:, 0] - slope * x0[:, 0], slope])

    with np.errstate(invalid="ignore", divide="ignore"):
        draws = line(sizes.copies) if len(sizes.copies) else np.empty((0, 2))
    return line(sizes.ln_n[None])[0], draws[np.isfinite(draws).all(axis=1)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnosis:
    """How the grids of sizes lie about their minima, in factors of N unless said otherwise.

    ``centre`` is the grids' middle over N* (1 = centred), ``drift`` how that changes from the first to the last budget
    (1 = not), ``width`` the half-width of a grid, ``asymmetry`` the share of the parabola's rise at the half-width that
    a cubic term makes (0 = symmetric), ``edge`` how many budgets have no minimum inside their grid.
    """

    centre: float
    drift: float
    width: float
    asymmetry: float
    edge: int


def diagnose(groups: tuple[Budget, ...], ln_n: Floats) -> Diagnosis:
    """Where grids lie; ``ln_n`` (m,) are the vertices, NaN at an edge."""
    inside = np.isfinite(ln_n)
    offset = np.array([0.5 * (g.ln_n[0] + g.ln_n[-1]) for g in groups])[inside] - ln_n[inside]
    half = np.array([0.5 * (g.ln_n[-1] - g.ln_n[0]) for g in groups])
    ln_c = np.log([g.flops for g in groups])[inside]
    drift = float(np.polyfit(ln_c, offset, 1)[0] * np.ptp(ln_c)) if inside.sum() > 1 else 0.0
    skew = [_skew(g, at, h) for g, at, h in zip(groups, ln_n, half, strict=True) if np.isfinite(at)]
    return Diagnosis(
        centre=float(np.exp(np.mean(offset))) if len(offset) else float("nan"),
        drift=float(np.exp(drift)),
        width=float(np.exp(np.mean(half))),
        asymmetry=float(np.median(skew)) if skew else 0.0,
        edge=int((~inside).sum()),
    )


def _skew(group: Budget, at: float, half: float) -> float:
    """A cubic's rise over the parabola's, half a grid from the vertex; positive when small models lose less."""
    if len(group.ln_n) < LEAST + 1:
        return 0.0
    c = np.polyfit(group.ln_n - at, np.exp(group.ln_loss), 3)
    return float(c[0] * half / max(abs(c[1]), 1e-300))


def estimated_bias(groups: tuple[Budget, ...], law: ChinchillaLaw, C: float) -> float:
    """The relative error of D*(C) that these very grids and parabolas make when ``law`` is the truth."""
    planted = tuple(
        Budget(g.flops, g.ln_n, np.log([law.loss(np.exp(x), g.flops / (6 * np.exp(x))) for x in g.ln_n]))
        for g in groups
    )
    sizes = _kept(planted, vertices(planted), np.ones(len(planted)), np.empty((0, len(planted))))
    if len(sizes.ln_n) < 2:
        return float("nan")
    (ln_g, a), _ = power_law(sizes)
    N, _ = law.optimal(C)
    return float(N / np.exp(ln_g + a * np.log(C)) - 1)


def fit_isoflop(
    form: str,
    observations: Observations,
    *,
    bootstrap: int = 200,
    seed: int = 0,
    level: float = 0.9,
    noise: float = 0.002,
) -> Fit:
    """Fit N*(C) by ``form`` (one of ``FORMS``); estimates a, b = 1 − a (D's exponent) and G.

    ``noise`` is the sd of a run's loss, for the Akima copies. Raises ``FitFailed`` when fewer than three budgets have
    a minimum inside their grid.
    """
    rng = np.random.default_rng(seed)
    groups = budgets(observations)
    ways: dict[str, Callable[[], Sizes]] = {
        "envelope": lambda: by_envelope(observations, bootstrap, rng),
        "isoflop": lambda: by_parabolas(groups, bootstrap, rng),
        "isoflop-akima": lambda: by_akima(groups, max(bootstrap, COPIES), rng, noise=noise),
    }
    sizes = ways[form]()
    if len(sizes.ln_n) < 3:
        raise FitFailed(
            f"{form} finds a minimum inside the grid of sizes at {len(sizes.ln_n)} of {len(groups)} budgets; it needs "
            f"3, each with {LEAST} sizes at the same compute.",
            hint="A loss law (chinchilla) needs no budgets: it reads the frontier off a fit to all runs.",
        )
    theta, draws = power_law(sizes)
    residuals = sizes.ln_n - theta[0] - theta[1] * sizes.ln_c
    spread = np.cov(draws.T) if len(draws) > 2 else _plain_covariance(sizes, residuals)
    warnings, extra = _trouble(form, observations, groups, sizes)
    seen = observations.select(observations.ok)
    return Fit(
        form=form,
        equation=EQUATION,
        observation_hash=observations.hash(),
        n_observations=len(seen),
        estimates=_estimates(theta, draws, spread, level),
        level=level,
        objective=float(np.sum((residuals / sizes.sd) ** 2)),
        loss="squared",
        verdict="Weighted least squares in logarithms has one solution.",
        starts=1,
        agreeing=1.0,
        parameters=("ln_g", "a"),
        theta=tuple(theta.tolist()),
        covariance=tuple(tuple(row) for row in spread.tolist()),
        draws=pack(draws),
        residual_rms=float(np.sqrt(np.mean(residuals**2))),
        noise=noise,
        support=support(seen.n_params, seen.n_tokens),
        seed=seed,
        backtest_note="a back-test is of losses; this law gives sizes",
        warnings=warnings,
        checklist=_checklist(form, observations, len(sizes.ln_n), f"{level:.0%} intervals by {len(draws)} copies"),
        extra=extra,
    )


def _estimates(theta: Floats, draws: Floats, spread: Floats, level: float) -> dict[str, Estimate]:
    se_g, se_a = np.sqrt(np.diag(spread))
    return {
        "a": estimate(float(theta[1]), draws[:, 1], float(se_a), level, log=False),
        "b": estimate(float(1 - theta[1]), 1 - draws[:, 1], float(se_a), level, log=False),
        "G": estimate(float(theta[0]), draws[:, 0], float(se_g), level, log=True),
    }


def _checklist(form: str, observations: Observations, used: int, validity: str) -> dict[str, str]:
    return checklist(
        observations,
        used,
        equation=f"{EQUATION} ({FORMS[form]})",
        objective="weighted squares of ln N*",
        algorithm="minima of curves of equal compute, then a line in logarithms",
        starts=1,
        validity=validity,
        choice="as the runs were given",
    )


def _plain_covariance(sizes: Sizes, residuals: Floats) -> Floats:
    X = np.column_stack([np.ones_like(sizes.ln_c), sizes.ln_c])
    return np.asarray(np.linalg.pinv(X.T @ X) * float(np.sum(residuals**2)) / max(len(residuals) - 2, 1))


def _trouble(
    form: str, observations: Observations, groups: tuple[Budget, ...], sizes: Sizes
) -> tuple[tuple[str, ...], dict[str, float]]:
    """Warnings about grids, and the diagnosis as numbers."""
    if form == "envelope":
        return (), {}
    found = diagnose(groups, vertices(groups))
    extra = {name: float(getattr(found, name)) for name in ("centre", "drift", "width", "asymmetry")}
    warnings = []
    if dropped := len(groups) - len(sizes.ln_n):
        warnings.append(
            f"{dropped} of {len(groups)} budgets have no minimum inside their grid of sizes and were left out"
        )
    if not 0.5 < found.drift < 2:
        warnings.append(
            f"the grids drift off centre ×{found.drift:.2g} from the first budget to the last: that bends a"
        )
    law = _law(observations) if form == "isoflop" else None
    if law is not None:
        at = 10 * float(np.exp(sizes.ln_c.max()))
        extra["bias"] = estimated_bias(groups, law, at)
        if abs(extra["bias"]) > BIASED:
            warnings.append(
                f"parabolas on these grids get D* at {at:.2g} FLOP wrong by {extra['bias']:+.0%} on a Chinchilla law fitted "
                "to the same runs: use the frontier of --form chinchilla"
            )
    return tuple(warnings), extra


def _law(observations: Observations) -> ChinchillaLaw | None:
    try:
        made = fit_loss_law(CHINCHILLA, observations, Settings(bootstrap=0))
    except FitFailed:
        return None
    return ChinchillaLaw(**{name: constant.value for name, constant in made.estimates.items()})


def optimal(fit: Fit, C: float) -> tuple[float, float]:
    """N* and D* at ``C`` FLOP."""
    N = float(np.exp(fit.theta[0] + fit.theta[1] * np.log(C)))
    return N, C / (6 * N)
