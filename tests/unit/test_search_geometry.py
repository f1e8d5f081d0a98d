"""Levels, budgets, brackets and quotas, exactly; and the sentences for what cannot be."""

from __future__ import annotations

import math
from fractions import Fraction
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isoloss.domain.spec import decode_study
from isoloss.errors import InvalidSpec, WrongState
from isoloss.search.geometry import ENDLESS, Ladder, Plan, configurations, ladder, plan_of, quota

TRAPS = [(eta, k) for eta in range(2, 11) for k in range(1, 21) if math.floor(math.log(eta**k, eta)) != k]


def plan(low: float, high: float, eta: int = 3, first: int | None = None) -> Plan:
    return Plan(ladder=ladder(min_budget=low, max_budget=high, eta=eta), first=first)


def cost(of: Plan) -> tuple[Fraction | int, ...]:
    """Configurations, tasks, and exact budgets: every task from step 0, and from its checkpoint."""
    resources, n, tasks, fresh, resumed = of.ladder.resources, 0, 0, Fraction(0), Fraction(0)
    for b in range(of.brackets):
        counts = of.quotas(b)
        n += counts[0]
        for i, count in enumerate(counts):
            tasks += count
            fresh += count * resources[b + i]
            resumed += count * (resources[b + i] - (resources[b + i - 1] if i else 0))
    return n, tasks, fresh, resumed


def test_the_float_traps_are_there_to_be_avoided() -> None:
    assert len(TRAPS) == 19 and (3, 5) in TRAPS and (10, 3) in TRAPS


@pytest.mark.parametrize(("eta", "k"), TRAPS)
def test_a_power_of_eta_has_all_its_levels(eta: int, k: int) -> None:
    assert ladder(min_budget=1, max_budget=eta**k, eta=eta).budgets == tuple(eta**j for j in range(k + 1))


def test_starting_configurations_are_exact_where_floats_give_one_too_many() -> None:
    assert configurations(5, 6, 0) == 15625
    assert configurations(10, 6, 0) == 1_000_000
    assert math.ceil((6 + 1) * 10**6 / 10**6 * (10**6 / 7)) == 1_000_001


def test_243_has_six_brackets() -> None:
    of = plan(1, 243)
    assert [of.quotas(b)[0] for b in range(of.brackets)] == [243, 98, 41, 18, 9, 6]
    assert cost(of)[1:] == (611, 8457, 6831)


def test_the_rungs_of_81_and_of_32() -> None:
    three, two = plan(1, 81), plan(1, 32, 2)
    assert [three.quotas(b) for b in range(5)] == [
        (81, 27, 9, 3, 1), (34, 11, 3, 1), (15, 5, 1), (8, 2), (5,),
    ]  # fmt: skip
    assert [two.quotas(b) for b in range(6)] == [
        (32, 16, 8, 4, 2, 1), (20, 10, 5, 2, 1), (12, 6, 3, 1), (8, 4, 2), (6, 3), (6,),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("eta", "top", "costs"),
    [
        (2, 2, (10, 14, 34, 28)), (2, 3, (22, 35, 128, 98)), (2, 4, (43, 72, 372, 278)), (2, 5, (84, 152, 1128, 800)),
        (2, 6, (163, 301, 2948, 2062)), (3, 2, (17, 22, 78, 69)), (3, 3, (49, 69, 423, 357)),
        (3, 4, (143, 206, 1902, 1581)),
        (3, 5, (415, 611, 8457, 6831)), (3, 6, (1214, 1806, 33990, 27120)), (4, 2, (25, 31, 136, 124)),
        (4, 3, (98, 127, 1000, 884)), (4, 4, (378, 498, 6000, 5232)), (4, 5, (1478, 1964, 35936, 30716)),
        (4, 6, (5821, 7748, 190076, 161188)),
    ],
)  # fmt: skip
def test_one_hyperband_costs_what_the_tables_say(eta: int, top: int, costs: tuple[int, ...]) -> None:
    assert cost(plan(1, eta**top, eta)) == costs


@pytest.mark.parametrize(
    ("eta", "low", "maxima", "deepened", "restarted"),
    [
        (2, 1, [16, 32], 1128, 1500), (3, 1, [16, 48], 752, Fraction(8016, 9)), (2, 1, [32, 64], 2948, 4076),
        (3, 1, [32, 96], Fraction(60864, 27), Fraction(74400, 27)),
    ],
)  # fmt: skip
def test_the_totals_published_by_the_methods_authors(
    eta: int, low: int, maxima: list[int], deepened: Fraction, restarted: Fraction
) -> None:
    """Exact, before rounding: 890.67, 2254.22 and 2755.56 are rounded there."""
    totals = [cost(plan(low, maximum, eta))[2] for maximum in maxima]
    assert (totals[-1], sum(totals)) == (deepened, restarted)
    chained = plan(low, maxima[0], eta).deepened(maxima[1])
    assert cost(chained)[2] == deepened


@given(eta=st.integers(2, 8), top=st.integers(0, 6), more=st.integers(1, 3))
def test_quotas_only_grow_and_every_last_rung_has_one(eta: int, top: int, more: int) -> None:
    for b in range(top + 1):
        assert quota(eta, top, b, top) >= 1
        for level in range(b, top + 1):
            assert quota(eta, top, b, level) <= quota(eta, top + more, b, level)


