// Draws the runs of #data. Text from a run only ever becomes text nodes.
"use strict";
const { request, runs } = JSON.parse(document.getElementById("data").textContent);
const BOX = { width: 640, left: 62, right: 12, top: 8, bottom: 40 };
const WIDTH = BOX.width - BOX.left - BOX.right;
const MEANING = {
  effective_rank: "effective rank (directions)",
  effective_rank_rest: "effective rank without the top direction (directions)",
  stable_rank: "stable rank (directions)",
  outlier_energy: "outlier energy: share of Σλ above the naive MP edge (0 … 1)",
  mp_gap: "MP gap: λ₁ over the naive MP edge (ratio)",
  null_gap: "null gap: λ₁ over the edge of the product null (ratio)",
  tw_score: "surprise of λ₁ against the product null (Tracy–Widom 1 score)",
  top_overlap: "overlap of the top direction with that of its onset (0 … 1)",
};
const meaning = (column) => MEANING[column] || column;
const byId = (id) => document.getElementById(id);

// ---- elements ----
function filled(node, attributes, children) {
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.append(...children.map((child) => (child instanceof Node ? child : String(child))));
  return node;
}
const html = (tag, attributes = {}, ...children) => filled(document.createElement(tag), attributes, children);
const svg = (tag, attributes = {}, ...children) =>
  filled(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);

function table(head, rows) {
  const cells = (tag, row) => html("tr", {}, ...row.map((cell) => html(tag, {}, cell ?? "–")));
  return html("table", {}, html("thead", {}, cells("th", head)), html("tbody", {}, ...rows.map((row) => cells("td", row))));
}

// A table that is made when it is first opened.
function behind(title, content) {
  const room = html("div"), details = html("details", {}, html("summary", {}, title), room);
  details.addEventListener("toggle", () => { if (details.open && !room.firstChild) room.append(content()); });
  return details;
}

// ---- values: null where there is none ----
const bytes = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
const floats = (text) => Array.from(new Float32Array(bytes(text).buffer), (x) => (Number.isNaN(x) ? null : x));
function decoded({ low, high, codes }) {
  return Array.from(bytes(codes), (code) => (code === 0 ? null : low + ((code - 1) / 254) * (high - low)));
}
const shown = (x) => (x === null || x === undefined ? "–" : String(Number(x.toPrecision(4))));
const steps = (series, bin) =>
  series.first[bin] === series.last[bin] ? `${series.first[bin]}` : `${series.first[bin]} to ${series.last[bin]}`;
function extent(values) {
  let low = Infinity, high = -Infinity;
  for (const x of values) if (x !== null) { low = Math.min(low, x); high = Math.max(high, x); }
  return low <= high ? [low, high] : null;
}
const title = (run) => (run.name || "(no name)") + (run.variant && run.variant !== run.name ? ` (${run.variant})` : "");
const variants = [...new Set(runs.map((run) => run.variant))];
// Few runs have a colour each, many that of their variant.
const colour = (run) => `var(--run${(runs.length <= 8 ? runs.indexOf(run) : variants.indexOf(run.variant)) % 8})`;

// ---- axes ----
function ticks(low, high, about) {
  if (!(high > low)) return [low];
  const rough = (high - low) / about, power = 10 ** Math.floor(Math.log10(rough));
  const size = power * [1, 2, 5, 10].find((f) => f * power >= rough);
  const first = Math.ceil(low / size), found = [];
  for (let i = first; i * size <= high + size * 1e-9 && found.length < 40; i++) found.push(i * size);
  return found;
}
function axes(picture, height, x, y, xTicks, yTicks, xLabel, yLabel) {
  const bottom = height - BOX.bottom, plot = svg("g", { "aria-hidden": "true" });
  plot.append(svg("path", { class: "axis", d: `M${BOX.left} ${BOX.top}V${bottom}H${BOX.width - BOX.right}` }));
  for (const t of xTicks)
    plot.append(svg("path", { class: "axis", d: `M${x(t)} ${bottom}v5` }),
      svg("text", { x: x(t), y: bottom + 18, "text-anchor": "middle" }, shown(t)));
  for (const t of yTicks)
    plot.append(svg("path", { class: "axis", d: `M${BOX.left} ${y(t)}h-5` }),
      svg("text", { x: BOX.left - 8, y: y(t) + 4, "text-anchor": "end" }, shown(t)));
  plot.append(svg("text", { x: BOX.left + WIDTH / 2, y: height - 6, "text-anchor": "middle" }, xLabel),
    svg("text", { transform: `translate(13 ${(BOX.top + bottom) / 2}) rotate(-90)`, "text-anchor": "middle" }, yLabel));
  picture.append(plot);
}

