"use strict";
// Time series (uPlot): numbers over time, an interval as a band, single results as dots.

// Long rows (time, metric, value) become one column a metric.
Isoloss.pivot = (columns, kinds, rows) => {
  if (kinds[1] !== "text") return { names: columns.slice(1), data: columns.map((_, i) => rows.map((r) => r[i])) };
  const names = [...new Set(rows.map((r) => r[1]))].sort();
  const times = [...new Set(rows.map((r) => r[0]))].sort((a, b) => a - b);
  const place = new Map(times.map((t, i) => [t, i]));
  const data = [times, ...names.map(() => times.map(() => null))];
  for (const [time, name, value] of rows) data[1 + names.indexOf(name)][place.get(time)] = value;
  return { names, data };
};

Isoloss.timeseries = (panel, columns, kinds, rows, window) => {
  const { names, data } = Isoloss.pivot(columns, kinds, rows);
  const banded = panel.band ? panel.band.map((name) => names.indexOf(name)) : [];
  const plain = names.filter((n, i) => !banded.includes(i) && n !== "forecast" && n !== "outcome");
  const colourOf = (name, i) => {
    if (banded.includes(i)) return "rgba(255,152,48,.35)";
    if (name === "forecast") return Isoloss.forecast;
    if (name === "outcome") return Isoloss.outcome;
    const words = { ok: "#7ee08a", diverged: "#f0cd58", failed: "#f2495c", cancelled: "#8b91a0", best: "#ff9830", result: "#3f9fdc" };
    return words[name] ?? Isoloss.colour(plain.indexOf(name), plain.length);
  };
  const measured = data.map((column) => column.slice());
  if (panel.bars) { // stacked: the first drawn is the whole, the others stand before it
    for (let i = data.length - 2; i >= 1; i--) data[i] = data[i].map((v, k) => (v === null && data[i + 1][k] === null ? null : (v ?? 0) + (data[i + 1][k] ?? 0)));
  }
  const say = (_, __, i, k) => Isoloss.number(k === null ? null : measured[i]?.[k], panel.unit);
  const series = [{ label: "time", value: (_, v) => (v === null || v === undefined ? "–" : Isoloss.moment(v)) }, ...names.map((name, i) => {
    const dots = panel.dots.includes(name), colour = colourOf(name, i);
    const bars = panel.bars ? { paths: uPlot.paths.bars({ size: [0.7, 24], align: 1 }), fill: colour, width: 0, points: { show: false } } : {};
    const steps = panel.steps.includes(name) ? { paths: uPlot.paths.stepped({ align: 1 }), points: { show: false } } : {};
    return {
      label: name, stroke: colour, value: say, spanGaps: true, width: banded.includes(i) ? 1 : 1.8,
      ...(dots ? { paths: () => null, points: { show: true, size: name === "outcome" ? 10 : 6, width: 1, fill: colour, stroke: "#0f1015" } }
        : { points: { show: !banded.includes(i) && data[0].length < 60, size: 5, fill: colour, stroke: colour } }),
      ...bars, ...steps,
    };
  })];
  const grid = { stroke: "rgba(204,212,230,.055)", width: 1 }, ticks = { show: false };
  const words = { stroke: "#8b91a0", font: "11px " + getComputedStyle(document.documentElement).fontFamily, grid, ticks };
  const known = data.slice(1).flat();
  const [least, high] = Isoloss.range(known, panel.log_y, 0.08);
  const low = panel.bars ? 0 : least;
  const splits = panel.log_y ? { splits: () => Isoloss.ticks(low, high), filter: (_, at) => at } : {};
  return {
    data,
    options: {
      width: 300, height: 200, padding: [10, 14, 0, 0], series, cursor: { points: { size: 6 } },
      scales: { x: { time: true, range: () => window }, y: { distr: panel.log_y ? 3 : 1, range: () => [low, high] } },
      axes: [{ ...words, size: 30, values: (_, at) => at.map((t) => new Date(t * 1000).toLocaleTimeString([], { hourCycle: "h23", hour: "2-digit", minute: "2-digit", ...(window[1] - window[0] < 600 ? { second: "2-digit" } : {}) })), space: 70 },
             { ...words, size: 62, values: (_, at) => at.map((v) => (v === null ? "" : Isoloss.tick(v, panel.unit))), ...splits }],
      bands: banded.length === 2 && banded.every((i) => i >= 0) ? [{ series: [banded[1] + 1, banded[0] + 1], fill: "rgba(255,152,48,.13)" }] : [],
      legend: { live: true },
    },
  };
};
