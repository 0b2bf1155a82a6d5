
// ---- spectra: densities of x = λ / mean λ of a head, over ln x ----
const STORED_BINS = 64;
// As many bins as there are values for, of those that are stored or of some together.
const binsFor = (values) => (values >= 512 ? STORED_BINS : values >= 128 ? STORED_BINS / 2 : STORED_BINS / 4);
const widthOf = (found) => Math.log(found.esd.high / found.esd.low) / found.bins;
const edgeAt = (found, bin) => found.esd.low * Math.exp(bin * widthOf(found));

// Of a layer {layer} or the head of a rank {rank} at the k-th stored step: shares of the bins, values where they are known.
function spectrumAt(run, which, k) {
  const { esd } = run, layers = run.spectra.heads.length;
  const edges = (coded, i) => Object.fromEntries(Object.entries(coded).map(([name, of]) => [name, decoded(of)[i]]));
  if (which.layer !== undefined) {
    if (which.layer >= layers) return null;
    const i = k * layers + which.layer, stored = decoded(esd.shares).slice(i * STORED_BINS, (i + 1) * STORED_BINS);
    if (stored[0] === null) return null;
    const bins = binsFor(esd.high * run.spectra.heads[which.layer]), together = STORED_BINS / bins;
    const shares = Array.from({ length: bins }, (_, bin) => stored.slice(bin * together, (bin + 1) * together).reduce((a, b) => a + b));
    return { esd, bins, layer: which.layer, shares, values: null, edges: edges(esd.edges, i) };
  }
  const head = esd.heads[which.rank];
  if (!head) return null;
  const all = decoded(head.values), rank = all.length / esd.steps.length;
  const values = all.slice(k * rank, (k + 1) * rank).filter((v) => v !== null).map(Math.exp);
  if (!values.length) return null;
  const found = { esd, bins: binsFor(rank), layer: head.layer, head: head.head, values, edges: edges(head.edges, k) };
  found.shares = Array(found.bins).fill(0);
  for (const x of values) found.shares[binOf(found, x)] += 1 / values.length;
  return found;
}
const binOf = (found, x) => Math.max(0, Math.min(found.bins - 1, Math.floor(Math.log(x / found.esd.low) / widthOf(found))));

// Marchenko and Pastur's density over ln x, between its edges a and b.
function marchenkoPastur(a, b, x) {
  return x <= a || x >= b ? 0 : Math.sqrt((b - x) * (x - a)) / (2 * Math.PI * ((Math.sqrt(b) - Math.sqrt(a)) / 2) ** 2);
}
// Its share of a bin.
function expected(found, bin) {
  const { mp_lambda_minus: a, mp_lambda_plus: b } = found.edges;
  let sum = 0;
  for (let i = 0; i < 32; i++) sum += marchenkoPastur(a, b, edgeAt(found, bin + (i + 0.5) / 32));
  return (sum / 32) * widthOf(found);
}

const EDGES = [["mp_lambda_plus", "edge-mp", "naive MP edge"], ["null_edge", "edge-null", "edge of the product null"],
  ["null_edge95", "edge-null95", "its 95% level for one head"]];
const whole = (x) => shown(x === null ? null : Number(x.toPrecision(3)));