@given(st.integers(1, 400), st.integers(1, 4000), st.integers(2, 6), st.sampled_from([1, 4, 7]))
def test_a_ladder_increases_or_names_a_maximum_that_works(low: int, extra: int, eta: int, multiple: int) -> None:
    try:
        budgets = ladder(min_budget=low, max_budget=low + extra, eta=eta, multiple=multiple).budgets
    except InvalidSpec as error:
        words = error.message.removesuffix(".").split()
        named = float(words[-1])
        if "nearest maximum" in error.message:
            budgets = ladder(min_budget=low, max_budget=named, eta=eta, multiple=multiple).budgets
        else:
            better = math.ceil(named)
            budgets = ladder(min_budget=better, max_budget=better + extra, eta=eta, multiple=multiple).budgets
    assert all(a < b and a % multiple == 0 for a, b in pairwise((0, *budgets)))


def test_budgets_are_anchored_at_the_maximum_and_rounded_half_up() -> None:
    assert ladder(min_budget=1, max_budget=50).budgets == (2, 6, 17, 50)
    assert ladder(min_budget=1, max_budget=50).resources[0] == Fraction(50, 27)
    assert ladder(min_budget=0.7, max_budget=6.3).resources == (Fraction(7, 10), Fraction(21, 10), Fraction(63, 10))
    assert ladder(min_budget=5, max_budget=5).budgets == (5,)


def test_where_a_task_starts_depends_on_what_is_reused() -> None:
    def built(mode: str) -> Ladder:
        return ladder(min_budget=10, max_budget=90, mode=mode, decay_fraction=0.2 * (mode == "branch"))  # type: ignore[arg-type]

    assert [built("resume").budget_from(2, p) for p in (None, 0, 1)] == [0, 10, 30]
    assert [built("branch").budget_from(2, p) for p in (None, 0, 1)] == [0, 8, 24]
    assert [built("fresh").budget_from(2, p) for p in (None, 0, 1)] == [0, 0, 0]
    assert built("branch").forks == (8, 24, 72) and built("fresh").forks == (10, 30, 90)
    assert built("resume").level_of(30.0) == 1
    with pytest.raises(InvalidSpec, match=r"budget is 31; accepted are the study's budgets 10, 30, 90"):
        built("resume").level_of(31)


def test_deepening_moves_no_level() -> None:
    before = ladder(min_budget=1, max_budget=50, multiple=1)
    after = before.deepened(450)
    assert after.budgets == (*before.budgets, 150, 450) and after == ladder(min_budget=1, max_budget=450)


@pytest.mark.parametrize(
    ("maximum", "said"),
    [
        (30, r"max_budget 30 is not on the ladder; accepted nearest are 81 and 243"),
        (100, r"max_budget 100 is not on the ladder; accepted nearest are 81 and 243"),
        (300, r"accepted nearest are 243 and 729"),
        (27, r"max_budget 27 is not above the maximum 27; accepted nearest are 81 and 243"),
        (9, r"max_budget 9 is not above the maximum 27"),
        (math.inf, r"max_budget is inf; accepted is a finite number"),
        (27 * 3**30, r"33 powers of eta 3 .* accepted are at most 20"),
    ],
)
def test_deepening_off_the_ladder_is_refused_with_the_nearest_maxima(maximum: float, said: str) -> None:
    with pytest.raises(InvalidSpec, match=said):
        plan(1, 27).deepened(maximum)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"eta": 1}, r"method.eta is 1; accepted is a whole number from 2 to 64"),
        ({"eta": 65}, r"method.eta is 65"),
        ({"min_budget": 0}, r"method.min_budget is 0; accepted is a finite number above 0"),
        ({"max_budget": math.nan}, r"method.max_budget is nan"),
        ({"min_budget": 30}, r"min_budget is 30 and max_budget 27"),
        ({"multiple": 4, "max_budget": 10}, r"equal budgets \(4, 4, 12, .* the nearest maximum that works is 8"),
        ({"min_budget": 0.4, "max_budget": 3.8}, r"equal budgets \(1, 1, 4, .* nearest maximum that works is 3\."),
        ({"min_budget": 0.1}, r"no maximum works with min_budget 0.1, accepted is one of at least 0.5"),
        ({"eta": 2, "max_budget": 2**21}, r"lies 21 powers of eta 2 .* at most 20"),
        ({"mode": "branch", "decay_fraction": 0.2}, r"lowest budget 1 .* no room .*\.decay 0.2; .* at least 3\."),
    ],
)  # fmt: skip
def test_a_ladder_that_cannot_be_is_refused(asked: dict[str, object], said: str) -> None:
    with pytest.raises(InvalidSpec, match=said):
        ladder(**({"min_budget": 1, "max_budget": 27} | asked))  # type: ignore[arg-type]


def test_too_many_configurations_are_refused() -> None:
    with pytest.raises(InvalidSpec, match="configurations; accepted are at most 10000000"):
        plan(1, 10**6, 10).deepened(10**7)


def test_the_plan_of_a_spec() -> None:
    source = {
        "name": "x", "space": {}, "objective": {"metric": "loss"},
        "method": {"min_budget": 1, "max_budget": 27, "brackets": "first:2"},
    }  # fmt: skip
    assert plan_of(decode_study(source)).brackets == 2
    fixed = source | {"method": {"name": "fixed", "budget": 7}}
    assert plan_of(decode_study(fixed)).quotas(0) == (ENDLESS,)
    limited = plan_of(decode_study(fixed | {"limits": {"trials": 12}}))
    assert limited.quotas(0) == (12,) and limited.ladder.budgets == (7,)
    with pytest.raises(WrongState, match="fixed has one budget and cannot be deepened"):
        limited.deepened(21)
