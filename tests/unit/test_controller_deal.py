"""Who gets the free slots: by weight and quota, several at once for a task of many GPUs, and none starves."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from isoloss.controller.deal import deal, kept, squeezed_out, wanted
from isoloss.controller.why import slots_for
from isoloss.domain.ids import StudyId
from isoloss.store.projects import Share
from isoloss.store.studies import Hungry


def hungry(number: int, leased: int = 0, project: str = "p", weight: float = 1.0, waits: float | None = None) -> Hungry:
    return Hungry(
        id=StudyId(number), project=project, trainable="", gpus=0, nodes=1, leased=leased, weight=weight,
        waits=waits,
    )  # fmt: skip


def ones(*studies: Hungry) -> dict[Hungry, int]:
    return dict.fromkeys(studies, 1)


def test_slots_are_dealt_to_the_studies_with_the_fewest_leases_that_they_may_run() -> None:
    a, b, c = hungry(1), hungry(2), hungry(3, 9)
    assert deal({"w": 4}, {"w": ones(a, b)}, {}) == {1: {"w": 2}, 2: {"w": 2}}
    assert deal({"w": 3}, {"w": ones(hungry(1, 5), hungry(2, 3))}, {}) == {2: {"w": 2}, 1: {"w": 1}}
    assert deal({"v": 2, "w": 2}, {"v": ones(a, b), "w": ones(c)}, {}) == {1: {"v": 1}, 2: {"v": 1}, 3: {"w": 2}}
    assert deal({"w": 3}, {"w": ones()}, {}) == deal({}, {}, {}) == {}


def test_slots_are_dealt_by_weight_between_projects_and_within_and_below_a_quota() -> None:
    mine, yours = hungry(1, project="mine", weight=3), hungry(2, project="mine")
    theirs = hungry(3, project="theirs")
    assert deal({"w": 8}, {"w": ones(mine, yours)}, {}) == {1: {"w": 6}, 2: {"w": 2}}
    assert deal({"w": 8}, {"w": ones(mine, yours, theirs)}, {}) == {1: {"w": 3}, 3: {"w": 4}, 2: {"w": 1}}
    shares = {"theirs": Share(name="theirs", weight=3.0, running=2)}
    assert deal({"w": 6}, {"w": ones(mine, theirs)}, shares) == {1: {"w": 2}, 3: {"w": 4}}
    bound = {"mine": Share(name="mine", most=2, running=1)}
    assert deal({"w": 4}, {"w": ones(mine, yours)}, bound) == {1: {"w": 1}}
    assert deal({"v": 1, "w": 1}, {"v": ones(mine), "w": ones(mine, theirs)}, bound) == {1: {"v": 1}, 3: {"w": 1}}


@given(
    st.lists(st.tuples(st.integers(0, 5), st.sampled_from(["a", "b", "c"]), st.floats(0.1, 9)), min_size=1, max_size=8),
    st.lists(st.integers(0, 20), min_size=1, max_size=4), st.dictionaries(st.sampled_from(["a", "b"]), st.integers(0, 9)),
)  # fmt: skip
def test_no_slot_is_left_while_somebody_may_have_it_and_no_quota_is_passed(
    drawn: list[tuple[int, str, float]], slots: list[int], most: dict[str, int]
) -> None:
    studies = [hungry(n, leased, project, weight) for n, (leased, project, weight) in enumerate(drawn)]
    running = {name: sum(s.leased for s in studies if s.project == name) for name in "abc"}
    shares = {name: Share(name=name, most=most.get(name), running=running[name]) for name in "abc"}
    lacking = {f"w{n}": count for n, count in enumerate(slots)}
    dealt = deal(lacking, dict.fromkeys(lacking, ones(*studies)), shares)
    given_ = {s.id: sum(dealt.get(s.id, {}).values()) for s in studies}
    by_project = {name: sum(given_[s.id] for s in studies if s.project == name) for name in "abc"}
    for name, bound in most.items():
        assert by_project[name] == 0 or running[name] + by_project[name] <= bound
    room = [s for s in studies if s.project not in most or running[s.project] + by_project[s.project] < most[s.project]]
    assert sum(given_.values()) == sum(slots) or not room
    for one in studies:  # who got less for its weight than another of its project was not further behind
        for other in (s for s in studies if s.project == one.project and given_[s.id]):
            assert (other.leased + given_[other.id]) / other.weight <= (
                one.leased + given_[one.id] + 1
            ) / one.weight + 1e-9


def test_as_many_more_workers_are_wanted_as_what_waits_would_fill() -> None:
    a, b, c = hungry(1), hungry(2), hungry(3, project="q")
    assert wanted(1, ones(a, b), {a.id: 3, b.id: 2}, {}) == 5
    assert wanted(4, ones(a, b), {a.id: 3, b.id: 2, c.id: 9}, {}) == 2, "of c they may run nothing"
    assert wanted(4, {a: 3}, {a.id: 4}, {}) == 4, "a worker of four slots holds one task of three"
    assert wanted(2, {a: 3}, {a.id: 4}, {}) == 0, "no worker so small is of use"
    bound = {"p": Share(name="p", most=4, running=1), "q": Share(name="q", most=1, running=2)}
    assert wanted(1, ones(a, b, c), {a.id: 2, b.id: 9, c.id: 9}, bound) == 3, "no more than their projects may run"
    assert wanted(1, ones(), {}, {}) == wanted(1, ones(a), {a.id: 0}, {}) == 0


def test_a_task_takes_as_many_slots_as_its_gpus_are_of_if_the_worker_may_join_them() -> None:
    worker = {"gpt": True, "gpus": 2, "most_gpus": 8}
    assert [slots_for(worker, "gpt:", gpus) for gpus in (0, 1, 2, 3, 8, 9)] == [1, 1, 1, 2, 4, 0]
    assert slots_for(worker, "function:a:b", 1) == 0, "it does not allow it"
    older = {"gpt": True, "gpus": 2}
    assert [slots_for(older, "gpt:", gpus) for gpus in (2, 3)] == [1, 0], "it joins no slots"


def test_large_tasks_are_dealt_the_slots_that_are_left_or_are_passed_over() -> None:
    large, small = hungry(1), hungry(2)
    assert deal({"w": 8}, {"w": {large: 4, small: 1}}, {}) == {1: {"w": 1}, 2: {"w": 4}}
    assert deal({"w": 3}, {"w": {large: 4, small: 1}}, {}) == {2: {"w": 3}}
    assert squeezed_out({"v": 2, "w": 3}, {"v": {large: 4}, "w": {large: 4, small: 1}}) == [large]
    assert squeezed_out({"v": 4, "w": 3}, {"v": {large: 4}, "w": {large: 4, small: 1}}) == []


def test_what_has_waited_long_for_several_slots_has_the_worker_with_the_most_free_to_itself() -> None:
    large, larger, small = hungry(1, waits=90.0), hungry(2, waits=100.0), hungry(3)
    everywhere: dict[Hungry, int] = {large: 4, small: 1}
    assert kept({"v": 1, "w": 3}, {"v": everywhere, "w": everywhere}, {}, 60.0) == {"v": everywhere, "w": {large: 4}}
    assert kept({"w": 3}, {"w": everywhere}, {}, 91.0) == {"w": everywhere}, "it has not waited so long"
    both = {large: 4, larger: 8, small: 1}
    assert kept({"v": 2, "w": 3}, {"v": both, "w": both}, {}, 60.0) == {"v": {large: 4}, "w": {larger: 8}}
    assert kept({"w": 3}, {"w": both}, {}, 60.0) == {"w": {larger: 8}}, "one worker is kept for one study"
    bound = {"p": Share(name="p", most=2, running=2)}
    assert kept({"w": 3}, {"w": everywhere}, bound, 60.0) == {"w": everywhere}, "its project may run nothing more"
    assert kept({"w": 3}, {"w": {hungry(1, waits=90.0): 1, small: 1}}, {}, 60.0)["w"].keys() > {small}, (
        "one slot is had"
    )


@given(st.data())
def test_nobody_is_dealt_more_slots_than_are_free_and_nothing_that_fits_is_left_out(data: Any) -> None:
    takes = data.draw(st.lists(st.integers(1, 9), min_size=1, max_size=6))
    studies = {hungry(n, weight=1.0 + n): take for n, take in enumerate(takes)}
    lacking = data.draw(st.dictionaries(st.sampled_from("uvw"), st.integers(0, 12), min_size=1))
    dealt = deal(lacking, dict.fromkeys(lacking, studies), {})
    for holder, free in lacking.items():
        used = sum(dealt.get(study.id, {}).get(holder, 0) * take for study, take in studies.items())
        assert used <= free and free - used < min(takes)


def test_a_large_task_among_a_stream_of_small_ones_gets_its_slots_within_the_longest_of_them() -> None:
    """One worker of eight slots; a small task ends every second, and another is always there."""
    ends, began = [1 + n for n in range(8)], None
    for second in range(200):
        ends = [end for end in ends if end > second]
        free, large = 8 - len(ends), hungry(1, waits=float(second))
        able = kept({"w": free}, {"w": {large: 8, hungry(2, 99): 1}}, {}, 60.0)
        dealt = deal({"w": free}, able, {}) if free else {}
        if 1 in dealt:
            began = second
            break
        ends += [second + 8] * sum(dealt.get(StudyId(2), {}).values())
    assert began is not None and 60 <= began <= 60 + 9
