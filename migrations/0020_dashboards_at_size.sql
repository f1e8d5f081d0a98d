-- Dashboards over a million trials: what is looked up often is found by an index, and what a panel does not ask for is not
-- joined. A study's own columns are reached by its id, which a panel looks up once in dash_name.

DROP INDEX result_study;  -- now in the order of the ledger; an event that goes with its study asks for who was decided by it
CREATE INDEX result_study ON result (study_id, decided_seq) INCLUDE (score, status);
CREATE INDEX result_received ON result (received_at);
CREATE INDEX attempt_started ON attempt (started_at);  -- never changed, so that an ending stays a HOT update

-- What a study is called and when something last happened in it, whatever it has run. `reading` turns a score into what
-- people read: 1 the score, -1 its opposite, 0 a desirability; NULL where a score is a place in a front.
CREATE VIEW dash_name AS
SELECT study.id AS study_id, dash_key(study.project, study.name) AS study, study.state::text AS state, study.created_at,
       greatest(study.created_at, last.at) AS last_at,
       coalesce(study.spec #>> '{objective,goal}',
                (SELECT value FROM jsonb_each_text(study.spec -> 'objectives') ORDER BY key LIMIT 1),
                CASE WHEN jsonb_typeof(study.spec -> 'objective') = 'object' THEN 'minimize' ELSE 'maximize' END) AS goal,
       CASE WHEN study.spec -> 'objectives' <> '{}' THEN NULL
            WHEN study.spec #>> '{objective,metric}' IS NULL THEN 0
            WHEN study.spec #>> '{objective,goal}' = 'maximize' THEN -1 ELSE 1 END AS reading
FROM study
LEFT JOIN LATERAL (SELECT at FROM event WHERE event.study_id = study.id ORDER BY seq DESC LIMIT 1) AS last ON true;

CREATE VIEW dash_score AS
SELECT study_id, task_id, decided_seq AS seq, score, status::text AS status, received_at FROM result WHERE decided_seq IS NOT NULL;

CREATE VIEW dash_waiting AS
SELECT dash_key(study.project, study.name) AS study, task.id AS task_id
FROM task JOIN study ON study.id = task.study_id WHERE task.state = 'ready';

CREATE VIEW dash_plan AS
SELECT study.id AS study_id, dash_key(project, name) AS study, spec #>> '{budget,unit}' AS unit,
       (rung ->> 'bracket')::integer AS bracket, (rung ->> 'level')::integer AS level, dash_number(rung -> 'budget') AS budget,
       dash_number(rung -> 'quota') AS quota, dash_number(rung -> 'before') AS quota_before, dash_number(rung -> 'cost') AS cost
FROM study CROSS JOIN LATERAL jsonb_array_elements(rungs) AS rung;

