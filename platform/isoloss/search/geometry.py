"""The plan of a search in exact numbers: levels, budgets, brackets and quotas.

Everything here is integer or rational. Logarithms and floats give one bracket too few for eta 3 and budget 243, and
one configuration too many for eta 10 and budget 1_000_000, and nobody would notice. Notation of Hyperband (Li et al.
2018, Algorithm 1): the level j has resource rho_j = rho_0 eta^j, the top level L has the maximum budget. A bracket is
named by its lowest level b, because deepening (Brandt, Wever et al., Iterative Deepening Hyperband, arXiv 2302.00511)
adds a level above and leaves b and everything that ran alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import pairwise
from typing import Final, Literal

from isoloss.domain.campaign import TARGET, CampaignSpec, Size, levels_added, n_params_of, study_of
from isoloss.domain.spec import StudySpec
from isoloss.errors import InvalidSpec, WrongState

Mode = Literal["resume", "branch", "fresh"]

MAX_ETA: Final = 64
MAX_TOP: Final = 20
MAX_CONFIGURATIONS: Final = 10_000_000
FARTHEST: Final = 64  # levels a deepening is looked for above the top; MAX_TOP then says what is too many
ENDLESS: Final = 2**62  # the quota of a fixed study without limits.trials


@dataclass(frozen=True, slots=True, kw_only=True)
class Ladder:
    """The budgets of a study, level by level, in the budget's unit.

    ``resources`` are the exact rho_j, ``budgets`` what a worker is given (a multiple of ``multiple``), ``forks`` where
    the trunk is left for the decay (equal to the budget unless the mode is ``branch``).
    """

    eta: int
    multiple: int
    mode: Mode
    decay: Fraction
    resources: tuple[Fraction, ...]
    budgets: tuple[int, ...]
    forks: tuple[int, ...]

    @property
    def top(self) -> int:
        """L, the highest level."""
        return len(self.budgets) - 1

    def budget(self, level: int) -> int:
        """What a run has used when it is measured at ``level``."""
        return self.budgets[level]

    def share(self, level: int) -> float:
        """The part of the maximum budget that a run has used at ``level``; 1 for a level there is not."""
        return self.budgets[level] / self.budgets[-1] if level < len(self.budgets) else 1.0

    def fork(self, level: int) -> int:
        """Where the run that goes on to the next level is left: (1 - decay) of the budget in ``branch`` mode."""
        return self.forks[level]

    def budget_from(self, level: int, previous: int | None) -> int:
        """Where a task at ``level`` starts when the trial was last measured at ``previous`` (``None``: never)."""
        return 0 if previous is None or previous >= level or self.mode == "fresh" else self.forks[previous]

    def cost(self, level: int, previous: int | None) -> int:
        """What a task at ``level`` runs when the trial was last measured at ``previous`` (``None``: never)."""
        return self.budget(level) - self.budget_from(level, previous)

    def level_of(self, budget: float) -> int:
        """The level whose budget this is; ``InvalidSpec`` names the budgets there are."""
        if budget not in self.budgets:
            accepted = ", ".join(map(str, self.budgets))
            raise InvalidSpec(f"budget is {budget:g}; accepted are the study's budgets {accepted}.")
        return self.budgets.index(int(budget))

    def deepened(self, max_budget: float) -> Ladder:
        """The ladder with levels added up to ``max_budget``, which must be a power of eta times the maximum.

        The maximum may be named as it was stated or as it was rounded to the multiple. Another one would move every
        level, and old results at the top could not be compared with new ones: ``InvalidSpec`` names the two nearest
        that keep them.
        """
        wanted, top = exact(max_budget, "max_budget"), self.resources[-1]
        for levels in range(1, FARTHEST):
            reached = top * self.eta**levels
            named = (
                float(reached),
                float(self.budgets[-1] * self.eta**levels),
                float(_rounded(reached, self.multiple)),
            )
            if float(wanted) in named:
                return self.extended(levels)
        near = top
        while float(near * self.eta) <= float(wanted):
            near *= self.eta
        near = max(near, top * self.eta)
        why = f" is not above the maximum {said(top)}" if wanted <= top else " is not on the ladder"
        raise InvalidSpec(
            f"max_budget {said(wanted)}{why}; accepted nearest are {said(near)} and {said(near * self.eta)} "
            f"({said(top)} times a power of eta {self.eta})."
        )

    def extended(self, levels: int) -> Ladder:
        """The ladder with so many levels added above."""
        _check_top(self.top + levels, self.eta, self.resources[0])
        more = tuple(self.resources[-1] * self.eta**k for k in range(1, levels + 1))
        return _with_resources(self, self.resources + more)


def exact(value: float, field: str) -> Fraction:
    """The number as it was written: 0.1 is a tenth, not its nearest binary fraction."""
    if not math.isfinite(value) or value <= 0:
        raise InvalidSpec(f"{field} is {value:g}; accepted is a finite number above 0.")
    return Fraction(value) if isinstance(value, int) else Fraction(repr(float(value)))


def said(value: Fraction) -> str:
    """A budget for a sentence: whole when it is whole."""
    return str(value.numerator) if value.denominator == 1 else f"{float(value):.6g}"


def ladder(
    *,
    min_budget: float,
    max_budget: float,
    eta: int = 3,
    multiple: int = 1,
    decay_fraction: float = 0.0,
    mode: Mode = "resume",
) -> Ladder:
    """The levels between two budgets, anchored at the maximum: rho_j = max_budget / eta^(L - j), L as large as can be.

    Raises ``InvalidSpec`` when eta or L is out of bounds, when two budgets are equal after rounding (naming the nearest
    maximum that works) or when a branch has no room for its decay.
    """
    if not isinstance(eta, int) or not 2 <= eta <= MAX_ETA:
        raise InvalidSpec(f"method.eta is {eta}; accepted is a whole number from 2 to {MAX_ETA}.")
    low, high = exact(min_budget, "method.min_budget"), exact(max_budget, "method.max_budget")
    if low > high:
        raise InvalidSpec(f"method.min_budget is {said(low)} and max_budget {said(high)}; accepted is min ≤ max.")
    resources = _resources(low, high, eta)
    _check_top(len(resources) - 1, eta, low)
    blank = Ladder(
        eta=eta, multiple=multiple, mode=mode, decay=Fraction(repr(float(decay_fraction))),
        resources=(), budgets=(), forks=(),
    )  # fmt: skip
    built = _with_resources(blank, resources)
    if not _increasing(built.budgets):
        raise InvalidSpec(_collision(built, low, high))
    _check_forks(built)
    return built


def ladder_of(spec: StudySpec) -> Ladder:
    """The ladder a study starts with; a fixed study has one level."""
    method = spec.method
    low, high = (method.budget,) * 2 if method.name == "fixed" else (method.min_budget, method.max_budget)
    if low is None or high is None:
        raise InvalidSpec(f"method {method.name} lacks its budgets; accepted are min_budget and max_budget, or budget.")
    return ladder(
        min_budget=low, max_budget=high, eta=method.eta, multiple=spec.budget.multiple,
        decay_fraction=spec.fidelity.decay_fraction, mode=spec.fidelity.mode,
    )  # fmt: skip


def configurations(eta: int, top: int, bracket: int) -> int:
    """How many configurations a bracket starts with: ceil((L + 1) eta^s / (s + 1)), s = L - b."""
    s = top - bracket
    return -(-(top + 1) * int(eta**s) // (s + 1))


def quota(eta: int, top: int, bracket: int, level: int, width: int = 1) -> int:
    """How many of a bracket's configurations reach ``level`` in ``width`` pooled iterations: floor(m n / eta^(j - b))."""
    return width * configurations(eta, top, bracket) // int(eta ** (level - bracket))


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A ladder with its brackets: how many configurations the synchronous search sends to every rung.

    ``first`` keeps only the first brackets (``None``: all), ``width`` is how many iterations of Hyperband are pooled.
    ``fixed`` is the number of configurations of a study with one level and one bracket (``None``: Hyperband's numbers);
    an ``endless`` plan has room for everything on every rung (asha).
    """

    ladder: Ladder
    first: int | None = None
    width: int = 1
    fixed: int | None = None
    endless: bool = False

    @property
    def brackets(self) -> int:
        """How many brackets there are."""
        count = self.ladder.top + 1
        return count if self.first is None else min(self.first, count)

    def quotas(self, bracket: int) -> tuple[int, ...]:
        """The bracket's quota at each of its levels, lowest first."""
        eta, top = self.ladder.eta, self.ladder.top
        if self.fixed is not None:
            return (self.fixed,)
        if self.endless:
            return (ENDLESS,) * (top + 1 - bracket)
        return tuple(quota(eta, top, bracket, level, self.width) for level in range(bracket, top + 1))

    def deepened(self, max_budget: float) -> Plan:
        """The plan at a larger maximum; ``WrongState`` for a fixed study, ``InvalidSpec`` for one off the ladder."""
        if self.fixed is not None:
            raise WrongState(
                "A study with method fixed has one budget and cannot be deepened; accepted is method idhb."
            )
        return replace(self, ladder=self.ladder.deepened(max_budget)).checked()

    def widened(self, width: int) -> Plan:
        """The plan with more iterations pooled; ``WrongState`` for a study without quotas, ``InvalidSpec`` unless more."""
        if self.fixed is not None or self.endless:
            raise WrongState(
                "A study with method fixed or asha has no quotas to widen; accepted there is a larger limits.trials."
            )
        if width <= self.width:
            raise InvalidSpec(f"width is {width}; accepted is a whole number above the study's, {self.width}.")
        return replace(self, width=width).checked()

    def checked(self) -> Plan:
        """The plan itself; ``InvalidSpec`` when it has more configurations than a study may."""
        planned = sum(self.quotas(bracket)[0] for bracket in range(self.brackets))
        if self.fixed is None and not self.endless and planned > MAX_CONFIGURATIONS:
            raise InvalidSpec(
                f"method.max_budget {said(self.ladder.resources[-1])} with width {self.width} plans {planned} "
                f"configurations; accepted are at most {MAX_CONFIGURATIONS}, with a larger eta or min_budget, fewer "
                "brackets or less width."
            )
        return self


def plan_of(spec: StudySpec) -> Plan:
    """The checked plan a study starts with; its method is resolved."""
    method = spec.method
    if method.name == "fixed":
        limit = spec.limits.trials
        return Plan(ladder=ladder_of(spec), first=1, fixed=ENDLESS if limit is None else limit)
    brackets = method.brackets or "all"
    return Plan(
        ladder=ladder_of(spec), first=None if brackets == "all" else int(brackets.removeprefix("first:")),
        width=1 if method.width == "auto" else method.width, endless=method.name == "asha",
    ).checked()  # fmt: skip


def _resources(low: Fraction, high: Fraction, eta: int) -> tuple[Fraction, ...]:
    top, reached = 0, low
    while float(reached * eta) <= float(high):  # both exact: a product that no float holds still meets its float
        top, reached = top + 1, reached * eta
    return tuple(high / eta ** (top - level) for level in range(top + 1))


def _with_resources(base: Ladder, resources: tuple[Fraction, ...]) -> Ladder:
    budgets = tuple(_rounded(resource, base.multiple) or base.multiple for resource in resources)
    kept = 1 - base.decay if base.mode == "branch" else Fraction(1)
    forks = tuple(_rounded(kept * budget, base.multiple) for budget in budgets)
    return replace(base, resources=resources, budgets=budgets, forks=forks)


def _rounded(value: Fraction, multiple: int) -> int:
    """The nearest multiple, half up."""
    return math.floor(value / multiple + Fraction(1, 2)) * multiple


def _increasing(budgets: tuple[int, ...]) -> bool:
    return all(a < b for a, b in pairwise(budgets))


def _check_top(top: int, eta: int, low: Fraction) -> None:
    if top > MAX_TOP:
        raise InvalidSpec(
            f"method.max_budget lies {top} powers of eta {eta} above the lowest budget {said(low)}; "
            f"accepted are at most {MAX_TOP}, that is a maximum below {said(low * eta ** (MAX_TOP + 1))}."
        )


def _check_forks(built: Ladder) -> None:
    """A branch needs a trunk before its decay and a decay after its trunk, in whole multiples."""
    if built.mode != "branch" or 0 < built.forks[0] < built.budgets[0]:
        return
    least = max(math.floor(1 / (2 * built.decay)) + 1, math.ceil(1 / (2 * (1 - built.decay)))) * built.multiple
    raise InvalidSpec(
        f"The lowest budget {built.budgets[0]} in multiples of {built.multiple} has no room for a trunk and "
        f"fidelity.decay {float(built.decay):g}; accepted is a lowest budget of at least {least}."
    )


def _collision(built: Ladder, low: Fraction, high: Fraction) -> str:
    """Which budgets are equal, and the nearest maximum that keeps them apart.

    Two levels collide exactly when the second lies below 1.5 multiples, so the answer is either the smallest maximum
    of as many levels with rho_1 = 1.5 multiples, or the largest with fewer levels.
    """
    eta, multiple, top = built.eta, built.multiple, built.top
    smallest = Fraction(3 * multiple, 2)
    more = math.ceil(smallest * eta ** (top - 1) / multiple) * multiple
    fewer = [(math.ceil(low * eta ** (level + 1) / multiple) - 1) * multiple for level in range(top)]
    works = [
        Fraction(maximum)
        for maximum in (more, *fewer)
        if maximum >= low and _increasing(_with_resources(built, _resources(low, Fraction(maximum), eta)).budgets)
    ]
    if works:
        accepted = f"the nearest maximum that works is {said(min(works, key=lambda maximum: abs(maximum - high)))}"
    else:
        accepted = f"no maximum works with min_budget {said(low)}, accepted is one of at least {said(smallest / eta)}"
    shown = ", ".join(map(str, built.budgets))
    return f"method.max_budget {said(high)} gives equal budgets ({shown}, in multiples of {multiple}); {accepted}."


def campaign_cells(spec: CampaignSpec, max_tokens: float) -> dict[tuple[str, int], tuple[float, float]]:
    """(Size, level) → (N, D) of every cell of a campaign whose largest D is ``max_tokens``."""
    cells = {}
    for size in spec.sizes:
        ladder = ladder_of(study_of(spec, size)).extended(levels_added(spec, max_tokens))
        for level in range(ladder.top + 1):
            cells[size.name, level] = n_params_of(spec, size, size.name), float(ladder.budget(level))
    return cells


def confirmable(spec: CampaignSpec, max_tokens: float, flops: float) -> tuple[Size | None, float, float] | None:
    """The cell to confirm for ``flops`` a run: (size, N, D), the target's (size ``None``) or else the dearest of the sizes'.

    ``None`` when even the cheapest costs more.
    """
    target = n_params_of(spec, spec.target, TARGET), float(spec.target.n_tokens)
    cells = {place: cell for place, cell in campaign_cells(spec, max_tokens).items() if 6 * cell[0] * cell[1] <= flops}
    if 6 * target[0] * target[1] <= flops:
        return None, *target
    if not cells:
        return None
    name, level = max(cells, key=lambda place: cells[place][0] * cells[place][1])
    return next(size for size in spec.sizes if size.name == name), *cells[name, level]
