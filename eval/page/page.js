// The page: each section draws itself from the facts; one without facts is taken away.

const life = JSON.parse(document.getElementById("life").textContent);
const $ = (id) => document.getElementById(id);
const idOf = (name) => "stage-" + name;
const stageOf = Object.fromEntries(life.stages.map((stage) => [stage.name, stage]));
const short = (hash) => (hash ? hash.slice(0, 10) : "");

function heading() {
  $("title").textContent = `The life of ${life.title}`;
  document.title = `${life.title}: fledge report`;
  const total = (name) => life.stages.reduce((sum, stage) => sum + (stage.cost[name] || 0), 0);
  const last = life.stages.findLast((stage) => stage.cost.parameters);
  $("summary").textContent = [`${life.stages.length} stage${life.stages.length > 1 ? "s" : ""}`,
    last ? `${number(last.cost.parameters)} parameters` : "", total("elapsed_s") ? duration(total("elapsed_s")) : "",
    life.ages.length ? `${life.ages.length} ages` : ""].filter(Boolean).join(" \u00b7 ");
  $("problems").append(...life.problems.map((text) => html("li", { class: "problem" }, text)));
  if (!life.ages.length) $("growing").remove();
  if (!life.numbers.length) $("numbers").remove();
  document.querySelector("nav").append(...[...document.querySelectorAll("main > section")].map((section) =>
    html("a", { href: "#" + section.id }, section.querySelector("h2").textContent)));
  $("made").textContent = `Made by fledge ${life.version}. This page loads nothing and sends nothing.`;
}

// --- growing up ---

// The last known value of a curve at a step.
function valueAt(stage, name, step) {
  const points = (stage.curves[name] || []).filter((point) => point[0] <= step);
  return points.length ? points.at(-1)[1] : null;
}

