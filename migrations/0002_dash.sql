-- What dashboards may read: views named dash_*, and a role that can read nothing else. A panel's SQL is written over
-- these columns alone, so tables can change without breaking anybody's Grafana; counts and budgets are float8.

CREATE FUNCTION dash_key(project text, name text) RETURNS text LANGUAGE sql IMMUTABLE AS
$$ SELECT CASE WHEN project = 'default' THEN name ELSE project || '/' || name END $$;

-- A number out of JSON, or NULL when it is none: a user's parameter may be called lr and hold words.
CREATE FUNCTION dash_number(value jsonb) RETURNS double precision LANGUAGE sql IMMUTABLE AS
$$ SELECT CASE WHEN jsonb_typeof(value) = 'number' THEN value::double precision END $$;

-- A count as people say it, three digits and K, M, B or T.
CREATE FUNCTION dash_short(value double precision) RETURNS text LANGUAGE sql IMMUTABLE AS
$$ SELECT CASE WHEN value = 0 THEN '0' ELSE
       trim_scale(round((value / 10 ^ scale)::numeric, greatest(0, 2 - floor(log(abs(value) / 10 ^ scale))::integer)))
       || CASE scale WHEN 12 THEN 'T' WHEN 9 THEN 'B' WHEN 6 THEN 'M' WHEN 3 THEN 'K' ELSE '' END END
   FROM (SELECT CASE WHEN abs(value) >= 1e12 THEN 12 WHEN abs(value) >= 1e9 THEN 9 WHEN abs(value) >= 1e6 THEN 6
                     WHEN abs(value) >= 1e3 THEN 3 ELSE 0 END AS scale) AS said $$;

