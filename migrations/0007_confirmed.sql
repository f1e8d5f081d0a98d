-- The confirmed cell need not be the target's: its outcome is held against the forecast that was frozen for that cell.

CREATE OR REPLACE VIEW dash_outcome AS
SELECT task.campaign, task.index AS run, task.lr, task.batch_tokens, task.status, task.value AS loss, task.received_at AS at,
       made.loss AS forecast, made.loss_low, made.loss_high, task.value BETWEEN made.loss_low AND made.loss_high AS inside,
       100 * (task.value / nullif(made.loss, 0) - 1) AS error_percent,
       100 * (task.value / nullif(first_value(task.value) OVER (PARTITION BY task.campaign ORDER BY task.index), 0) - 1)
           AS above_first_percent,
       task.n_params, task.budget AS n_tokens
FROM dash_task AS task
LEFT JOIN LATERAL (
    SELECT loss, loss_low, loss_high FROM (
        SELECT 0 AS place, fit.id AS no, dash_number(fit.body -> 'loss') AS loss,
               dash_number(fit.body #> '{loss_interval,0}') AS loss_low,
               dash_number(fit.body #> '{loss_interval,1}') AS loss_high
        FROM fit JOIN campaign ON campaign.id = fit.campaign_id
        WHERE fit.form = 'confirmed' AND dash_key(campaign.project, campaign.name) = task.campaign
        UNION ALL
        SELECT 1, no, loss, loss_low, loss_high FROM dash_forecast
        WHERE dash_forecast.campaign = task.campaign AND dash_forecast.at <= task.received_at
    ) AS known ORDER BY place, no DESC LIMIT 1) AS made ON true
WHERE task.size = 'target' AND task.received_at IS NOT NULL;

CREATE OR REPLACE VIEW dash_fit AS
SELECT dash_key(campaign.project, campaign.name) AS campaign, fit.form, fit.at, fit.observation_hash,
       row_number() OVER (PARTITION BY fit.campaign_id, fit.form ORDER BY fit.id DESC) = 1 AS newest,
       body ->> 'equation' AS equation, body ->> 'verdict' AS verdict,
       dash_number(body -> 'n_observations') AS observations, dash_number(body -> 'residual_rms') AS residual,
       dash_number(body -> 'noise') AS noise, dash_number(body #> '{backtest,error}') AS backtest_error,
       dash_number(body -> 'agreeing') AS agreeing, coalesce(body -> 'warnings', '[]'::jsonb) AS warnings
FROM fit JOIN campaign ON campaign.id = fit.campaign_id WHERE fit.form NOT IN ('campaign', 'confirmed', 'pictures');

-- What a campaign's laws look like: the rows of its newest pictures (laws/pictures.py), for charts of two axes.
CREATE VIEW dash_picture AS
SELECT newest.campaign, drawn.key AS picture, point.no, point.row ->> 0 AS series, dash_number(point.row -> 1) AS x,
       dash_number(point.row -> 2) AS y, dash_number(point.row -> 3) AS low, dash_number(point.row -> 4) AS high,
       point.row ->> 5 AS line
FROM (SELECT DISTINCT ON (fit.campaign_id) dash_key(campaign.project, campaign.name) AS campaign, fit.body
      FROM fit JOIN campaign ON campaign.id = fit.campaign_id WHERE fit.form = 'pictures'
      ORDER BY fit.campaign_id, fit.id DESC) AS newest,
     jsonb_each(newest.body) AS drawn, jsonb_array_elements(drawn.value) WITH ORDINALITY AS point(row, no);

DO $$
BEGIN
    IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'isoloss_dash') THEN
        EXECUTE format('GRANT SELECT ON %I TO isoloss_dash', 'dash_picture');
    END IF;
END $$;