-- As before, and its last attempt by its epoch: one unique row, which nobody looks for who does not ask for it.
CREATE OR REPLACE VIEW dash_task AS
SELECT task.id AS task_id, dash_key(study.project, study.name) AS study, dash_key(campaign.project, campaign.name) AS campaign,
       study.size, study.n_params, trial.no AS trial, trial.bracket, trial.index, trial.source, trial.params, task.level,
       task.budget_from::float8 AS budget_from, task.budget_to::float8 AS budget, study.spec #>> '{budget,unit}' AS unit,
       coalesce(result.status::text, task.state::text) AS status,
       dash_number(coalesce(trial.params -> 'lr', study.spec #> '{fixed,lr}', study.spec #> '{run,gpt,lr}')) AS lr,
       dash_number(coalesce(trial.params -> 'batch_tokens', study.spec #> '{fixed,batch_tokens}',
                            study.spec #> '{run,gpt,batch_tokens}')) AS batch_tokens,
       CASE WHEN study.spec #>> '{objective,metric}' IS NOT NULL
            THEN dash_number(result."values" -> (study.spec #>> '{objective,metric}'))
            WHEN study.spec -> 'objectives' <> '{}'
            THEN dash_number(result."values" -> (SELECT min(key) FROM jsonb_object_keys(study.spec -> 'objectives') AS key))
            ELSE exp(greatest(least(-result.score, 0), -700)) END AS value,
       result.score, result.decided_seq IS NOT NULL AS decided, task.created_at, result.received_at,
       last.started_at, last.ended_at, last.worker_id AS worker, coalesce(last.epoch, 0) AS attempts,
       coalesce(last.message, '') AS message, task.study_id
FROM task
JOIN study ON study.id = task.study_id
JOIN trial ON trial.study_id = task.study_id AND trial.no = task.trial_no
LEFT JOIN campaign ON campaign.id = study.campaign_id
LEFT JOIN result ON result.task_id = task.id AND result.study_id = task.study_id
LEFT JOIN attempt AS last ON last.task_id = task.id AND last.epoch = task.epoch;

CREATE OR REPLACE VIEW dash_attempt AS
SELECT dash_key(study.project, study.name) AS study, dash_key(campaign.project, campaign.name) AS campaign, task.trial_no AS trial,
       task.level, attempt.epoch, attempt.worker_id AS worker, attempt.started_at, attempt.ended_at,
       coalesce(attempt.outcome::text, 'running') AS outcome, attempt.message,
       extract(epoch FROM coalesce(attempt.ended_at, now()) - attempt.started_at)::float8 AS seconds, attempt.code
FROM attempt JOIN task ON task.id = attempt.task_id JOIN study ON study.id = task.study_id
LEFT JOIN campaign ON campaign.id = study.campaign_id;

CREATE OR REPLACE VIEW dash_throughput AS
SELECT dash_key(study.project, study.name) AS study, dash_key(campaign.project, campaign.name) AS campaign, study.size,
       result.status::text AS status, result.received_at AS at, (task.budget_to - task.budget_from)::float8 AS budget,
       study.spec #>> '{budget,unit}' AS unit,
       CASE WHEN study.spec #>> '{budget,unit}' = 'tokens' THEN (task.budget_to - task.budget_from)::float8 END AS tokens,
       CASE WHEN study.spec #>> '{budget,unit}' = 'tokens' THEN 6 * study.n_params * (task.budget_to - task.budget_from) END AS flops
FROM result JOIN task ON task.id = result.task_id JOIN study ON study.id = task.study_id
LEFT JOIN campaign ON campaign.id = study.campaign_id;

-- Each count by itself, of index entries alone, and only where it is asked for.
CREATE OR REPLACE VIEW dash_study AS
SELECT name.study, dash_key(campaign.project, campaign.name) AS campaign, study.size, study.n_params, name.state, study.trainable,
       study.spec #>> '{budget,unit}' AS unit,
       coalesce(study.spec #>> '{objective,metric}',
                (SELECT min(key) FROM jsonb_object_keys(study.spec -> 'objectives') AS key), 'desirability') AS metric,
       name.goal, study.max_budget::float8 AS max_budget, study.spent, study.reserved, study.created_at,
       (SELECT count(*) FROM trial WHERE trial.study_id = study.id)::float8 AS trials,
       (SELECT count(*) FROM task WHERE task.study_id = study.id)::float8 AS tasks,
       (SELECT count(*) FROM result WHERE result.study_id = study.id AND status = 'ok')::float8 AS done,
       (SELECT count(*) FROM lease JOIN task ON task.id = lease.task_id WHERE task.study_id = study.id)::float8 AS running,
       (SELECT count(*) FROM task WHERE task.study_id = study.id AND task.state = 'ready')::float8 AS waiting,
       (SELECT count(*) FROM result WHERE result.study_id = study.id AND status IN ('failed', 'cancelled'))::float8 AS failed,
       (SELECT count(*) FROM result WHERE result.study_id = study.id AND status = 'diverged')::float8 AS diverged,
       CASE name.reading
            WHEN 0 THEN exp(greatest(least(-(SELECT min(score) FROM result WHERE result.study_id = study.id), 0), -700))
            ELSE name.reading * (SELECT min(score) FROM result WHERE result.study_id = study.id) END AS best,
       name.last_at
FROM study JOIN dash_name AS name ON name.study_id = study.id LEFT JOIN campaign ON campaign.id = study.campaign_id;

CREATE OR REPLACE VIEW dash_event AS
SELECT dash_key(study.project, study.name) AS study, event.seq, event.at, event.kind, (event.body - 'kind')::text AS body,
       jsonb_array_length(event.decisions) AS decisions, event.study_id
FROM event JOIN study ON study.id = event.study_id;

-- Study by study, so that one is counted alone.
CREATE OR REPLACE VIEW dash_rung AS
SELECT dash_key(study.project, study.name) AS study, rung.bracket, rung.level, rung.budget,
       study.spec #>> '{budget,unit}' AS unit, coalesce(rung.tasks, 0) AS tasks, coalesce(rung.done, 0) AS done,
       coalesce(rung.running, 0) AS running, coalesce(rung.waiting, 0) AS waiting, coalesce(rung.diverged, 0) AS diverged,
       coalesce(rung.failed, 0) AS failed, best.value AS best, rung.quota, rung.quota_before,
       CASE WHEN rung.bracket >= 0 THEN coalesce(rung.promoted, 0) END AS promoted, rung.cost
FROM study
CROSS JOIN LATERAL (
    SELECT bracket, level, coalesce(counted.budget, planned.budget) AS budget, tasks, done, running, waiting, diverged, failed,
           best_task, promoted, quota, quota_before, cost
    FROM (SELECT bracket, level, budget, quota, quota_before, cost FROM dash_plan WHERE dash_plan.study_id = study.id) AS planned
    FULL JOIN (
        SELECT trial.bracket, task.level, task.budget_to::float8 AS budget, count(*)::float8 AS tasks,
               (count(*) FILTER (WHERE status = 'ok'))::float8 AS done,
               (count(*) FILTER (WHERE status IS NULL AND state IN ('leased', 'cancelling')))::float8 AS running,
               (count(*) FILTER (WHERE status IS NULL AND state = 'ready'))::float8 AS waiting,
               (count(*) FILTER (WHERE status = 'diverged'))::float8 AS diverged,
               (count(*) FILTER (WHERE status IN ('failed', 'cancelled')))::float8 AS failed,
               (min(ARRAY[score, task.id]) FILTER (WHERE score IS NOT NULL))[2]::bigint AS best_task,
               lead(count(*)) OVER (PARTITION BY trial.bracket ORDER BY task.level)::float8 AS promoted
        FROM task JOIN trial ON trial.study_id = task.study_id AND trial.no = task.trial_no
        LEFT JOIN result ON result.task_id = task.id AND result.study_id = task.study_id
        WHERE task.study_id = study.id GROUP BY trial.bracket, task.level, task.budget_to) AS counted USING (bracket, level)) AS rung
LEFT JOIN LATERAL (SELECT value FROM dash_task WHERE dash_task.task_id = rung.best_task) AS best ON true;

DO $$ BEGIN
    IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'isoloss_dash') THEN
        GRANT SELECT ON dash_name, dash_score, dash_waiting, dash_plan TO isoloss_dash;
    END IF;
END $$;
