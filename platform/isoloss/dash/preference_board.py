"""The dashboard of a preference: what results are worth, which metric limits, and the front where nothing is preferred yet."""

from __future__ import annotations

from typing import Final

from isoloss.dash.panels import STUDY, Board, Panel, Variable

NONE: Final = "no result of several metrics yet"
ALONG: Final = Variable(
    name="parameter", title="Along",
    sql="SELECT parameter FROM dash_parameter WHERE study = ${study:sqlstring} ORDER BY place",
)  # fmt: skip

STATS: Final = (
    Panel(
        id="best_worth", title="Best D", kind="stat", span=8, height=3, unit="none", empty="nothing is worth anything yet",
        sql="""SELECT overall, 'trial ' || trial || coalesce(', limited by ' || limiting, '') AS said FROM dash_worth
            WHERE study = ${study:sqlstring} AND overall > 0 AND repeat = 0 ORDER BY level DESC, overall DESC, trial LIMIT 1""",
    ),
    Panel(
        id="alive", title="Worth something", kind="stat", span=8, height=3, unit="percent", empty=NONE,
        about="The share of trials with D above 0, each at its highest level.",
        sql="""SELECT 100 * avg((overall > 0)::int)::float8 AS share, 'of ' || count(*) || ' trials measured' AS said FROM (
                SELECT DISTINCT ON (trial) trial, overall FROM dash_worth
                WHERE study = ${study:sqlstring} AND overall IS NOT NULL ORDER BY trial, level DESC) AS highest
            HAVING count(*) > 0""",
    ),
    Panel(
        id="version", title="Preference", kind="stat", span=8, height=3, empty=NONE,
        about="Its version; `isoloss study prefer` makes another.",
        sql="""SELECT coalesce((SELECT max(version) FROM dash_preference WHERE study = ${study:sqlstring}), 1)::float8 AS version,
                coalesce((SELECT 'since ' || to_char(max(at), 'YYYY-MM-DD HH24:MI') FROM dash_preference
                          WHERE study = ${study:sqlstring}), 'as launched') AS said
            WHERE EXISTS (SELECT FROM dash_worth WHERE study = ${study:sqlstring})""",
    ),
)  # fmt: skip

PICTURES: Final = (
    Panel(
        id="worth", title="What results are worth", kind="timeseries", span=12, height=9, unit="none", empty=NONE,
        dots=("D",), steps=("best", "hypervolume"),
        about="D by the newest preference, as it was measured, or the hypervolume of the highest level's front; the newest four thousand.",
        sql="""SELECT time, overall AS "D", best, hypervolume FROM (SELECT received_at AS time, overall,
                      max(overall) OVER so_far AS best, max(hypervolume) OVER so_far AS hypervolume
            FROM dash_worth WHERE study = ${study:sqlstring} AND $__timeFilter(received_at)
              AND (overall IS NOT NULL OR (hypervolume IS NOT NULL AND level = (
                  SELECT max(level) FROM dash_worth WHERE study = ${study:sqlstring} AND hypervolume IS NOT NULL)))
            WINDOW so_far AS (ORDER BY received_at, trial ROWS UNBOUNDED PRECEDING)
            ORDER BY time DESC LIMIT 4000) AS newest ORDER BY time""",
    ),
    Panel(
        id="trade", title="Trade-off of the first two metrics", kind="xy", span=12, height=9, unit="none", empty=NONE,
        x_title="first", y_title="second", log_x="auto", about="Every trial at its highest level.",
        sql="""WITH highest AS (
                SELECT DISTINCT ON (trial) * FROM dash_worth WHERE study = ${study:sqlstring} ORDER BY trial, level DESC LIMIT 4000),
            names AS (SELECT array_agg(DISTINCT key ORDER BY key) AS name FROM highest, jsonb_object_keys(outcomes) AS key)
            SELECT CASE WHEN place < 1 THEN 'front' WHEN place IS NOT NULL THEN 'behind' WHEN overall > 0 THEN 'D > 0' ELSE 'D = 0' END
                       || ': ' || name[1] || ' × ' || name[2] AS series,
                   dash_number(outcomes -> name[1]) AS x, dash_number(outcomes -> name[2]) AS y
            FROM highest, names
            WHERE dash_number(outcomes -> name[1]) IS NOT NULL AND dash_number(outcomes -> name[2]) IS NOT NULL
            ORDER BY place < 1 OR overall > 0, x""",
    ),
    Panel(
        id="profile", title="Desirability along a parameter", kind="xy", span=14, height=10, unit="none", empty=NONE,
        x_title="parameter", y_title="d", units={"x": "short"}, log_x="auto",
        about="d of each metric, and D, of every trial at its highest level: where they part, one pays for the other.",
        sql="""WITH highest AS (
                SELECT DISTINCT ON (trial) dash_number(params -> ${parameter:sqlstring}) AS at,
                       parts || jsonb_build_object('D', overall) AS parts FROM dash_worth
                WHERE study = ${study:sqlstring} AND overall IS NOT NULL ORDER BY trial, level DESC LIMIT 2000)
            SELECT key AS series, at AS x, dash_number(value) AS y FROM highest, jsonb_each(parts) AS part (key, value)
            WHERE at IS NOT NULL AND dash_number(value) IS NOT NULL ORDER BY key = 'D', key, at""",
    ),
    Panel(
        id="limits", title="What your limits do", kind="bar", span=10, height=10, empty=NONE,
        about="Trials at their highest level by the metric that vetoes them (d = 0), or that limits them (the least w ln d).",
        sql="""WITH highest AS (
                SELECT DISTINCT ON (trial) trial, overall, parts, limiting FROM dash_worth
                WHERE study = ${study:sqlstring} AND parts IS NOT NULL ORDER BY trial, level DESC)
            SELECT key AS metric, (count(*) FILTER (WHERE dash_number(value) = 0))::float8 AS vetoes,
                   (count(*) FILTER (WHERE overall > 0 AND limiting = key))::float8 AS limits
            FROM highest, jsonb_each(parts) AS part (key, value) GROUP BY key ORDER BY vetoes DESC, limits DESC, key""",
    ),
    Panel(
        id="parts", title="d of every trial", kind="parallel", span=12, height=10, unit="none", empty=NONE,
        about="One line a trial at its highest level; the best are bright.",
        sql="""SELECT * FROM (
                SELECT DISTINCT ON (trial) trial, level, overall AS value, parts AS d, true AS rising FROM dash_worth
                WHERE study = ${study:sqlstring} AND overall IS NOT NULL ORDER BY trial, level DESC) AS highest
            ORDER BY value DESC LIMIT 400""",
    ),
    Panel(
        id="table", title="Best by D, or the front", kind="table", span=12, height=10, unit="none", empty=NONE,
        units={"budget": "short"},
        sql="""SELECT trial, level, budget, overall AS "D", limiting, outcomes, parts AS d, params AS parameters FROM dash_worth
            WHERE study = ${study:sqlstring} AND repeat = 0
            ORDER BY level DESC, overall DESC NULLS LAST, place, trial LIMIT 30""",
    ),
)  # fmt: skip

BOARD: Final = Board(
    id="preference",
    title="Preference",
    about="One study of several metrics: what its results are worth, and the trade-off.",
    variables=(STUDY, ALONG),
    span="SELECT created_at, last_at, state = 'active' FROM dash_name WHERE study = ${study:sqlstring}",
    panels=(*STATS, *PICTURES),
)
