"use strict";
// Words and numbers: units as Grafana names them, and DOM nodes whose text is always text.

const Isoloss = {};

Isoloss.el = (tag, given = {}, ...children) => {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(given)) {
    if (name === "style") Object.assign(node.style, value);
    else if (name === "class") node.className = value;
    else node.setAttribute(name, value);
  }
  for (const child of children) node.append(child instanceof Node ? child : document.createTextNode(String(child)));
  return node;
};

Isoloss.digits = (value, digits) => {
  if (value === 0) return "0";
  const places = Math.max(0, digits - 1 - Math.floor(Math.log10(Math.abs(value))));
  return places > 8 ? value.toExponential(digits - 1) : value.toFixed(Math.min(places, 8));
};

Isoloss.short = (value) => {
  for (const [scale, letter] of [[1e12, "T"], [1e9, "B"], [1e6, "M"], [1e3, "K"]]) {
    if (Math.abs(value) >= scale * 0.9995) {
      const scaled = value / scale;
      return String(Number(scaled.toPrecision(3))) + letter;
    }
  }
  return String(Number(value.toPrecision(3)));
};

Isoloss.sci = (value) => {
  if (value === 0) return "0";
  const [mantissa, exponent] = value.toExponential(2).split("e");
  return `${Number(mantissa)}e${Number(exponent)}`;
};

Isoloss.span = (seconds) => {
  const size = Math.abs(seconds);
  if (size < 1) return `${Isoloss.digits(seconds, 2)} s`;
  if (size < 100) return `${Math.round(seconds * 10) / 10} s`;
  if (size < 6000) return `${Math.round(seconds / 60)} min`;
  return size < 172800 ? `${Math.round(seconds / 360) / 10} h` : `${Math.round(seconds / 86400)} d`;
};

Isoloss.number = (value, unit = "none") => {
  if (value === null || value === undefined || !Number.isFinite(value)) return "–";
  if (unit === "sci") return Isoloss.sci(value);
  if (unit === "percent") return `${Isoloss.digits(value, 3)} %`;
  if (unit === "s") return Isoloss.span(value);
  if (unit === "short") return Isoloss.short(value);
  if (Number.isInteger(value) && Math.abs(value) < 1e6) return String(value);
  const size = Math.abs(value);
  return size >= 1e6 || size < 1e-3 ? Isoloss.sci(value) : Isoloss.digits(value, 4);
};

// A number on an axis: no digits that say nothing.
Isoloss.tick = (value, unit) => {
  if (unit !== "none" || (value !== 0 && (Math.abs(value) >= 1e6 || Math.abs(value) < 1e-3))) return Isoloss.number(value, unit === "none" ? "sci" : unit);
  return String(Number(value.toPrecision(4)));
};

Isoloss.clock = (seconds) => new Date(seconds * 1000).toLocaleTimeString([], { hourCycle: "h23" });
Isoloss.moment = (seconds) => {
  const at = new Date(seconds * 1000);
  const today = new Date().toDateString() === at.toDateString();
  return today ? Isoloss.clock(seconds) : `${at.toLocaleDateString()} ${Isoloss.clock(seconds)}`;
};

// Ordered things (sizes, levels) go from blue to yellow; what is forecast and what happened keep their own colours.
Isoloss.forecast = "#ff9830";
Isoloss.outcome = "#7ee08a";
Isoloss.scale = ["#4a7fe0", "#3f9fdc", "#43c0c4", "#79d494", "#c3de6b", "#f0cd58", "#f29e6d", "#e07aa6"];
Isoloss.colour = (place, count) => {
  const last = Isoloss.scale.length - 1;
  return Isoloss.scale[count <= last ? Math.round((place * Math.min(last, 2 * (count - 1))) / Math.max(count - 1, 1)) : place % (last + 1)];
};
