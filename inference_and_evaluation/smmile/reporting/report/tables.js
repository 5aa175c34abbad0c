// Leaderboard, strata, order and experiments.

const labelOf = ({ model, perturbation }) => (perturbation ? `${model} [${perturbation}]` : model);

// A view: heading, filters, content.
function view(title, fields, params, change, ...content) {
  const lists = choices(fields, params, change);
  const form = lists.length ? h("form.filters.row", {}, lists) : null;
  return [h("h2", { id: "heading", tabindex: "-1" }, title), form, ...content];
}

const passes = (params, name, value) => !params.get(name) || params.get(name) === value;

// Whether the filters of mode and perturbation show a run, given as its name.
const showsRun = (params, { mode, perturbation }) =>
  passes(params, "mode", mode) && (!perturbation || showsPerturbed(params));

const modeField = (modes) => ({ name: "mode", label: "Mode", options: withAll(modes) });

const metricField = (items) => {
  const metrics = [...openMetrics, "mcqa"].filter((metric) => items.some((one) => one.metric === metric));
  return { name: "metric", label: "Metric", options: metrics.map((metric) => [metric, data.metrics[metric]]) };
};

function leaderboardView(given, change) {
  const formatOf = ({ metric }) => (metric === "mcqa" ? "mcqa" : "open");
  const fields = [
    { name: "data", label: "Data set", options: withAll(data.scores.map((score) => score.data_set)) },
    modeField(data.scores.map((score) => score.mode)),
    { name: "format", label: "Format", options: withAll(data.scores.map(formatOf)) },
    { name: "kind", label: "Kind of model", options: withAll(data.scores.map((score) => score.kind)) },
    perturbedField,
    { name: "perturbation", label: "Perturbation", options: withAll(data.scores.flatMap((one) => one.perturbation || [])) },
  ];
  const params = known(given, fields);
  const only = params.get("perturbation");
  const rows = new Map();
  for (const score of data.scores) {
    const isShown = passes(params, "data", score.data_set) && passes(params, "kind", score.kind) &&
      passes(params, "format", formatOf(score)) &&
      (only ? score.perturbation === only && passes(params, "mode", score.mode) : showsRun(params, score));
    if (!isShown) continue;
    const key = JSON.stringify([score.label, score.mode, score.data_set]);
    if (!rows.has(key)) rows.set(key, { ...score, by: {} });
    rows.get(key).by[score.metric] = score;
  }
  const all = [...rows.values()];
  const answered = ({ by }) => {
    const shares = Object.values(by).flatMap((score) => score.answered ?? []);
    return shares.length ? Math.min(...shares) : undefined;
  };
  const totals = ({ by }) => [...new Set(Object.values(by).map((score) => score.total))];
  const metrics = Object.entries(data.metrics).filter(([metric]) => all.some((row) => row.by[metric]));
  const columns = [
    textColumn("model", "Model", (row) => row.label, modelLink),
    textColumn("mode", "Mode", (row) => row.mode),
    ...(fields[0].options.length ? [textColumn("data", "Data set", (row) => row.data_set)] : []),
    ...metrics.map(([metric, title]) => intervalColumn(metric, title, (row) => row.by[metric])),
    numberColumn("answered", "Answered %", answered),
    numberColumn("total", "Problems", (row) => Math.max(...totals(row)), 0, (row) => totals(row).join(", ")),
  ];
  const hasLetters = all.some((row) => Object.values(row.by).some((score) => score.letters));
  return view("Leaderboard", fields, params, change,
    h("p.note", {}, "Correct answers in per cent of all problems, with the 95 % interval, drawn from 0 to 100. " +
      "Errors and missing answers count as incorrect."),
    hasLetters ? h("p.note", {}, "Models of one mode that share a letter do not differ significantly " +
      "(paired tests, Holm, 5 %).") : null,
    sortable(`Scores, ${plural(all.length, "row")}`, columns, all, params, change,
      metrics.length ? `${metrics[0][0]} down` : ""));
}

function modelLink({ label, mode }) {
  const run = data.runs.find((one) => one.label === label && one.mode === mode);
  if (!run) return label;
  const filters = new URLSearchParams({ models: run.model, mode, ...(run.perturbation ? { perturbed: "yes" } : {}) });
  return h("a", { href: `#problems?${filters}`, title: "Problems with the answers of this run" }, label);
}

