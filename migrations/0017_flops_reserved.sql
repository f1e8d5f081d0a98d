-- What the tasks that have not ended will take of a limit on FLOPs.
CREATE OR REPLACE VIEW study_use AS
SELECT study.id AS study_id, study.campaign_id,
       (SELECT coalesce(sum(extract(epoch FROM coalesce(attempt.ended_at, now()) - attempt.started_at)), 0)
        FROM task JOIN attempt ON attempt.task_id = task.id WHERE task.study_id = study.id)::float8
           * greatest(1, coalesce((study.spec #>> '{run,gpus}')::integer, 0)) * coalesce((study.spec #>> '{run,nodes}')::integer, 1)
           / 3600 AS gpu_hours,
       study.spent * per_unit AS flops, study.reserved * per_unit AS flops_reserved
FROM study,
     LATERAL (SELECT CASE study.spec #>> '{budget,unit}' WHEN 'flops' THEN 1 WHEN 'tokens' THEN 6 * study.n_params END) AS one(per_unit);