function growing() {
  if (!life.ages.length) return;
  const slider = $("age");
  slider.max = life.ages.length - 1;
  const asked = Number((location.hash.match(/^#age=(\d+)$/) || [])[1] ?? slider.max);
  slider.value = Math.min(asked, slider.max);
  const firsts = life.ages.map((age, i) => i).filter((i) => !i || life.ages[i].run !== life.ages[i - 1].run);
  firsts.forEach((first, i) => {
    const last = (firsts[i + 1] ?? life.ages.length) - 1;
    const button = html("button", { type: "button", "data-first": first, "data-last": last }, life.ages[first].run);
    button.style.flexGrow = last - first + 1;
    button.addEventListener("click", () => show(last));
    $("marks").append(button);
  });
  let timer = null;
  const stop = () => { clearInterval(timer); timer = null; $("play").textContent = "\u25b6 Play"; };
  function show(place) { slider.value = place; draw(); }
  function draw() {
    const place = Number(slider.value);
    const age = life.ages[place];
    const stage = stageOf[age.run];
    const facts = ["bits_per_byte", "validation_bits_per_byte", "loss", "reward"].map((name) => [name, valueAt(stage, name, age.step)]);
    const known = facts.find((fact) => fact[1] !== null);
    const text = `${age.run}, step ${number(age.step)}` + (stage.cost.steps ? ` of ${number(stage.cost.steps)}` : "") +
      (known ? `: ${words(known[0]).toLowerCase()} ${number(known[1])}` : age.step === 0 ? ": before its first step" : "");
    $("age-text").textContent = text;
    slider.setAttribute("aria-valuetext", text);
    for (const button of $("marks").children)
      button.setAttribute("aria-pressed", place >= button.dataset.first && place <= button.dataset.last);
    $("answers").replaceChildren(...age.answers.map((found) => answer(found, !stage.command.startsWith("pretrain"))));
    $("token").textContent = age.answers.some((a) => a.tokens) ? "Darker: the model was surer of this token. Point at one or tap it." : "";
  }
  slider.addEventListener("input", () => { stop(); draw(); });
  $("play").addEventListener("click", () => {
    if (timer) return stop();
    if (Number(slider.value) === Number(slider.max)) show(0);
    $("play").textContent = "\u275a\u275a Pause";
    timer = setInterval(() => (Number(slider.value) < Number(slider.max) ? show(Number(slider.value) + 1) : stop()), 900);
  });
  for (const kind of ["pointerover", "click"])
    $("answers").addEventListener(kind, (event) => {
      const token = event.target.closest("[data-p]");
      if (token) $("token").textContent = `${token.dataset.piece}  probability ${number(Number(token.dataset.p))}`;
    });
  addEventListener("hashchange", () => {
    const wanted = location.hash.match(/^#age=(\d+)$/);
    if (wanted) show(Math.min(wanted[1], slider.max));
  });
  draw();
}

// What a base model writes goes on from the prompt; an answer stands below it.
function answer({ prompt, text, tokens }, isChat) {
  const written = tokens ? tokens.map(([piece, p]) => {
    const isEnd = piece === "";
    const shown = html("span", { class: isEnd ? "token end" : "token", "data-p": p, "data-piece": isEnd ? "(end)" : JSON.stringify(piece), title: `${number(p * 100)} %` }, isEnd ? "\u25a0" : piece);
    shown.style.setProperty("--p", p);
    return shown;
  }).filter((node, i, all) => !node.classList.contains("end") || i === all.length - 1) : text;
  return html("article", { class: "answer" }, html(isChat ? "div" : "span", { class: "prompt" }, prompt), written);
}

// --- lineage ---

function lineage() {
  // Nodes: stages, the data that they read, and parents that are no runs. A layer is the longest way from a beginning.
  const nodes = new Map();
  const edges = [];
  const node = (name, facts) => nodes.has(name) || nodes.set(name, { name, layer: 0, ...facts });
  for (const stage of life.stages) {
    node(stage.name, { title: stage.name, lines: [stage.command, short(stage.product)], href: "#" + idOf(stage.name), kind: "run" });
    if (stage.sources.length) {
      const id = "data: " + stage.sources.join("\n");
      const more = stage.sources.length > 1 ? ` + ${stage.sources.length - 1} more` : "";
      node(id, { title: cut(stage.sources[0].split("/").slice(-2).join("/"), 22) + more, lines: ["data"], kind: "data", full: stage.sources.join("\n") });
      edges.push({ from: id, to: stage.name, state: "same" });
    }
    for (const parent of stage.parents) {
      node(parent.name, { title: parent.name.split("/").at(-1), lines: [parent.kind, short(parent.sha256)], kind: "data", full: parent.name });
      edges.push({ from: parent.name, to: stage.name, ...parent });
    }
  }
  for (let round = 0; round < nodes.size; round++)
    for (const edge of edges) nodes.get(edge.to).layer = Math.max(nodes.get(edge.to).layer, nodes.get(edge.from).layer + 1);
  for (const found of nodes.values()) {
    const children = edges.filter((edge) => edge.from === found.name).map((edge) => nodes.get(edge.to).layer);
    if (found.kind === "data" && children.length) found.layer = Math.min(...children) - 1;
  }
  const [width, height, gapX, gapY] = [168, 62, 22, 44];
  for (const found of nodes.values()) found.width = width;
  // An edge that passes layers has a narrow place of its own in each, so that no box hides it.
  const pieces = edges.flatMap((edge) => {
    const places = [edge.from];
    for (let layer = nodes.get(edge.from).layer + 1; layer < nodes.get(edge.to).layer; layer++) {
      places.push(`${edge.from} > ${edge.to} @ ${layer}`);
      nodes.set(places.at(-1), { name: places.at(-1), layer, width: 12, kind: "passing" });
    }
    return [...places, edge.to].slice(1).map((to, i) => ({ ...edge, from: places[i], to }));
  });
  const layers = [];
  for (const found of nodes.values()) (layers[found.layer] ||= []).push(found);
  const parentsAt = (found) => pieces.filter((piece) => piece.to === found.name).map((piece) => nodes.get(piece.from).x ?? 0);
  const across = (layer) => layer.reduce((sum, found) => sum + found.width + gapX, -gapX);
  const total = Math.max(...layers.map(across)) + 60;
  layers.forEach((layer, row) => {
    const mean = (found) => { const at = parentsAt(found); return at.length ? at.reduce((a, b) => a + b) / at.length : Infinity; };
    layer.sort((a, b) => mean(a) - mean(b) || 0);
    let x = (total - across(layer)) / 2;
    for (const found of layer) {
      Object.assign(found, { x: x + found.width / 2, y: 6 + row * (height + gapY) });
      x += found.width + gapX;
    }
  });
  const H = layers.length * (height + gapY) - gapY + 12;
  const picture = svg("svg", { viewBox: `0 0 ${total} ${H}`, width: total, height: H, role: "group", class: "graph", "data-plot": "lineage" });
  for (const piece of pieces) {
    const [from, to] = [nodes.get(piece.from), nodes.get(piece.to)];
    const [x1, y1, x2, y2] = [from.x, from.y + height, to.x, to.y];
    const passes = to.kind === "passing";
    const last = passes ? `V${y2 + height}` : "";
    picture.append(svg("path", { class: "edge " + piece.state, d: `M${x1} ${y1}C${x1} ${y1 + 26} ${x2} ${y2 - 26} ${x2} ${passes ? y2 : y2 - 5}${last}` }));
    if (passes) continue;
    picture.append(svg("path", { class: "tip", d: `M${x2} ${y2}l-4 -7h8z` }));
    if (piece.state !== "same") picture.append(svg("text", { x: (x1 + x2) / 2 + 6, y: (y1 + y2) / 2 + 4, class: "warning-text" }, piece.state));
  }
  for (const found of nodes.values()) {
    if (found.kind === "passing") continue;
    const left = found.x - width / 2;
    const box = [svg("title", {}, found.full || found.title), svg("rect", { x: left, y: found.y, width, height, rx: 8 }),
      svg("text", { x: left + 12, y: found.y + 21, class: "name" }, cut(found.title, 19)),
      found.lines.map((line, i) => svg("text", { x: left + 12, y: found.y + 37 + i * 15, class: i ? "hash" : "" }, cut(line, 24)))];
    picture.append(found.href ? svg("a", { href: found.href, class: "node " + found.kind }, box) : svg("g", { class: "node " + found.kind }, box));
  }
  picture.style.minWidth = `${0.7 * total}px`;  // below that, text is too small: scroll
  $("graph").append(picture);
}

// --- numbers ---

function numbers() {
  for (const { task, metric, note, rows } of life.numbers) {
    const isLowerBetter = life.lower_is_better.includes(metric);
    const title = `${task}: ${words(metric).toLowerCase()}`;
    $("cards").append(html("figure", {}, html("figcaption", {}, html("b", {}, title), ` ${isLowerBetter ? "\u2193 less is better" : ""}`,
      note ? html("span", { class: "note" }, note) : null), dotRows({ title, rows, isLowerBetter })));
  }
}

// --- stages ---

// Curves that are told together; every other number of metrics.jsonl gets a chart of its own.
const CHARTS = [
  { title: "Loss", series: { bits_per_byte: ["training", "thin"], validation_bits_per_byte: ["validation", "dots"] }, isLog: true, hides: ["loss", "validation_loss"] },
  { title: "Loss", series: { loss: ["training", "thin"], validation_loss: ["validation", "dots"] }, isLog: true },
  { title: "Reward over KL", series: { reward_kl: ["", "dots"] }, unit: "each point one step", xLabel: "KL from the reference" },
  { title: "Learning rate", series: { learning_rate: ["", ""] } },
  { title: "Throughput", series: { tokens_per_s: ["", "thin"] } },
];
const COUNTERS = ["tokens", "elapsed_s"];

function charts(stage) {
  const left = new Set(Object.keys(stage.curves).filter((name) => !COUNTERS.includes(name)));
  const drawn = [];
  for (const chart of CHARTS) {
    const names = Object.keys(chart.series).filter((name) => left.has(name));
    if (!names.length) continue;
    const [training] = Object.keys(chart.series);
    const hidden = left.has(training) && chart.hides || [];  // what has no training curve here keeps its chart in nats
    [...names, ...hidden].forEach((name) => left.delete(name));
    const series = names.map((name) => ({ points: stage.curves[name], label: chart.series[name][0], kind: chart.series[name][1], ends: name === "reward_kl" }));
    drawn.push(lineChart({ unit: life.units[names[0]], ...chart, series, levels: stage.levels[names[0]] }));
  }
  for (const name of [...left].sort()) {
    const points = stage.curves[name];
    if (points.length > 1 && points.some((point) => point[1] !== points[0][1]))
      drawn.push(lineChart({ title: words(name), unit: life.units[name], series: [{ points, label: "", kind: points.length > 40 ? "thin" : "dots" }] }));
  }
  return drawn;
}

function confusion({ labels, confusion: counts }) {
  const rows = counts.map((row, i) => {
    const total = row.reduce((a, b) => a + b, 0) || 1;
    return [labels[i], ...row.map((count, j) => {
      const shown = html("div", { class: i === j ? "cell right" : "cell" }, number(count), html("small", {}, ` ${Math.round((100 * count) / total)} %`));
      shown.style.setProperty("--p", count / total);
      return shown;
    })];
  });
  const shown = table(["true \\ predicted", ...labels], rows, "Confusion matrix (shares of each true label)");
  shown.dataset.plot = "confusion matrix";
  return html("div", { class: "scroll confusion", tabindex: 0, role: "group", "aria-label": "Confusion matrix" }, shown);
}

function stages() {
  for (const stage of life.stages) {
    const facts = Object.entries(stage.facts).filter((fact) => fact[1] !== null);
    const results = Object.entries(stage.result).filter(([name, value]) => value !== null && !["command", "out", "model"].includes(name));
    const pictures = charts(stage);
    $("stages").append(html("article", { class: "stage", id: idOf(stage.name) },
      html("h3", {}, stage.name, " ", html("small", {}, stage.command), stage.finished ? null : html("small", { class: "problem" }, " not finished")),
      html("pre", {}, html("code", {}, stage.typed)),
      stage.alone ? html("p", { class: "note" }, "This stage alone, again:") : null,
      stage.alone ? html("pre", {}, html("code", {}, stage.alone)) : null,
      pictures.length ? html("div", { class: "grid" }, pictures) : null,
      stage.confusion ? confusion(stage.confusion) : null,
      results.length ? html("details", {}, html("summary", {}, "Results"), html("div", { class: "scroll" }, table(["name", "value"], results.map(([name, value]) => [words(name), number(value)])))) : null,
      html("details", {}, html("summary", {}, "Origin"), html("div", { class: "scroll" }, table(["what", "value"], [
        ["folder", stage.path], ["hash", stage.product || ""],
        ...stage.parents.map((parent) => [`parent: ${parent.kind}`, `${parent.name} ${short(parent.sha256)} (${parent.state})`]),
        ...stage.sources.map((source) => ["data", source]), ...facts.map(([name, value]) => [name, String(value)])])))));
  }
}

function cost() {
  const columns = { parameters: number, steps: number, tokens: number, elapsed_s: duration, cpu_s: duration };
  const rows = life.stages.map((stage) => [html("a", { href: "#" + idOf(stage.name) }, stage.name),
    ...Object.entries(columns).map(([name, show]) => (stage.cost[name] === null || stage.cost[name] === undefined ? "" : show(stage.cost[name])))]);
  const sum = (name) => duration(life.stages.reduce((total, stage) => total + (stage.cost[name] || 0), 0));
  $("costs").append(table(["stage", "parameters", "steps", "tokens", "time", "CPU time"], [...rows, ["all", "", "", "", sum("elapsed_s"), sum("cpu_s")]]));
}

heading();
growing();
lineage();
numbers();
stages();
cost();
document.documentElement.dataset.drawn = "true";
