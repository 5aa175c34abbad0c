// The runs: settings, software, data, usage, errors and warnings.

function runsView(params, change) {
  const usage = (run) => run.settings.usage ?? {};
  const count = (errors) => Object.values(errors).reduce((sum, one) => sum + one, 0);
  const truncated = (run) => run.answers.filter((answer) => answer.truncated).length;
  const number = (key, title, value, digits = 0) => ({ key, title, value: (run) => value(run) ?? undefined, cell: (run) => fixed(value(run), digits) });
  const text = (key, title, value, cell = value) => ({ key, title, isText: true, value, cell });
  const columns = [
    text("run", "Run", runName, (run) => h("a", { href: `#runs?run=${encodeURIComponent(run.stem)}` }, runName(run))),
    text("kind", "Kind", (run) => run.kind),
    text("data", "Data set", (run) => run.data_set),
    number("problems", "Problems", (run) => run.answers.length),
    number("errors", "Errors", (run) => count(run.errors)),
    number("truncated", "Truncated", truncated),
    number("tokens", "Tokens out", (run) => usage(run).completion_tokens),
    number("seconds", "Seconds", (run) => usage(run).seconds),
    number("dollars", "Cost $", (run) => usage(run).dollars, 2),
    text("warnings", "Warnings", (run) => run.warnings.join("; "), (run) => (run.warnings.length ? h("ul", {}, run.warnings.map((line) => h("li", {}, line))) : "")),
  ];
  const run = data.runs.find((one) => one.stem === params.get("run"));
  return view("Runs", [], params, change, run ? runView(run) : null,
    sortable(`${plural(data.runs.length, "run")}, made into this page ${data.made}`, columns, data.runs, params, change));
}

function runView(run) {
  const errors = Object.entries(run.errors);
  const { usage, dataset, generation, recipe, hardware, software, perturbations, ...rest } = run.settings;
  const groups = { Run: rest, Perturbations: Object.fromEntries((perturbations ?? []).map((one) => [one.name, one.settings])), "Data set": dataset, Usage: usage,
    Generation: generation, Conversation: recipe, Hardware: hardware, Software: software };
  return h("section.run", { "aria-label": `Settings of ${runName(run)}` }, h("h3", {}, runName(run)),
    h("p", {}, h("a", { href: `#problems?${new URLSearchParams({ models: run.model, mode: run.mode, format: run.format })}` }, "Problems with its answers")),
    run.warnings.length ? h("ul.warnings", {}, run.warnings.map((line) => h("li", {}, line))) : null,
    errors.length ? h("p", {}, `Errors: ${errors.map(([type, count]) => `${count} ${type}`).join(", ")}`) : null,
    dataset ? null : h("p.note", {}, "A published file, which records no settings."),
    h("div.groups", {}, Object.entries(groups).map(([title, facts]) => factsView(title, facts))));
}

function factsView(title, facts) {
  const lines = Object.entries(facts ?? {}).filter(([, value]) => value !== null && value !== "" && JSON.stringify(value) !== "[]" && JSON.stringify(value) !== "{}");
  if (!lines.length) return null;
  return h("div", {}, h("h4", {}, title), h("dl", {}, lines.map(([name, value]) =>
    [h("dt", {}, name.replaceAll("_", " ")), h("dd", {}, typeof value === "object" ? JSON.stringify(value, null, 1) : String(value))]).flat()));
}
