// Elements, scales and marks. Every text goes in as a text node: names in logs are data, never markup.
"use strict";

const SVG = "http://www.w3.org/2000/svg";

function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [key, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else node.setAttribute(key, value === true ? "" : value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

function s(tag, attributes = {}, ...children) {
  const node = document.createElementNS(SVG, tag);
  for (const [key, value] of Object.entries(attributes))
    if (value !== null && value !== undefined) node.setAttribute(key, value);
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

function picture(width, height, label, ...children) {
  return s("svg", { viewBox: `0 0 ${width} ${height}`, width, height, role: "img", "aria-label": label }, ...children);
}

const text = (x, y, content, attributes = {}) => s("text", { x, y, ...attributes }, String(content));
const line = (x1, y1, x2, y2, attributes = {}) => s("line", { x1, y1, x2, y2, ...attributes });
const scale = (lo, hi, from, to) => (value) => from + ((value - lo) / (hi - lo || 1)) * (to - from);
const fixed = (value, digits = 3) =>
  value === null || value === undefined ? "–" : value.toFixed(digits).replace("-", "−");

const signed = (value, digits = 3) =>
  value === null || value === undefined ? "–" : (value > 0 ? "+" : "") + fixed(value, digits);

const span = (triple, digits = 3) =>
  triple ? `${fixed(triple[0], digits)} [${fixed(triple[1], digits)}, ${fixed(triple[2], digits)}]` : "–";

// A run is told by colour and by shape.
function marker(run, x, y, size, attributes = {}) {
  const shape = run % 4;
  const common = { class: `mark run-${run}`, ...attributes };
  if (shape === 1)
    return s("path", {
      d: `M${x} ${y - size * 1.25}L${x + size * 1.25} ${y}L${x} ${y + size * 1.25}L${x - size * 1.25} ${y}Z`,
      ...common,
    });
  if (shape === 2)
    return s("rect", { x: x - size * 0.9, y: y - size * 0.9, width: size * 1.8, height: size * 1.8, rx: 1, ...common });
  if (shape === 3)
    return s("path", {
      d: `M${x} ${y - size * 1.2}L${x + size * 1.15} ${y + size * 0.9}L${x - size * 1.15} ${y + size * 0.9}Z`,
      ...common,
    });
  return s("circle", { cx: x, cy: y, r: size, ...common });
}

function ticks(lo, hi, count) {
  const rough = (hi - lo) / count;
  const power = 10 ** Math.floor(Math.log10(rough || 1));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((candidate) => candidate >= rough) || power;
  const found = [];
  for (let value = Math.ceil(lo / step - 1e-9) * step; value <= hi + step * 1e-9; value += step)
    found.push(Math.abs(value) < step * 1e-9 ? 0 : value);
  return found;
}

const tickText = (value) =>
  String(Number(value.toFixed(4)))
    .replace("-", "−")
    .replace(/^(−?)0\./, "$1.");

function head(x1, y1, x2, y2, size) {
  const length = Math.hypot(x2 - x1, y2 - y1);
  if (length < 1) return s("circle", { cx: x2, cy: y2, r: size / 2.5, class: "tip" });
  const angle = Math.atan2(y2 - y1, x2 - x1);
  const at = (turn) => `${x2 - size * Math.cos(angle + turn)} ${y2 - size * Math.sin(angle + turn)}`;
  return s("path", { d: `M${x2} ${y2}L${at(0.42)}L${at(-0.42)}Z`, class: "tip" });
}

// A value with its interval on a scale that all rows share.
function glyph(triple, run, range, width = 84) {
  const height = 14,
    x = scale(range[0], range[1], 5, width - 5);
  const root = s("svg", { viewBox: `0 0 ${width} ${height}`, width, height, "aria-hidden": "true" });
  root.append(line(5, 7, width - 5, 7, { class: "grid" }));
  if (range[0] < 0 && range[1] > 0) root.append(line(x(0), 1, x(0), 13, { class: "zero" }));
  if (triple && triple[1] !== null) root.append(line(x(triple[1]), 7, x(triple[2]), 7, { class: `bar run-${run}` }));
  if (triple) root.append(marker(run, x(triple[0]), 7, 3.2));
  return root;
}

// Before (open) to after (solid).
function dumbbell(before, after, run, range, width = 120) {
  const height = 14,
    x = scale(range[0], range[1], 6, width - 6);
  const root = s("svg", { viewBox: `0 0 ${width} ${height}`, width, height, "aria-hidden": "true" });
  root.append(
    line(6, 7, width - 6, 7, { class: "grid" }),
    line(x(before), 7, x(after), 7, { class: `gap run-${run}` }),
  );
  root.append(marker(run, x(before), 7, 3.4, { class: `mark open run-${run}` }), marker(run, x(after), 7, 3.4));
  return root;
}