function strataView(given, change) {
  const names = new Set(data.strata.map((one) => one.flag));
  if (!names.size) {
    const why = "No strata: the data set of these runs could not be read, or has no flags.";
    return view("Strata", [], given, change, h("p.note", {}, why));
  }
  const first = ["speciality", "flag_image_type"].filter((flag) => names.has(flag));
  const flags = [...new Set([...first, ...names])].map((flag) => [flag, data.flags[flag]]);
  const metrics = metricField(data.strata);
  const modes = modeField(data.strata.map((one) => one.run.mode));
  const fields = [metrics, { name: "flag", label: "Flag", options: flags }, modes, perturbedField];
  const params = known(given, fields);
  const [metric, flag] = [params.get("metric") ?? metrics.options[0][0], params.get("flag") ?? flags[0][0]];
  const found = data.strata.filter((one) => one.metric === metric && one.flag === flag && showsRun(params, one.run));
  const values = [...new Set(found.map((one) => one.value))];
  const rows = new Map();
  for (const one of found) {
    const key = JSON.stringify(one.run);
    if (!rows.has(key)) rows.set(key, { run: one.run, cells: new Map() });
    rows.get(key).cells.set(one.value, one);
  }
  const lines = [...rows.values()].map(({ run, cells }) => h("tr", {},
    h("th", { scope: "row" }, labelOf(run), h("span.mode", {}, run.mode)), values.map((value) => heatCell(cells.get(value)))));
  const heads = ["Run", ...values].map((value) => h("th", { scope: "col" }, value));
  return view("Strata", fields, params, change,
    h("p.note", {}, "Correct answers in per cent, and the number n of problems. Grey: fewer than 10 problems " +
      "(on SMMILE++ base problems), too few to conclude from."),
    table("table.heat", `${data.metrics[metric]} by ${data.flags[flag].toLowerCase()}`, heads, lines));
}

function heatCell(stratum) {
  if (!stratum) return h("td", {}, "–");
  const accuracy = (100 * stratum.correct) / stratum.total;
  const { low, high } = stratum.interval;
  const title = `95 % interval ${fixed(100 * low)} to ${fixed(100 * high)}`;
  const kind = stratum.base_problems < 10 ? "td.small" : "td";
  const cell = h(kind, { title }, fixed(accuracy), h("small", {}, ` n ${stratum.total}`));
  cell.style.setProperty("--share", `${(accuracy * 0.55).toFixed(1)}%`);
  return cell;
}

const differenceOf = ({ difference, interval: [low, high] }) => ({ y: difference, low, high });

// The interval of a difference, and its p value.
const testColumns = [
  numberColumn("interval", "95 % interval", (row) => row.interval[0], 1,
    (row) => row.interval.map((one) => fixed(one)).join(" to ")),
  numberColumn("p", "p Holm", (row) => row.p_holm, 4, (row) => (row.p_holm < 0.0001 ? "<0.0001" : fixed(row.p_holm, 4))),
];

function orderView(given, change) {
  const { variance, accuracy_by_place: accuracies, copying } = data.order;
  if (!variance.length) {
    const why = "No run poses problems in several orders of their examples, as runs on SMMILE++ do.";
    return view("Order", [], given, change, h("p.note", {}, why));
  }
  const metrics = metricField(variance);
  const fields = [metrics, modeField(variance.map((one) => one.run.mode)), perturbedField];
  const params = known(given, fields);
  const metric = params.get("metric") ?? metrics.options[0][0];
  const model = [textColumn("model", "Model", ({ run }) => labelOf(run)), textColumn("mode", "Mode", ({ run }) => run.mode)];
  const count = numberColumn("count", "Base problems", (row) => row.base_problems, 0);
  const spread = [
    ...model,
    intervalColumn("best", "Worst to best order %", ({ accuracy, worst, best }) => ({ accuracy, low: worst, high: best })),
    numberColumn("mixed", "Mixed %", (row) => row.mixed),
    numberColumn("correlation", "ICC", (row) => row.correlation, 2),
    count,
  ];
  const byPlace = (own, other) => [
    ...model,
    textColumn("place", "Place", (row) => row.place),
    numberColumn("share", own, (row) => row.share),
    numberColumn("other", other, (row) => row.other_share),
    numberColumn("difference", "Difference", (row) => row.difference),
    ...testColumns,
    count,
  ];
  const isOfMetric = (one) => one.metric === metric;
  const isOfFormat = ({ run }) => (run.task_format === "mcqa") === (metric === "mcqa");
  const isShown = (one) => showsRun(params, one.run);
  const byRun = (items) => panelsOf(items.filter((one) => isShown(one) && one.p_holm !== null),
    ({ run }) => `${labelOf(run)} ${run.mode}`, (one) => ({ ...differenceOf(one), x: one.place }));
  const tables = [
    ["Accuracy over the orders of a base problem", spread, variance.filter(isOfMetric)],
    ["Accuracy with an example of the query's answer in a place, and without",
      byPlace("With %", "Without %"), accuracies.filter(isOfMetric)],
    ["Copying the answer that is in a place: of its own order, and of another order",
      byPlace("Own %", "Other %"), copying.filter(isOfFormat)],
  ];
  return view("Order", fields, params, change,
    h("p.note", {}, "Worst: base problems correct in every order; best: in at least one; mixed: the difference; " +
      "the dot is the mean over base problems. ICC: how far the orders agree (1: fully)."),
    charts("Accuracy by the place of an example with the query's answer",
      "Points that orders with it in the place have more than orders without, with 95 % intervals.",
      byRun(accuracies.filter(isOfMetric))),
    charts("Copying by place", "Points by which the answer in a place is given more often in its own order than in others, " +
      "with 95 % intervals.", byRun(copying.filter(isOfFormat))),
    tables.map(([title, columns, rows]) => [title, columns, rows.filter(isShown)])
      .map(([title, columns, rows]) => (rows.length ? sortable(title, columns, rows, params, change) : null)));
}

