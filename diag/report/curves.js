
// ---- curves ----
// A line: label, kind (its dashes), colour, and by point x, value, least and most (of the band around it, or most alone:
// the largest of a bin), at (words for x) and note. `end`: the axis begins at `from`.
const bounded = (line) => line.least !== null;
function path(line, values, x, y, drawable) {
  let d = "", pen = "M";
  values.forEach((v, i) => {
    if (!drawable(v)) { pen = "M"; return; }
    d += `${pen}${x(line.x[i]).toFixed(1)} ${y(v).toFixed(1)}${pen === "M" ? "h.01" : ""}`; // one value alone is a dot
    pen = "L";
  });
  return d;
}
// Between least and most, piece by piece where both are there.
function band(line, x, y, drawable) {
  let d = "", piece = [];
  const close = () => {
    if (piece.length > 1)
      d += `M${piece.map((i) => `${x(line.x[i]).toFixed(1)} ${y(line.most[i]).toFixed(1)}`).join("L")}` +
        `L${piece.reverse().map((i) => `${x(line.x[i]).toFixed(1)} ${y(line.least[i]).toFixed(1)}`).join("L")}Z`;
    piece = [];
  };
  line.x.forEach((_, i) => { if (drawable(line.least[i]) && drawable(line.most[i])) piece.push(i); else close(); });
  close();
  return d;
}

function curves({ caption, note, xLabel, unit, logarithmic, from, end, xTicks, lines, query, head }) {
  if (!lines.length) return nothing(caption, "not recorded");
  const height = 300, bottom = height - BOX.bottom, [plot, picture] = plotOf(caption, height);
  const drawable = (v) => v !== null && (!logarithmic || v > 0);
  const all = extent(lines.flatMap((line) => [...line.value, ...line.most, ...(line.least || [])]).filter(drawable));
  if (!all) return nothing(caption, "not recorded");
  const f = logarithmic ? Math.log10 : (v) => v;
  let [low, high] = all.map(f);
  if (low === high) [low, high] = [low - 0.5, high + 0.5];
  const x = (v) => BOX.left + ((v - from) / (end - from)) * WIDTH;
  const y = (v) => bottom - ((f(v) - low) / (high - low)) * (bottom - BOX.top);
  const yTicks = logarithmic ? logTicks(10 ** low, 10 ** high) : ticks(low, high, 5);
  axes(picture, height, x, y, xTicks, yTicks, xLabel, unit);
  for (const line of lines) {
    const stroke = `stroke: var(${line.colour})`;
    if (bounded(line)) picture.append(svg("path", { class: "band", d: band(line, x, y, drawable), style: `fill: var(${line.colour})` }));
    else picture.append(svg("path", { class: `curve max ${line.kind}`, d: path(line, line.most, x, y, drawable), style: stroke, "stroke-linecap": "round" }));
    picture.append(svg("path", { class: `curve median ${line.kind}`, d: path(line, line.value, x, y, drawable), style: stroke, "stroke-linecap": "round" }));
  }
  const say = (row, i) => `${lines[row].label}: ${lines[row].at(i)}, ${shown(lines[row].value[i])}${lines[row].note(i)}, ${unit}`;
  const at = (px, py) => {
    let best = null, least = Infinity;
    lines.forEach((line, row) => line.value.forEach((v, i) => {
      if (!drawable(v)) return;
      const distance = (x(line.x[i]) - px) ** 2 + (y(v) - py) ** 2;
      if (distance < least) { least = distance; best = [row, i]; }
    }));
    return best;
  };
  const where = (row, i) => {
    const v = lines[row].value[i];
    return [x(lines[row].x[i]) - 5, drawable(v) ? y(v) - 5 : bottom - 5, 10, 10];
  };
  const output = readable(plot, picture, lines.length, (row) => lines[row].x.length, at, say, where);
  const solid = lines.filter((line) => line.kind !== "validation");
  const key = () => [...new Map((solid.length ? solid : lines).map((line) => [line.colour, line])).values()].map((line) =>
    [lineMark(style(line.colour)), lines.filter((other) => other.colour === line.colour).length > 2 ? line.family : line.label]);
  return figure({ caption, note, plot, output, key, query, rows: () => table(head, lines.flatMap((line) =>
    line.x.map((_, i) => [line.label, line.at(i), shown(line.value[i]), shown(line.least && line.least[i]), shown(line.most[i])]))) });
}