// A plot with a cursor on (row, bin): pointer and arrow keys move it; say(row, bin) is what is read out, and where(row,
// bin) [x, y, width, height] what is framed.
function readable(plot, picture, height, rows, bins, at, say, where) {
  const frame = svg("rect", { class: "cursor" }), output = html("output", { "aria-live": "polite" });
  let row = 0, bin = 0;
  picture.append(frame);
  function move(toRow, toBin) {
    row = Math.max(0, Math.min(rows - 1, toRow));
    if (bins(row) === 0) return;
    bin = Math.max(0, Math.min(bins(row) - 1, toBin));
    const [x, y, w, h] = where(row, bin);
    filled(frame, { x, y, width: Math.max(w, 2), height: h, style: "visibility: visible" }, []);
    output.textContent = say(row, bin);
  }
  plot.addEventListener("pointermove", (event) => {
    const box = picture.getBoundingClientRect(), scale = BOX.width / box.width;
    const found = at((event.clientX - box.left) * scale, (event.clientY - box.top) * scale);
    if (found) move(...found);
  });
  plot.addEventListener("keydown", (event) => {
    const by = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [1, 0], ArrowDown: [-1, 0] }[event.key];
    if (!by) return;
    event.preventDefault();
    if (frame.style.visibility === "visible") move(row + by[0], bin + by[1]);
    else move(0, 0);
  });
  return output;
}

function plotOf(label, height) {
  const picture = svg("svg", { viewBox: `0 0 ${BOX.width} ${height}`, "aria-hidden": "true" });
  return [html("div", { class: "plot", tabindex: "0", role: "group", "aria-label": `${label}; arrow keys read values` }, picture), picture];
}

// ---- curves ----
const lastStep = Math.max(1, ...runs.flatMap((run) =>
  [run.train, run.validation, run.spectra].map((series) => series.last[series.last.length - 1] ?? 0)));

function curves(label, unit, logarithmic, lines) {
  const height = 300, bottom = height - BOX.bottom, [plot, picture] = plotOf(label, height);
  const all = extent(lines.flatMap((line) => [...line.median, ...line.max]).filter((v) => !logarithmic || v > 0));
  if (!all) return html("figure", {}, html("figcaption", {}, label), html("p", {}, "not recorded"));
  const f = logarithmic ? Math.log10 : (v) => v;
  let [low, high] = all.map(f);
  if (low === high) [low, high] = [low - 0.5, high + 0.5];
  const x = (step) => BOX.left + (step / lastStep) * WIDTH;
  const y = (v) => bottom - ((f(v) - low) / (high - low)) * (bottom - BOX.top);
  const decades = ticks(low, high, 4).filter(Number.isInteger).map((e) => 10 ** e);
  const marks = !logarithmic ? ticks(low, high, 5) : decades.length > 1 ? decades : ticks(10 ** low, 10 ** high, 5).filter((v) => v > 0);
  axes(picture, height, x, y, ticks(0, lastStep, 6), marks, "step", unit);
  const middle = (line, bin) => x((line.series.first[bin] + line.series.last[bin]) / 2);
  const drawable = (v) => v !== null && (!logarithmic || v > 0);
  for (const line of lines)
    for (const stat of ["max", "median"]) {
      let d = "", pen = "M";
      line[stat].forEach((v, bin) => {
        if (!drawable(v)) { pen = "M"; return; }
        d += `${pen}${middle(line, bin).toFixed(1)} ${y(v).toFixed(1)}`;
        d += pen === "M" ? "h.01" : ""; // one value alone is a dot
        pen = "L";
      });
      picture.append(svg("path", { class: `curve ${stat} ${line.kind}`, d, style: `stroke: ${colour(line.run)}`, "stroke-linecap": "round" }));
    }
  const say = (row, bin) => {
    const line = lines[row];
    return `${title(line.run)}, ${line.kind}: step ${steps(line.series, bin)}, ${shown(line.median[bin])}` +
      (line.series.rows[bin] > 1 ? ` (median of ${line.series.rows[bin]}), largest ${shown(line.max[bin])}` : "") + `, ${unit}`;
  };
  const at = (px, py) => {
    let best = null, least = Infinity;
    lines.forEach((line, row) => line.median.forEach((v, bin) => {
      if (!drawable(v)) return;
      const distance = (middle(line, bin) - px) ** 2 + (y(v) - py) ** 2;
      if (distance < least) { least = distance; best = [row, bin]; }
    }));
    return best;
  };
  const where = (row, bin) => {
    const v = lines[row].median[bin];
    return [middle(lines[row], bin) - 5, drawable(v) ? y(v) - 5 : bottom - 5, 10, 10];
  };
  const output = readable(plot, picture, height, lines.length, (row) => lines[row].median.length, at, say, where);
  return html("figure", {}, html("figcaption", {}, label), plot, output,
    behind("Table", () => table(["run", "of", "steps", "rows", "median", "largest"], lines.flatMap((line) =>
      line.median.map((v, bin) => [title(line.run), line.kind, steps(line.series, bin), line.series.rows[bin], shown(v), shown(line.max[bin])])))));
}

