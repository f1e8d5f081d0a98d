"""The workers' dashboard: who is there, what they hold, how fast it goes, and what went wrong."""

from __future__ import annotations

from typing import Final

from isoloss.dash.panels import Board, Panel

STATS: Final = (
    Panel(
        id="workers", title="Workers", kind="stat", span=4, height=3,
        sql="""SELECT count(*) FILTER (WHERE state <> 'silent')::float8 AS workers,
                      count(*) FILTER (WHERE state = 'silent') || ' silent' AS said FROM dash_worker""",
    ),
    Panel(
        id="slots", title="Slots at work", kind="stat", span=4, height=3,
        sql="""SELECT coalesce(sum(leases), 0) AS leases, 'of ' || coalesce(sum(slots), 0) AS said FROM dash_worker
            WHERE state <> 'silent'""",
    ),
    Panel(
        id="waiting", title="Tasks waiting", kind="stat", span=4, height=3,
        sql="SELECT count(*)::float8 AS waiting, count(DISTINCT study) || ' studies' AS said FROM dash_waiting",
    ),
    Panel(
        id="rate", title="Tasks a minute", kind="stat", span=4, height=3, unit="none",
        about="Over the time shown.",
        sql="""SELECT count(*) * 60 / greatest(extract(epoch FROM $__timeTo() - $__timeFrom()), 1)::float8 AS rate,
                      count(*) || ' tasks' AS said
            FROM dash_throughput WHERE $__timeFilter(at)""",
    ),
    Panel(
        id="token_rate", title="Tokens a second", kind="stat", span=4, height=3,
        about="Over the time shown, as tasks end.",
        sql="""SELECT coalesce(sum(tokens), 0) / greatest(extract(epoch FROM $__timeTo() - $__timeFrom()), 1)::float8 AS rate,
                      dash_short(coalesce(sum(tokens), 0)) || ' tokens' AS said
            FROM dash_throughput WHERE $__timeFilter(at)""",
    ),
    Panel(
        id="lost", title="Attempts lost", kind="stat", span=4, height=3,
        about="Failed, expired or given back.",
        sql="""SELECT count(*) FILTER (WHERE outcome IN ('failed', 'expired', 'released'))::float8 AS lost,
                      'of ' || count(*) AS said FROM dash_attempt WHERE $__timeFilter(started_at)""",
    ),
)  # fmt: skip

PACE: Final = (
    Panel(
        id="tasks_done", title="Tasks a minute", kind="timeseries", span=12, height=8, unit="none", bars=True,
        empty="no task done yet",
        sql="""SELECT $__timeGroupAlias(at,$__interval), status AS metric, count(*) * 60000.0::float8 / $__interval_ms AS rate
            FROM dash_throughput WHERE $__timeFilter(at) GROUP BY 1, 2 ORDER BY 1, 2""",
    ),
    Panel(
        id="tokens_done", title="Tokens a second, by size", kind="timeseries", span=12, height=8, bars=True,
        empty="no task done yet",
        sql="""SELECT $__timeGroupAlias(at,$__interval), coalesce(size, study) AS metric,
                      sum(tokens) * 1000.0::float8 / $__interval_ms AS rate
            FROM dash_throughput WHERE tokens IS NOT NULL AND $__timeFilter(at) GROUP BY 1, 2 ORDER BY 1, 2""",
    ),
    Panel(
        id="timeline", title="Who did what", kind="state", span=24, height=9, unit="none", empty="no attempt yet",
        about="The newest two hundred attempts; one line a slot.",
        sql="""WITH recent AS (
                SELECT worker, study, trial, level, started_at, ended_at FROM dash_attempt
                WHERE $__timeFilter(started_at) ORDER BY started_at DESC LIMIT 200),
            laned AS (
                SELECT recent.*, (SELECT count(*) FROM recent AS other WHERE other.worker = recent.worker
                    AND (other.started_at, other.study, other.trial, other.level)
                        < (recent.started_at, recent.study, recent.trial, recent.level)
                    AND coalesce(other.ended_at, 'infinity') > recent.started_at) AS lane FROM recent)
            SELECT started_at AS time, worker || ' · ' || lane + 1 AS series,
                   study || ' #' || trial || ' @' || level AS state FROM laned
            UNION ALL SELECT greatest(ended_at, started_at + interval '1 millisecond'), worker || ' · ' || lane + 1, NULL
            FROM laned WHERE ended_at IS NOT NULL
            ORDER BY time, state NULLS FIRST""",
    ),
)  # fmt: skip

TABLES: Final = (
    Panel(
        id="worker_list", title="Workers", kind="table", span=12, height=8, unit="none",
        empty="none: `isoloss worker start` starts one", units={"silent for": "s", "utilisation": "percent", "memory": "percent"},
        sql="""SELECT worker, host, device, slots, leases, state, 100 * utilisation AS utilisation,
                   100 * memory_bytes / memory_total_bytes AS memory,
                   silent_seconds AS "silent for" FROM dash_worker
            ORDER BY state = 'silent', worker LIMIT 100""",
    ),
    Panel(
        id="leases", title="Leases", kind="table", span=12, height=8, unit="short", empty="nothing is running",
        units={"expires in": "s", "trial": "none", "level": "none"},
        sql="""SELECT worker, study, trial, level, step AS "at", budget AS "of", unit, epoch AS attempt,
                      expires_in AS "expires in" FROM dash_lease ORDER BY started_at LIMIT 100""",
    ),
    Panel(
        id="losses", title="Attempts that did not end well", kind="table", span=24, height=8, unit="none",
        empty="none", units={"ran for": "s"},
        sql="""SELECT ended_at AS "at", worker, study, trial, level, epoch AS attempt, outcome, seconds AS "ran for",
                      left(message, 400) AS message
            FROM dash_attempt WHERE outcome NOT IN ('ok', 'running') AND $__timeFilter(started_at)
            ORDER BY ended_at DESC LIMIT 50""",
    ),
)  # fmt: skip

BOARD: Final = Board(
    id="workers",
    title="Workers",
    about="Who is there, and how fast it goes.",
    variables=(),
    span="""WITH newest AS (SELECT started_at, ended_at FROM dash_attempt ORDER BY started_at DESC LIMIT 1000),
        life AS (SELECT EXISTS (SELECT FROM dash_lease) AS live, max(ended_at) AS ended FROM newest HAVING count(*) > 0),
        shown AS (SELECT CASE WHEN live THEN now() ELSE ended END AS until, live FROM life)
        SELECT greatest((SELECT started_at FROM dash_attempt ORDER BY started_at LIMIT 1), until - interval '1 hour'), until, live
        FROM shown""",
    panels=(*STATS, *PACE, *TABLES),
)
