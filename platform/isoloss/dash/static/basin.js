"use strict";
// The picture of the house: iso-loss contours over learning rate and batch, the forecast's region, and what came of it.

Isoloss.shades = ["#131c28", "#15263a", "#17334d", "#1a4461", "#1f5875", "#267088", "#328a98", "#4aa8a6"];

Isoloss.polygon = (points, style, z, extra = {}) => ({
  type: "custom", silent: true, clip: true, z, data: [0], ...extra,
  renderItem: (_, api) => ({ type: "polygon", shape: { points: points.map((p) => api.coord(p)) }, style }),
});

// The topmost and the rightmost point of a contour within the axes, where its label stands.
Isoloss.labelPlace = (contour, [left, right], [bottom, top]) => {
  const inside = contour.filter(([u, v]) => u > left * 1.03 && u < right / 1.12 && v > bottom * 1.03 && v < top / 1.06);
  return inside.length ? inside.reduce((a, b) => (b[0] * b[1] > a[0] * a[1] ? b : a)) : null;
};

Isoloss.basin = (panel, rows, columns, picture, box = null) => {
  const of = (name) => rows.filter((r) => r[0] === name);
  const seen = rows.filter((r) => r[0] !== "forecast" && r[0] !== "outcome");
  const sizes = [...new Set(seen.map((r) => r[0]))];
  const forecast = of("forecast")[0], outcomes = of("outcome");
  const around = [...rows.map((r) => [r[1], r[2]]), ...(picture?.region ?? []), ...(picture?.path ?? [])];
  const xs = Isoloss.range(around.map((p) => p[0]), true, 0.09), ys = Isoloss.range(around.map((p) => p[1]), true, 0.12);
  const series = [];
  if (picture) {
    const n = picture.levels.length;
    picture.contours.map((points, i) => ({ points, level: picture.levels[i], shade: Isoloss.shades[n - 1 - i] ?? Isoloss.shades[0] })).reverse()
      .forEach(({ points, level, shade }, i) => {
        series.push(Isoloss.polygon(points, { fill: shade, stroke: "rgba(160,205,225,.28)", lineWidth: 1 }, 1, { zlevel: 0, z: 0.1 + i / 100 }));
        const place = level < 0.0025 || level === 0.005 ? null : Isoloss.labelPlace(points, xs, ys);
        if (place) series.push({ type: "custom", silent: true, z: 2, data: [place], renderItem: (_, api) => { const [x, y] = api.coord(place); return { type: "text", x, y, style: { text: `+${Number((100 * level).toPrecision(2))} %`, fill: "#a9cbd8", font: "10.5px sans-serif", align: "center", verticalAlign: "middle", stroke: "#14222f", lineWidth: 2.5 } }; } });
      });
    if (picture.path.length) {
      series.push({ type: "line", name: "optimum by size", silent: true, z: 3, data: [...picture.path, picture.centre], symbol: "emptyCircle", symbolSize: 5, color: "rgba(255,255,255,.55)",
                    lineStyle: { width: 1.2, type: [4, 4], color: "rgba(255,255,255,.4)" } });
    }
    if (picture.region.length) series.push(Isoloss.polygon(picture.region, { fill: "rgba(255,152,48,.14)", stroke: Isoloss.forecast, lineWidth: 1.6 }, 4));
  }
  if (box) {
    const [[l, r], [b, t]] = box;
    series.push(Isoloss.polygon([[l, b], [r, b], [r, t], [l, t]], { fill: "none", stroke: "rgba(255,152,48,.5)", lineWidth: 1, lineDash: [3, 3] }, 4));
  }
  sizes.forEach((size, i) => series.push({ type: "scatter", name: size, z: 5, color: Isoloss.colour(i, sizes.length), symbolSize: 7, itemStyle: { opacity: 0.85, borderColor: "#0f1015", borderWidth: 0.8 },
                                           data: seen.filter((r) => r[0] === size).map((r) => [r[1], r[2], r[3]]) }));
  if (forecast) series.push({ type: "scatter", name: "forecast", z: 7, color: Isoloss.forecast, symbol: "diamond", symbolSize: 15, itemStyle: { borderColor: "#0f1015", borderWidth: 1.2 }, data: [forecast.slice(1)] });
  if (outcomes.length) {
    series.push({ type: "scatter", name: "outcome", z: 8, color: Isoloss.outcome, symbolSize: 11, itemStyle: { borderColor: "#0f1015", borderWidth: 1.4 }, data: outcomes.map((r) => [r[1], r[2], r[3]]),
                  label: { show: true, position: "right", distance: 7, color: "#effff2", fontSize: 11, fontWeight: 500, textBorderColor: "#14303a", textBorderWidth: 3, formatter: (at) => Isoloss.number(at.value[2]) } });
  }
  const names = [...sizes, ...(picture?.path.length ? ["optimum by size"] : []), ...(forecast ? ["forecast"] : []), ...(outcomes.length ? ["outcome"] : [])];
  return {
    ...Isoloss.base(names), series, backgroundColor: "transparent",
    grid: { left: 66, right: 18, top: 30, bottom: 42, show: true, backgroundColor: "#10151d", borderColor: "rgba(204,212,230,.07)" },
    xAxis: { ...Isoloss.axis(panel.x_title, [], { log: true, unit: "sci", range: xs }), splitLine: { show: false } },
    yAxis: { ...Isoloss.axis(panel.y_title, [], { log: true, unit: "short", vertical: true, range: ys }), splitLine: { show: false } },
    tooltip: Isoloss.tooltip((at) => at.value && at.seriesName ? `${at.seriesName}\nlearning rate ${Isoloss.sci(at.value[0])}\nbatch ${Isoloss.short(at.value[1])} tokens${at.value[2] ? `\nloss ${Isoloss.number(at.value[2])}` : ""}` : ""),
  };
};
