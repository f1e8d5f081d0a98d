-- What a study plans, rung by rung, so that a dashboard can draw it beside what ran: the quota now and the one before
-- the last deepening or widening, and what one task costs. Written with the decision that changes it.

ALTER TABLE study ADD COLUMN rungs jsonb NOT NULL DEFAULT '[]';

CREATE OR REPLACE VIEW dash_rung AS
WITH planned AS (
    SELECT dash_key(project, name) AS study, spec #>> '{budget,unit}' AS unit, (rung ->> 'bracket')::integer AS bracket,
           (rung ->> 'level')::integer AS level, dash_number(rung -> 'budget') AS budget,
           dash_number(rung -> 'quota') AS quota, dash_number(rung -> 'before') AS quota_before,
           dash_number(rung -> 'cost') AS cost
    FROM study CROSS JOIN LATERAL jsonb_array_elements(rungs) AS rung),
counted AS (
    SELECT study, bracket, level, budget, unit, count(*)::float8 AS tasks,
           count(*) FILTER (WHERE status = 'ok')::float8 AS done,
           count(*) FILTER (WHERE status IN ('leased', 'cancelling'))::float8 AS running,
           count(*) FILTER (WHERE status = 'ready')::float8 AS waiting,
           count(*) FILTER (WHERE status = 'diverged')::float8 AS diverged,
           count(*) FILTER (WHERE status IN ('failed', 'cancelled'))::float8 AS failed,
           (array_agg(value ORDER BY score, trial))[1] AS best,
           lead(count(*)) OVER (PARTITION BY study, bracket ORDER BY level)::float8 AS promoted
    FROM dash_task GROUP BY study, bracket, level, budget, unit)
SELECT study, bracket, level, coalesce(counted.budget, planned.budget) AS budget, coalesce(counted.unit, planned.unit) AS unit,
       coalesce(tasks, 0) AS tasks, coalesce(done, 0) AS done, coalesce(running, 0) AS running,
       coalesce(waiting, 0) AS waiting, coalesce(diverged, 0) AS diverged, coalesce(failed, 0) AS failed, best,
       quota, quota_before, CASE WHEN bracket >= 0 THEN coalesce(promoted, 0) END AS promoted, cost
FROM planned FULL JOIN counted USING (study, bracket, level);
