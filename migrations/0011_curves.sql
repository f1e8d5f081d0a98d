-- A point of a curve costs four bytes and a little: values as 32-bit numbers (a loss to seven digits; results keep all of
-- theirs), steps as first and stride where they are even, which they nearly always are.

DROP VIEW dash_curve, dash_metric, dash_lease;

ALTER TABLE metric_chunk DROP CONSTRAINT metric_chunk_check;
ALTER TABLE metric_chunk ALTER COLUMN steps DROP NOT NULL;
ALTER TABLE metric_chunk ADD COLUMN stride bigint;
CREATE FUNCTION pg_temp.nearest(given double precision[]) RETURNS real[] LANGUAGE sql IMMUTABLE AS $$
    SELECT array_agg(CASE WHEN abs(v) > 3.4e38 AND v <> 'NaN' THEN sign(v) * 'Infinity'::float8
                          WHEN abs(v) < 1.5e-45 THEN 0 ELSE v END::real ORDER BY place)
    FROM unnest(given) WITH ORDINALITY AS g(v, place) $$;
ALTER TABLE metric_chunk ALTER COLUMN "values" TYPE real[] USING pg_temp.nearest("values");
UPDATE metric_chunk SET stride = coalesce(steps[2] - steps[1], 0), steps = NULL
WHERE cardinality(steps) < 3 OR steps = ARRAY(
    SELECT generate_series(steps[1], steps[cardinality(steps)], greatest(1, steps[2] - steps[1])));
ALTER TABLE metric_chunk ADD CHECK ((steps IS NULL) <> (stride IS NULL) AND cardinality("values") > 0
                                    AND coalesce(cardinality(steps) = cardinality("values"), true));

CREATE FUNCTION chunk_steps(step0 bigint, stride bigint, steps bigint[], n integer) RETURNS bigint[]
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT coalesce(steps, ARRAY(SELECT step0 + stride * k FROM generate_series(0, n - 1) AS k)) $$;

-- Every point of every curve, with the level it was measured for; steps are in the study's budget unit.
CREATE VIEW dash_curve AS
SELECT dash_key(study.project, study.name) AS study, task.trial_no AS trial, trial.bracket, task.level, chunk.epoch,
       chunk.metric, chunk.metric = study.spec #>> '{objective,metric}' AS objective, point.step::float8 AS step,
       point.value::float8 AS value
FROM study
JOIN task ON task.study_id = study.id
JOIN trial ON trial.study_id = task.study_id AND trial.no = task.trial_no
JOIN metric_chunk AS chunk ON chunk.task_id = task.id
CROSS JOIN LATERAL unnest(chunk_steps(step0, stride, steps, cardinality(chunk."values")), chunk."values")
    AS point(step, value);

-- How many points a study has of every metric, without opening the chunks.
CREATE VIEW dash_metric AS
SELECT dash_key(study.project, study.name) AS study, chunk.metric,
       coalesce(chunk.metric = study.spec #>> '{objective,metric}', false) AS objective,
       sum(cardinality(chunk."values"))::float8 AS points
FROM study JOIN task ON task.study_id = study.id JOIN metric_chunk AS chunk ON chunk.task_id = task.id
GROUP BY study.id, chunk.metric;

CREATE VIEW dash_lease AS
SELECT dash_task.study, dash_task.campaign, dash_task.trial, dash_task.level, dash_task.budget_from, dash_task.budget,
       dash_task.unit, lease.worker_id AS worker, attempt.started_at, lease.epoch, curve.step,
       extract(epoch FROM lease.expires_at - now())::float8 AS expires_in
FROM lease
JOIN dash_task ON dash_task.task_id = lease.task_id
JOIN attempt ON attempt.task_id = lease.task_id AND attempt.epoch = lease.epoch
LEFT JOIN LATERAL (SELECT max(coalesce(steps[cardinality(steps)], step0 + stride * (cardinality("values") - 1)))::float8 AS step
                   FROM metric_chunk
                   WHERE metric_chunk.task_id = lease.task_id AND metric_chunk.epoch = lease.epoch) AS curve ON true;

DO $$
BEGIN
    IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'isoloss_dash') THEN
        GRANT SELECT ON dash_curve, dash_metric, dash_lease TO isoloss_dash;
    END IF;
END $$;
