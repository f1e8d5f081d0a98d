"use strict";
// Charts over two numeric axes (ECharts): points and lines by series with error bars, and parallel coordinates.

Isoloss.ink = { text: "#d5d8e0", muted: "#8b91a0", faint: "#5c6270", line: "rgba(204,212,230,.09)", panel: "#1d2026" };

// 1-2-5 ticks of a logarithmic range; fewer when it spans many decades, more when it spans less than one.
Isoloss.ticks = (low, high) => {
  const decades = Math.log10(high / low);
  const steps = decades > 3 ? [1] : decades > 1.2 ? [1, 2, 5] : decades > 0.5 ? [1, 1.5, 2, 3, 4, 5, 7] : null;
  if (steps === null) {
    const rough = (high - low) / 5, unit = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 2.5, 5, 10].find((s) => s * unit >= rough) * unit;
    const found = [];
    for (let at = Math.ceil(low / step) * step; at <= high; at += step) found.push(Number(at.toPrecision(12)));
    return found;
  }
  const found = [];
  for (let k = Math.floor(Math.log10(low)); k <= Math.ceil(Math.log10(high)); k++) {
    for (const step of steps) {
      const at = Number((step * 10 ** k).toPrecision(6));
      if (at >= low && at <= high) found.push(at);
    }
  }
  return found;
};

Isoloss.range = (values, log, pad = 0.06) => {
  const known = values.filter((v) => v !== null && Number.isFinite(v) && (!log || v > 0));
  if (!known.length) return log ? [1, 10] : [0, 1];
  const low = known.reduce((a, b) => Math.min(a, b)), high = known.reduce((a, b) => Math.max(a, b));
  if (log) {
    const room = Math.max(Math.log10(high / low) * pad, 0.012);
    return [low / 10 ** room, high * 10 ** room];
  }
  const room = (high - low || Math.abs(high) || 1) * pad;
  return [low - room, high + room];
};

Isoloss.axis = (title, values, { log = false, unit = "none", vertical = false, range = null } = {}) => {
  const [min, max] = range ?? Isoloss.range(values, log);
  const ticks = log ? { customValues: Isoloss.ticks(min, max) } : {};
  return {
    type: log ? "log" : "value", min, max, name: title, nameLocation: "middle", nameGap: vertical ? 52 : 26,
    nameTextStyle: { color: Isoloss.ink.muted, fontSize: 11.5 },
    axisLine: { show: true, lineStyle: { color: Isoloss.ink.line } },
    axisTick: { show: true, length: 3, lineStyle: { color: Isoloss.ink.line }, ...ticks },
    axisLabel: { color: Isoloss.ink.muted, fontSize: 11, hideOverlap: true, showMinLabel: log ? true : false, showMaxLabel: log ? true : false,
                 formatter: (v) => Isoloss.tick(v, unit), ...ticks },
    splitLine: { show: true, lineStyle: { color: "rgba(204,212,230,.055)" }, ...ticks },
    minorTick: { show: false },
  };
};

Isoloss.tooltip = (text) => ({
  trigger: "item", confine: true, backgroundColor: "#22262e", borderColor: "#343a46", padding: [6, 10],
  formatter: (at) => { const words = text(at); return words ? Isoloss.el("div", { class: "tip" }, words) : ""; },
});

Isoloss.legend = (names) => ({
  data: names, type: "scroll", top: 2, right: 8, itemWidth: 11, itemHeight: 7, itemGap: 12, icon: "roundRect",
  textStyle: { color: Isoloss.ink.muted, fontSize: 11.5 }, pageTextStyle: { color: Isoloss.ink.muted },
  pageIconColor: Isoloss.ink.muted, pageIconInactiveColor: Isoloss.ink.faint, inactiveColor: Isoloss.ink.faint,
});

Isoloss.base = (names) => ({
  animation: false, textStyle: { fontFamily: getComputedStyle(document.documentElement).fontFamily },
  grid: { left: 66, right: 18, top: 30, bottom: 42 }, legend: Isoloss.legend(names),
});

// Rows (series, x, y, low, high, line) by series; rows of one line are joined in their order.
Isoloss.bySeries = (rows) => {
  const found = new Map();
  for (const [series, x, y, low = null, high = null, line = null] of rows) {
    if (!found.has(series)) found.set(series, { name: series, points: [], lines: new Map() });
    const one = found.get(series);
    one.points.push({ x, y, low, high });
    if (line !== null) {
      if (!one.lines.has(line)) one.lines.set(line, []);
      one.lines.get(line).push([x, y]);
    }
  }
  return [...found.values()];
};

Isoloss.special = { forecast: { colour: Isoloss.forecast, symbol: "diamond", size: 13 }, outcome: { colour: Isoloss.outcome, symbol: "circle", size: 10 } };

Isoloss.errorBars = (name, points, colour) => ({
  type: "custom", name, silent: true, clip: true, z: 4, itemStyle: { color: colour }, data: points.map((p) => [p.x, p.low, p.high]), encode: { x: 0, y: [1, 2] },
  renderItem: (_, api) => {
    const [x, low] = api.coord([api.value(0), api.value(1)]), high = api.coord([api.value(0), api.value(2)])[1];
    const bar = (x1, y1, x2, y2) => ({ type: "line", shape: { x1, y1, x2, y2 }, style: { stroke: colour, lineWidth: 1.5 } });
    return { type: "group", children: [bar(x, low, x, high), bar(x - 5, low, x + 5, low), bar(x - 5, high, x + 5, high)] };
  },
});

