"""The asynchronous search against two oracles without increments: the synchronous plan, and the rules read literally.

Random geometry, every variant, values with ties and failures, 1 to 64 workers, orders and moments of deepening and
widening. Properties have the numbers S1 … S15.
"""

from __future__ import annotations

import heapq
import json
import math
import os
import random
from collections.abc import Container
from dataclasses import dataclass, field, replace
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from isoloss.domain.spec import StudySpec, decode_study
from isoloss.search import geometry, rung, search
from isoloss.search.deepening import Bracket
from isoloss.search.events import (
    Asked,
    CreateTask,
    CreateTrial,
    Decision,
    Deepened,
    Event,
    Idle,
    Rescored,
    Retried,
    Stopped,
    TaskDone,
    Widened,
    decision_from_mapping,
    event_from_mapping,
    to_mapping,
)
from isoloss.search.replay import replay
from isoloss.search.search import Search

CASES = int(os.environ.get("ISOLOSS_CASES", "30"))  # `poe properties` says 1000
Place = tuple[int, int, int]  # bracket, index, level
Sets = dict[int, dict[int, tuple[int, ...]]]  # bracket -> level -> indices


@dataclass(frozen=True, kw_only=True)
class Case:
    """One random study: its geometry, its values, who works on it, and when it is deepened or widened."""

    eta: int
    start: int
    changes: tuple[tuple[int, str], ...]  # (results after which, deepen | widen): one level, one iteration more
    first: int | None
    order: str
    workers: int
    digits: int
    noise: float
    failures: float
    seed: int
    variant: str = "settled"
    sync: bool = False

    @property
    def end(self) -> int:
        return self.start + sum(what == "deepen" for _, what in self.changes)

    @property
    def width(self) -> int:
        return 1 + sum(what == "widen" for _, what in self.changes)

    @property
    def kept(self) -> str:
        return {"efficient": "promoted", "preserving": "pool"}.get(self.variant, "none")

    def spec(self, top: int | None = None) -> StudySpec:
        method = {
            "min_budget": 1, "max_budget": self.eta ** (self.start if top is None else top), "eta": self.eta,
            "brackets": "all" if self.first is None else f"first:{self.first}", "order": self.order,
            "variant": self.variant, "sync": self.sync, "sampler": "random",
        }  # fmt: skip
        return decode_study(
            {"name": "case", "space": {"x": {"type": "float", "low": 0, "high": 1}}, "objective": {"metric": "loss"},
             "method": method, "seed": self.seed % 1000}
        )  # fmt: skip

    def score(self, place: Place) -> float | None:
        """A value of (bracket, index, level) only, with ties when there are few digits."""
        bracket, index, level = place
        base = random.Random(f"{self.seed} {bracket} {index}")
        quality, luck, fails_from = base.random(), base.random(), base.randrange(self.end + 1)
        noisy = quality + random.Random(f"{self.seed} {place}").gauss(0, self.noise)
        return None if luck < self.failures and level >= fails_from else round(noisy, self.digits)


def n_start(eta: int, top: int, bracket: int) -> int:
    return math.ceil(Fraction((top + 1) * eta ** (top - bracket), top - bracket + 1))


def n_at(eta: int, top: int, bracket: int, level: int, width: int = 1) -> int:
    return math.floor(Fraction(width * n_start(eta, top, bracket), eta ** (level - bracket)))


def order(score: float | None, index: int) -> tuple[bool, float, int]:
    return (score is None, score or 0.0, index)


def plan(
    eta: int, top: int, brackets: int, results: dict[Place, float | None], *, width: int = 1, kept: str = "none",
    created: Container[Place] = (),
) -> Sets:  # fmt: skip
    """The member sets above the first rungs, as far as these results determine them (search.md 2.2, word for word).

    The first rung holds the first configurations of the stream; each next rung, once everybody in the one below has a
    result, the best of those (none), the best of all measured there (pool), or those promoted already and the best of
    the rest (promoted). Failures are never promoted.
    """
    sets: Sets = {}
    for b in range(brackets):
        members = set(range(n_at(eta, top, b, b, width)))
        sets[b] = {}
        for j in range(b, top):
            there = {k for k in range(n_at(eta, top, b, b, width)) if (b, k, j) in created} if kept != "none" else set()
            if any((b, k, j) not in results for k in members | there):
                break
            quota = n_at(eta, top, b, j + 1, width)
            promoted = {k for k in there if (b, k, j + 1) in created} if kept == "promoted" else set()
            pool = members if kept == "none" else there
            ranked = [key for key in sorted(order(results[b, k, j], k) for k in pool - promoted) if not key[0]]
            members = promoted | {k for _, _, k in ranked[: max(0, quota - len(promoted))]}
            sets[b][j + 1] = tuple(sorted(members))
    return sets