function densityPlot(run, which, step, range) {
  const { esd } = run;
  const k = esd.steps.findLastIndex((stored) => stored <= step);
  const found = k < 0 ? null : spectrumAt(run, which, k), first = k > 0 ? spectrumAt(run, which, 0) : null;
  if (!found) return nothing(title(run), esd.steps.length ? "no spectrum of this at this step" : "no singular values are stored in this form and part");
  const what = found.head === undefined ? `layer ${found.layer}, all ${run.spectra.heads[found.layer]} heads` : `layer ${found.layer}, head ${found.head}`;
  const caption = `${title(run)}: ${what}, step ${esd.steps[k]}`, height = 300, bottom = height - BOX.bottom;
  const [plot, picture] = plotOf(caption, height), { edges } = found, width = widthOf(found);
  const x = (v) => BOX.left + (Math.log(v / range.low) / Math.log(range.high / range.low)) * WIDTH;
  const y = (v) => bottom - Math.min(1, v / range.most) * (bottom - BOX.top); // the first bin may pass the top
  axes(picture, height, x, y, decades(range.low, range.high), ticks(0, range.most, 5), "λ / mean λ of its head (the first bin: all below, too)", "density over ln λ");
  const outline = (shares) => shares.map((share, bin) =>
    `${bin ? "L" : "M"}${x(edgeAt(found, bin)).toFixed(1)} ${y(share / width).toFixed(1)}H${x(edgeAt(found, bin + 1)).toFixed(1)}`).join("");
  const ends = `L${x(esd.high).toFixed(1)} ${bottom}L${x(esd.low).toFixed(1)} ${bottom}Z`;
  picture.append(svg("path", { class: "density", d: outline(found.shares) + ends, style: `fill: var(${colour(run)})` }));
  if (first) picture.append(svg("path", { class: "start", d: outline(first.shares) }));
  const { mp_lambda_minus: a, mp_lambda_plus: b } = edges;
  if (a !== null && b !== null) {
    const low = Math.max(a, range.low), curve = Array.from({ length: 121 }, (_, i) => low * (b / low) ** (i / 120));
    picture.append(svg("path", { class: "mp", d: `M${curve.map((v) => `${x(v).toFixed(1)} ${y(marchenkoPastur(a, b, v)).toFixed(1)}`).join("L")}` }));
  }
  for (const [name, kind] of EDGES)
    if (edges[name] !== null && edges[name] > 0) picture.append(svg("path", { class: kind, d: `M${x(edges[name])} ${name === "null_edge95" ? (BOX.top + bottom) / 2 : BOX.top}V${bottom}` })); // two may coincide
  for (const v of found.values || []) {
    const beyond = edges.null_edge95 !== null && v > edges.null_edge95;
    picture.append(svg("path", { class: beyond ? "value beyond" : "value", d: `M${x(v)} ${bottom}v${beyond ? -14 : -7}` }));
  }
  const onset = onsets([run]).find((mark) => mark.layer === found.layer);
  const past = onset && esd.steps[k] >= onset.step;
  if (past) picture.append(svg("path", { class: "onset", d: `M${BOX.left + 6} ${BOX.top + 2}v12l9 -6z` }),
    svg("text", { x: BOX.left + 20, y: BOX.top + 13 }, `onset at step ${onset.step}`));
  const note = [`median tw_score of the heads ${whole(edges.tw_score)}`, `tw_score ${whole(edges.tw_score)}`][found.head === undefined ? 0 : 1] +
    (found.values ? `; λ₁ ${whole(found.values[0])}` : "") + `; ${EDGES.map(([name, , words]) => `${words} ${whole(edges[name])}`).join(", ")}` +
    (onset ? `; onset of this layer at step ${onset.step} in head ${onset.head}${past ? "" : ": still to come"}` : "");
  const say = (_, bin) => {
    const mine = (found.values || []).filter((v) => binOf(found, v) === bin);
    return `λ/mean λ ${bin ? whole(edgeAt(found, bin)) : 0} to ${whole(edgeAt(found, bin + 1))}: ${shown(100 * found.shares[bin])}% of the values` +
      (a !== null && b !== null ? `; MP ${shown(100 * expected(found, bin))}%` : "") +
      (first ? `; at step ${esd.steps[0]} ${shown(100 * first.shares[bin])}%` : "") + (mine.length && mine.length < 5 ? `; ${mine.map(whole).join(", ")}` : "");
  };
  const at = (px, py) => {
    const v = range.low * (range.high / range.low) ** ((px - BOX.left) / WIDTH);
    return v >= esd.low && v <= esd.high && py < height ? [0, binOf(found, v)] : null;
  };
  const where = (_, bin) => [x(edgeAt(found, bin)), BOX.top, x(edgeAt(found, bin + 1)) - x(edgeAt(found, bin)), bottom - BOX.top];
  const output = readable(plot, picture, 1, () => found.bins, at, say, where);
  const heads = found.head === undefined ? "" : ` AND m.head = ${found.head}`;
  return figure({ caption, note, plot, output, key: () => [[svg("rect", { width: 28, height: 12, style: `fill: ${style(colour(run))}; opacity: .45` }), "stored values"],
    [lineMark(style("--ink")), "Marchenko–Pastur"], ...(first ? [[lineMark(style("--faint"), "none", 1.2), `step ${esd.steps[0]}`]] : []),
    ...EDGES.map(([, , words], i) => [lineMark(style("--ink"), ["2 4", "9 4", "none"][i], 1.5), words])],
    query: query([run], `SELECT s.step, m.layer, m.head, p.lambda_sum, p.mp_lambda_minus, p.mp_lambda_plus, p.null_edge, p.null_edge95, ` +
      `p.tw_score, e.singular_values FROM esd e JOIN snapshots s USING(snapshot_id) JOIN matrices m USING(matrix_id) LEFT JOIN spectra p ` +
      `USING(snapshot_id, matrix_id) WHERE m.form = '${request.form}' AND m.part = '${request.part}' AND m.scope = 'head' AND m.layer = ` +
      `${found.layer}${heads}${only([run], "s")} ORDER BY s.step, m.layer, m.head`),
    rows: () => table(["λ/mean λ from", "to", "share", "Marchenko–Pastur", ...(first ? [`at step ${esd.steps[0]}`] : [])], found.shares.map((share, bin) =>
      [bin ? whole(edgeAt(found, bin)) : 0, whole(edgeAt(found, bin + 1)), shown(share), shown(b === null || a === null ? null : expected(found, bin)),
        ...(first ? [shown(first.shares[bin])] : [])])) });
}