function drawTraining() {
  const line = (run, kind, key) => ({
    run, kind, series: run[kind],
    median: floats(run[kind].values[key].median), max: floats(run[kind].values[key].max),
  });
  for (const run of runs) byId("legend").append(html("li", { style: `--colour: ${colour(run)}` }, title(run)));
  const losses = runs.flatMap((run) => [line(run, "train", "loss"), line(run, "validation", "loss")]);
  byId("curves").append(
    curves("Loss (validation dashed; thin: largest of a bin)", "loss (nats per token)", false, losses.filter((l) => l.median.length)),
    curves("Gradient norm (thin: largest of a bin)", "gradient norm", true, runs.map((run) => line(run, "train", "grad_norm")).filter((l) => l.median.length)));
}

// ---- heat maps ----
const shade = (t) => `hsl(${265 - 205 * t} ${55 + 25 * t}% ${20 + 60 * t}%)`;
// The colours of 256 codes as pixels.
const palette = (() => {
  const pen = html("canvas", { width: 256, height: 1 }).getContext("2d");
  for (let i = 0; i < 256; i++) { pen.fillStyle = shade(i / 255); pen.fillRect(i, 0, 1, 1); }
  return new Uint32Array(pen.getImageData(0, 0, 256, 1).data.buffer);
})();
const known = new Map();
function grid(run, column, stat) {
  const values = run.spectra.values[column];
  if (!known.has(values)) known.set(values, { median: decoded(values.median), max: decoded(values.max) });
  return known.get(values)[stat];
}

function heatMap(run, column, stat, axis, [low, high]) {
  const spectra = run.spectra, layers = spectra.heads.length, bins = spectra.first.length, values = grid(run, column, stat);
  const caption = html("figcaption", {}, title(run));
  if (layers * bins === 0) return html("figure", {}, caption, html("p", {}, "not recorded in this form and part"));
  const height = BOX.top + BOX.bottom + Math.max(120, Math.min(260, 16 * layers)), bottom = height - BOX.bottom;
  const [plot, picture] = plotOf(`${title(run)}: ${meaning(column)}, ${layers} layers`, height);
  const even = axis === "bin", tail = bins > 1 ? (spectra.last[bins - 1] - spectra.first[0]) / (bins - 1) : 1;
  const end = even ? bins : Math.max(lastStep + tail, 1);
  const edge = (bin) => (even ? bin : bin < bins ? spectra.first[bin] : Math.min(spectra.last[bins - 1] + tail, end));
  const x = (v) => BOX.left + (v / end) * WIDTH;
  const y = (layer) => bottom - ((layer + 1) / layers) * (bottom - BOX.top);
  const cell = (bottom - BOX.top) / layers;
  const canvas = html("canvas", { width: 1200, height: layers, "aria-hidden": "true",
    style: `left: ${(BOX.left / BOX.width) * 100}%; width: ${(WIDTH / BOX.width) * 100}%; top: ${(BOX.top / height) * 100}%; height: ${((bottom - BOX.top) / height) * 100}%` });
  const image = new ImageData(1200, layers), pixels = new Uint32Array(image.data.buffer);
  for (let bin = 0; bin < bins; bin++) {
    const from = Math.round((edge(bin) / end) * 1200), to = Math.max(from + 1, Math.round((edge(bin + 1) / end) * 1200));
    for (let layer = 0; layer < layers; layer++) {
      const v = values[layer * bins + bin], row = 1200 * (layers - 1 - layer);
      if (v !== null) pixels.fill(palette[high > low ? Math.round(((v - low) / (high - low)) * 255) : 128], row + from, row + Math.min(to, 1200));
    }
  }
  canvas.getContext("2d").putImageData(image, 0, 0);
  const every = Math.ceil(layers / 12);
  const xTicks = even ? ticks(0, bins - 1, 6).filter(Number.isInteger) : ticks(0, lastStep, 6);
  axes(picture, height, x, (layer) => y(layer) + cell / 2, xTicks, [...Array(layers).keys()].filter((l) => l % every === 0),
    even ? (bins < spectra.rows.reduce((a, b) => a + b, 0) ? "bin of snapshots" : "snapshot") : "step", "layer");
  plot.insertBefore(canvas, picture);
  const say = (layer, bin) => {
    const i = layer * bins + bin, count = spectra.rows[bin];
    const behindIt = `${spectra.heads[layer]} heads` + (count > 1 ? `, ${count} snapshots` : "");
    return `layer ${layer}, step ${steps(spectra, bin)}: ${column} ${shown(values[i])}` + (values[i] === null ? " (no value)" : "") +
      ` (${stat === "max" ? "maximum" : "median"} of ${behindIt}; ${stat === "max" ? "median" : "maximum"} ${shown(grid(run, column, stat === "max" ? "median" : "max")[i])})`;
  };
  const at = (px, py) => {
    const v = ((px - BOX.left) / WIDTH) * end, layer = Math.floor((bottom - py) / cell);
    if (layer < 0 || layer >= layers || v < edge(0)) return null;
    let bin = 0;
    while (bin + 1 < bins && edge(bin + 1) <= v) bin++;
    return v < edge(bin + 1) ? [layer, bin] : null;
  };
  const where = (layer, bin) => [x(edge(bin)), y(layer), x(edge(bin + 1)) - x(edge(bin)), cell];
  const output = readable(plot, picture, height, layers, () => bins, at, say, where);
  return html("figure", {}, caption, plot, output, behind("Table", () =>
    table(["step", ...[...Array(layers).keys()].map((l) => `layer ${l}`)], spectra.first.map((_, bin) =>
      [steps(spectra, bin), ...[...Array(layers).keys()].map((l) => shown(values[l * bins + bin]))]))));
}

