"""What must be true of a database whatever happened to those who wrote it: for the end of every storm.

Each oracle is a query for what may not be there; the ledger is also folded again, decision by decision.
"""

from __future__ import annotations

from typing import Final, LiteralString

import psycopg

from isoloss.domain.spec import decode_study
from isoloss.search import events as ev
from isoloss.search.replay import replay

ORACLES: Final[dict[str, LiteralString]] = {
    "I1: a trial has one task a level": """
        SELECT study_id, trial_no, level FROM task GROUP BY 1, 2, 3 HAVING count(*) > 1""",
    "I1: what is promoted has a result below it": """
        SELECT task.id FROM task JOIN trial ON trial.study_id = task.study_id AND trial.no = task.trial_no
        WHERE trial.bracket >= 0 AND task.level > trial.bracket AND NOT EXISTS (
            SELECT FROM task AS below JOIN result ON result.task_id = below.id
            WHERE below.study_id = task.study_id AND below.trial_no = task.trial_no AND below.level = task.level - 1
              AND result.status = 'ok')""",
    "I2: a lease is of a task that is leased, under its epoch": """
        SELECT lease.task_id FROM lease JOIN task ON task.id = lease.task_id
        WHERE task.state NOT IN ('leased', 'cancelling') OR task.epoch <> lease.epoch OR task.study_id <> lease.study_id""",
    "I2: a leased task has a lease": """
        SELECT id FROM task WHERE state IN ('leased', 'cancelling') AND NOT EXISTS (
            SELECT FROM lease WHERE lease.task_id = task.id)""",
    "I2: epochs follow each other": """
        SELECT task.id FROM task WHERE epoch <> (SELECT count(*) FROM attempt WHERE attempt.task_id = task.id)""",
    "I3: only the last attempt of a task is open, and only while it is leased": """
        SELECT attempt.task_id FROM attempt JOIN task ON task.id = attempt.task_id
        WHERE attempt.ended_at IS NULL AND NOT (task.epoch = attempt.epoch AND task.state IN ('leased', 'cancelling'))""",
    "I4: a task that has ended has its one result, and no other has one": """
        SELECT task.id FROM task LEFT JOIN result ON result.task_id = task.id
        WHERE (task.state IN ('done', 'failed', 'cancelled')) <> (result.task_id IS NOT NULL)""",
    "I8: the ledger has no gap": """
        SELECT study.id FROM study JOIN event ON event.study_id = study.id GROUP BY study.id
        HAVING count(*) <> max(seq) OR max(seq) <> study.next_seq - 1""",
    "I10: what is reserved is what the open tasks cost": """
        SELECT study.id FROM study LEFT JOIN task ON task.study_id = study.id LEFT JOIN result ON result.task_id = task.id
        WHERE study.state <> 'stopped' GROUP BY study.id
        HAVING abs(study.reserved - coalesce(sum(task.budget_to - task.budget_from)
                   FILTER (WHERE result.decided_seq IS NULL), 0)) > 1e-6""",
    "I12: steps strictly increase within a chunk": """
        SELECT task_id FROM metric_chunk WHERE steps <> (SELECT array_agg(DISTINCT s ORDER BY s) FROM unnest(steps) AS s)
           OR (stride < 1 AND cardinality("values") > 1)""",
    "I13: a score is finite and of a result that is ok": """
        SELECT task_id FROM result WHERE score IS NOT NULL AND (status <> 'ok' OR score IN ('NaN', 'Infinity', '-Infinity'))""",
    "I19: a decided result has exactly one event, which says it": """
        SELECT result.task_id FROM result JOIN task ON task.id = result.task_id
        LEFT JOIN event ON event.study_id = result.study_id AND event.seq = result.decided_seq
        WHERE result.decided_seq IS NOT NULL AND event.kind <> 'stopped' AND (
            event.kind IS DISTINCT FROM 'task_done' OR (event.body ->> 'trial')::int <> task.trial_no
            OR (event.body ->> 'level')::int <> task.level OR event.body ->> 'status' <> result.status::text)""",
}


def violations(conn: psycopg.Connection) -> list[str]:
    """What is not as it must be, each in one line; empty when all is well."""
    found = []
    for said, query in ORACLES.items():
        if rows := conn.execute(query).fetchall():
            found.append(f"{said}: {len(rows)} times not, first {rows[0]}")
    for study_id, spec, startable in conn.execute("SELECT id, spec, startable FROM study ORDER BY id").fetchall():
        found += _refolded(conn, study_id, spec, startable)
    return found


def _refolded(conn: psycopg.Connection, study_id: int, spec: dict[str, object], startable: int) -> list[str]:
    """I8 and I19: the events decide again what they decided, and the trials and tasks are those they created.

    I21: what could go on is not passed over.
    """
    rows = conn.execute("SELECT body, decisions FROM event WHERE study_id = %s ORDER BY seq", (study_id,)).fetchall()
    decided = [tuple(map(ev.decision_from_mapping, decisions)) for _, decisions in rows]
    report = replay(decode_study(spec), [ev.event_from_mapping(body) for body, _ in rows], decided)
    if not report.ok:
        return [f"I8: study {study_id} decides otherwise when it is folded again: {report.difference}"]
    if report.search.startable() and not startable:
        return [f"I21: study {study_id} could begin something, and its row denies it"]
    stored = conn.execute("SELECT trial_no, level FROM task WHERE study_id = %s", (study_id,)).fetchall()
    trials = conn.execute("SELECT count(*) FROM trial WHERE study_id = %s", (study_id,)).fetchone()
    same = set(report.search.tasks) == set(stored) and trials == (report.search.trials,)
    return [] if same else [f"I19: study {study_id} has other rows than its ledger"]
