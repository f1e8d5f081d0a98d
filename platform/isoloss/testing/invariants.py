"""What must always hold of the scheduler, what holds it, and the test that notices when nothing does.

`poe generate` writes it as ``platform/docs/reference/invariants.md``, with the chart of the states; a test looks whether every
test named here exists.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from isoloss.domain.task import NEXT, TERMINAL

LEASES: Final = "tests/store/test_leases.py"
RETRIES: Final = "tests/store/test_retries.py"
SIM: Final = "tests/sim/test_scheduler_simulation.py::test_whatever_goes_wrong_nothing_acknowledged_is_lost_and_a_study_ends_as_it_does_undisturbed"
STORM: Final = "tests/e2e/test_storm.py::test_nothing_that_was_acknowledged_is_lost_in_a_storm"
MANY: Final = "tests/store/test_controllers.py::test_three_controllers_that_are_killed_at_any_await_are_one"
OPERATIONS: Final = "tests/e2e/test_operations.py"
WORKERS: Final = "tests/e2e/test_worker_study.py"
SEARCH: Final = "tests/sim/test_search_properties.py"
ACCESS: Final = "tests/e2e/test_access.py"


@dataclass(frozen=True, slots=True, kw_only=True)
class Invariant:
    """A sentence, the constraint or statement behind it, and where it is tested."""

    id: str
    holds: str
    by: str
    tests: tuple[str, ...]


INVARIANTS: Final = (
    Invariant(id="I1", holds="A trial has one task a level and is promoted once.",
              by="unique (study, trial, level); the study's row lock", tests=(MANY, SIM)),
    Invariant(id="I2", holds="A task has one lease; its epochs follow each other.",
              by="primary key of lease; epoch + 1 in the statement that leases",
              tests=(f"{LEASES}::test_a_lease_is_granted_once_whoever_asks_at_the_same_moment", SIM)),
    Invariant(id="I3", holds="Whoever shows no current epoch or a wrong secret changes no row and is told so.",
              by="epoch and secret in every guarded statement",
              tests=(f"{LEASES}::test_a_stale_epoch_or_a_wrong_secret_changes_no_row_and_is_told_so",
                     f"{WORKERS}::test_a_frozen_worker_that_lost_its_lease_reports_nothing_and_drops_the_task", STORM)),
    Invariant(id="I4", holds="A task has one result; an equal repetition is acknowledged, another is told that the first stands.",
              by="primary key of result",
              tests=(f"{LEASES}::test_an_equal_repetition_is_acknowledged_and_a_different_one_is_told_that_the_first_stands",)),
    Invariant(id="I5", holds="No clock but the database's decides anything.",
              by="now() in SQL; durations on the wire; monotonic time in workers", tests=(SIM,)),
    Invariant(id="I6", holds="While workers live every task ends; an outage of the controllers expires no lease.",
              by="the reaper's beat", tests=(f"{LEASES}::test_after_an_outage_leases_are_extended_before_anything_is_reaped", SIM)),
    Invariant(id="I7", holds="What is acknowledged survives kill -9 of controller and Postgres; whatever was not may be said again.",
              by="one transaction, synchronous_commit, idempotency keys",
              tests=(STORM, "tests/e2e/test_full_disk.py::test_when_the_disk_of_postgres_is_full_nothing_is_lost_and_the_study_goes_on_by_itself",
                     "tests/e2e/test_network.py::test_a_study_through_a_failing_network_ends_as_one_undisturbed_and_loses_no_lease",
                     f"{RETRIES}::test_a_call_made_again_changes_nothing_more_and_is_answered_the_same")),
    Invariant(id="I8", holds="Decisions are a function of spec and events; folded again they are the same.",
              by="gap-free seq under the study's lock; a pure fold",
              tests=(f"{LEASES}::test_the_ledger_has_no_gap_and_folds_to_the_same_search_in_any_controller",
                     f"{SEARCH}::test_replaying_the_ledger_gives_the_same_decisions")),
    Invariant(id="I9", holds="Deepening and widening lose nothing, and decide below as the larger study would have.",
              by="events; append-only tasks",
              tests=(f"{LEASES}::test_deepening_loses_nothing_and_a_stopped_study_takes_nothing_more",
                     f"{SEARCH}::test_the_settled_answer_depends_on_no_arrival_order_no_barrier_and_no_moment_of_change")),
    Invariant(id="I10", holds="Reserved and spent never pass the cap; at rest nothing is reserved.",
              by="a check on the study's row, reserved where the task is inserted",
              tests=(f"{LEASES}::test_the_cap_on_the_budget_is_never_passed_and_stops_the_study",
                     "tests/store/test_limits.py::test_device_hours_are_reserved_before_a_task_begins_as_done_ones_foretell")),
    Invariant(id="I11", holds="N controllers are one.", by="all of it lies in the database", tests=(MANY, SIM)),
    Invariant(id="I12", holds="A curve is the same in whatever order it came; what a stale attempt reports never mixes in.",
              by="primary key of a chunk, its epoch",
              tests=(f"{LEASES}::test_points_delivered_twice_and_out_of_order_give_the_same_curve",
                     f"{LEASES}::test_a_curve_keeps_its_steps_even_or_not_and_what_was_said_last_of_a_step")),
    Invariant(id="I13", holds="NaN is a result that ranks last and enters no model.", by="the status, a check on the score",
              tests=(f"{LEASES}::test_a_metric_that_is_missing_fails_at_once_and_one_that_is_nan_diverges",)),
    Invariant(id="I14", holds="A task that kills its workers is given up, and the study goes on.",
              by="a counter raised where a lease expires",
              tests=(f"{LEASES}::test_a_task_that_takes_many_workers_with_it_is_failed_and_the_study_goes_on",)),
    Invariant(id="I15", holds="A task resumes from the newest complete checkpoint of its trial, or from the start.",
              by="a manifest, checked before it is used",
              tests=(f"{LEASES}::test_the_newest_complete_checkpoint_of_the_trial_is_where_it_resumes",
                     "tests/unit/test_worker_agent.py::test_a_checkpoint_that_is_torn_or_gone_on_the_machine_that_saved_it_is_given_up", STORM)),
    Invariant(id="I16", holds="No message is too large, no message crashes a controller.", by="limits of every field",
              tests=("tests/e2e/test_fuzz.py::test_what_is_too_large_is_refused_by_name",
                     "tests/e2e/test_fuzz.py::test_no_message_is_answered_by_a_crash_and_none_corrupts_anything")),
    Invariant(id="I17", holds="Whoever finds every connection busy is told so.", by="one pool, a wait with an end",
              tests=(f"{OPERATIONS}::test_a_database_that_cannot_be_written_is_said_in_words_and_loses_nothing",)),
    Invariant(id="I18", holds="Only the listed moves exist.", by="the trigger task_moves",
              tests=(f"{LEASES}::test_only_the_listed_moves_exist_in_postgres_too",)),
    Invariant(id="I19", holds="The events rebuild trials and tasks; a decided result has its one event.",
              by="event and effect in one transaction", tests=(MANY, SIM)),
    Invariant(id="I20", holds="What is cancelled ends within a heartbeat; a late result of it is recorded nowhere.",
              by="the state cancelling",
              tests=(f"{WORKERS}::test_a_stopped_study_ends_what_runs_within_a_heartbeat_and_the_slot_serves_others",)),
    Invariant(id="I21", holds="Slots go by weight, and nobody passes a quota.", by="deal",
              tests=("tests/unit/test_controller_deal.py::test_no_slot_is_left_while_somebody_may_have_it_and_no_quota_is_passed",
                     "tests/store/test_many_studies.py::test_slots_are_dealt_as_if_every_study_had_been_looked_at",
                     f"{WORKERS}::test_a_project_runs_no_more_than_its_quota_and_leaves_the_slots_to_others")),
    Invariant(id="I22", holds="A database of an earlier schema goes on with everything it had.", by="migrations that only add",
              tests=("tests/store/test_upgrade.py::test_a_database_of_an_earlier_schema_goes_on_with_everything_it_had",)),
    Invariant(id="I23", holds="A call is denied unless a rule allows role and project.", by="the table of methods",
              tests=(f"{ACCESS}::test_every_method_lets_in_its_roles_and_nobody_else",
                     f"{ACCESS}::test_what_is_anothers_project_does_not_exist_for_any_method")),
)  # fmt: skip


def document() -> str:
    """The page of the reference."""
    moves = [f"    {state} --> {after}" for state, following in NEXT.items() for after in sorted(following)]
    ends = [f"    {state} --> [*]" for state in NEXT if state in TERMINAL]
    rows = [
        f"| {one.id} | {one.holds} | {one.by} | {'<br>'.join(f'`{test}`' for test in one.tests)} |"
        for one in INVARIANTS
    ]
    return "\n".join(
        (
            "# What always holds", "",
            "Written by `poe generate` from `isoloss/testing/invariants.py` and `isoloss/domain/task.py`; never edited by hand.", "",
            "## A task", "", "```mermaid", "stateDiagram-v2", "    [*] --> ready", *moves, *ends, "```", "",
            "A lease raises the task's epoch; whoever holds an older one is stale. A task that failed becomes ready again by `study retry`.",
            "", "## Invariants", "", "| | holds | by | noticed by |", "|---|---|---|---|", *rows, "",
        )
    )  # fmt: skip
