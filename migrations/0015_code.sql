-- Which version of the trainer's code an attempt ran, by git: a commit, with + and a hash where it had uncommitted changes.
ALTER TABLE attempt ADD COLUMN code text NOT NULL DEFAULT '';

CREATE OR REPLACE VIEW dash_attempt AS
SELECT dash_task.study, dash_task.campaign, dash_task.trial, dash_task.level, attempt.epoch, attempt.worker_id AS worker,
       attempt.started_at, attempt.ended_at, coalesce(attempt.outcome::text, 'running') AS outcome, attempt.message,
       extract(epoch FROM coalesce(attempt.ended_at, now()) - attempt.started_at)::float8 AS seconds, attempt.code
FROM attempt JOIN dash_task ON dash_task.task_id = attempt.task_id;
