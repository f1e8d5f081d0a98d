"""Which runs to buy next: the cell, learning rates and batch sizes that lower the target's expected regret most per FLOP.

The optimum is a Gaussian field (``field.py``), so what a few runs in a cell would teach about the target is known
before they are run: their gradients on the basin are an information about the cell's own optimum, and conditioning
the joint covariance of cells and target on it gives the target's covariance afterwards. Expected regret is
½ tr(H Σ), with H the basin's curvature at its bottom (Bayesian L-optimal design; Chaloner & Verdinelli 1995).

Runs are bought in small rings about a cell's expected optimum, wide enough to see the basin curve. Buying stops by
itself: a regret of r (of the loss) is what a fraction r / γ of the target's compute would buy, γ = −d ln L / d ln C on
the frontier, and a purchase that costs more compute than it saves is not made.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np

from isoloss.laws.basin import TYPICAL, Basin
from isoloss.laws.evidence import Fit
from isoloss.laws.field import OWN, Field
from isoloss.laws.runs import NOISE
from isoloss.laws.solve import Floats, Prior
from isoloss.laws.surface import CENTRE, EXPONENTS, UNSEEN, basin, coordinates, field_of

RING: Final = 5  # runs of one purchase: two directions, two curvatures and a level leave little to chance
CURVED: Final = 0.005  # excess (ln loss) at which they are placed about an optimum that is known
MISFIT: Final = 0.25  # the share of an excess that the basin's shape gets wrong
MOST: Final = 100  # purchases of one plan: what is seen on the way changes all that follows
FRONTIER_SLOPE: Final = 0.05  # γ
GOLDEN: Final = 2.399963  # radians between the turns of two rings, so that no two share a direction
CENTRE_SD: Final = 1.5  # octaves: how far from the middle of a space its optimum is thought to lie


@dataclass(frozen=True, slots=True, kw_only=True)
class Outlook:
    """The optima of ``cells`` and, last, of the target as they are known now.

    ``cells`` (m + 1, 2) are N and D; ``mean`` (m + 1, 2) and ``covariance`` (2m + 2, 2m + 2) are of (log2 lr, log2
    batch); ``basin`` and ``noise`` (of a run, in ln loss) are those of the fit.
    """

    cells: Floats
    mean: Floats
    covariance: Floats
    basin: Basin
    noise: float
    batch_varied: bool = True

    @classmethod
    def by(cls, fit: Fit, cells: Floats, target: tuple[float, float]) -> Outlook:
        """What a fit of the joint surface knows of ``cells`` (m, 2: N and D) and the target (N, D)."""
        every = np.vstack([cells, target])
        mean, covariance = field_of(fit).at(coordinates(fit, every[:, 0], every[:, 1]))
        return cls(cells=every, mean=mean, covariance=covariance, basin=basin(fit), noise=fit.noise,
                   batch_varied=bool(fit.extra["batch_varied"]))  # fmt: skip

    @classmethod
    def nothing(
        cls, cells: Floats, target: tuple[float, float], middle: tuple[float, float], *, beliefs: str = "sp"
    ) -> Outlook:
        """What is known without any run: ``middle`` of the space (log2 lr, log2 batch), and beliefs on exponents."""
        every = np.vstack([cells, target])
        believed = EXPONENTS[beliefs] | {"u": (middle[0], CENTRE_SD), "v": (middle[1], CENTRE_SD)}
        centre, sd = np.array([believed[name] for name in CENTRE]).T
        field = Field.given(np.empty((0, 7)), Prior(centre, sd**-2))
        mean, covariance = field.at(np.log2(every) - np.log2(cells).mean(axis=0))
        return cls(cells=every, mean=mean, covariance=covariance, basin=TYPICAL, noise=NOISE[0])

    @property
    def flops(self) -> Floats:
        """6 N D of every cell and, last, the target, (m + 1,)."""
        return 6 * self.cells[:, 0] * self.cells[:, 1]

    @property
    def regret(self) -> float:
        """The target's expected regret, ½ tr(H Σ), as a fraction of loss."""
        return float(0.5 * np.sum(curvature(self.basin) * self.covariance[-2:, -2:]))

    def after(self, cell: int, offsets: Floats) -> Outlook:
        """The outlook once runs at ``offsets`` (k, 2) from the optimum of ``cell`` have been seen, whatever they say."""
        at, cov = slice(2 * cell, 2 * cell + 2), self.covariance
        told = np.linalg.inv(information(self.basin, self.noise, offsets) + UNSEEN * np.eye(2)) + OWN**2 * np.eye(2)
        return replace(self, covariance=cov - cov[:, at] @ np.linalg.solve(cov[at, at] + told, cov[at, :]))


def affordable(cells: Floats, target: tuple[float, float]) -> Floats:
    """Of ``cells`` (m, 2: N and D) those whose run costs less than the target's."""
    return np.asarray(cells[cells[:, 0] * cells[:, 1] < target[0] * target[1] * (1 - 1e-9)])