Isoloss.xy = (panel, rows) => {
  const groups = Isoloss.bySeries(rows);
  const ordered = groups.filter((g) => !Isoloss.special[g.name]);
  const unitX = panel.units.x ?? "none";
  const series = [];
  for (const group of groups) {
    const special = Isoloss.special[group.name];
    const colour = special?.colour ?? Isoloss.colour(ordered.indexOf(group), ordered.length);
    const curves = group.lines.size > 1;
    const bars = group.points.filter((p) => p.low !== null && p.high !== null);
    if (bars.length) series.push(Isoloss.errorBars(group.name, bars, colour));
    if (curves) {
      const joined = [], single = [];
      for (const line of group.lines.values()) if (line.length > 1) joined.push(...line, [null, null]); else single.push(line[0]);
      if (single.length) series.push({ type: "scatter", name: group.name, data: single, symbolSize: 4, silent: true, color: colour, itemStyle: { opacity: 0.8 }, z: 2 });
      series.push({ type: "line", name: group.name, data: joined, showSymbol: false, symbol: "none", connectNulls: false, silent: true,
                    lineStyle: { width: 1.1, opacity: 0.62 }, color: colour, z: 2 });
    } else {
      series.push({ type: group.lines.size ? "line" : "scatter", name: group.name, color: colour, z: special ? 5 : 3, clip: false,
                    data: group.points.map((p) => [p.x, p.y]), symbol: special?.symbol ?? "circle", symbolSize: special?.size ?? 7,
                    showSymbol: group.points.length <= 30, lineStyle: { width: 1.6 }, itemStyle: special ? { borderColor: "#0f1015", borderWidth: 1 } : {} });
    }
  }
  const all = rows.flatMap((r) => [r[2], r[3] ?? null, r[4] ?? null]), along = rows.map((r) => r[1]);
  const log = panel.log_x === "auto" ? Math.min(...along) > 0 && Math.max(...along) / Math.min(...along) > 20 : panel.log_x;
  return {
    ...Isoloss.base(groups.map((g) => g.name)), series,
    xAxis: Isoloss.axis(panel.x_title, along, { log, unit: unitX }),
    yAxis: Isoloss.axis(panel.y_title, all, { log: panel.log_y, unit: panel.unit, vertical: true }),
    tooltip: Isoloss.tooltip((at) => `${at.seriesName}\n${panel.x_title} ${Isoloss.number(at.value[0], unitX)}\n${panel.y_title} ${Isoloss.number(at.value[1], panel.unit)}`),
  };
};

// Rows (trial, level, value, axes, whether more is better): one line a trial, the best bright; words get places in their order, wide ranges a logarithm.
Isoloss.parallel = (panel, rows) => {
  const names = [...new Set(rows.flatMap((r) => Object.keys(r[3] ?? {})))].sort();
  const values = rows.map((r) => r[2]);
  const [low, high] = [Math.min(...values), Math.max(...values)];
  const shades = ["#f0cd58", "#43c0c4", "#33598f", "#28344a"];
  if (rows[0]?.[4]) shades.reverse();
  const axes = [...names.map((name) => ({ name, of: (r) => r[3]?.[name] ?? null })), { name: "level", of: (r) => r[1] }, { name: "value", of: (r) => r[2] }];
  const parallelAxis = axes.map(({ name, of }, dim) => {
    const seen = rows.map(of).filter((v) => v !== null);
    const axis = { dim, name, nameTextStyle: { color: Isoloss.ink.text, fontSize: 11.5 }, nameGap: 12,
                   axisLine: { lineStyle: { color: "rgba(204,212,230,.2)" } }, axisTick: { show: false },
                   axisLabel: { color: Isoloss.ink.muted, fontSize: 10.5 } };
    if (seen.some((v) => typeof v !== "number")) return { ...axis, type: "category", data: [...new Set(seen.map(String))] };
    const [from, to] = [Math.min(...seen), Math.max(...seen)];
    const middle = [...seen].sort((a, b) => a - b)[seen.length >> 1];
    const log = from > 0 && to / from > 4 && middle < from + 0.3 * (to - from), whole = seen.every(Number.isInteger) && to - from < 30;
    const [min, max] = Isoloss.range(seen, log, 0.03);
    return { ...axis, type: log ? "log" : "value", min, max,
             axisLabel: { ...axis.axisLabel, formatter: (v) => Isoloss.tick(v, log || to >= 1e4 ? "short" : "none"), ...(log ? { customValues: Isoloss.ticks(min, max) } : { showMinLabel: false, showMaxLabel: false, ...(whole && !log ? { customValues: [...new Set(seen)] } : {}) }) } };
  });
  const data = rows.map((r) => axes.map(({ of }, dim) => { const v = of(r); return parallelAxis[dim].type === "category" && v !== null ? String(v) : v; }));
  return {
    animation: false, textStyle: Isoloss.base([]).textStyle, parallelAxis,
    parallel: { left: 46, right: 62, top: 34, bottom: 18, parallelAxisDefault: {} },
    visualMap: { show: false, dimension: axes.length - 1, min: low, max: high === low ? low + 1 : high, inRange: { color: shades } },
    series: [{ type: "parallel", lineStyle: { width: 1.3, opacity: 0.7 }, smooth: false, data, inactiveOpacity: 0.05, activeOpacity: 0.9 }],
  };
};
