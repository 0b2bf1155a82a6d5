
// ---- heat maps ----
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
// From dark blue to light yellow by equal steps of lightness (OKLCH, hue 290 to 100): it is read without red and green, and in grey.
const SHADES = ["#240059", "#122880", "#00517e", "#067188", "#0a9191", "#0cb38f", "#6ccf7c", "#bee26d", "#fff19c"];
function shade(t) {
  const at = Math.min(t * (SHADES.length - 1), SHADES.length - 1.001), i = Math.floor(at);
  const mixed = [1, 3, 5].map((c) => {
    const [from, to] = [SHADES[i], SHADES[i + 1]].map((hex) => parseInt(hex.slice(c, c + 2), 16));
    return Math.round(from + (at - i) * (to - from));
  });
  return `rgb(${mixed.join(", ")})`;
}
// The colours of 256 codes as pixels.
const palette = (() => {
  const pen = html("canvas", { width: 256, height: 1 }).getContext("2d");
  for (let i = 0; i < 256; i++) { pen.fillStyle = shade(i / 255); pen.fillRect(i, 0, 1, 1); }
  return new Uint32Array(pen.getImageData(0, 0, 256, 1).data.buffer);
})();

// What a map shows: a run's column, or its mean or standard deviation over the seeds of a group.
function viewOf(some, over, column, stat) {
  const cells = (which) => some.map((run) => decoded(run.spectra.values[column][which]));
  const other = stat === "max" ? "median" : "max", named = { median: "median", max: "maximum" };
  if (some.length === 1) {
    const [values] = cells(stat), [others] = cells(other);
    return { some, values, caption: title(some[0]),
      note: (i, of) => `${named[stat]} of ${of}; ${named[other]} ${shown(others[i])}` };
  }
  const { mean, spread, count } = moments(cells(stat));
  return { some, values: over === "mean" ? mean : spread, caption: `${groupTitle(some)}: ${over === "mean" ? "mean" : "standard deviation"}`,
    note: (i, of) => `${over === "mean" ? "mean" : "standard deviation"} over ${count[i]} seeds of the ${named[stat]} of ${of}; ` +
      (over === "mean" ? `standard deviation ${shown(spread[i])}` : `mean ${shown(mean[i])}`) };
}

// Onsets as `bulkhead findings` has them: [{layer, step, head, run}]. They are of one family of heads.
const judgedFamily = request.form === "score" && request.part === "full";
const onsets = (some) => (!judgedFamily ? [] : some.flatMap((run) =>
  ((run.judged && run.judged.steps_by_layer) || []).flatMap((step, layer) =>
    (step === null ? [] : [{ run, layer, step, head: run.judged.heads_by_layer[layer] }]))));

function heatMap(view, column, axis, [low, high]) {
  const { some, values, caption } = view, spectra = some[0].spectra, layers = spectra.heads.length, bins = spectra.first.length;
  if (layers * bins === 0) return nothing(caption, "not recorded in this form and part");
  const height = BOX.top + BOX.bottom + Math.max(120, Math.min(260, 16 * layers)), bottom = height - BOX.bottom;
  const [plot, picture] = plotOf(`${caption}: ${meaning(column)}, ${layers} layers`, height);
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
  const marks = onsets(some).map((mark) => ({ ...mark, bin: spectra.last.findIndex((last) => last >= mark.step) }));
  const size = Math.min(6, cell / 2);
  for (const mark of marks)
    picture.append(svg("path", { class: "onset", d: `M${x(edge(mark.bin))} ${y(mark.layer) + cell / 2 - size}v${2 * size}l${1.5 * size} ${-size}z` }));
  const say = (layer, bin) => {
    const i = layer * bins + bin, count = spectra.rows[bin], here = marks.filter((mark) => mark.layer === layer && mark.bin === bin);
    return `layer ${layer}, step ${steps(spectra, bin)}: ${column} ${shown(values[i])}` + (values[i] === null ? " (no value)" : "") +
      ` (${view.note(i, `${spectra.heads[layer]} heads${count > 1 ? `, ${count} snapshots` : ""}`)})` +
      here.map((mark) => `; onset at step ${mark.step} in head ${mark.head}${some.length > 1 ? ` of ${mark.run.name}` : ""}`).join("");
  };
  const at = (px, py) => {
    const v = ((px - BOX.left) / WIDTH) * end, layer = Math.floor((bottom - py) / cell);
    if (layer < 0 || layer >= layers || v < edge(0)) return null;
    let bin = 0;
    while (bin + 1 < bins && edge(bin + 1) <= v) bin++;
    return v < edge(bin + 1) ? [layer, bin] : null;
  };
  const where = (layer, bin) => [x(edge(bin)), y(layer), x(edge(bin + 1)) - x(edge(bin)), cell];
  const output = readable(plot, picture, layers, () => bins, at, say, where);
  const ramp = () => svg("g", {}, ...Array.from({ length: 14 }, (_, i) => svg("rect", { x: 2 * i, y: 0, width: 2.1, height: 12, fill: shade(i / 13) })));
  return figure({ caption: caption + (column ? `, ${column}` : ""), plot, output,
    key: () => [[ramp(), `${meaning(column)}: ${shown(low)} … ${shown(high)}`],
      ...(marks.length ? [[svg("path", { d: "M8 0v12l9 -6z", style: "fill: #fff; stroke: #000" }), "onset"]] : [])],
    query: query(some, `SELECT r.name AS run, r.variant, r.seed, l.layer, l.step, l.stat, l.${column} FROM layer_spectra l ` +
      `JOIN runs r USING(run_id) WHERE l.form = '${request.form}' AND l.part = '${request.part}' AND l.stat IN ('median', 'max')` +
      `${only(some, "l")} ORDER BY l.run_id, l.stat, l.step, l.layer`),
    rows: () => table(["step", ...[...Array(layers).keys()].map((l) => `layer ${l}`)], spectra.first.map((_, bin) =>
      [steps(spectra, bin), ...[...Array(layers).keys()].map((l) => shown(values[l * bins + bin]))])) });
}

function drawMaps() {
  const column = byId("column").value, stat = byId("stat").value, over = byId("over").value;
  const views = (over === "each" ? runs.map((run) => [run]) : groups).map((some) => viewOf(some, over, column, stat));
  const range = extent(views.flatMap((view) => extent(view.values) || []));
  byId("maps").replaceChildren(...views.map((view) => heatMap(view, column, byId("axis").value, range || [0, 0])));
  const ramp = Array.from({ length: 9 }, (_, i) => shade(i / 8)).join(", ");
  byId("scale").replaceChildren(html("span", {}, meaning(column)), ...(range ? [html("span", { id: "low" }, shown(range[0])),
    html("span", { class: "ramp", style: `background: linear-gradient(to right, ${ramp})` }), html("span", { id: "high" }, shown(range[1]))] : []),
    html("span", { class: "gap" }), html("span", {}, "no value"),
    ...(onsets(runs).length ? [html("span", {}, svg("svg", { class: "mark", viewBox: "-1 -1 12 14", "aria-hidden": "true" },
      svg("path", { class: "onset", d: "M0 0v12l9 -6z" })), " onset of the layer, by the rule of the findings below")] : []));
}
