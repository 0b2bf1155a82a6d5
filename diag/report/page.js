
// ---- runs ----
function drawRuns() {
  const loss = (run) => shown(floats(run.validation.values.loss.median).at(-1));
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
for (const id of ["column", "stat", "axis", "over"]) byId(id).addEventListener("change", drawMaps);
for (const id of ["choice", "training-form"]) byId(id).addEventListener("submit", (event) => event.preventDefault());
byId("seeds").addEventListener("change", drawTraining);
if (!groups.length) for (const id of ["training-form", "over-label"]) byId(id).hidden = true;
drawTraining();
drawMaps();
startSpectra();
drawFindings();
drawRuns();