// Each perturbed run minus its clean run, and accuracies by the number of examples, as experiments.json has them.
function experimentsView(given, change) {
  const { effects, missing } = data.experiments;
  const lacks = missing.length ? h("section", { "aria-label": "Missing" }, h("h3", {}, "Not compared or not measured"),
    h("ul", {}, missing.map((line) => h("li.text", {}, line)))) : null;
  if (!effects.length) return view("Experiments", [], given, change, h("p.note.text", {}, missing.join("\n")));
  const metrics = metricField(effects);
  const averages = [...new Set(effects.map((one) => one.average))].reverse().map((one) => [one, one]);
  const all = (one) => one.contrasts.flatMap(({ contrasts }) => contrasts);
  const fields = [metrics, { name: "average", label: "Average by", options: averages },
    modeField(effects.flatMap((one) => all(one).map(({ first }) => first.mode)))];
  const params = known(given, fields);
  const [metric, average] = [params.get("metric") ?? metrics.options[0][0], params.get("average") ?? averages[0][0]];
  const found = effects.filter((one) => one.metric === metric && one.average === average);
  const rows = found.flatMap(all).filter(({ first }) => passes(params, "mode", first.mode));
  const columns = [
    textColumn("condition", "Condition", (row) => row.first.model),
    textColumn("mode", "Mode", (row) => row.first.mode),
    numberColumn("problems", "Problems", (row) => row.problems, 0),
    numberColumn("left", "Left out", (row) => row.left_out, 0),
    numberColumn("clean", "Clean %", (row) => row.second.accuracy),
    numberColumn("accuracy", "Condition %", (row) => row.first.accuracy),
    numberColumn("difference", "Difference", (row) => row.difference, 1,
      (row) => `${row.difference > 0 ? "+" : ""}${fixed(row.difference)}`),
    ...testColumns,
  ];
  const isNoise = /noise-(random|specialty)-(\d+)/;
  const noise = panelsOf(rows.filter(({ first }) => isNoise.test(first.model)),
    ({ first }) => `${first.model.replace(isNoise, "noise-$1-n")} ${first.mode}`,
    (row) => ({ ...differenceOf(row), x: Number(row.first.model.match(isNoise)[2]) }));
  noise.forEach(({ points }) => points.sort((one, other) => one.x - other.x));
  const curves = passes(params, "mode", "ICL") ? found.flatMap((one) => one.shots) : [];
  const shots = curves.map(({ model, condition, points }) => ({
    title: condition ? `${model} [${condition}]` : model,
    points: points.filter((one) => one.interval).map(({ examples, shared_accuracy: y, interval: [low, high] }) =>
      ({ x: examples ?? "all", y, low, high })),
  })).filter(({ points }) => points.length > 1);
  return view("Experiments", fields, params, change,
    charts("Accuracy by the number of examples",
      "In per cent, on the problems that all runs of a chart have, with 95 % intervals.", shots),
    charts("Change by the number of noise examples",
      "Points that examples of other problems add to the clean run, with 95 % intervals.", noise),
    rows.length ? [h("h3", {}, "Each perturbed run minus the clean run"),
      h("p.note", {}, "In points, with the same options, on the problems that both have with the same query; " +
        "the others are left out. p Holm: adjusted for all conditions of a model under a metric. " +
        "Of repeats only the first counts."),
      sortable("Perturbed runs against clean runs", columns, rows, params, change)] : null,
    lacks);
}
