"use strict";
// Small parts that the page is made of. Whatever comes from a run is put in as text, never as HTML.

const SVG = "http://www.w3.org/2000/svg";

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes || {}))
    if (value !== null && value !== undefined && value !== false) node.setAttribute(name, value === true ? "" : value);
  node.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined));
  return node;
}
const html = (name, attributes, ...children) => fill(document.createElement(name), attributes, children);
const svg = (name, attributes, ...children) => fill(document.createElementNS(SVG, name), attributes, children);

function number(value) {
  if (typeof value !== "number") return String(value ?? "");
  const size = Math.abs(value);
  if (Number.isInteger(value) && size < 1e5) return value.toLocaleString("en");
  for (const [limit, suffix] of [[1e9, "G"], [1e6, "M"], [1e3, "k"]])
    if (size >= limit) return +(value / limit).toPrecision(3) + suffix;
  return size && size < 1e-3 ? value.toExponential(1).replace(".0", "") : String(+value.toPrecision(size < 1 ? 3 : 4));
}
function duration(seconds) {
  if (typeof seconds !== "number") return "";
  if (seconds < 60) return seconds.toFixed(1) + " s";
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min ${String(Math.floor(seconds % 60)).padStart(2, "0")} s`;
  return `${Math.floor(seconds / 3600)} h ${String(Math.floor((seconds % 3600) / 60)).padStart(2, "0")} min`;
}
const words = (name) => /^(kl|mfu)$/.test(name) ? name.toUpperCase() : name.charAt(0).toUpperCase() + name.slice(1).replaceAll("_", " ");
const cut = (text, length) => (text.length > length ? text.slice(0, length - 1) + "\u2026" : text);

// Round values between two ends: steps of 1, 2 or 5; on a logarithmic axis over decades 1, 2, 5 of each.
function ticks(low, high, count, isLog) {
  if (isLog && high / low > 8) {
    const found = [];
    for (let power = Math.floor(Math.log10(low)); power <= Math.log10(high); power++)
      for (const factor of high / low > 1e3 ? [1] : [1, 2, 5]) found.push(factor * 10 ** power);
    return found.filter((value) => value >= low && value <= high);
  }
  const rough = (high - low) / count || 1;
  const scale = 10 ** Math.floor(Math.log10(rough));
  const step = scale * ([1, 2, 5].find((factor) => factor * scale >= rough) || 10);
  const found = [];
  for (let i = Math.ceil(low / step); i * step <= high + step * 1e-9; i++) found.push(+(i * step).toPrecision(12));
  return found;
}

// A line chart. series: [{label, points: [[x, y], ...], kind: "thin" | "dots"}]; levels: {label: y}.
function lineChart({ title, unit, series, levels = {}, isLog = false, xLabel = "step" }) {
  const [W, H, left, right, top, bottom] = [340, 210, 42, 10, 12, 34];
  const known = Object.entries(levels);
  const xs = series.flatMap((s) => s.points.map((p) => p[0]));
  const ys = [...series.flatMap((s) => s.points.map((p) => p[1])), ...known.map((level) => level[1])];
  const [xLow, xHigh] = [Math.min(...xs), Math.max(...xs)];
  let [low, high] = [Math.min(...ys), Math.max(...ys)];
  const log = isLog && low > 0;
  if (log) [low, high] = [low / 1.06, high * 1.06];
  else [low, high] = low === high ? [low - Math.abs(low || 1) / 2, high + Math.abs(low || 1) / 2] : [low - (high - low) * 0.05, high + (high - low) * 0.05];
  const share = (v) => (log ? Math.log(v / low) / Math.log(high / low) : (v - low) / (high - low));
  const x = (v) => left + (xHigh > xLow ? (v - xLow) / (xHigh - xLow) : 0.5) * (W - left - right);
  const y = (v) => H - bottom - share(v) * (H - top - bottom);
  const path = (points) => points.map((p, i) => `${i ? "L" : "M"}${x(p[0]).toFixed(1)} ${y(p[1]).toFixed(1)}`).join("");
  const picture = svg("svg", { viewBox: `0 0 ${W} ${H}`, role: "img", class: "plot", "data-plot": title,
    "aria-label": `${title}: ${series.map((s) => `${s.label} from ${number(s.points[0][1])} to ${number(s.points.at(-1)[1])}`).join("; ")}` });
  for (const tick of ticks(low, high, 5, log))
    picture.append(svg("line", { class: "grid-line", x1: left, x2: W - right, y1: y(tick), y2: y(tick) }),
      svg("text", { x: left - 6, y: y(tick) + 4, "text-anchor": "end" }, number(tick)));
  for (const tick of ticks(xLow, xHigh, 6))
    picture.append(svg("text", { x: x(tick), y: H - bottom + 15, "text-anchor": "middle" }, number(tick)));
  picture.append(svg("text", { x: (left + W - right) / 2, y: H - 4, "text-anchor": "middle", class: "axis" }, xLabel));
  known.forEach(([label, value], i) => picture.append(
    svg("line", { class: "level", x1: left, x2: W - right, y1: y(value), y2: y(value), "stroke-dasharray": i % 2 ? "2 3" : "6 3" }),
    svg("text", { x: left + 4, y: y(value) - 4, class: "level-text" }, `${label} ${number(value)}`)));
  series.forEach((s, i) => {
    picture.append(svg("path", { d: path(s.points), class: `line c${i} ${s.kind || ""}` }));
    if (s.kind === "dots" || s.points.length === 1)
      for (const p of s.points) picture.append(svg("circle", { cx: x(p[0]), cy: y(p[1]), r: 3, class: `dot c${i}` }));
    if (s.ends) [[0, "first"], [-1, "last"]].forEach(([at, name]) => picture.append(
      svg("text", { x: x(s.points.at(at)[0]), y: y(s.points.at(at)[1]) - 8, "text-anchor": at ? "end" : "start" }, name)));
  });
  const cursor = svg("line", { class: "cursor", y1: top, y2: H - bottom, visibility: "hidden" });
  picture.append(cursor);
  const key = series.map((s, i) => html("span", { class: `key c${i} ${s.kind || ""}` }, s.label));
  const reading = html("span", { class: "reading" });
  picture.addEventListener("pointermove", (event) => {
    const box = picture.getBoundingClientRect();
    const at = xLow + (((event.clientX - box.left) / box.width) * W - left) / (W - left - right) * (xHigh - xLow);
    const near = series.map((s) => s.points.reduce((best, p) => (Math.abs(p[0] - at) < Math.abs(best[0] - at) ? p : best)));
    const place = near.reduce((best, p) => (Math.abs(p[0] - at) < Math.abs(best[0] - at) ? p : best))[0];
    fill(cursor, { x1: x(place), x2: x(place), visibility: "visible" }, []);
    reading.textContent = `${xLabel} ${number(place)}: ${near.map((p) => number(p[1])).join(", ")}`;
  });
  picture.addEventListener("pointerleave", () => { cursor.setAttribute("visibility", "hidden"); reading.textContent = ""; });
  return html("figure", {}, html("figcaption", {}, html("b", {}, title), unit ? ` ${unit}` : "", reading), picture, html("div", { class: "keys" }, key));
}

// Rows of values on one axis: a dot with its interval, hollow marks for baselines and the best that can be had.
function dotRows({ title, rows, isLowerBetter }) {
  const [W, label, value, line] = [340, 130, 48, 24];
  const H = rows.length * line + 26;
  const all = rows.flatMap((r) => [r.value, r.low ?? r.value, r.high ?? r.value]);
  const isShare = !isLowerBetter && Math.min(...all) >= 0 && Math.max(...all) <= 1;
  const [low, high] = isShare ? [0, 1] : [Math.min(0, ...all), Math.max(...all) * 1.05 || 1];
  const x = (v) => label + ((v - low) / (high - low)) * (W - label - value - 8);
  const picture = svg("svg", { viewBox: `0 0 ${W} ${H}`, role: "img", class: "plot", "data-plot": title,
    "aria-label": `${title}: ${rows.map((r) => `${r.label} ${number(r.value)}`).join("; ")}` });
  for (const tick of ticks(low, high, 4))
    picture.append(svg("line", { class: "grid-line", x1: x(tick), x2: x(tick), y1: 4, y2: H - 20 }),
      svg("text", { x: x(tick), y: H - 6, "text-anchor": "middle" }, number(tick)));
  rows.forEach((r, i) => {
    const [cx, cy] = [x(r.value), i * line + 16];
    const interval = r.low === undefined || r.low === null ? "" : ` [${number(r.low)} to ${number(r.high)}]`;
    const group = svg("g", { class: `row ${r.kind}` }, svg("title", {}, `${r.label}: ${number(r.value)}${interval}${r.n ? `, n = ${number(r.n)}` : ""}`),
      svg("text", { x: 0, y: cy + 4 }, cut(r.label, 20)),
      svg("text", { x: W, y: cy + 4, "text-anchor": "end", class: "value" }, number(r.value)));
    if (interval) group.append(svg("line", { class: "interval", x1: x(r.low), x2: x(r.high), y1: cy, y2: cy }));
    if (r.kind === "baseline") group.append(svg("path", { class: "mark", d: `M${cx} ${cy - 6}l6 6l-6 6l-6 -6z` }));
    else if (r.kind === "best") group.append(svg("rect", { class: "mark", x: cx - 5, y: cy - 5, width: 10, height: 10 }));
    else group.append(svg("circle", { class: "mark", cx, cy, r: 4 }));
    picture.append(group);
  });
  return picture;
}

// A table from rows of cells; cells that are numbers stand to the right.
function table(head, rows, caption) {
  const cell = (name, value) => html(name, typeof value === "object" ? {} : { class: /^[-\d.]/.test(value) ? "number" : null }, value);
  return html("table", {}, caption ? html("caption", {}, caption) : null,
    html("thead", {}, html("tr", {}, head.map((name) => html("th", { scope: "col" }, name)))),
    html("tbody", {}, rows.map(([first, ...others]) =>
      html("tr", {}, html("th", { scope: "row" }, first), others.map((value) => cell("td", value))))));
}