def candidates(sizes: Sequence[float], columns: Sequence[float], target: tuple[float, float]) -> Floats:
    """Every size with every token count (m, 2) whose run costs less than the target's."""
    return affordable(np.array([(n, d) for n in sizes for d in columns], dtype=np.float64).reshape(-1, 2), target)


@dataclass(frozen=True, slots=True, kw_only=True)
class Purchase:
    """A few runs of one cell: ``places`` (k, 2) as log2 lr and log2 batch, and what they do for the target's regret."""

    n_params: float
    n_tokens: float
    cell: int
    places: Floats
    flops: float
    regret_before: float
    regret_after: float
    worth: bool

    @property
    def saved(self) -> float:
        """By how much the target's expected regret falls (fraction of loss)."""
        return self.regret_before - self.regret_after

    def to_mapping(self) -> dict[str, Any]:
        """The JSON of ``law plan --json``."""
        runs = [{"lr": float(2.0**u), "batch_tokens": float(2.0**v)} for u, v in self.places]
        names = ("n_params", "n_tokens", "flops", "regret_before", "regret_after", "worth")
        return {**{name: getattr(self, name) for name in names}, "runs": runs}


def curvature(basin: Basin) -> Floats:
    """H (2, 2), the basin's second derivatives at its bottom, in ln loss per octave²."""
    q1, r, q2 = float(basin.q1), float(basin.r), float(basin.q2)
    return np.array([[q1, q1 * r], [q1 * r, q1 * r**2 + q2]])


def ring(basin: Basin, covariance: Floats, turn: float) -> Floats:
    """Offsets (RING, 2) about a cell's expected optimum, on an ellipse turned by ``turn`` (radians).

    As wide as the basin needs to rise by ``CURVED``, or as the optimum (covariance (2, 2)) is uncertain.
    """
    angles = turn + 2 * np.pi * np.arange(RING) / RING
    circle = np.column_stack([np.cos(angles), np.sin(angles)])
    by_basin = circle @ np.linalg.cholesky(np.linalg.inv(curvature(basin)) * 2 * CURVED).T
    by_doubt = circle @ np.linalg.cholesky(covariance + 1e-9 * np.eye(2)).T
    wider = np.linalg.norm(by_basin, axis=1) > np.linalg.norm(by_doubt, axis=1)
    return np.where(wider[:, None], by_basin, by_doubt)


def information(basin: Basin, noise: float, offsets: Floats) -> Floats:
    """What runs at ``offsets`` (k, 2) from an optimum say about it: (2, 2), their level unknown."""
    f, _, slope = basin.gradient(offsets[:, 0], offsets[:, 1])
    weight = 1 / (noise**2 + (MISFIT * f) ** 2)
    J = np.column_stack([np.ones_like(f), -slope])
    normal = (J.T * weight) @ J
    return np.asarray(normal[1:, 1:] - np.outer(normal[1:, 0], normal[0, 1:]) / normal[0, 0])


def purchases(outlook: Outlook, budget: float, *, turn: float = 0.0) -> list[Purchase]:
    """One purchase for every cell that ``budget`` (FLOP) can pay, most regret saved per FLOP first.

    A purchase is ``worth`` its price when the compute it saves at the target exceeds it.
    """
    found = []
    for i, price in enumerate(RING * outlook.flops[:-1]):
        if price > budget:
            continue
        at = slice(2 * i, 2 * i + 2)
        offsets = ring(outlook.basin, outlook.covariance[at, at], turn)
        if not outlook.batch_varied:
            offsets = np.column_stack([np.abs(offsets[:, 0]).max() * np.linspace(-1, 1, RING), np.zeros(RING)])
        before, after = outlook.regret, outlook.after(i, offsets).regret
        found.append(
            Purchase(
                n_params=float(outlook.cells[i, 0]),
                n_tokens=float(outlook.cells[i, 1]),
                cell=i,
                places=outlook.mean[i] + offsets,
                flops=float(price),
                regret_before=before,
                regret_after=after,
                worth=bool((before - after) / FRONTIER_SLOPE > price / outlook.flops[-1]),
            )
        )
    return sorted(found, key=lambda purchase: -purchase.saved / purchase.flops)


def plan(outlook: Outlook, budget: float, *, thrifty: bool = True, most: int = MOST) -> list[Purchase]:
    """The first ``most`` purchases to make with ``budget`` (FLOP); with ``thrifty`` as far as they are worth their price.

    What later runs will say is not known, but how much they will teach is: the list is what would be bought if every
    optimum turned out where it is expected. Buy the first, observe, and plan again.
    """
    bought: list[Purchase] = []
    while len(bought) < most:
        offers = purchases(outlook, budget, turn=GOLDEN * len(bought))
        if not offers or (thrifty and not offers[0].worth):
            break
        chosen = offers[0]
        bought.append(chosen)
        budget -= chosen.flops
        outlook = outlook.after(chosen.cell, chosen.places - outlook.mean[chosen.cell])
    return bought