const storedSteps = [...new Set(runs.flatMap((run) => run.esd.steps))].sort((a, b) => a - b);
function drawSpectra() {
  const [kind, number] = byId("spectrum").value.split(" "), which = { [kind]: Number(number) };
  const step = storedSteps[byId("stored").value];
  const some = runs.filter((run) => run.esd.steps.length);
  // One scale for all steps and runs, so that what moves is the spectrum.
  let most = 0.35;
  for (const run of some)
    run.esd.steps.forEach((_, k) => {
      const found = spectrumAt(run, which, k);
      if (found) most = Math.max(most, Math.max(...found.shares.slice(1)) / widthOf(found));
    });
  const range = { low: Math.min(...some.map((run) => run.esd.low)), high: Math.max(...some.map((run) => run.esd.high)), most: most * 1.04 };
  byId("storedstep").textContent = `step ${step}`;
  byId("densities").replaceChildren(...runs.map((run) => densityPlot(run, which, step, range)));
}

function startSpectra() {
  if (!storedSteps.length) {
    byId("spectra-form").remove();
    byId("densities").append(html("p", {}, "No singular values of this form and part are stored; diagnostics.esd_every in the configuration stores them."));
    return;
  }
  const choice = byId("spectrum"), rank = ["largest", "2nd largest", "3rd largest"];
  const heads = Math.max(...runs.map((run) => run.esd.heads.length)), layers = Math.max(...runs.map((run) => run.spectra.heads.length));
  for (let i = 0; i < heads; i++) choice.append(html("option", { value: `rank ${i}` }, `head of ${rank[i] || `${i + 1}th largest`} tw_score`));
  for (let i = 0; i < layers; i++) choice.append(html("option", { value: `layer ${i}` }, `layer ${i}, all heads`));
  filled(byId("stored"), { min: 0, max: storedSteps.length - 1 }, []).value = storedSteps.length - 1;
  const thinned = runs.filter((run) => run.esd.steps.length < run.esd.stored);
  byId("stored-of").textContent = thinned.length ? `Of ${Math.max(...thinned.map((run) => run.esd.stored))} stored spectra, ` +
    `${Math.min(...thinned.map((run) => run.esd.steps.length))} are in this page, evenly. ` : "";
  choice.addEventListener("change", drawSpectra);
  byId("stored").addEventListener("input", drawSpectra);
  byId("spectra-form").addEventListener("submit", (event) => event.preventDefault());
  drawSpectra();
}
