
// ---- findings, as `bulkhead findings` has them ----
const words = (key) => key.replaceAll("_", " ");
const scalar = (value) => (Array.isArray(value) ? value.map(scalar).join(" ") : value === true ? "yes" : value === false ? "no" : shown(value));
const isTable = (value) => Array.isArray(value) && typeof value[0] === "object" && value[0] !== null;
const rowsTable = (rows) => table(Object.keys(rows[0]).map(words), rows.map((row) => Object.values(row).map(scalar)));

function verdictRow(f) {
  const tests = (key) => f.tests.map((test) => (test.against ? `${test.against}: ` : "") + shown(test[key])).join("; ");
  const numbers = Object.entries(f.numbers).filter(([, value]) => !isTable(value) && !(Array.isArray(value) && !value.length));
  return [f.finding, f.variant, f.verdict, f.tests.length ? tests("p") : null, f.tests.length ? tests("p_holm") : null,
    html("span", {}, numbers.map(([key, value]) => `${words(key)}: ${scalar(value)}`).join("; "), 
      ...(f.reason ? [numbers.length ? html("br") : "", html("em", {}, f.reason)] : []))];
}

function onsetCurves() {
  const lines = findings.findings.filter((f) => f.finding === "onset" && f.numbers.curve).map((f) => {
    const { curve } = f.numbers, of = (key) => curve.map((point) => point[key]);
    return { kind: "train", label: f.variant, family: f.variant, colour: colour(runs.find((run) => run.variant === f.variant)), x: of("theta"),
      value: of("share_of_layers"), least: of("least"), most: of("most"), at: (i) => `θ = ${shown(curve[i].theta)}`,
      note: (i) => ` (${shown(curve[i].least)} to ${shown(curve[i].most)} over ${f.numbers.runs} runs; ${curve[i].layers} layers, ${curve[i].unknown} unknown)` };
  });
  const thetas = lines.flatMap((line) => line.x);
  return lines.length ? [curves({ caption: "C(θ): share of layers with an onset (band: least to most of the runs)", note: legend(lines.map((line) => [line.colour, line.label])),
    xLabel: "effect size θ: λ₁/mean λ over that of the null",
    unit: "share of layers", logarithmic: false, from: Math.min(...thetas), end: Math.max(...thetas), xTicks: [...new Set(thetas)], lines, query: findingsCommand(),
    head: ["variant", "θ", "share of layers", "least", "most"] })] : [];
}

function findingsCommand() {
  const { study } = findings;
  return `bulkhead findings ${databases(runs)} --theta ${study.theta} --alpha ${study.alpha} --json`;
}

function drawFindings() {
  const room = byId("verdicts");
  if (!findings) { room.append(html("p", {}, "left out of this page (--no-findings)")); return; }
  const { study } = findings, acrossSeeds = [...new Set(findings.findings.filter((f) => f.wants_seeds).map((f) => f.finding))];
  const excluded = findings.runs.filter((run) => run.why);
  room.append(html("p", {}, `Against the product null; heads, full maps, form score, whatever else this page shows. ${study.judged} of ${study.runs} runs judged; ` +
    `effect size θ ${shown(study.theta)} (${study.theta_fixed_by}); level of the study α ${shown(study.alpha)} over ${study.hypotheses} tests (Holm); ` +
    `M ${study.m} head snapshots, so an onset needs tw_score ≥ ${shown(study.tw_threshold)} twice in a row, and a collapse z ≤ ${shown(study.z_threshold)}.`));
  if (acrossSeeds.length)
    room.append(html("p", { id: "more-runs" }, `There are too few runs to decide ${acrossSeeds.join(", ")}: such a finding compares seeds. It needs more runs of its ` +
      "variants that differ by their seed only; the table says how many. Undetermined is neither found nor not found."));
  room.append(html("div", { class: "wide whole" }, table(["finding", "variant", "verdict", "p", "p (Holm)", "numbers and reason"], findings.findings.map(verdictRow))));
  if (excluded.length) room.append(html("h3", {}, "Runs that are not judged"), table(["run", "judged", "why"], excluded.map((run) => [run.run, run.judged, run.why])));
  room.append(html("div", { class: "grid" }, ...onsetCurves()));
  for (const f of findings.findings) {
    const tables = Object.entries(f.numbers).filter(([, value]) => isTable(value));
    if (tables.length) room.append(behind(`${f.finding}, ${f.variant}: ${tables.map(([key]) => words(key)).join(", ")}`, () =>
      html("div", {}, ...tables.flatMap(([key, value]) => [html("h4", {}, words(key)), rowsTable(value)]))));
  }
  room.append(html("p", {}, "The same for a program:"), html("pre", {}, html("code", {}, findingsCommand())));
}
