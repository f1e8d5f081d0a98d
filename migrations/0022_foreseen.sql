-- What each task has taken of the machines, so that limits on device hours and time can be reserved like the others.
CREATE VIEW task_use AS
SELECT task.study_id, task.id AS task_id, task.state, (task.budget_to - task.budget_from)::float8 AS budget,
       coalesce(sum(extract(epoch FROM coalesce(attempt.ended_at, now()) - attempt.started_at)), 0)::float8
           * greatest(1, coalesce((study.spec #>> '{run,gpus}')::integer, 0)) * coalesce((study.spec #>> '{run,nodes}')::integer, 1)
           / 3600 AS hours
FROM study JOIN task ON task.study_id = study.id LEFT JOIN attempt ON attempt.task_id = task.id
GROUP BY study.id, task.id;

CREATE OR REPLACE VIEW study_use AS
SELECT study.id AS study_id, study.campaign_id,
       (SELECT coalesce(sum(hours), 0) FROM task_use WHERE task_use.study_id = study.id)::float8 AS gpu_hours,
       study.spent * per_unit AS flops, study.reserved * per_unit AS flops_reserved, per_unit::float8 AS flops_per_unit
FROM study,
     LATERAL (SELECT CASE study.spec #>> '{budget,unit}' WHEN 'flops' THEN 1 WHEN 'tokens' THEN 6 * study.n_params END) AS one(per_unit);
