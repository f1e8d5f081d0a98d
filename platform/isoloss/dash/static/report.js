"use strict";
// The report: the page's charts and tables over the data in this file.

(() => {
  const { el } = Isoloss;
  const data = JSON.parse(document.getElementById("data").textContent);
  const main = document.getElementById("report");
  const charts = [];

  const figure = (place, title, option, wide = false) => {
    const body = el("div", { class: "body chart" });
    place.append(el("section", { class: `panel ${wide ? "wide" : ""}` }, el("h2", {}, title), body));
    const chart = echarts.init(body, null, { renderer: "canvas" });
    chart.setOption(option);
    charts.push(chart);
  };

  const text = (title, ...nodes) => main.append(el("section", { class: "panel text" }, el("h2", {}, title), el("div", { class: "body" }, ...nodes)));
  const table = (title, columns, kinds, rows, units = {}) => { if (rows.length) text(title, Isoloss.table({ units, unit: "none" }, columns, kinds, rows)); };

  main.append(el("h1", {}, data.name), el("div", { class: "when" }, `isoloss campaign, ${data.state} · written ${data.written}`),
    el("dl", { class: "lines" }, ...data.lines.flatMap(([word, said]) => [el("dt", {}, word), el("dd", { class: word }, said)])));

  const figures = el("div", { class: "figures" });
  main.append(figures);
  const axes = { log_x: true, log_y: true, unit: "none" };
  if (data.basin.length) {
    figure(figures, "Learning rate and batch: the basin at the target, its forecast, its outcome",
      Isoloss.basin({ x_title: "learning rate", y_title: "batch, tokens" }, data.basin, [], data.picture, data.box), true);
  }
  if (data.loss.length) figure(figures, "Loss against tokens, by size", Isoloss.xy({ ...axes, units: { x: "short" }, x_title: "D, tokens", y_title: "best loss" }, data.loss));
  if (data.lr.length) figure(figures, "Best learning rate against size", Isoloss.xy({ ...axes, unit: "sci", units: { x: "short" }, x_title: "N, parameters", y_title: "learning rate" }, data.lr));

  const drawn = [
    ["plane", "Loss over N and D, and the frontier", { log_x: true, log_y: true, unit: "short", units: { x: "short" }, x_title: "N, parameters", y_title: "D, tokens" }],
    ["optima", "Every cell's own optimum; ellipses hold 90 %", { log_x: true, log_y: true, unit: "short", units: { x: "sci" }, x_title: "learning rate", y_title: "batch, tokens" }],
    ["residuals", "The best run of every cell over the fitted loss", { log_x: true, unit: "none", units: { x: "short" }, x_title: "D, tokens", y_title: "observed over fitted, %" }],
    ["rollouts", "Roll-outs: errors on dearer runs not seen", { log_x: true, unit: "none", units: { x: "sci" }, x_title: "FLOP of the runs foretold", y_title: "mean error, %" }],
    ["profiles", "Profile likelihoods", { unit: "none", units: {}, x_title: "standard errors from the optimum", y_title: "likelihood-ratio statistic" }],
    ["spend", "What planned runs would be worth", { unit: "none", units: {}, x_title: "spent, % of one run of the target", y_title: "expected regret, %" }],
  ];
  for (const [name, title, panel] of drawn) if (data.pictures[name]?.length) figure(figures, title, Isoloss.xy(panel, data.pictures[name]));

  if (data.warnings.length) text("Warnings", el("ul", {}, ...data.warnings.map((said) => el("li", {}, said))));
  table("Runs of the target's cell", ["run", "lr", "batch", "loss", "inside the interval", "% above run 0", "status"], ["number", "number", "number", "number", "text", "number", "text"],
    data.outcomes.map((o) => [o.run, o.lr, o.batch_tokens, o.loss, o.inside === null ? null : o.inside ? "yes" : "no", o.above, o.status]), { lr: "sci", batch: "short" });
  table("Studies", ["size", "parameters", "configurations", "tasks done", "D, tokens", "best loss"], ["text", "number", "number", "number", "number", "number"], data.studies, { parameters: "short", "D, tokens": "short" });
  table("Laws", ["form", "equation", "observations", "residual, %", "back-test error, %", "verdict "], ["text", "text", "number", "number", "number", "text"], data.fits);
  table("Constants", ["form", "name", "value", "low", "high", "verdict"], ["text", "text", "number", "number", "number", "text"], data.estimates);
  table("Observations", ["run", "N", "D", "lr", "batch", "loss", "status"], ["text", "number", "number", "number", "number", "number", "text"], data.observations, { N: "short", D: "short", lr: "sci", batch: "short" });
  table("To redo this", ["what", "is"], ["text", "text"], Object.entries(data.evidence));
  for (const [form, items] of Object.entries(data.checklists)) {
    const rows = Object.entries(items).map(([question, answer]) => el("tr", {}, el("td", {}, question), el("td", {}, answer)));
    main.append(el("section", { class: "panel text" }, el("details", {}, el("summary", {}, `Reporting checklist: ${form}`), el("div", { class: "body" }, el("table", { class: "check" }, el("tbody", {}, ...rows))))));
  }
  addEventListener("resize", () => charts.forEach((chart) => chart.resize()));
  document.body.dataset.ready = "drawn";
})();
