"""Training compute as one chooses to count it, and how far conclusions hang on that and other choices.

FLOP per token, forward and backward (Kaplan et al. 2020, table 1; Hoffmann et al. 2022, appendix F; Porian et al. 2024,
appendix B), with N without embeddings, width d, depth L, vocabulary V and sequence length s:

    6n           6 N
    head         6 (N + V d)
    attention    6 (N + V d) + 6 L s d       (causal: half of the 12 L s d of full attention)
    active       6 n_active                  (experts that a token does not see cost nothing)
    given        the column flops

Small models with large vocabularies and long contexts differ by tens of percent between these rules, and so do the
exponents read off budgets of equal compute.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Final

import numpy as np

from isoloss.errors import FitFailed, InvalidSpec
from isoloss.laws.observation import Observations
from isoloss.laws.solve import Floats

NEEDS: Final[dict[str, tuple[str, ...]]] = {
    "6n": (),
    "head": ("width", "vocab"),
    "attention": ("width", "vocab", "depth", "seq_len"),
    "active": ("n_active",),
    "given": ("flops",),
}


def _per_token(rule: str, N: Floats, column: dict[str, Floats]) -> Floats:
    if rule == "6n":
        return 6 * N
    if rule == "active":
        return 6 * column["n_active"]
    head = 6 * (N + column["vocab"] * column["width"])
    return head if rule == "head" else head + 6 * column["depth"] * column["seq_len"] * column["width"]


def counted(observations: Observations, rule: str) -> Observations:
    """The same runs counted by ``rule``: ``flops``, and N as FLOP per token / 6, so that C = 6 N D holds for every law.

    Raises ``InvalidSpec`` naming a rule, or a column that is not there.
    """
    if rule not in NEEDS:
        raise InvalidSpec(f"the FLOP rule is {rule!r}; accepted is one of {', '.join(NEEDS)}.")
    columns = {name: _column(observations, name, rule) for name in NEEDS[rule]}
    if rule == "given":
        return observations
    per_token = _per_token(rule, observations.n_params, columns)
    return Observations(
        tuple(
            replace(row, n_params=float(c) / 6, flops=float(c) * row.n_tokens)
            for row, c in zip(observations, per_token, strict=True)
        )
    )


def possible(observations: Observations) -> tuple[str, ...]:
    """The rules for which the observations have the columns."""
    found = []
    for rule in NEEDS:
        try:
            counted(observations, rule)
        except InvalidSpec:
            continue
        found.append(rule)
    return tuple(found)


def _column(observations: Observations, name: str, rule: str) -> Floats:
    values = [row.flops if name == "flops" else row.extras.get(name, np.nan) for row in observations]
    numbers = np.array([value if isinstance(value, float) else np.nan for value in values])
    if missing := int(np.sum(~(numbers > 0))):
        raise InvalidSpec(
            f"{missing} of {len(numbers)} rows have no {name}; the FLOP rule {rule} accepts a number above 0 in "
            f"{', '.join(NEEDS[rule])}.",
            hint="Name other columns with --columns theirs=ours.",
        )
    return numbers


@dataclass(frozen=True, slots=True, kw_only=True)
class Conclusion:
    """What one analyst's choices conclude: the exponent of N*, and N*, D* and D*/N* at the target's compute.

    ``None`` where that fit failed, and ``why``.
    """

    choice: str
    a: float | None = None
    n_params: float | None = None
    n_tokens: float | None = None
    why: str = ""

    @property
    def tokens_per_param(self) -> float | None:
        """D*/N*."""
        return self.n_tokens / self.n_params if self.n_params and self.n_tokens else None


Optimum = Callable[[Observations, str, float], tuple[float, float]]  # observations, loss, C -> N*, D*


def sensitivity(
    observations: Observations, C: float, optimum: Optimum, *, loss: str = "huber:1e-3"
) -> list[Conclusion]:
    """The conclusions at ``C`` FLOP when one choice at a time is changed, the plain analysis first.

    ``optimum`` gives N* and D* at a compute, from observations fitted with a loss. Changed are the FLOP rule (where
    the columns allow another), the robust loss, the five largest losses left out, the half with least compute left
    out, and the fifth with most.
    """
    used = observations.select(observations.ok)
    order = np.argsort(used.flops, kind="stable")
    rank = np.argsort(order, kind="stable")
    worst = np.argsort(used.loss)[-5:]
    subsets = {
        "without the 5 largest losses": ~np.isin(np.arange(len(used)), worst),
        "only the half with most compute": rank >= len(used) // 2,
        "without the fifth with most compute": rank < len(used) * 4 // 5,
    }
    plain = partial(_as_is, used)
    trials: list[tuple[str, Callable[[], Observations], str]] = [("as asked", plain, loss)]
    trials += [(f"FLOP by {rule}", partial(counted, used, rule), loss) for rule in possible(used) if rule != "given"]
    trials += [(f"loss {other}", plain, other) for other in ("lad", "huber:1e-2", "squared") if other != loss]
    trials += [(name, partial(used.select, mask), loss) for name, mask in subsets.items()]
    return [_concluded(name, make, robust, C, optimum) for name, make, robust in trials]


def _as_is(observations: Observations) -> Observations:
    return observations


def _concluded(choice: str, make: Callable[[], Observations], loss: str, C: float, optimum: Optimum) -> Conclusion:
    try:
        seen = make()
        (N, D), (near, _) = optimum(seen, loss, C), optimum(seen, loss, C / 4)
    except (FitFailed, InvalidSpec) as error:
        return Conclusion(choice=choice, why=error.message)
    return Conclusion(choice=choice, a=float(np.log(N / near) / np.log(4)), n_params=N, n_tokens=D)
