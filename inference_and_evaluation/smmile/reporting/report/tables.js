// Leaderboard, strata, order and experiments.

function leaderboardView(params, change) {
  const is = (name, value) => !params.get(name) || params.get(name) === value;
  const perturbations = withAll(data.scores.map((score) => score.perturbation).filter(Boolean));
  const only = params.get("perturbation");
  const isShown = (score) => is("data", score.data_set) && is("mode", score.mode) && is("kind", score.kind) &&
    is("format", score.metric === "mcqa" ? "mcqa" : "open") &&
    (only ? score.perturbation === only : !score.perturbation || showsPerturbed(params));
  const rows = new Map();
  for (const score of data.scores.filter(isShown)) {
    const key = JSON.stringify([score.label, score.mode, score.data_set]);
    if (!rows.has(key)) rows.set(key, { ...score, by: {} });
    rows.get(key).by[score.metric] = score;
  }
  const all = [...rows.values()];
  const sets = new Set(data.scores.map((score) => score.data_set));
  const answered = (row) => {
    const shares = Object.values(row.by).map((score) => score.answered).filter((share) => share !== undefined);
    return shares.length ? Math.min(...shares) : undefined;
  };
  const columns = [
    { key: "model", title: "Model", isText: true, value: (row) => row.label, cell: modelLink },
    { key: "mode", title: "Mode", isText: true, value: (row) => row.mode, cell: (row) => row.mode },
    ...(sets.size > 1 ? [{ key: "data", title: "Data set", isText: true, value: (row) => row.data_set, cell: (row) => row.data_set }] : []),
    ...Object.entries(data.metrics).filter(([metric]) => all.some((row) => row.by[metric])).map(([metric, title]) => ({
      key: metric, title, value: (row) => row.by[metric]?.accuracy, cell: (row) => (row.by[metric] ? interval(row.by[metric]) : "–"),
    })),
    { key: "answered", title: "Answered %", value: answered, cell: (row) => fixed(answered(row)) },
    { key: "total", title: "Problems", value: (row) => row.total, cell: (row) => String(row.total) },
  ];
  const fields = [
    { name: "data", label: "Data set", options: withAll(data.scores.map((score) => score.data_set)) },
    { name: "mode", label: "Mode", options: withAll(data.scores.map((score) => score.mode)) },
    { name: "format", label: "Format", options: withAll(data.scores.map((score) => (score.metric === "mcqa" ? "mcqa" : "open"))) },
    { name: "kind", label: "Kind of model", options: withAll(data.scores.map((score) => score.kind)) },
    perturbedField,
    { name: "perturbation", label: "Perturbation", options: perturbations },
  ];
  const lettered = all.some((row) => Object.values(row.by).some((score) => score.letters));
  return view("Leaderboard", fields, params, change,
    h("p.note", {}, "Correct answers in per cent of all problems, with the 95 % interval, drawn from 0 to 100. Errors and missing answers count as incorrect."),
    lettered ? h("p.note", {}, "Models of one mode that share a letter do not differ significantly (paired tests, Holm, 5 %).") : null,
    sortable(`Scores, ${plural(all.length, "row")}`, columns, all, params, change));
}

function modelLink(row) {
  const run = data.runs.find((one) => one.label === row.label && one.mode === row.mode);
  return run ? h("a", { href: `#problems?${new URLSearchParams({ models: run.model, mode: run.mode })}`, title: "Problems with the answers of this run" }, row.label) : row.label;
}

// A view: heading, filters, content.
function view(title, fields, params, change, ...content) {
  const lists = choices(fields, params, change);
  return [h("h2", { id: "heading", tabindex: "-1" }, title), lists.length ? h("form.filters.row", {}, lists) : null, ...content].flat();
}

const labelOf = ({ model, perturbation }) => (perturbation ? `${model} [${perturbation}]` : model);

const metricField = (items) => ({
  name: "metric", label: "Metric",
  options: [...openMetrics, "mcqa"].filter((metric) => items.some((one) => one.metric === metric)).map((metric) => [metric, data.metrics[metric]]),
});

function strataView(params, change) {
  const metrics = metricField(data.strata);
  const first = ["speciality", "flag_image_type"];
  const names = [...new Set(data.strata.map((one) => one.flag))];
  const flags = [...first.filter((flag) => names.includes(flag)), ...names.filter((flag) => !first.includes(flag))].map((flag) => [flag, data.flags[flag]]);
  const fields = [metrics, { name: "flag", label: "Flag", options: flags },
    { name: "mode", label: "Mode", options: withAll(data.strata.map((one) => one.run.mode)) }, perturbedField];
  if (!flags.length) return view("Strata", [], params, change, h("p.note", {}, "No strata: the data set of these runs could not be read, or has no flags."));
  const [metric, flag] = [params.get("metric") ?? metrics.options[0][0], params.get("flag") ?? flags[0][0]];
  const found = data.strata.filter((one) => one.metric === metric && one.flag === flag &&
    (!params.get("mode") || one.run.mode === params.get("mode")) && (!one.run.perturbation || showsPerturbed(params)));
  const values = [...new Set(found.map((one) => one.value))];
  const rows = new Map();
  for (const one of found) {
    const key = JSON.stringify(one.run);
    rows.set(key, [...(rows.get(key) ?? []), one]);
  }
  const lines = [...rows.values()].map((members) => h("tr", {}, h("th", { scope: "row" }, labelOf(members[0].run), h("span.mode", {}, members[0].run.mode)),
    values.map((value) => heatCell(members.find((one) => one.value === value)))));
  const caption = `${data.metrics[metric]} by ${data.flags[flag].toLowerCase()}`;
  return view("Strata", fields, params, change,
    h("p.note", {}, "Correct answers in per cent, and the number n of problems. Grey: fewer than 10 problems (on SMMILE++ base problems), too few to conclude from."),
    h("div.scroll", { tabindex: "0", role: "region", "aria-label": caption }, h("table.heat", {}, h("caption", {}, caption),
      h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "Run"), values.map((value) => h("th", { scope: "col" }, value)))), h("tbody", {}, lines))));
}

