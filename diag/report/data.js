// Draws the runs of #data. Text from a run only ever becomes text nodes.
"use strict";
const { request, findings, runs } = JSON.parse(document.getElementById("data").textContent);
runs.forEach((run, i) => { run.judged = findings ? findings.runs[i] : null; });

// ---- numbers: null where there is none ----
const bytes = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
const floats = (text) => Array.from(new Float32Array(bytes(text).buffer), (x) => (Number.isNaN(x) ? null : x));
const known = new WeakMap();
function decoded(coded) {
  const { low, high, codes } = coded;
  if (!known.has(coded))
    known.set(coded, Array.from(bytes(codes), (code) => (code === 0 ? null : low + ((code - 1) / 254) * (high - low))));
  return known.get(coded);
}
function shown(x) {
  if (x === null || x === undefined) return "–";
  return typeof x !== "number" || Number.isInteger(x) ? String(x) : String(Number(x.toPrecision(4)));
}
function extent(values) {
  let low = Infinity, high = -Infinity;
  for (const x of values) if (x !== null) { low = Math.min(low, x); high = Math.max(high, x); }
  return low <= high ? [low, high] : null;
}

// Cell by cell: mean and standard deviation over those of the arrays that have a value, and how many these are.
function moments(arrays) {
  const mean = [], spread = [], count = [];
  for (let i = 0; i < arrays[0].length; i++) {
    const values = arrays.map((array) => array[i]).filter((x) => x !== null);
    const middle = values.length ? values.reduce((a, b) => a + b, 0) / values.length : null;
    mean.push(middle);
    count.push(values.length);
    spread.push(values.length > 1 ? Math.sqrt(values.reduce((sum, x) => sum + (x - middle) ** 2, 0) / (values.length - 1)) : null);
  }
  return { mean, spread, count };
}

// ---- steps ----
const steps = (series, bin) =>
  series.first[bin] === series.last[bin] ? `${series.first[bin]}` : `${series.first[bin]} to ${series.last[bin]}`;
const lastStep = Math.max(1, ...runs.flatMap((run) =>
  [run.train, run.validation, run.spectra].map((series) => series.last[series.last.length - 1] ?? 0)));

// ---- runs ----
const title = (run) => (run.name || "(no name)") + (run.variant && run.variant !== run.name ? ` (${run.variant})` : "");
const variants = [...new Set(runs.map((run) => run.variant))];
// Few runs have a colour each, many that of their variant.
const colour = (run) => `--run${(runs.length <= 8 ? runs.indexOf(run) : variants.indexOf(run.variant)) % 8}`;

// Runs that differ in nothing but their seed (and what they are called), at the same steps: at least two.
const NAMES = new Set(["run.name", "run.seed", "run.dir", "run.group", "run.tags"]);
const groups = (() => {
  const found = new Map();
  for (const run of runs) {
    const settings = run.params.filter(([key]) => !NAMES.has(key));
    const key = JSON.stringify([run.variant, settings, run.train.last, run.validation.last, run.spectra.last, run.spectra.heads]);
    found.set(key, [...(found.get(key) || []), run]);
  }
  return [...found.values()].filter((group) => new Set(group.map((run) => run.seed)).size === group.length && group.length > 1);
})();
const groupTitle = (group) => `${group[0].variant || "(no variant)"}, ${group.length} seeds`;
// The groups, and each run that is in none.
const grouped = () => [...groups, ...runs.filter((run) => !groups.some((group) => group.includes(run))).map((run) => [run])];

// ---- queries ----
const quoted = (word) => (/^[\w./+-]+$/.test(word) ? word : `'${word.replaceAll("'", "'\\''")}'`);
const databases = (some) => [...new Set(some.map((run) => run.database))].map(quoted).join(" ");
const query = (some, sql) => `bulkhead query ${databases(some)} --csv --sql "${sql}"`;
// Of one run its rows; several are told apart by their names.
const only = (some, table) => (some.length === 1 ? ` AND ${table}.run_id = ${some[0].run_id}` : "");
