"""The dashboard of one study: its curves by level, its rungs, its best trials, its ledger."""

from __future__ import annotations

from typing import Final

from isoloss.dash.panels import STUDY, Board, Panel

NONE: Final = "no task done yet"

STATS: Final = (
    Panel(
        id="best", title="Best", kind="stat", span=4, height=3, unit="none", empty=NONE,
        sql="""SELECT best, metric || ', ' || goal AS said FROM dash_study
            WHERE study = ${study:sqlstring} AND best IS NOT NULL""",
    ),
    Panel(
        id="trials", title="Trials", kind="stat", span=4, height=3,
        sql="SELECT trials, state FROM dash_study WHERE study = ${study:sqlstring}",
    ),
    Panel(
        id="done", title="Tasks done", kind="stat", span=4, height=3,
        sql="""SELECT done, CASE WHEN failed + diverged > 0 THEN diverged || ' diverged, ' || failed || ' failed'
                ELSE 'none diverged or failed' END AS said FROM dash_study WHERE study = ${study:sqlstring}""",
    ),
    Panel(
        id="running", title="Running", kind="stat", span=4, height=3,
        sql="SELECT running, waiting || ' waiting' AS said FROM dash_study WHERE study = ${study:sqlstring}",
    ),
    Panel(
        id="spent", title="Budget spent", kind="stat", span=4, height=3,
        sql="""SELECT spent, coalesce('of ' || dash_short((SELECT sum(quota * cost) FROM dash_plan
                WHERE study = ${study:sqlstring})) || ' planned, ', '') || unit AS said
            FROM dash_study WHERE study = ${study:sqlstring}""",
    ),
    Panel(
        id="max_budget", title="Maximum budget", kind="stat", span=4, height=3,
        sql="SELECT max_budget, unit FROM dash_study WHERE study = ${study:sqlstring}",
    ),
)  # fmt: skip

CURVES: Final = Panel(
    id="curves", title="Curves by level", kind="xy", span=14, height=11, unit="none", log_x=True,
    x_title="budget", y_title="metric", units={"x": "short"}, empty="no curve yet",
    about="The metric with the most points, of the sixty trials that went furthest or do best.",
    sql="""WITH chosen AS (
            SELECT trial FROM dash_task WHERE study_id = (SELECT study_id FROM dash_name WHERE study = ${study:sqlstring})
            GROUP BY trial ORDER BY max(level) DESC, min(score) NULLS LAST LIMIT 60),
        shown AS (
            SELECT metric FROM dash_metric WHERE study = ${study:sqlstring} ORDER BY points DESC, objective DESC LIMIT 1),
        points AS (
            SELECT curve.trial, curve.level, curve.epoch, curve.metric, step, value,
                   row_number() OVER run AS place, count(*) OVER (PARTITION BY curve.trial, curve.level, curve.epoch) AS n
            FROM dash_curve AS curve JOIN chosen USING (trial) JOIN shown USING (metric)
            WHERE study = ${study:sqlstring} AND step > 0
            WINDOW run AS (PARTITION BY curve.trial, curve.level, curve.epoch ORDER BY step))
        SELECT metric || ' · level ' || level AS series, step AS x, value AS y, NULL::float8 AS low, NULL::float8 AS high,
               trial || '@' || level || '.' || epoch AS line
        FROM points WHERE place % greatest(1, n / 80) = 0 OR place = n
        ORDER BY level, trial, epoch, step""",
)  # fmt: skip

RUNGS: Final = Panel(
    id="rungs", title="Brackets and rungs", kind="table", span=10, height=11, unit="short", empty="no trial yet",
    about="A bracket starts at its own level and sends its best on; bracket -1 holds trials that were added. Quota: "
    "before the last deepening or widening, and now.",
    units={"best": "none", "bracket": "none", "level": "none"},
    sql="""SELECT bracket, level, budget, quota_before AS before, quota, tasks, done, promoted, running, waiting, diverged, failed, best
        FROM dash_rung
        WHERE study = ${study:sqlstring} ORDER BY bracket, level""",
)  # fmt: skip

RESULTS: Final = (
    Panel(
        id="values", title="Results and the best so far", kind="timeseries", span=12, height=9, unit="none", empty=NONE,
        dots=("result",), steps=("best",),
        about="The newest four thousand.",
        sql="""WITH name AS (SELECT study_id, reading FROM dash_name WHERE study = ${study:sqlstring}),
            newest AS (
                SELECT task_id, seq, score FROM dash_score
                WHERE study_id = (SELECT study_id FROM name) AND status = 'ok' AND $__timeFilter(received_at)
                ORDER BY seq DESC LIMIT 4000),
            before AS (
                SELECT min(score) AS score FROM dash_score
                WHERE study_id = (SELECT study_id FROM name) AND seq < (SELECT min(seq) FROM newest)),
            falling AS (
                SELECT task_id, seq, least((SELECT score FROM before), min(score) OVER (ORDER BY seq)) AS score FROM newest)
            SELECT received_at AS time, value AS result,
                   CASE reading WHEN 0 THEN exp(greatest(least(-falling.score, 0), -700)) ELSE reading * falling.score END AS best
            FROM falling JOIN dash_task USING (task_id), name WHERE value IS NOT NULL ORDER BY seq""",
    ),
    Panel(
        id="parameters", title="Parameters of every trial", kind="parallel", span=12, height=9, unit="none", empty=NONE,
        about="One line a trial, at the highest level it was measured at; the best are bright.",
        sql="""WITH newest AS (
                SELECT task_id FROM dash_score
                WHERE study_id = (SELECT study_id FROM dash_name WHERE study = ${study:sqlstring}) AND status = 'ok' ORDER BY seq DESC LIMIT 1200)
            SELECT DISTINCT ON (trial) trial, level, value, params, goal = 'maximize' AS rising
            FROM newest JOIN dash_task USING (task_id), (SELECT goal FROM dash_name WHERE study = ${study:sqlstring}) AS study
            WHERE value IS NOT NULL ORDER BY trial DESC, level DESC LIMIT 400""",
    ),
    Panel(
        id="best_trials", title="Best trials", kind="table", span=14, height=10, unit="none", empty=NONE,
        units={"budget": "short"},
        sql="""WITH best AS (
                SELECT task_id FROM dash_score
                WHERE study_id = (SELECT study_id FROM dash_name WHERE study = ${study:sqlstring}) AND score IS NOT NULL ORDER BY score, task_id LIMIT 30)
            SELECT trial, bracket, level, budget, value, params AS parameters, source FROM dash_task JOIN best USING (task_id)
            ORDER BY score, level DESC, trial""",
    ),
    Panel(
        id="ledger", title="Ledger", kind="table", span=10, height=10, unit="none", empty="nothing happened yet",
        about="The study's newest events: the only truth its search sees.",
        sql="""SELECT seq, kind, decisions, left(translate(body, '{}"', ''), 120) AS body, at FROM dash_event
            WHERE study_id = (SELECT study_id FROM dash_name WHERE study = ${study:sqlstring}) ORDER BY seq DESC LIMIT 40""",
    ),
)  # fmt: skip

BOARD: Final = Board(
    id="studies",
    title="Studies",
    about="One study: curves, rungs, trials.",
    variables=(STUDY,),
    span="SELECT created_at, last_at, state = 'active' FROM dash_name WHERE study = ${study:sqlstring}",
    panels=(*STATS, CURVES, RUNGS, *RESULTS),
)
