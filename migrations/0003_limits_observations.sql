-- What studies have used, for limits; the runs a campaign's user owned before; why a campaign ended by itself.

ALTER TABLE campaign ADD COLUMN observations jsonb NOT NULL DEFAULT '[]';  -- rows in the columns of `isoloss law`
ALTER TABLE campaign ADD COLUMN reason text NOT NULL DEFAULT '';           -- the limit that ended it

-- Device hours of every attempt until now, a CPU slot being one device, and FLOPs of finished tasks: 6 N a token, NULL
-- where N is not known. A column that is not asked for costs nothing.
CREATE VIEW study_use AS
SELECT study.id AS study_id, study.campaign_id,
       (SELECT coalesce(sum(extract(epoch FROM coalesce(attempt.ended_at, now()) - attempt.started_at)), 0)
        FROM task JOIN attempt ON attempt.task_id = task.id WHERE task.study_id = study.id)::float8
           * greatest(1, coalesce((study.spec #>> '{run,gpus}')::integer, 0)) / 3600 AS gpu_hours,
       study.spent * CASE study.spec #>> '{budget,unit}' WHEN 'flops' THEN 1 WHEN 'tokens' THEN 6 * study.n_params END
           AS flops
FROM study;