function heatCell(stratum) {
  if (!stratum) return h("td", {}, "–");
  const accuracy = (100 * stratum.correct) / stratum.total;
  const { low, high } = stratum.interval;
  const cell = h(stratum.base_problems < 10 ? "td.small" : "td", { title: `95 % interval ${fixed(100 * low)} to ${fixed(100 * high)}` },
    fixed(accuracy), h("small", {}, ` n ${stratum.total}`));
  cell.style.setProperty("--share", `${(accuracy * 0.55).toFixed(1)}%`);
  return cell;
}

function orderView(params, change) {
  const { variance, accuracy_by_place: accuracies, copying } = data.order;
  if (!variance.length) return view("Order", [], params, change, h("p.note", {}, "No run poses problems in several orders of their examples, as runs on SMMILE++ do."));
  const metrics = metricField(variance);
  const metric = params.get("metric") ?? metrics.options[0][0];
  const fields = [metrics, { name: "mode", label: "Mode", options: withAll(variance.map((one) => one.run.mode)) }, perturbedField];
  const isShown = (one) => (!params.get("mode") || one.run.mode === params.get("mode")) && (!one.run.perturbation || showsPerturbed(params));
  const column = (key, title, number = (row) => row[key], digits = 1) => ({ key, title, value: (row) => number(row) ?? undefined, cell: (row) => fixed(number(row), digits) });
  const model = [
    { key: "model", title: "Model", isText: true, value: (row) => labelOf(row.run), cell: (row) => labelOf(row.run) },
    { key: "mode", title: "Mode", isText: true, value: (row) => row.run.mode, cell: (row) => row.run.mode },
  ];
  const range = { key: "best", title: "Worst to best order %", value: (row) => row.best, cell: (row) => interval({ accuracy: row.accuracy, low: row.worst, high: row.best }) };
  const spread = [...model, range, column("mixed", "Mixed %"), column("correlation", "ICC", undefined, 2), column("base_problems", "Base problems", undefined, 0)];
  const place = (first, second) => [...model, { key: "place", title: "Place", isText: true, value: (row) => row.place, cell: (row) => row.place },
    column("share", first), column("other_share", second), column("difference", "Difference"),
    { key: "interval", title: "95 % interval", value: (row) => row.interval[0], cell: (row) => `${fixed(row.interval[0])} to ${fixed(row.interval[1])}` },
    { ...column("p_holm", "p Holm"), cell: (row) => (row.p_holm < 0.0001 ? "<0.0001" : fixed(row.p_holm, 4)) }, column("base_problems", "Base problems", undefined, 0)];
  const format = metric === "mcqa" ? "mcqa" : "open";
  const parts = [
    ["Accuracy over the orders of a base problem", spread, variance.filter((one) => one.metric === metric)],
    ["Accuracy with an example of the query's answer in a place, and without", place("With %", "Without %"), accuracies.filter((one) => one.metric === metric)],
    ["Copying the answer that is in a place: of its own order, and of another order", place("Own %", "Other %"), copying.filter((one) => one.run.task_format === format)],
  ];
  return view("Order", fields, params, change,
    h("p.note", {}, "Worst: base problems correct in every order; best: in at least one; mixed: the difference; the dot is the mean over base problems. ICC: how far the orders agree (1: fully)."),
    ...parts.map(([title, columns, rows]) => [title, columns, rows.filter(isShown)]).filter(([, , rows]) => rows.length)
      .map(([title, columns, rows]) => sortable(title, columns, rows, params, change)));
}

// Each perturbed run against the run that differs in nothing else.
function experimentsView(params, change) {
  const clean = new Map(data.scores.filter((one) => !one.perturbation).map((one) => [JSON.stringify([one.label, one.mode, one.metric, one.data_set]), one]));
  const rows = data.scores.filter((one) => one.perturbation).map((one) => {
    const model = one.label.slice(0, -` [${one.perturbation}]`.length);
    return { ...one, model, clean: clean.get(JSON.stringify([model, one.mode, one.metric, one.data_set])) };
  });
  if (!rows.length) return view("Experiments", [], params, change, h("p.note", {}, "No runs with perturbations."));
  const difference = (row) => (row.clean ? row.accuracy - row.clean.accuracy : undefined);
  const columns = [
    ...[["model", "Model"], ["perturbation", "Perturbation"], ["mode", "Mode"]].map(([key, title]) => ({ key, title, isText: true, value: (row) => row[key], cell: (row) => row[key] })),
    { key: "metric", title: "Metric", isText: true, value: (row) => row.metric, cell: (row) => data.metrics[row.metric] },
    { key: "clean", title: "Without", value: (row) => row.clean?.accuracy, cell: (row) => (row.clean ? interval(row.clean) : "–") },
    { key: "accuracy", title: "With perturbation", value: (row) => row.accuracy, cell: interval },
    { key: "difference", title: "Difference", value: difference, cell: (row) => (row.clean ? `${difference(row) < 0 ? "" : "+"}${fixed(difference(row))}` : "–") },
  ];
  return view("Experiments", [], params, change, h("p.note", {}, "Each perturbed run against the same model's run without the perturbation. Tests: compare.py --perturbed."),
    sortable("Perturbed runs against unperturbed ones", columns, rows, params, change));
}
