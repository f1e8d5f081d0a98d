"""Which runs to buy next for a loss law: those that take most doubt off the forecast of dear runs per FLOP.

Every law is linearised at its fit, so what it says of ln L at candidates and targets is a normal vector with covariance
J Σ Jᵀ. Laws disagree as well; matching the moments of their mixture adds the spread of their means. What remains is one
Gaussian over candidates and targets, in which a run at candidate i lowers the targets' mean variance by

    mean_t C_ti² / (C_ii + σ_i²)

whatever it says (V-optimal design; Chaloner & Verdinelli 1995). A law that fits small runs is off at large ones by more
than its constants admit, so σ_i grows with the distance from the targets: without that, cheap runs would seem to say
everything. Buy a batch, run it, fit again, plan again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from isoloss.errors import InvalidSpec
from isoloss.laws.evidence import Fit
from isoloss.laws.lossform import linearised
from isoloss.laws.lossforms import LOSS_FORMS
from isoloss.laws.mixture import leanings
from isoloss.laws.solve import Floats

MISFIT: Final = 0.006  # sd of ln loss by which a law goes astray per e-fold of compute between a run and the target
LEAST_NOISE: Final = 1e-4  # of a run, in ln loss: nothing is repeated more exactly
LITTLE: Final = 0.01  # the part of the doubt that a run should take away to be worth naming
OPENING: Final = 0.2  # the share of a budget that may go into runs chosen before anything is fitted


@dataclass(frozen=True, slots=True, kw_only=True)
class LossOutlook:
    """What is known of the loss at m candidates and, after them, t targets.

    ``covariance`` (m + t, m + t) is of ln L, ``variance`` (m,) that of what a run at a candidate says of it, and
    ``flops`` (m,) its price.
    """

    covariance: Floats
    variance: Floats
    flops: Floats

    @classmethod
    def by(cls, laws: Sequence[Fit], x: Mapping[str, Floats], flops: Floats, target_flops: Floats) -> LossOutlook:
        """What loss laws fitted to the runs so far know.

        ``x`` gives, for each law's form, the logarithms (columns, m + t) of candidates and targets; ``flops`` (m,) are
        the candidates' prices, ``target_flops`` the targets'. Raises ``InvalidSpec`` when there is no law.
        """
        if not laws:
            raise InvalidSpec("a plan for the loss was asked of no loss law; accepted is at least one.")
        share = leanings(laws)
        said = [linearised(LOSS_FORMS[law.form], np.array(law.theta), x[law.form]) for law in laws]
        means = np.array([mean for mean, _ in said])
        apart = means - share @ means
        within = [
            jacobian @ np.array(law.covariance) @ jacobian.T for law, (_, jacobian) in zip(laws, said, strict=True)
        ]
        noise = max(float(share @ np.array([law.noise for law in laws])), LEAST_NOISE)
        away = np.abs(np.log(flops) - np.log(target_flops).mean())
        return cls(
            covariance=np.einsum("k,kij->ij", share, np.array(within)) + (apart.T * share) @ apart,
            variance=noise**2 + (MISFIT * away) ** 2,
            flops=flops,
        )

    @property
    def error(self) -> float:
        """The expected error of the forecast: the root of the targets' mean variance, as a fraction of loss."""
        return float(np.sqrt(max(float(np.mean(np.diag(self.covariance)[len(self.flops) :])), 0.0)))

    @property
    def saved(self) -> Floats:
        """By how much a run at each candidate would lower the targets' mean variance, (m,)."""
        count = len(self.flops)
        across = np.mean(self.covariance[count:, :count] ** 2, axis=0)
        return np.asarray(across / (np.diag(self.covariance)[:count] + self.variance))

    def after(self, candidate: int) -> LossOutlook:
        """The outlook once ``candidate`` has been run, whatever it says."""
        column = self.covariance[:, candidate]
        told = np.outer(column, column) / (column[candidate] + self.variance[candidate])
        return replace(self, covariance=self.covariance - told)


@dataclass(frozen=True, slots=True, kw_only=True)
class LossPurchase:
    """One run: which candidate, its price, and the forecast's expected error (fraction of loss) before and after it."""

    candidate: int
    flops: float
    error_before: float
    error_after: float


def plan(
    outlook: LossOutlook, budget: float, *, taken: NDArray[np.bool_] | None = None, least: float = 0.0
) -> list[LossPurchase]:
    """The runs to buy with ``budget`` (FLOP), in order: each takes most variance off the targets per FLOP.

    No candidate is bought twice, nor one that is ``taken`` (m,), nor one that would take less than the fraction
    ``least`` off the targets' variance.
    """
    bought: list[LossPurchase] = []
    left = np.ones(len(outlook.flops), dtype=bool) if taken is None else ~taken
    while np.any(offers := left & (outlook.flops <= budget) & (outlook.saved >= least * outlook.error**2)):
        chosen = int(np.argmax(np.where(offers, outlook.saved / outlook.flops, -1.0)))
        before, outlook = outlook.error, outlook.after(chosen)
        price, after = float(outlook.flops[chosen]), min(outlook.error, before)
        bought.append(LossPurchase(candidate=chosen, flops=price, error_before=before, error_after=after))
        left[chosen] = False
        budget -= price
    return bought


def opening(
    x: Floats,
    flops: Floats,
    budget: float,
    count: int,
    rng: np.random.Generator,
    *,
    taken: NDArray[np.bool_] | None = None,
) -> list[int]:
    """Up to ``count`` candidates to run before anything can be fitted: cheap, and far apart.

    ``x`` (columns, m) are logarithms, ``flops`` (m,) prices, ``taken`` (m,) what was run before. Each costs no more than
    its part of ``OPENING`` of the ``budget``, or is among the ``count`` cheapest. The first is drawn, each further one
    is the farthest from all chosen.
    """
    old = np.zeros(len(flops), dtype=bool) if taken is None else taken
    if old.all():
        return []
    dear = max(OPENING * budget / count, float(np.sort(flops[~old])[:count][-1]))
    cheap = np.flatnonzero(~old & (flops <= min(dear, budget)))
    chosen: list[int] = []
    while len(chosen) < min(count, len(cheap)):
        known = [*np.flatnonzero(old), *chosen]
        gaps = (
            np.sum((x[:, cheap, None] - x[:, None, known]) ** 2, axis=0).min(axis=1)
            if known
            else rng.random(len(cheap))
        )
        chosen.append(int(cheap[np.argmax(gaps)]))
    total = np.cumsum(flops[chosen])
    return [one for one, spent in zip(chosen, total, strict=True) if spent <= budget]
