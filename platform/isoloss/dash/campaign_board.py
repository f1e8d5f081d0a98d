"""The campaign's dashboard: what is forecast for the target and how sure, the basin, the cells, the laws."""

from __future__ import annotations

from typing import Any, Final

from isoloss.dash.panels import CAMPAIGN, Board, Panel

FEW: Final = "the first forecast comes with the eighth observation"

STATS: Final = (
    Panel(
        id="loss", title="Loss at the target", kind="stat", span=3, height=3, unit="none", empty="no forecast yet",
        about="Forecast for the run that cannot be swept, with its interval.",
        sql="""SELECT loss, to_char(loss_low, 'FM990.000') || ' … ' || to_char(loss_high, 'FM990.000') || ', '
                   || round(100 * level) || ' %' AS interval
            FROM dash_forecast WHERE campaign = ${campaign:sqlstring} ORDER BY no DESC LIMIT 1""",
    ),
    Panel(
        id="lr", title="Learning rate", kind="stat", span=3, height=3, unit="sci", empty="no forecast yet",
        about="Where the basin of the target's cell has its bottom.",
        sql="""SELECT lr, trim(to_char(lr_low, '0.0EEEE')) || ' … ' || trim(to_char(lr_high, '0.0EEEE')) AS interval
            FROM dash_forecast WHERE campaign = ${campaign:sqlstring} ORDER BY no DESC LIMIT 1""",
    ),
    Panel(
        id="batch", title="Batch, tokens", kind="stat", span=3, height=3, unit="short", empty="no forecast yet",
        about="The batch size at the bottom of the basin.",
        sql="""SELECT batch_tokens, dash_short(batch_low) || ' … ' || dash_short(batch_high) AS interval
            FROM dash_forecast WHERE campaign = ${campaign:sqlstring} ORDER BY no DESC LIMIT 1""",
    ),
    Panel(
        id="outcome", title="Outcome", kind="stat", span=3, height=3, unit="none", empty="not run yet",
        about="The confirmed cell (the target's, or the largest affordable), run at the forecast.",
        sql="""SELECT loss, CASE WHEN inside THEN 'inside the interval' WHEN inside IS NULL THEN status
                   ELSE 'outside the interval' END || coalesce(', ' || to_char(error_percent, 'FMSG990.00') || ' %', '')
                   AS said
            FROM dash_outcome WHERE campaign = ${campaign:sqlstring} AND run = 0""",
    ),
    Panel(
        id="regret", title="Expected regret", kind="stat", span=3, height=3, unit="percent", empty="no forecast yet",
        about="What training at the forecast instead of at the true optimum is expected to cost, in percent of the loss.",
        sql="""SELECT 100 * expected_regret AS regret, 'N ×' || to_char(beyond_params, 'FM99990.0') || ', D ×'
                   || to_char(beyond_tokens, 'FM99990.0') || ' beyond data' AS beyond
            FROM dash_forecast WHERE campaign = ${campaign:sqlstring} ORDER BY no DESC LIMIT 1""",
    ),
    Panel(
        id="observations", title="Observations", kind="stat", span=3, height=3, unit="short",
        about="Finished and diverged runs of all sizes.",
        sql="""SELECT observations, state || CASE WHEN deepened > 0 THEN ', deepened ' || deepened || '×' ELSE '' END AS said
            FROM dash_campaign WHERE campaign = ${campaign:sqlstring}""",
    ),
    Panel(
        id="cost", title="Searching cost", kind="stat", span=3, height=3, unit="percent",
        about="FLOPs spent on all sizes, in percent of one such search at the target's size, topped at its tokens.",
        sql="""SELECT 100 * searched_flops * max_tokens * sizes.n
                      / nullif(6 * target_params * searched_tokens * target_tokens, 0) AS cost,
                      to_char(100 * searched_flops / nullif(6 * target_params * target_tokens, 0), 'FM999990.0')
                      || ' % of one target run' AS said
            FROM dash_campaign,
                 (SELECT count(*) AS n FROM dash_study WHERE campaign = ${campaign:sqlstring} AND size <> 'target') AS sizes
            WHERE campaign = ${campaign:sqlstring} AND target_params IS NOT NULL""",
        empty="no forecast yet",
    ),
    Panel(
        id="saved", title="Deepening saved", kind="stat", span=3, height=3, unit="percent", empty="not deepened yet",
        about="What deepening added, against starting again at each new maximum.",
        sql="""SELECT 100 * (1 - deepened_tokens / nullif(restart_tokens, 0)) AS saved,
                      dash_short(deepened_tokens) || ' instead of ' || dash_short(restart_tokens) || ' tokens' AS said
            FROM dash_campaign WHERE campaign = ${campaign:sqlstring} AND deepened > 0""",
    ),
)  # fmt: skip