@dataclass
class Book:
    """What a literal reader of the rules keeps: everything created and every result, no order, no increments."""

    case: Case
    top: int
    width: int = 1
    passed: list[tuple[int, int]] = field(default_factory=list)  # every (L, m) it went through
    started: dict[int, int] = field(default_factory=dict)
    created: dict[Place, int] = field(default_factory=dict)
    results: dict[Place, float | None] = field(default_factory=dict)
    ledger: list[tuple[Event, tuple[Decision, ...]]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.passed.append((self.top, self.width))

    def change(self, what: str) -> Event:
        self.top, self.width = self.top + (what == "deepen"), self.width + (what == "widen")
        self.passed.append((self.top, self.width))
        return Deepened(max_budget=self.case.eta**self.top) if what == "deepen" else Widened(width=self.width)

    @property
    def brackets(self) -> int:
        return self.top + 1 if self.case.first is None else min(self.case.first, self.top + 1)

    def plan(self) -> Sets:
        return plan(
            self.case.eta, self.top, self.brackets, self.results, width=self.width, kept=self.case.kept,
            created=self.created,
        )  # fmt: skip

    def next(self) -> Place | None:
        """The place the rules would fill next, worked out from nothing."""
        eta, top, sets = self.case.eta, self.top, self.plan()
        ready = []
        for b in range(self.brackets):
            for j in range(b, top):
                sent = {k for bb, k, jj in self.created if bb == b and jj == j + 1}
                ranked = sorted(order(v, k) for (bb, k, jj), v in self.results.items() if bb == b and jj == j)
                settled = j + 1 in sets[b]
                if settled:
                    candidates = [key for key in ranked if key[2] in sets[b][j + 1]]
                else:
                    room = not self.case.sync and len(sent) < n_at(eta, top, b, j + 1, self.width)
                    candidates = ranked[: len(ranked) // eta] if room else []
                ready += [(-j, key, b, settled) for key in candidates if not key[0] and key[2] not in sent]
        vacant = [b for b in range(self.brackets) if self.started.get(b, 0) < n_at(eta, top, b, b, self.width)]
        patient = self.case.order == "patient" or (self.case.order == "auto" and len(self.passed) == 1)
        if patient and vacant:
            ready = [entry for entry in ready if entry[3]]
        if ready:
            minus_level, (_, _, index), b, _ = min(ready)
            return b, index, 1 - minus_level
        return (vacant[0], self.started.get(vacant[0], 0), vacant[0]) if vacant else None


def play(case: Case, *, check: bool = True, restart: bool = False) -> tuple[Search, Book]:
    """A study with virtual workers until nothing is left, with every decision checked against the book."""
    fold, book = Search(case.spec()), Book(case=case, top=case.start)
    clock, idle, changes = 0.0, case.workers, list(case.changes)
    running: list[tuple[float, int, Place]] = []
    pace, chance = random.Random(case.seed), random.Random(case.seed + 1)
    while True:
        while changes and len(book.results) >= changes[0][0]:
            tell(fold, book, book.change(changes.pop(0)[1]))
        while idle and (place := ask(fold, book, check=check)) is not None:
            heapq.heappush(running, (clock + pace.lognormvariate(0, 1) * case.eta ** place[2], len(book.ledger), place))
            idle -= 1
        if not running:
            if not changes:
                return fold, book
            changes[0] = (0, changes[0][1])
            continue
        clock, _, place = heapq.heappop(running)
        idle += 1
        before = fold.best()
        book.results[place] = case.score(place)
        tell(fold, book, done(book, place))
        after = fold.best()
        assert before is None or (after is not None and after.score <= before.score), "S14"
        if check and chance.random() < 0.1:
            assert by_index(fold) == book.plan()
        if restart and chance.random() < 0.05:
            fold = Search.restore(case.spec(), json.loads(json.dumps(fold.snapshot())))


def ask(fold: Search, book: Book, *, check: bool) -> Place | None:
    expected, startable = (book.next() if check else None), fold.startable()
    decisions = tell(fold, book, Asked(n=1))
    if decisions == (Idle(),):
        assert not startable and (not check or expected is None), "S13"
        return None
    task = decisions[-1]
    assert startable and isinstance(task, CreateTask)
    trial = fold.trial(task.trial)
    place = (trial.bracket, trial.index, task.level)
    assert not check or place == expected
    assert place not in book.created, "S1"
    below = (*place[:2], place[2] - 1)
    if isinstance(decisions[0], CreateTrial):
        assert place[0] == place[2] and book.started.get(place[0], 0) == place[1]
        book.started[place[0]] = place[1] + 1
    else:
        assert book.results[below] is not None, "S2, S12"
    assert task.budget_from == (fold.ladder.budget(below[2]) if below in book.created else 0)
    book.created[place] = task.trial
    return place


def tell(fold: Search, book: Book, event: Event) -> tuple[Decision, ...]:
    decisions = fold.apply(event)
    book.ledger.append((event, decisions))
    return decisions


def done(book: Book, place: Place) -> TaskDone:
    score = book.results[place]
    return TaskDone(
        trial=book.created[place], level=place[2], status="failed" if score is None else "ok", score=score
    )  # fmt: skip


def by_index(fold: Search) -> Sets:
    """The settled sets above each first rung, as stream indices."""
    return {
        bracket: {
            j: tuple(sorted(fold.trial(t).index for t in members)) for j, members in levels.items() if j > bracket
        }
        for bracket, levels in fold.settled().items()
    }


def check_case(case: Case, *, restart: bool = False) -> None:
    fold, book = play(case, restart=restart)
    assert fold.idle and (fold.ladder.top, fold.width) == (case.end, case.width)
    check_sets(case, fold, book)
    highest: dict[tuple[int, int], int] = {}
    for b, k, j in book.created:
        highest[b, k] = max(highest.get((b, k), 0), j)
    spent = sum(d.budget_to - d.budget_from for _, made in book.ledger for d in made if isinstance(d, CreateTask))
    assert spent == sum(case.eta**level for level in highest.values()), "S15"
    best = fold.best()
    assert best is None or not math.isnan(best.score), "S12"


def check_sets(case: Case, fold: Search, book: Book) -> None:
    """Who was measured where in the end, by what the variant promises."""
    scratch = {
        (b, k, j): case.score((b, k, j))
        for b in range(book.brackets)
        for k in range(n_at(case.eta, book.top, b, b, book.width))
        for j in range(b, book.top + 1)
    }
    if case.kept == "none":
        settled = plan(case.eta, book.top, book.brackets, scratch, width=book.width)
        assert by_index(fold) == settled, "S5, S6"
    else:
        assert by_index(fold) == book.plan()
    for b, levels in by_index(fold).items():
        for j, members in levels.items():
            assert all((b, k, j) in book.results for k in members)
            there = sum(bb == b and jj == j for bb, _, jj in book.results)
            quotas = [n_at(case.eta, top, b, j, width) if top >= j else 0 for top, width in book.passed]
            assert case.failures or there >= quotas[-1], "S7"
            assert case.kept != "promoted" or there <= quotas[-1], "S4"
            assert not case.sync or there <= sum(quotas), "S7"


GEOMETRIES = [
    (eta, start, end - start)
    for eta, ends in ((2, (2, 3, 4, 5)), (3, (1, 2, 3)), (4, (1, 2)))
    for end in ends
    for start in range(max(0, end - 2), end + 1)
]


ALL = (("settled", False), ("efficient", False), ("discarding", True), ("preserving", True), ("efficient", True))
FROM_SCRATCH = (("settled", False), ("discarding", True))


@st.composite
def cases(draw: st.DrawFn, variants: tuple[tuple[str, bool], ...] = ALL) -> Case:
    eta, start, deeper = draw(st.sampled_from([(2, 0, 0), *GEOMETRIES]))
    whats = ["deepen"] * deeper + ["widen"] * draw(st.sampled_from([0, 0, 1, 2]))
    moments = sorted(draw(st.integers(0, 150)) for _ in whats)
    variant, sync = draw(st.sampled_from(variants))
    return Case(
        eta=eta, start=start, changes=tuple(zip(moments, draw(st.permutations(whats)), strict=True)),
        first=draw(st.sampled_from([None, None, 1, 2])), order=draw(st.sampled_from(["auto", "eager", "patient"])),
        workers=draw(st.sampled_from([1, 2, 8, 64])), digits=draw(st.sampled_from([1, 9])),
        noise=draw(st.sampled_from([0.0, 0.05, 0.3])), failures=draw(st.sampled_from([0.0, 0.1, 0.9])),
        seed=draw(st.integers(0, 2**32)), variant=variant, sync=sync,
    )  # fmt: skip


@settings(deadline=None, max_examples=max(150, CASES))
@given(case=cases())
def test_every_decision_is_the_rules_and_the_end_is_what_the_variant_promises(case: Case) -> None:
    check_case(case)


@pytest.mark.long
@settings(deadline=None, max_examples=1500)
@given(case=cases())
def test_a_thousand_random_studies_with_restarts_in_between(case: Case) -> None:
    check_case(case, restart=True)


@settings(deadline=None, max_examples=CASES)
@given(case=cases())
def test_restarting_from_snapshots_changes_nothing(case: Case) -> None:
    assert play(case, check=False)[1].ledger == play(case, check=False, restart=True)[1].ledger


@settings(deadline=None, max_examples=CASES)
@given(
    case=cases(FROM_SCRATCH), workers=st.sampled_from([1, 3, 64]), sync=st.booleans(),
    moments=st.lists(st.integers(0, 90), min_size=9, max_size=9), seed=st.integers(0, 99),
)  # fmt: skip
def test_the_settled_answer_depends_on_no_arrival_order_no_barrier_and_no_moment_of_change(
    case: Case, workers: int, sync: bool, moments: list[int], seed: int
) -> None:
    """S6."""
    whats = [what for _, what in case.changes]
    random.Random(seed).shuffle(whats)
    changes = tuple(zip(sorted(moments), whats, strict=False))
    other = replace(
        case, workers=workers, order="eager", changes=changes, sync=sync, variant=FROM_SCRATCH[sync][0]
    )  # fmt: skip
    assert by_index(play(case, check=False)[0]) == by_index(play(other, check=False)[0])


@settings(deadline=None, max_examples=CASES)
@given(case=cases())
def test_deepening_and_widening_before_anything_ran_is_starting_there(case: Case) -> None:
    """S8; in a stated order, because auto turns eager at the first change."""
    order = "eager" if case.order == "auto" else case.order
    early = replace(case, order=order, changes=tuple((0, what) for _, what in case.changes))
    widened = tuple(change for change in early.changes if change[1] == "widen")
    late = replace(early, start=case.end, changes=widened)
    kinds = (Deepened, Widened)
    assert [made for event, made in play(early, check=False)[1].ledger if not isinstance(event, kinds)] == [
        made for event, made in play(late, check=False)[1].ledger if not isinstance(event, kinds)
    ]


@settings(deadline=None, max_examples=CASES)
@given(case=cases((("settled", False), ("efficient", False))))
def test_without_optimism_the_asynchronous_variants_are_the_synchronous_ones(case: Case) -> None:
    """S9, decision for decision; settled becomes discarding."""
    order = "eager" if case.order == "auto" else case.order
    variant = "discarding" if case.variant == "settled" else "efficient"
    barrier = replace(case, order=order, sync=True, variant=variant)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rung.Rung, "optimistic", lambda *_: None)
        without = play(replace(case, order=order), check=False)[1].ledger
    assert without == play(barrier, check=False)[1].ledger


@settings(deadline=None, max_examples=CASES)
@given(case=cases((("discarding", True),)))
def test_synchronous_discarding_runs_exactly_the_sets_it_passes_through(case: Case) -> None:
    """S7: deepened and widened at rest, it adds the new plan's sets to the old one's."""
    at_rest = replace(case, changes=tuple((10**9, what) for _, what in case.changes))
    _, book = play(at_rest, check=False)
    wanted = set()
    for top, width in book.passed:
        brackets = top + 1 if case.first is None else min(case.first, top + 1)
        wanted |= {(b, k, b) for b in range(brackets) for k in range(n_at(case.eta, top, b, b, width))}
        sets = plan(case.eta, top, brackets, Everything(case), width=width)
        wanted |= {(b, k, j) for b, levels in sets.items() for j, members in levels.items() for k in members}
    assert set(book.results) == wanted


@settings(deadline=None, max_examples=CASES)
@given(case=cases(), share=st.floats(0.05, 1), bend=st.integers(0, 99))
def test_rescored_is_as_if_the_scores_had_been_so_from_the_start_and_promotions_stand(
    case: Case, share: float, bend: int
) -> None:
    fold, book = play(case, check=False)
    pick = random.Random(bend)
    scores = {place: round(pick.random(), 2) for place, value in book.results.items() if value is not None}
    chosen = {place: score for place, score in scores.items() if pick.random() < share}
    tell(fold, book, Rescored(scores=tuple((book.created[p], p[2], score) for p, score in chosen.items())))
    book.results |= chosen
    assert by_index(fold) == book.plan()
    finite = [value for value in book.results.values() if value is not None]
    best = fold.best()
    assert (best.score if best else None) == min(finite, default=None)
    while (place := ask(fold, book, check=True)) is not None:
        book.results[place] = case.score(place)
        tell(fold, book, done(book, place))
    assert fold.idle and by_index(fold) == book.plan()
    assert Search.restore(case.spec(), json.loads(json.dumps(fold.snapshot()))).settled() == fold.settled()


@settings(deadline=None, max_examples=CASES)
@given(case=cases(FROM_SCRATCH))
def test_a_failure_retried_with_success_ends_as_if_it_had_never_failed(case: Case) -> None:
    fold, book = play(replace(case, failures=0.5), check=False)
    healthy = replace(case, failures=0.0)
    while failed := [place for place, value in book.results.items() if value is None]:
        for place in failed:
            tell(fold, book, Retried(trial=book.created[place], level=place[2]))
        for place in failed:
            book.results[place] = healthy.score(place)
            tell(fold, book, done(book, place))
        while (place := ask(fold, book, check=False)) is not None:  # type: ignore[assignment]
            book.results[place] = healthy.score(place)
            tell(fold, book, done(book, place))
    assert by_index(fold) == plan(case.eta, book.top, book.brackets, Everything(healthy), width=book.width)


class Everything(dict[Place, float | None]):
    """Every result there could be."""

    def __init__(self, case: Case) -> None:
        self.case = case

    def __contains__(self, place: object) -> bool:
        return True

    def __missing__(self, place: Place) -> float | None:
        return self.case.score(place)


@settings(deadline=None, max_examples=CASES)
@given(case=cases())
def test_replaying_the_ledger_gives_the_same_decisions(case: Case) -> None:
    """S10, through JSON; and a prefix gives a prefix."""
    _, book = play(case, check=False)
    stored = json.loads(json.dumps([[to_mapping(e), [to_mapping(d) for d in made]] for e, made in book.ledger]))
    events = [event_from_mapping(e) for e, _ in stored]
    recorded = [[decision_from_mapping(d) for d in made] for _, made in stored]
    assert replay(case.spec(), events, recorded).ok
    half = len(events) // 2
    assert replay(case.spec(), events[:half], recorded[:half]).events == half


@settings(deadline=None, max_examples=CASES)
@given(case=cases(), share=st.floats(0, 1))
def test_a_copy_and_what_it_was_copied_from_go_their_own_ways(case: Case, share: float) -> None:
    ledger = play(case, check=False)[1].ledger
    cut = int(share * len(ledger))
    fold = Search(case.spec())
    for event, _ in ledger[:cut]:
        fold.apply(event)
    before, copied = fold.snapshot(), fold.copy()
    assert [copied.apply(event) for event, _ in ledger[cut:]] == [decisions for _, decisions in ledger[cut:]]
    assert fold.snapshot() == before
    end = copied.snapshot()
    assert [fold.apply(event) for event, _ in ledger[cut:]] == [decisions for _, decisions in ledger[cut:]]
    assert fold.snapshot() == end == copied.snapshot() and fold.settled() == copied.settled()


@settings(deadline=None, max_examples=CASES)
@given(case=cases())
def test_a_monotone_transform_of_the_scores_changes_no_decision(case: Case) -> None:
    """S11."""
    _, book = play(case, check=False)
    twin = Search(case.spec())
    for event, made in book.ledger:
        bent = event
        if isinstance(event, TaskDone) and event.score is not None:
            bent = replace(event, score=math.exp(3 * event.score) - 7)
        assert twin.apply(bent) == made


def test_a_study_of_failures_ends_without_deadlock() -> None:
    """S12."""
    case = Case(
        eta=3,
        start=2,
        changes=((5, "deepen"),),
        first=None,
        order="auto",
        workers=4,
        digits=9,
        noise=0,
        failures=1.0,
        seed=1,
    )
    dead = replace(case, seed=next(s for s in range(99) if replace(case, seed=s).score((0, 0, 0)) is None))
    fold, book = play(dead)
    assert fold.idle and len(book.results) >= sum(n_start(3, 3, b) for b in range(4))
    spec = case.spec()
    hopeless = Search(spec)
    while (made := hopeless.apply(Asked(n=100))) != (Idle(),):
        for task in made:
            if isinstance(task, CreateTask):
                hopeless.apply(TaskDone(trial=task.trial, level=task.level, status="failed"))
    assert hopeless.best() is None and hopeless.idle
    assert hopeless.apply(Stopped(reason="enough")) == ()


# ---- broken on purpose: each of these must be noticed ---------------------------------------------------------------


def rank_off_by_one(self: rung.Rung, eta: int, next_quota: int) -> rung.Key | None:
    if not self.unsent or len(self.sent) >= next_quota:
        return None
    best = self.unsent[0]
    return best if self.ranked.bisect_left(best) <= len(self.ranked) // eta else None


def quota_ignored(self: rung.Rung, eta: int, next_quota: int) -> rung.Key | None:
    return ORIGINAL_OPTIMISTIC(self, eta, next_quota + 1)


def later_first(score: float | None, index: int) -> rung.Key:
    failed, value, _ = ORIGINAL_KEY(score, index)
    return (failed, value - index * 1e-12, index)


def failures_promoted(score: float | None, index: int) -> rung.Key:
    return (False, 1e9 if score is None else score, index)


def never_unsettled(self: rung.Rung) -> None:
    self.members = self.members


def keeps_the_members_only(self: Bracket) -> None:
    kept, self.kept = self.kept, "none" if self.kept == "pool" else self.kept
    ORIGINAL_SETTLE(self)
    self.kept = kept


def forgets_promotions(self: rung.Rung, chosen: list[rung.Key]) -> None:
    self.due = list(reversed(chosen))


class Nothing:
    """A count that is always 0."""

    def __get__(self, owner: object, kind: object = None) -> int:
        return 0

    def __set__(self, owner: object, value: int) -> None:
        pass


def lowest_level_first(self: Search) -> tuple[Bracket, tuple[int, rung.Key]] | None:
    ready = [(c, b.number) for b in self._brackets if (c := b.candidate(settled=self._patient())) is not None]
    if not ready:
        return None
    candidate, number = max(ready, key=lambda entry: entry[0][0])
    return self._brackets[number], candidate


ORIGINAL_SETTLE = Bracket._settle
ORIGINAL_OPTIMISTIC, ORIGINAL_KEY, ORIGINAL_QUOTA = rung.Rung.optimistic, rung.rank_key, geometry.quota
MUTATIONS = {
    "quota off by one": (geometry, "quota", lambda e, t, b, j, m: ORIGINAL_QUOTA(e, t, b, j, m) + 1),
    "quota off by one above the first rung": (
        geometry,
        "quota",
        lambda e, t, b, j, m: ORIGINAL_QUOTA(e, t, b, j, m) + (j > b),
    ),
    "rank off by one": (rung.Rung, "optimistic", rank_off_by_one),
    "optimistic promotion past the quota": (rung.Rung, "optimistic", quota_ignored),
    "ties go to the later": (search, "rank_key", later_first),
    "failures can be promoted": (search, "rank_key", failures_promoted),
    "deepening does not unsettle": (rung.Rung, "unsettle", never_unsettled),
    "lowest level first": (Search, "_promotion", lowest_level_first),
    "always patient": (Search, "_patient", lambda self: self._vacant() is not None),
    "settled too early": (Bracket, "missing", Nothing()),
    "preserving forgets who is no member": (Bracket, "_settle", keeps_the_members_only),
    "promotions are made twice": (rung.Rung, "settle_next", forgets_promotions),
    "no barrier": (Bracket, "barrier", Nothing()),
}


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_rule_broken_on_purpose_is_noticed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    owner, attribute, mutant = MUTATIONS[name]
    monkeypatch.setattr(owner, attribute, mutant, raising=False)
    for seed in range(200):
        rng = random.Random(seed)
        eta = rng.choice((2, 3))
        case = Case(
            eta=eta, start=rng.choice((1, 2)), changes=((rng.randrange(40), "deepen"), (50, "widen"))[: rng.randrange(3)], first=None,
            order=rng.choice(("auto", "eager", "patient")), workers=rng.choice((1, 4)), digits=rng.choice((1, 9)),
            noise=0.3, failures=rng.choice((0.0, 0.7)), seed=seed, variant=(variant := rng.choice(ALL))[0], sync=variant[1],
        )  # fmt: skip
        try:
            check_case(case)
        except Exception:  # noqa: BLE001  any complaint will do
            return
    pytest.fail(f"nobody noticed: {name}")