-- One row a trial and level. `value` is what people read: the objective's metric, or the overall desirability.
CREATE VIEW dash_task AS
SELECT task.id AS task_id, dash_key(study.project, study.name) AS study, dash_key(campaign.project, campaign.name) AS campaign,
       study.size, study.n_params, trial.no AS trial, trial.bracket, trial.index, trial.source, trial.params, task.level,
       task.budget_from::float8 AS budget_from, task.budget_to::float8 AS budget, study.spec #>> '{budget,unit}' AS unit,
       coalesce(result.status::text, task.state::text) AS status,
       dash_number(coalesce(trial.params -> 'lr', study.spec #> '{fixed,lr}', study.spec #> '{run,gpt,lr}')) AS lr,
       dash_number(coalesce(trial.params -> 'batch_tokens', study.spec #> '{fixed,batch_tokens}',
                            study.spec #> '{run,gpt,batch_tokens}')) AS batch_tokens,
       CASE WHEN study.spec #>> '{objective,metric}' IS NOT NULL
            THEN dash_number(result."values" -> (study.spec #>> '{objective,metric}'))
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

CREATE VIEW dash_study AS
SELECT dash_key(study.project, study.name) AS study, dash_key(campaign.project, campaign.name) AS campaign, study.size,
       study.n_params, study.state::text AS state, study.trainable, study.spec #>> '{budget,unit}' AS unit,
       coalesce(study.spec #>> '{objective,metric}', 'desirability') AS metric,
       CASE WHEN jsonb_typeof(study.spec -> 'objective') = 'object'
            THEN coalesce(study.spec #>> '{objective,goal}', 'minimize') ELSE 'maximize' END AS goal,
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
           CASE WHEN study.spec #>> '{objective,metric}' IS NULL THEN exp(greatest(least(-min(result.score), 0), -700))
                WHEN study.spec #>> '{objective,goal}' = 'maximize' THEN -min(result.score) ELSE min(result.score) END AS best
    FROM task LEFT JOIN result ON result.task_id = task.id WHERE task.study_id = study.id) AS tasks ON true;

CREATE VIEW dash_campaign AS
SELECT dash_key(campaign.project, campaign.name) AS campaign, campaign.state::text AS state, campaign.created_at,
       campaign.max_tokens::float8 AS max_tokens, campaign.deepened::float8 AS deepened, campaign.deepened_tokens,
       campaign.restart_tokens, campaign.spec #>> '{objective,metric}' AS metric,
       dash_number(campaign.spec #> '{target,n_tokens}') AS target_tokens,
       coalesce(dash_number(campaign.spec #> '{target,n_params}'),
                (SELECT max(forecast.n_params) FROM forecast WHERE forecast.campaign_id = campaign.id)) AS target_params,
       run.observations, run.tokens AS searched_tokens, run.flops AS searched_flops,
       greatest(campaign.created_at, run.last_at) AS last_at
FROM campaign
CROSS JOIN LATERAL (
    SELECT count(*) FILTER (WHERE result.status IN ('ok', 'diverged') AND study.size <> 'target')::float8 AS observations,
           coalesce(sum(task.budget_to - task.budget_from) FILTER (WHERE study.size <> 'target'), 0)::float8 AS tokens,
           coalesce(sum(6 * study.n_params * (task.budget_to - task.budget_from))
                    FILTER (WHERE study.size <> 'target'), 0)::float8 AS flops,
           max(result.received_at) AS last_at
    FROM study JOIN task ON task.study_id = study.id JOIN result ON result.task_id = task.id
    WHERE study.campaign_id = campaign.id) AS run;

CREATE VIEW dash_rung AS
SELECT study, bracket, level, budget, unit, count(*)::float8 AS tasks,
       count(*) FILTER (WHERE status = 'ok')::float8 AS done,
       count(*) FILTER (WHERE status IN ('leased', 'cancelling'))::float8 AS running,
       count(*) FILTER (WHERE status = 'ready')::float8 AS waiting,
       count(*) FILTER (WHERE status = 'diverged')::float8 AS diverged,
       count(*) FILTER (WHERE status IN ('failed', 'cancelled'))::float8 AS failed,
       (array_agg(value ORDER BY score, trial))[1] AS best
FROM dash_task GROUP BY study, bracket, level, budget, unit;

-- Every point of every curve, with the level it was measured for; steps are in the study's budget unit.
CREATE VIEW dash_curve AS
SELECT dash_key(study.project, study.name) AS study, task.trial_no AS trial, trial.bracket, task.level, chunk.epoch,
       chunk.metric, chunk.metric = study.spec #>> '{objective,metric}' AS objective, point.step::float8 AS step,
       point.value
FROM study
JOIN task ON task.study_id = study.id
JOIN trial ON trial.study_id = task.study_id AND trial.no = task.trial_no
JOIN metric_chunk AS chunk ON chunk.task_id = task.id
CROSS JOIN LATERAL unnest(chunk.steps, chunk."values") AS point(step, value);

-- How many points a study has of every metric, without opening the chunks.
CREATE VIEW dash_metric AS
SELECT dash_key(study.project, study.name) AS study, chunk.metric,
       coalesce(chunk.metric = study.spec #>> '{objective,metric}', false) AS objective,
       sum(cardinality(chunk.steps))::float8 AS points
FROM study JOIN task ON task.study_id = study.id JOIN metric_chunk AS chunk ON chunk.task_id = task.id
GROUP BY study.id, chunk.metric;

CREATE VIEW dash_event AS
SELECT dash_key(study.project, study.name) AS study, event.seq, event.at, event.kind, (event.body - 'kind')::text AS body,
       jsonb_array_length(event.decisions) AS decisions
FROM event JOIN study ON study.id = event.study_id;

CREATE VIEW dash_worker AS
SELECT worker.id AS worker, worker.host, worker.device, worker.slots::float8 AS slots, held.n AS leases, worker.seen_at,
       greatest(extract(epoch FROM now() - worker.seen_at), 0)::float8 AS silent_seconds,
       CASE WHEN worker.draining THEN 'draining' WHEN worker.seen_at < now() - interval '60 seconds' THEN 'silent'
            WHEN held.n > 0 THEN 'busy' ELSE 'waiting' END AS state
FROM worker
CROSS JOIN LATERAL (SELECT count(*)::float8 AS n FROM lease WHERE lease.worker_id = worker.id) AS held;

CREATE VIEW dash_attempt AS
SELECT dash_task.study, dash_task.campaign, dash_task.trial, dash_task.level, attempt.epoch, attempt.worker_id AS worker,
       attempt.started_at, attempt.ended_at, coalesce(attempt.outcome::text, 'running') AS outcome, attempt.message,
       extract(epoch FROM coalesce(attempt.ended_at, now()) - attempt.started_at)::float8 AS seconds
FROM attempt JOIN dash_task ON dash_task.task_id = attempt.task_id;

CREATE VIEW dash_lease AS
SELECT dash_task.study, dash_task.campaign, dash_task.trial, dash_task.level, dash_task.budget_from, dash_task.budget,
       dash_task.unit, lease.worker_id AS worker, attempt.started_at, lease.epoch, curve.step,
       extract(epoch FROM lease.expires_at - now())::float8 AS expires_in
FROM lease
JOIN dash_task ON dash_task.task_id = lease.task_id
JOIN attempt ON attempt.task_id = lease.task_id AND attempt.epoch = lease.epoch
LEFT JOIN LATERAL (SELECT max(steps[cardinality(steps)])::float8 AS step FROM metric_chunk
                   WHERE metric_chunk.task_id = lease.task_id AND metric_chunk.epoch = lease.epoch) AS curve ON true;

-- One row a finished task: what it added. `tokens` is NULL when the budget is in another unit.
CREATE VIEW dash_throughput AS
SELECT study, campaign, size, status, received_at AS at, budget - budget_from AS budget, unit,
       CASE WHEN unit = 'tokens' THEN budget - budget_from END AS tokens,
       CASE WHEN unit = 'tokens' THEN 6 * n_params * (budget - budget_from) END AS flops
FROM dash_task WHERE received_at IS NOT NULL;

CREATE VIEW dash_observation AS
SELECT campaign, study, size, n_params, trial, bracket, level, budget AS n_tokens, lr, batch_tokens, status,
       CASE WHEN status = 'ok' THEN value END AS loss, received_at AS at
FROM dash_task
WHERE campaign IS NOT NULL AND size <> 'target' AND decided AND status IN ('ok', 'diverged');

-- A cell is one (N, D) of a campaign; its optimum is the best run's.
CREATE VIEW dash_cell AS
SELECT campaign, size, n_params, level, n_tokens, count(*)::float8 AS runs, count(DISTINCT trial)::float8 AS configurations,
       count(*) FILTER (WHERE status = 'diverged')::float8 AS diverged, min(loss) AS loss,
       (array_agg(lr ORDER BY loss, trial))[1] AS lr, (array_agg(batch_tokens ORDER BY loss, trial))[1] AS batch_tokens
FROM dash_observation GROUP BY campaign, size, n_params, level, n_tokens;

CREATE VIEW dash_progress AS
SELECT campaign, at, size, count(*) OVER so_far::float8 AS observations,
       sum(tokens) OVER so_far::float8 AS tokens, sum(flops) OVER so_far::float8 AS flops
FROM dash_throughput WHERE campaign IS NOT NULL AND size <> 'target'
WINDOW so_far AS (PARTITION BY campaign ORDER BY at ROWS UNBOUNDED PRECEDING);

CREATE VIEW dash_forecast AS
SELECT dash_key(campaign.project, campaign.name) AS campaign, forecast.id AS no, forecast.at, forecast.n_params, forecast.n_tokens,
       forecast.n_observations::float8 AS observations, forecast.observation_hash,
       dash_number(body -> 'loss') AS loss, dash_number(body #> '{loss_interval,0}') AS loss_low,
       dash_number(body #> '{loss_interval,1}') AS loss_high,
       dash_number(body -> 'lr') AS lr, dash_number(body #> '{lr_interval,0}') AS lr_low,
       dash_number(body #> '{lr_interval,1}') AS lr_high,
       dash_number(body -> 'batch_tokens') AS batch_tokens, dash_number(body #> '{batch_tokens_interval,0}') AS batch_low,
       dash_number(body #> '{batch_tokens_interval,1}') AS batch_high,
       dash_number(body -> 'level') AS level, dash_number(body -> 'expected_regret') AS expected_regret,
       dash_number(body #> '{extrapolation,n_params}') AS beyond_params,
       dash_number(body #> '{extrapolation,n_tokens}') AS beyond_tokens,
       coalesce(body -> 'warnings', '[]'::jsonb) AS warnings
FROM forecast JOIN campaign ON campaign.id = forecast.campaign_id;

-- A run of the target's cell beside the newest forecast that was made before it ended. Run 0 is at the forecast.
CREATE VIEW dash_outcome AS
SELECT task.campaign, task.index AS run, task.lr, task.batch_tokens, task.status, task.value AS loss, task.received_at AS at,
       made.loss AS forecast, made.loss_low, made.loss_high, task.value BETWEEN made.loss_low AND made.loss_high AS inside,
       100 * (task.value / nullif(made.loss, 0) - 1) AS error_percent,
       100 * (task.value / nullif(first_value(task.value) OVER (PARTITION BY task.campaign ORDER BY task.index), 0) - 1)
           AS above_first_percent
FROM dash_task AS task
LEFT JOIN LATERAL (SELECT loss, loss_low, loss_high FROM dash_forecast
                   WHERE dash_forecast.campaign = task.campaign AND dash_forecast.at <= task.received_at
                   ORDER BY no DESC LIMIT 1) AS made ON true
WHERE task.size = 'target' AND task.received_at IS NOT NULL;

CREATE VIEW dash_fit AS
SELECT dash_key(campaign.project, campaign.name) AS campaign, fit.form, fit.at, fit.observation_hash,
       row_number() OVER (PARTITION BY fit.campaign_id, fit.form ORDER BY fit.id DESC) = 1 AS newest,
       body ->> 'equation' AS equation, body ->> 'verdict' AS verdict,
       dash_number(body -> 'n_observations') AS observations, dash_number(body -> 'residual_rms') AS residual,
       dash_number(body -> 'noise') AS noise, dash_number(body #> '{backtest,error}') AS backtest_error,
       dash_number(body -> 'agreeing') AS agreeing, coalesce(body -> 'warnings', '[]'::jsonb) AS warnings
FROM fit JOIN campaign ON campaign.id = fit.campaign_id WHERE fit.form <> 'campaign';

-- The constants of every form's newest fit, with their intervals and whether the data determine them.
CREATE VIEW dash_estimate AS
SELECT dash_key(campaign.project, campaign.name) AS campaign, fit.form, fit.at, constant.key AS name,
       dash_number(constant.value -> 'value') AS value, dash_number(constant.value -> 'se') AS se,
       dash_number(constant.value -> 'low') AS low, dash_number(constant.value -> 'high') AS high,
       constant.value ->> 'verdict' AS verdict, fit.body ->> 'equation' AS equation
FROM (SELECT DISTINCT ON (campaign_id, form) campaign_id, form, at, body FROM fit WHERE form <> 'campaign'
      ORDER BY campaign_id, form, id DESC) AS fit
JOIN campaign ON campaign.id = fit.campaign_id
CROSS JOIN LATERAL jsonb_each(CASE WHEN jsonb_typeof(fit.body -> 'estimates') = 'object' THEN fit.body -> 'estimates'
                                   ELSE '{}'::jsonb END) AS constant(key, value);

-- What the learning-rate/batch basin is drawn from: the newest joint surface with its draws.
CREATE VIEW dash_basin AS
SELECT DISTINCT ON (fit.campaign_id) dash_key(campaign.project, campaign.name) AS campaign, fit.observation_hash, fit.body
FROM fit JOIN campaign ON campaign.id = fit.campaign_id WHERE fit.form = 'lr-batch'
ORDER BY fit.campaign_id, fit.id DESC;

-- The role dashboards connect as, or become by SET ROLE. Roles belong to the whole server: another database of it may
-- have made this one, at this very moment too; and where we may not make roles, an administrator does.
DO $$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'isoloss_dash') THEN
        CREATE ROLE isoloss_dash NOLOGIN;
    END IF;
EXCEPTION WHEN insufficient_privilege OR duplicate_object OR unique_violation THEN
    RAISE NOTICE 'role isoloss_dash was not made here: %', SQLERRM;
END $$;

DO $$
DECLARE
    relation text;
BEGIN
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'isoloss_dash') THEN
        RETURN;
    END IF;
    EXECUTE format('GRANT USAGE ON SCHEMA %I TO isoloss_dash', current_schema());
    FOR relation IN SELECT viewname FROM pg_views WHERE schemaname = current_schema() AND viewname LIKE 'dash\_%' LOOP
        EXECUTE format('GRANT SELECT ON %I TO isoloss_dash', relation);
    END LOOP;
END $$;

DO $$
BEGIN
    IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'isoloss_dash') THEN
        EXECUTE format('GRANT isoloss_dash TO %I', current_user);
    END IF;
EXCEPTION WHEN insufficient_privilege OR internal_error THEN  -- internal: somebody else grants it in this moment
    RAISE NOTICE 'role isoloss_dash was not granted here: %', SQLERRM;
END $$;