BASIN: Final = Panel(
    id="basin", title="Learning rate and batch at the target", kind="basin", span=12, height=15, unit="none",
    about="Iso-loss contours of the fitted basin; the ellipse holds 90 % of its draws.",
    empty=FEW, log_x=True, log_y=True, x_title="learning rate", y_title="batch, tokens",
    units={"lr": "sci", "batch_tokens": "short"},
    sql="""(SELECT size AS series, lr, batch_tokens, loss FROM dash_observation
        WHERE campaign = ${campaign:sqlstring} AND loss IS NOT NULL AND lr IS NOT NULL AND batch_tokens IS NOT NULL
          AND n_tokens = (SELECT max(n_tokens) FROM dash_observation WHERE campaign = ${campaign:sqlstring} AND loss IS NOT NULL)
        ORDER BY n_params, loss LIMIT 2000)
        UNION ALL (SELECT 'forecast', lr, batch_tokens, loss FROM dash_forecast
            WHERE campaign = ${campaign:sqlstring} AND lr IS NOT NULL AND batch_tokens IS NOT NULL ORDER BY no DESC LIMIT 1)
        UNION ALL SELECT 'outcome', lr, batch_tokens, loss FROM dash_outcome
            JOIN dash_campaign USING (campaign) WHERE campaign = ${campaign:sqlstring} AND n_params = target_params
              AND abs(n_tokens / target_tokens - 1) < 0.01 AND loss IS NOT NULL AND lr IS NOT NULL AND batch_tokens IS NOT NULL""",
)  # fmt: skip

OVER_TIME: Final = (
    Panel(
        id="loss_over_time", title="Forecast of the loss against outcome", kind="timeseries", span=12, height=8,
        unit="none", empty=FEW, band=("low", "high"), dots=("outcome",),
        about="Every forecast the campaign made for its target: the interval tightens as observations arrive.",
        sql="""SELECT at AS time, loss AS forecast, loss_low AS low, loss_high AS high, NULL::float8 AS outcome
            FROM dash_forecast WHERE campaign = ${campaign:sqlstring} AND loss IS NOT NULL AND $__timeFilter(at)
            UNION ALL SELECT at, NULL, NULL, NULL, loss FROM dash_outcome
            WHERE campaign = ${campaign:sqlstring} AND loss IS NOT NULL AND $__timeFilter(at) ORDER BY time""",
    ),
    Panel(
        id="lr_over_time", title="Forecast of the learning rate", kind="timeseries", span=6, height=7, unit="sci",
        log_y=True, empty=FEW, band=("low", "high"),
        sql="""SELECT at AS time, lr AS forecast, lr_low AS low, lr_high AS high FROM dash_forecast
            WHERE campaign = ${campaign:sqlstring} AND lr IS NOT NULL AND $__timeFilter(at) ORDER BY time""",
    ),
    Panel(
        id="batch_over_time", title="Forecast of the batch", kind="timeseries", span=6, height=7, unit="short",
        log_y=True, empty=FEW, band=("low", "high"),
        sql="""SELECT at AS time, batch_tokens AS forecast, batch_low AS low, batch_high AS high FROM dash_forecast
            WHERE campaign = ${campaign:sqlstring} AND batch_tokens IS NOT NULL AND $__timeFilter(at) ORDER BY time""",
    ),
)  # fmt: skip

