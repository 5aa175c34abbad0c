// The runs: settings, software, data, usage, errors and warnings.

function runsView(params, change) {
  const usage = (run) => run.settings.usage ?? {};
  const errors = (run) => Object.values(run.errors).reduce((sum, one) => sum + one, 0);
  const truncated = (run) => run.answers.filter((answer) => answer.truncated).length;
  const link = (run) => h("a", { href: `#runs?run=${encodeURIComponent(run.stem)}` }, runName(run));
  const columns = [
    textColumn("run", "Run", runName, link),
    textColumn("kind", "Kind", (run) => run.kind),
    textColumn("data", "Data set", (run) => run.data_set),
    numberColumn("problems", "Problems", (run) => run.answers.length, 0),
    numberColumn("errors", "Errors", errors, 0),
    numberColumn("truncated", "Truncated", truncated, 0),
    numberColumn("tokens", "Tokens out", (run) => usage(run).completion_tokens, 0),
    numberColumn("seconds", "Seconds", (run) => usage(run).seconds, 0),
    numberColumn("dollars", "Cost $", (run) => usage(run).dollars, 2),
    textColumn("warnings", "Warnings", (run) => run.warnings.join("; "), warningsOf),
  ];
  const run = data.runs.find((one) => one.stem === params.get("run"));
  return view("Runs", [], params, change, run ? runView(run) : null,
    sortable(`${plural(data.runs.length, "run")}; page made ${data.made}`, columns, data.runs, params, change));
}

const warningsOf = (run) => (run.warnings.length ? h("ul", {}, run.warnings.map((line) => h("li", {}, line))) : null);

function runView(run) {
  const errors = Object.entries(run.errors).map(([type, count]) => `${count} ${type}`).join(", ");
  const { usage, dataset, generation, recipe, hardware, software, perturbations, ...rest } = run.settings;
  const changes = (perturbations ?? []).map((one) => [one.name, one.settings]);
  const groups = {
    Run: rest, Perturbations: Object.fromEntries(changes), "Data set": dataset, Usage: usage,
    Generation: generation, Conversation: recipe, Hardware: hardware, Software: software,
  };
  const filters = new URLSearchParams({ models: run.model, mode: run.mode, format: run.format });
  if (run.perturbation) filters.set("perturbed", "yes");
  return h("section.run", { "aria-label": `Settings of ${runName(run)}` }, h("h3", {}, runName(run)),
    h("p", {}, h("a", { href: `#problems?${filters}` }, "Problems with its answers")),
    run.warnings.length ? h("div.warnings", {}, warningsOf(run)) : null,
    errors ? h("p", {}, `Errors: ${errors}`) : null,
    dataset ? null : h("p.note", {}, "A published file, which records no settings."),
    h("div.groups", {}, Object.entries(groups).map(([title, facts]) => factsView(title, facts))));
}

function factsView(title, facts) {
  const isSaid = (value) => ![null, "", "[]", "{}"].includes(typeof value === "object" && value ? JSON.stringify(value) : value);
  const lines = Object.entries(facts ?? {}).filter(([, value]) => isSaid(value));
  const shown = (value) => (typeof value === "object" ? JSON.stringify(value, null, 1) : String(value));
  if (!lines.length) return null;
  return h("div", {}, h("h4", {}, title), h("dl", {}, lines.map(([name, value]) =>
    [h("dt", {}, name.replaceAll("_", " ")), h("dd", {}, shown(value))])));
}