// A series of one run, or the mean of several with one standard deviation on both sides.
function lineOf(some, kind, name) {
  const series = some[0][kind], x = series.first.map((first, bin) => (first + series.last[bin]) / 2);
  const medians = some.map((run) => floats(run[kind].values[name].median)), common = { kind, x, colour: colour(some[0]), family: some[0].variant };
  const rows = (bin) => (series.rows[bin] > 1 ? ` (median of ${series.rows[bin]})` : "");
  common.at = (bin) => `step ${steps(series, bin)}`;
  if (some.length === 1) {
    const most = floats(some[0][kind].values[name].max);
    const note = (bin) => (series.rows[bin] > 1 ? `${rows(bin)}, largest ${shown(most[bin])}` : "");
    return { ...common, label: `${title(some[0])}, ${kind}`, value: medians[0], least: null, most, note };
  }
  const { mean, spread, count } = moments(medians);
  const beside = (sign) => mean.map((v, bin) => (spread[bin] === null ? v : v + sign * spread[bin]));
  const note = (bin) => ` (mean of ${count[bin]} seeds, standard deviation ${shown(spread[bin])})`;
  return { ...common, label: `${groupTitle(some)}, ${kind}`, value: mean, least: beside(-1), most: beside(1), note };
}

function drawTraining() {
  const averaged = byId("seeds").value === "mean", shownRuns = averaged ? grouped() : runs.map((run) => [run]);
  const lines = (kind, name) => shownRuns.map((some) => lineOf(some, kind, name)).filter((line) => line.x.length);
  const thin = averaged && groups.length ? "band: one standard deviation over seeds" : "thin: largest of a bin";
  const common = { xLabel: "step", from: 0, end: lastStep, xTicks: ticks(0, lastStep, 6),
    head: ["of", "steps", averaged ? "mean or median" : "median", "mean less one sd", averaged ? "mean and one sd, or largest" : "largest"] };
  const columns = "SELECT r.name AS run, r.variant, r.seed, t.step,", where = `WHERE 1${only(runs, "r")} ORDER BY t.run_id, t.step`;
  const of = (some) => shownRuns.filter((other) => colour(other[0]) === colour(some[0]));
  byId("legend").replaceChildren(legend(shownRuns.length <= 8
    ? shownRuns.map((some) => [colour(some[0]), some.length > 1 ? groupTitle(some) : title(some[0])])
    : shownRuns.filter((some) => of(some)[0] === some).map((some) => [colour(some[0]), `${some[0].variant || "(no variant)"}: ${of(some).length}`])));
  byId("curves").replaceChildren(
    curves({ ...common, caption: `Loss (validation dashed; ${thin})`, unit: "loss (nats per token)", logarithmic: false,
      lines: [...lines("train", "loss"), ...lines("validation", "loss")], query: query(runs,
        `${columns} t.split, t.loss FROM (SELECT run_id, step, 'train' AS split, loss FROM train_metrics UNION ALL ` +
        `SELECT run_id, step, split, loss FROM eval_metrics) t JOIN runs r USING(run_id) ${where}`) }),
    curves({ ...common, caption: `Gradient norm (${thin})`, unit: "gradient norm", logarithmic: true,
      lines: lines("train", "grad_norm"), query: query(runs, `${columns} t.grad_norm FROM train_metrics t JOIN runs r USING(run_id) ${where}`) }));
}