CELLS: Final = (
    Panel(
        id="loss_by_tokens", title="Loss against tokens, by size", kind="xy", span=8, height=9, unit="none",
        log_x=True, log_y=True, x_title="D, tokens", y_title="best loss", empty="the first cell is being run",
        units={"x": "short"},
        sql="""SELECT series, x, y, low, high, line FROM (
            SELECT size AS series, n_tokens AS x, loss AS y, NULL::float8 AS low, NULL::float8 AS high, size AS line, n_params
            FROM dash_cell WHERE campaign = ${campaign:sqlstring} AND loss IS NOT NULL
            UNION ALL (SELECT 'forecast', n_tokens, loss, loss_low, loss_high, NULL, 'Infinity' FROM dash_forecast
                WHERE campaign = ${campaign:sqlstring} AND loss IS NOT NULL ORDER BY no DESC LIMIT 1)
            UNION ALL SELECT 'outcome', n_tokens, loss, NULL, NULL, NULL, 'Infinity' FROM dash_outcome
                WHERE campaign = ${campaign:sqlstring} AND loss IS NOT NULL AND run = 0
            ) AS points ORDER BY n_params, series, x""",
    ),
    Panel(
        id="lr_by_tokens", title="Best learning rate of every cell", kind="xy", span=8, height=9, unit="sci",
        log_x=True, log_y=True, x_title="D, tokens", y_title="learning rate", empty="the first cell is being run",
        about="The best run's, and the forecast.", units={"x": "short"},
        sql="""SELECT series, x, y, low, high, line FROM (
            SELECT size AS series, n_tokens AS x, lr AS y, NULL::float8 AS low, NULL::float8 AS high, size AS line, n_params
            FROM dash_cell WHERE campaign = ${campaign:sqlstring} AND loss IS NOT NULL AND lr IS NOT NULL
            UNION ALL (SELECT 'forecast', n_tokens, lr, lr_low, lr_high, NULL, 'Infinity' FROM dash_forecast
                WHERE campaign = ${campaign:sqlstring} AND lr IS NOT NULL ORDER BY no DESC LIMIT 1)
            ) AS points ORDER BY n_params, series, x""",
    ),
    Panel(
        id="batch_by_tokens", title="Best batch of every cell", kind="xy", span=8, height=9, unit="short",
        log_x=True, log_y=True, x_title="D, tokens", y_title="batch, tokens", empty="the first cell is being run",
        about="The best run's, and the forecast.", units={"x": "short"},
        sql="""SELECT series, x, y, low, high, line FROM (
            SELECT size AS series, n_tokens AS x, batch_tokens AS y, NULL::float8 AS low, NULL::float8 AS high, size AS line, n_params
            FROM dash_cell WHERE campaign = ${campaign:sqlstring} AND loss IS NOT NULL AND batch_tokens IS NOT NULL
            UNION ALL (SELECT 'forecast', n_tokens, batch_tokens, batch_low, batch_high, NULL, 'Infinity' FROM dash_forecast
                WHERE campaign = ${campaign:sqlstring} AND batch_tokens IS NOT NULL ORDER BY no DESC LIMIT 1)
            ) AS points ORDER BY n_params, series, x""",
    ),
    Panel(
        id="cells", title="Best loss of every cell", kind="heatmap", span=8, height=7, unit="none",
        x_title="D, tokens", y_title="size", empty="the first cell is being run",
        sql="""SELECT dash_short(n_tokens) AS "column", size AS "row", loss AS value
            FROM dash_cell WHERE campaign = ${campaign:sqlstring} AND loss IS NOT NULL ORDER BY n_tokens, n_params""",
    ),
    Panel(
        id="studies", title="Progress of the studies", kind="bar", span=8, height=7, unit="short",
        about="Tasks of every size: each trial has one a level.", empty="no study yet",
        sql="""SELECT size, done, running, waiting, diverged, failed FROM dash_study
            WHERE campaign = ${campaign:sqlstring} ORDER BY n_params, study""",
    ),
    Panel(
        id="tokens", title="Tokens trained", kind="timeseries", span=8, height=7, unit="short", empty="no task done yet",
        sql="""SELECT $__timeGroupAlias(at,$__interval), max(tokens) AS tokens FROM dash_progress
            WHERE campaign = ${campaign:sqlstring} AND $__timeFilter(at) GROUP BY 1 ORDER BY 1""",
    ),
)  # fmt: skip

