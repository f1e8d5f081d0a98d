"use strict";
// Panels made of plain elements: numbers, tables, heat maps, stacked bars, lanes of work. Text is always text.

Isoloss.badges = {
  good: ["ok", "identified", "yes", "done", "active", "settled"], busy: ["busy", "running", "leased", "searching", "confirming"],
  so: ["weak", "diverged", "draining", "waiting", "expired", "released", "idle"], bad: ["failed", "no", "not identified", "silent", "cancelled", "stopped"],
};

Isoloss.badge = (word) => {
  const kind = Object.keys(Isoloss.badges).find((name) => Isoloss.badges[name].includes(word)) ?? "";
  return Isoloss.el("span", { class: `badge ${kind}` }, word);
};

Isoloss.cell = (value, kind, unit, column) => {
  if (value === null || value === undefined) return document.createTextNode("–");
  if (kind === "time") return document.createTextNode(Isoloss.moment(value));
  if (kind === "number") return document.createTextNode(Isoloss.number(value, unit));
  if (kind === "json") return document.createTextNode(Isoloss.pairs(value));
  if (["verdict", "status", "state", "outcome", "inside the interval"].includes(column) && String(value).length < 20) return Isoloss.badge(String(value));
  return document.createTextNode(String(value));
};

Isoloss.pairs = (value) => Object.entries(value).map(([name, v]) => `${name} ${typeof v === "number" ? Isoloss.number(v, Math.abs(v) >= 1e4 ? "short" : "none") : v}`).join(" · ");

Isoloss.table = (panel, columns, kinds, rows) => {
  const { el } = Isoloss;
  const side = (i) => (kinds[i] === "number" ? "right" : "");
  const head = el("tr", {}, ...columns.map((name, i) => el("th", { class: side(i) }, name)));
  const body = rows.map((row) => el("tr", {}, ...row.map((value, i) => {
    const cell = el("td", { class: columns.length === 1 ? "wrap" : side(i) }, Isoloss.cell(value, kinds[i], panel.units[columns[i]] ?? panel.unit, columns[i]));
    if (kinds[i] === "text" && String(value ?? "").length > 40) cell.title = String(value);
    return cell;
  })));
  return el("div", { class: "rows" }, el("table", {}, el("thead", {}, head), el("tbody", {}, ...body)));
};

Isoloss.stat = (panel, rows) => {
  const [value, note = null] = rows[0];
  const words = Isoloss.number(value, panel.unit);
  const [, figure, unit] = words.match(/^(\S+?)( ?(?:[KMBT]|%|s|min|h|d))?$/) ?? [null, words, ""];
  const big = Isoloss.el("b", {}, figure);
  if (unit) big.append(Isoloss.el("small", {}, unit.trim()));
  const role = panel.id === "loss" ? "forecast" : panel.id === "outcome" ? (String(note).startsWith("outside") ? "outside" : "outcome") : "";
  const small = Isoloss.el("span", {}, note ?? "");
  if (note !== null) small.title = String(note);
  return Isoloss.el("div", { class: `stat ${role}` }, big, small);
};

// Low is good: bright where the value is least.
Isoloss.heat = (panel, rows) => {
  const { el } = Isoloss;
  const across = [...new Set(rows.map((r) => r[0]))], down = [...new Set(rows.map((r) => r[1]))].reverse();
  const values = rows.map((r) => r[2]), low = Math.min(...values), high = Math.max(...values);
  const table = el("table", {}, el("tbody", {}, ...down.map((row) => el("tr", {}, el("th", { class: "right" }, row), ...across.map((column) => {
    const found = rows.find((r) => r[0] === column && r[1] === row);
    if (!found) return el("td", { style: { background: "rgba(204,212,230,.03)" } }, "");
    const part = high > low ? (high - found[2]) / (high - low) : 1;
    const colour = `color-mix(in oklab, #4aa8a6 ${Math.round(100 * part)}%, #17263a)`;
    return el("td", { style: { background: colour, color: part > 0.9 ? "#06181a" : "#e4e7ee" } }, Isoloss.number(found[2], panel.unit));
  })))), el("tfoot", {}, el("tr", {}, el("th", {}, ""), ...across.map((column) => el("th", { style: { textAlign: "center" } }, column)))));
  return el("div", { class: "heat" }, table);
};

Isoloss.parts = { done: "#43a27c", running: "#3f9fdc", waiting: "#4a5265", diverged: "#d9b44a", failed: "#f2495c" };

Isoloss.bar = (panel, columns, rows) => {
  const { el } = Isoloss;
  const names = columns.slice(1), most = Math.max(1, ...rows.map((r) => r.slice(1).reduce((a, b) => a + (b ?? 0), 0)));
  const shade = (name, i) => Isoloss.parts[name] ?? Isoloss.colour(i, names.length);
  const lines = rows.flatMap((row) => {
    const total = row.slice(1).reduce((a, b) => a + (b ?? 0), 0);
    const track = el("div", { class: "track" }, ...names.map((name, i) => {
      const part = el("i", { style: { width: `${(100 * (row[i + 1] ?? 0)) / most}%`, background: shade(name, i) } });
      part.title = `${name}: ${Isoloss.number(row[i + 1], panel.unit)}`;
      return part;
    }));
    return [el("div", { class: "name" }, row[0]), track, el("div", { class: "count" }, Isoloss.number(total, panel.unit))];
  });
  const key = el("div", { class: "key" }, ...names.map((name, i) => el("span", {}, el("i", { style: { background: shade(name, i) } }), name)));
  return el("div", { style: { height: "100%" } }, el("div", { class: "bars" }, ...lines), key);
};

// Rows (time, series, state or null): a lane a series, a block from each state to the next row of its lane.
Isoloss.lanes = (panel, rows, window) => {
  const { el } = Isoloss;
  const lanes = new Map();
  for (const [time, series, state] of rows) {
    if (!lanes.has(series)) lanes.set(series, []);
    lanes.get(series).push([time, state]);
  }
  const place = (t) => (100 * (Math.min(Math.max(t, window[0]), window[1]) - window[0])) / (window[1] - window[0]);
  const kinds = [...new Set(rows.filter((r) => r[2]).map((r) => String(r[2]).split(" ")[0]))].sort();
  const nodes = [...lanes.entries()].sort().flatMap(([series, marks]) => {
    const lane = el("div", { class: "lane" });
    marks.forEach(([time, state], i) => {
      if (state === null) return;
      const until = marks[i + 1]?.[0] ?? window[1];
      const block = el("i", { style: { left: `${place(time)}%`, width: `${Math.max(place(until) - place(time), 0.1)}%`, background: Isoloss.colour(kinds.indexOf(String(state).split(" ")[0]), kinds.length), opacity: "0.8" } });
      block.title = `${state}\n${Isoloss.moment(time)}, ${Isoloss.span(until - time)}`;
      lane.append(block);
    });
    return [el("div", { class: "name" }, series), lane];
  });
  const scale = el("div", { class: "scale" });
  for (let i = 0; i <= 6; i++) scale.append(el("span", { style: { left: `${(100 * (i + 0.5)) / 7}%` } }, Isoloss.clock(window[0] + ((i + 0.5) * (window[1] - window[0])) / 7)));
  return el("div", { class: "lanes" }, ...nodes, el("div", { class: "name" }, ""), scale);
};