const quoted = (word) => (/^[\w./+-]+$/.test(word) ? word : `'${word.replaceAll("'", "'\\''")}'`);
function drawMaps() {
  const column = byId("column").value, stat = byId("stat").value;
  const range = extent(runs.flatMap((run) => extent(grid(run, column, stat)) || []));
  const maps = runs.map((run) => heatMap(run, column, stat, byId("axis").value, range || [0, 0]));
  byId("maps").replaceChildren(...maps);
  const ramp = Array.from({ length: 9 }, (_, i) => shade(i / 8)).join(", ");
  byId("scale").replaceChildren(html("span", {}, meaning(column)), ...(range ? [html("span", { id: "low" }, shown(range[0])),
    html("span", { class: "ramp", style: `background: linear-gradient(to right, ${ramp})` }), html("span", { id: "high" }, shown(range[1]))] : []),
    html("span", { class: "gap" }), html("span", {}, "no value"));
  const databases = [...new Set(runs.map((run) => run.database))].map(quoted).join(" ");
  byId("query").textContent = `bulkhead query ${databases} --csv --sql "SELECT r.name AS run, r.variant, l.layer, l.step, l.stat, l.${column} ` +
    `FROM layer_spectra l JOIN runs r USING(run_id) WHERE l.form = '${request.form}' AND l.part = '${request.part}' ` +
    `AND l.stat IN ('median', 'max') ORDER BY l.run_id, l.stat, l.step, l.layer"`;
}

// ---- runs ----
function drawRuns() {
  const loss = (run) => { const all = run.validation.values.loss; return shown(floats(all.median).at(-1)); };
  byId("runs").append(table(["run", "variant", "status", "seed", "group", "last step", "last validation loss", "started", "ended", "database"],
    runs.map((run) => [run.name, run.variant, run.status, run.seed, run.group, run.train.last.at(-1), loss(run), run.started, run.ended, run.database])));
  const settings = runs.map((run) => new Map(run.params));
  const keys = [...new Set(settings.flatMap((all) => [...all.keys()]))].sort();
  const differing = keys.filter((key) => new Set(settings.map((all) => all.get(key))).size > 1);
  byId("differences").append(differing.length === 0 ? html("p", {}, runs.length > 1 ? "nothing" : "there is one run")
    : table(["key", ...runs.map(title)], differing.map((key) => [key, ...settings.map((all) => all.get(key))])));
  for (const run of runs) byId("parameters").append(behind(title(run), () => table(["key", "value"], run.params)));
  const events = runs.flatMap((run) => run.events.map((event) => [title(run), ...event]));
  byId("events").append(events.length ? table(["run", "step", "time", "level", "kind", "message"], events) : html("p", {}, "none"),
    ...runs.filter((run) => run.events_total > run.events.length).map((run) =>
      html("p", {}, `${title(run)}: ${run.events_total - run.events.length} more; bulkhead query ${quoted(run.database)} events`)));
}

// ---- the page ----
document.title = `Bulkhead report: ${runs.map((run) => run.name).slice(0, 3).join(", ")}${runs.length > 3 ? " …" : ""}`;
byId("summary").textContent = `${runs.length} run${runs.length === 1 ? "" : "s"}; spectra of the ${request.form} form, part ${request.part}; ` +
  `bins of steps keep median and maximum; heat maps are exact to a 254th of their range. Bulkhead ${request.version}.`;
for (const column of request.columns) byId("column").append(html("option", { value: column }, column));
for (const id of ["column", "stat", "axis"]) byId(id).addEventListener("change", drawMaps);
byId("choice").addEventListener("submit", (event) => event.preventDefault());
drawTraining();
drawMaps();
drawRuns();