LAWS: Final = (
    Panel(
        id="outcomes", title="Runs of the target's cell", kind="table", span=10, height=7, unit="none",
        empty="run once the search is done, with `confirm`", units={"lr": "sci", "batch": "short"},
        about="Run 0 is at the forecast, the others are its neighbours.",
        sql="""SELECT run, lr, batch_tokens AS batch, loss, forecast,
                      CASE WHEN inside THEN 'yes' WHEN NOT inside THEN 'no' END AS "inside the interval",
                      above_first_percent AS "% above run 0", status
            FROM dash_outcome WHERE campaign = ${campaign:sqlstring} ORDER BY run""",
    ),
    Panel(
        id="fits", title="Fits and their back-tests", kind="table", span=14, height=7, unit="none", empty=FEW,
        about="Back-test: the law refitted without the largest runs, and its mean error on them.",
        sql="""SELECT form, observations, 100 * residual AS "residual, %", 100 * backtest_error AS "back-test error, %",
                      verdict, at AS "fitted at"
            FROM dash_fit WHERE campaign = ${campaign:sqlstring} AND newest ORDER BY form""",
    ),
    Panel(
        id="estimates", title="Constants of the laws", kind="table", span=14, height=9, unit="none", empty=FEW,
        about="Estimates with intervals, and whether the observations determine them.",
        sql="""SELECT form, name, value, low, high, se, verdict FROM dash_estimate
            WHERE campaign = ${campaign:sqlstring} ORDER BY form, name""",
    ),
    Panel(
        id="warnings", title="What the forecast warns of", kind="table", span=10, height=9, unit="none", empty="nothing",
        sql="""SELECT warning FROM (SELECT warnings FROM dash_forecast
                WHERE campaign = ${campaign:sqlstring} ORDER BY no DESC LIMIT 1) AS newest,
                jsonb_array_elements_text(warnings) AS said(warning)""",
    ),
)  # fmt: skip


def _drawn(
    picture: str, title: str, about: str, x_title: str, y_title: str, *, span: int = 12, log: bool = False, **more: Any
) -> Panel:
    """A picture of the laws, as the fitter keeps it."""
    return Panel(
        id=f"law_{picture}", title=title, kind="xy", span=span, height=10, empty=FEW, about=about, log_x=log, log_y=log,
        x_title=x_title, y_title=y_title, unit=more.get("unit", "none"), units={"x": more.get("unit_x", "none")},
        sql=f"""SELECT series, x, y, low, high, line FROM dash_picture
            WHERE campaign = ${{campaign:sqlstring}} AND picture = '{picture}' ORDER BY no""",  # noqa: S608 - a constant
    )  # fmt: skip


PICTURES: Final = (
    _drawn("plane", "Loss over N and D, and the frontier", "Iso-loss contours of the mixture of loss laws.",
           "N, parameters", "D, tokens", log=True, unit="short", unit_x="short"),
    _drawn("optima", "Every cell's own optimum", "Ellipses hold 90 %: what each cell's runs, and the field, know.",
           "learning rate", "batch, tokens", log=True, unit="short", unit_x="sci"),
    _drawn("residuals", "Residuals", "The best run of every cell over the mixture of loss laws.",
           "D, tokens", "observed over fitted, %", span=8, unit_x="short"),
    _drawn("rollouts", "Roll-outs", "Each law's mean error on dearer runs that it had not seen.",
           "FLOP of the runs foretold", "mean error, %", span=8, unit_x="sci"),
    _drawn("profiles", "Profile likelihoods", "An open profile is a constant that the runs do not hold.",
           "standard errors from the optimum", "likelihood-ratio statistic", span=8),
    _drawn("spend", "What planned runs would be worth", "The target's expected regret as the planner spends.",
           "spent, % of one run of the target", "expected regret, %", span=12),
)  # fmt: skip

BOARD: Final = Board(
    id="campaign",
    title="Campaign",
    about="What the small runs say about the big one.",
    variables=(CAMPAIGN,),
    span="""SELECT created_at, last_at, state IN ('searching', 'confirming') FROM dash_campaign
        WHERE campaign = ${campaign:sqlstring}""",
    panels=(*STATS, BASIN, *OVER_TIME, *CELLS, *PICTURES, *LAWS),
)
