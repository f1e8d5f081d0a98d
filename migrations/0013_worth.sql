-- What results are worth by the newest preference: {"D": number, "d": {metric: d}, "y": {metric: value}, "limiting": metric};
-- of several objectives {"y": …, "hypervolume": number}.
-- As the score it is written where it is decided and again when the preference changes, so that dashboards need no formulas.
ALTER TABLE result ADD COLUMN worth jsonb;

CREATE VIEW dash_worth AS
SELECT dash_key(study.project, study.name) AS study, task.trial_no AS trial, task.level, task.budget_to::float8 AS budget,
       result.received_at, trial.params, trial.source, trial.repeat, dash_number(result.worth -> 'D') AS overall,
       result.worth -> 'd' AS parts, result.worth ->> 'limiting' AS limiting,
       coalesce(result.worth -> 'y', result."values") AS outcomes,
       CASE WHEN study.spec -> 'objectives' <> '{}' THEN result.score END AS place,
       dash_number(result.worth -> 'hypervolume') AS hypervolume
FROM study
JOIN task ON task.study_id = study.id
JOIN trial ON trial.study_id = study.id AND trial.no = task.trial_no
JOIN result ON result.task_id = task.id
WHERE study.spec #>> '{objective,metric}' IS NULL AND result.decided_seq IS NOT NULL AND result.status = 'ok';

CREATE VIEW dash_preference AS
SELECT dash_key(study.project, study.name) AS study, preference.version, preference.at
FROM preference JOIN study ON study.id = preference.study_id;

CREATE VIEW dash_parameter AS
SELECT dash_key(study.project, study.name) AS study, place, parameter
FROM study, jsonb_object_keys(study.spec -> 'space') WITH ORDINALITY AS key (parameter, place);

-- Of several objectives people read the first by name, not a place in the front.
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
       coalesce(last.message, '') AS message
FROM task
JOIN study ON study.id = task.study_id
JOIN trial ON trial.study_id = task.study_id AND trial.no = task.trial_no
LEFT JOIN campaign ON campaign.id = study.campaign_id
LEFT JOIN result ON result.task_id = task.id
LEFT JOIN LATERAL (SELECT started_at, ended_at, worker_id, epoch, message FROM attempt
                   WHERE attempt.task_id = task.id ORDER BY attempt.epoch DESC LIMIT 1) AS last ON true;

CREATE OR REPLACE VIEW dash_study AS
SELECT dash_key(study.project, study.name) AS study, dash_key(campaign.project, campaign.name) AS campaign, study.size,
       study.n_params, study.state::text AS state, study.trainable, study.spec #>> '{budget,unit}' AS unit,
       coalesce(study.spec #>> '{objective,metric}',
                (SELECT min(key) FROM jsonb_object_keys(study.spec -> 'objectives') AS key), 'desirability') AS metric,
       coalesce(study.spec #>> '{objective,goal}',
                (SELECT value FROM jsonb_each_text(study.spec -> 'objectives') ORDER BY key LIMIT 1),
                CASE WHEN jsonb_typeof(study.spec -> 'objective') = 'object' THEN 'minimize' ELSE 'maximize' END) AS goal,
       study.max_budget::float8 AS max_budget, study.spent, study.reserved, study.created_at,
       trials.n AS trials, coalesce(tasks.n, 0)::float8 AS tasks, coalesce(tasks.done, 0)::float8 AS done,
       coalesce(tasks.running, 0)::float8 AS running, coalesce(tasks.waiting, 0)::float8 AS waiting,
       coalesce(tasks.failed, 0)::float8 AS failed, coalesce(tasks.diverged, 0)::float8 AS diverged, tasks.best,
       greatest(study.created_at, tasks.last_at) AS last_at
FROM study
LEFT JOIN campaign ON campaign.id = study.campaign_id
CROSS JOIN LATERAL (SELECT count(*)::float8 AS n FROM trial WHERE trial.study_id = study.id) AS trials
LEFT JOIN LATERAL (
    SELECT count(*) AS n, count(*) FILTER (WHERE result.status = 'ok') AS done,
           count(*) FILTER (WHERE task.state IN ('leased', 'cancelling')) AS running,
           count(*) FILTER (WHERE task.state = 'ready') AS waiting,
           count(*) FILTER (WHERE result.status IN ('failed', 'cancelled')) AS failed,
           count(*) FILTER (WHERE result.status = 'diverged') AS diverged,
           max(greatest(task.created_at, result.received_at)) AS last_at,
           CASE WHEN study.spec -> 'objectives' <> '{}' THEN NULL
                WHEN study.spec #>> '{objective,metric}' IS NULL THEN exp(greatest(least(-min(result.score), 0), -700))
                WHEN study.spec #>> '{objective,goal}' = 'maximize' THEN -min(result.score) ELSE min(result.score) END AS best
    FROM task LEFT JOIN result ON result.task_id = task.id WHERE task.study_id = study.id) AS tasks ON true;

DO $$ BEGIN
    IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'isoloss_dash') THEN
        GRANT SELECT ON dash_worth, dash_preference, dash_parameter TO isoloss_dash;
    END IF;
END $$;
