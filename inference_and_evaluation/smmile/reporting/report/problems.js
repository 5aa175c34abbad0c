// The list of problems with search and filters, and the problem that is open beside it.

const showOptions = [
  ["", "all"],
  ["wrong", "incorrect in all runs"],
  ["one", "correct in one run alone"],
  ["right", "correct in all runs"],
  ...(isPermuted ? [["mixed", "mixed over orders"]] : []),
  ["disputed", "judges or experts disagree"],
  ["errors", "with errors"],
  ["truncated", "with truncated responses"],
];

const entriesView = new Map(); // by id of the base problem: its entry in the list, made once

// The filters of the list: those of runs decide whose answers count, the others which problems.
function problemFields() {
  const flags = Object.keys(data.flags).filter((flag) => data.problems.some((problem) => problem.flags?.[flag]));
  const first = ["speciality", "flag_image_type"].filter((flag) => flags.includes(flag));
  const values = (flag) => [...new Set(data.problems.flatMap((problem) => problem.flags?.[flag] ?? []))].sort();
  const flagField = (flag) => ({ name: flag, label: data.flags[flag], options: withAll(values(flag)) });
  const openOptions = openMetrics.map((metric) => [metric, data.metrics[metric]]);
  return {
    main: [{ name: "show", label: "Show", options: showOptions }, ...first.map(flagField)],
    runs: [
      { name: "mode", label: "Mode", options: withAll(data.runs.map((run) => run.mode)) },
      { name: "format", label: "Format", options: withAll(data.runs.map((run) => run.format)) },
      { name: "data", label: "Data set", options: withAll(data.runs.map((run) => run.data_set)) },
      { name: "kind", label: "Kind of model", options: withAll(data.runs.map((run) => run.kind)) },
      perturbedField,
      { name: "by", label: "Open answers by", options: openOptions },
    ],
    flags: flags.filter((flag) => !first.includes(flag)).map(flagField),
  };
}

const hasPerturbed = data.runs.some((run) => run.perturbation);
const perturbedField = {
  name: "perturbed",
  label: "Perturbed runs",
  options: !hasPerturbed ? [] : data.shows_perturbed ? [["yes", "shown"], ["no", "hidden"]] : [["no", "hidden"], ["yes", "shown"]],
};
const showsPerturbed = (params) => (params.get("perturbed") ?? (data.shows_perturbed ? "yes" : "no")) === "yes";

// The runs that the filters show.
function shownRuns(params) {
  const is = (name, value) => !params.get(name) || params.get(name) === value;
  const models = params.get("models")?.split(",");
  return new Set(data.runs.filter((run) => is("mode", run.mode) && is("format", run.format) && is("data", run.data_set) &&
    is("kind", run.kind) && (!run.perturbation || showsPerturbed(params)) && (!models || models.includes(run.model))));
}

// What the shown runs make of a base problem: runs, orders and answers, and how many of each are correct.
function summaryOf(base, shown, openMetric) {
  const runs = new Map();
  let [errors, truncated, disputed] = [0, 0, 0];
  for (const { entries } of base.orders) {
    for (const entry of entries) {
      if (!shown.has(entry.run)) continue;
      const of = runs.get(entry.run) ?? { scored: 0, correct: 0 };
      runs.set(entry.run, of);
      if (!counts(entry)) continue;
      const verdict = verdictOf(entry, openMetric);
      of.scored += verdict !== undefined;
      of.correct += isCorrect(verdict);
      errors += Boolean(entry.answer.error);
      truncated += Boolean(entry.answer.truncated);
      disputed += entry.isDisputed;
    }
  }
  const scored = [...runs.values()].filter((one) => one.scored);
  const right = scored.filter((one) => one.correct).length;
  return {
    runs: runs.size, errors, truncated, disputed, right,
    answers: scored.reduce((sum, one) => sum + one.scored, 0),
    correct: scored.reduce((sum, one) => sum + one.correct, 0),
    isWrong: scored.length > 0 && right === 0,
    isRight: scored.length > 0 && scored.every((one) => one.correct === one.scored),
    isMixed: scored.some((one) => one.correct && one.correct < one.scored),
  };
}

const tests = {
  wrong: (one) => one.isWrong, one: (one) => one.right === 1, right: (one) => one.isRight, mixed: (one) => one.isMixed,
  disputed: (one) => one.disputed, errors: (one) => one.errors, truncated: (one) => one.truncated,
};

// The base problems that pass the filters, with their summaries.
function filtered(params) {
  const shown = shownRuns(params);
  const openMetric = params.get("by") ?? openMetrics[0];
  const query = params.get("q")?.trim();
  const matching = query ? matchingTexts(query) : null;
  const flags = Object.keys(data.flags).filter((flag) => params.get(flag));
  const test = tests[params.get("show")] ?? (() => true);
  const found = [];
  for (const base of bases) {
    if (!flags.every((flag) => base.orders[0].problem.flags?.[flag] === params.get(flag))) continue;
    if (matching && !hasText(base, matching, query, shown)) continue;
    const summary = summaryOf(base, shown, openMetric);
    if (summary.runs && test(summary)) found.push([base, summary]);
  }
  return { found, shown, openMetric };
}

function entryView(base, { correct, answers }, href, isOpen) {
  if (!entriesView.has(base.id)) {
    const query = base.orders[0].problem.triplets.at(-1);
    const uri = uriOf(query.image);
    const image = uri ? h("img", { src: uri, alt: "", loading: "lazy", decoding: "async" }) : null;
    const flags = base.orders[0].problem.flags ?? {};
    const kind = [flags.speciality, flags.flag_image_type].filter((flag) => flag && flag !== "None").join(", ");
    entriesView.set(base.id, h("li", {}, h("a", {}, image, h("span.entry", {},
      h("span.question", { dir: "auto" }, textOf(query.question)), h("span.reference", { dir: "auto" }, textOf(query.answer)),
      h("span.note", {}, h("span", {}), kind ? ` · ${kind}` : "")))));
  }
  const entry = entriesView.get(base.id);
  const link = entry.firstChild;
  link.setAttribute("href", href);
  if (isOpen) link.setAttribute("aria-current", "true");
  else link.removeAttribute("aria-current");
  link.querySelector(".note span").textContent = answers ? `${correct} of ${answers} correct` : "not scored";
  return entry;
}

function problemHash(params, id, orderId) {
  const next = new URLSearchParams(params);
  next.delete("order");
  next.set("id", id);
  if (orderId) next.set("order", orderId);
  return `#problems?${next}`;
}

let list = []; // the base problems that pass the filters, for the keys

function problemsView(given, change) {
  const fields = problemFields();
  const params = known(given, Object.values(fields).flat());
  const { found, shown, openMetric } = filtered(params);
  list = found.map(([base]) => base);
  const open = baseOf.get(params.get("id"));
  const entries = found.map(([base, summary]) => entryView(base, summary, problemHash(params, base.id), base === open));
  const count = `${found.length} of ${plural(bases.length, "problem")}, answers of ${plural(shown.size, "run")}`;
  return h(open ? "div.problems.has-open" : "div.problems", {},
    h("aside", { "aria-label": "Search and list" }, h("p.note", { id: "count" }, count),
      problemsForm(fields, params, change), h("ol.list", { id: "list" }, entries)),
    h("div.detail", { id: "detail" }, open ? detailView(open, params, shown, openMetric)
      : h("p.note.hint", {}, found.length ? "Choose a problem, or press → for the first." : "No problem passes these filters.")));
}

function problemsForm(fields, params, change) {
  const placeholder = "question, answer, response, id";
  const search = h("input", { id: "search", type: "search", name: "q", placeholder, "aria-keyshortcuts": "/" });
  search.value = params.get("q") ?? "";
  let timer = 0;
  search.addEventListener("input", () => {
    clearTimeout(timer);
    timer = setTimeout(() => change("q", search.value), 120);
  });
  const models = [...new Set(data.runs.map((run) => run.model))];
  const chosen = params.get("models")?.split(",") ?? models;
  const boxes = models.map((model) => {
    const box = h("input", { type: "checkbox", name: "model", value: model });
    box.checked = chosen.includes(model);
    box.addEventListener("change", () => {
      const checked = models.filter((one) => (one === model ? box.checked : chosen.includes(one)));
      change("models", checked.length === models.length ? "" : checked.join(",") || "(none)");
    });
    return h("label", {}, box, ` ${model}`);
  });
  const more = h("details", {}, h("summary", {}, "Runs and more filters"), choices([...fields.runs, ...fields.flags], params, change),
    h("fieldset", {}, h("legend", {}, "Models"), boxes));
  more.open = Boolean(document.querySelector(".filters details")?.open);
  const isFiltered = [...params.keys()].some((key) => !["id", "order"].includes(key));
  const without = params.has("id") ? problemHash(new URLSearchParams(), params.get("id")) : "#problems";
  const clear = isFiltered ? h("a", { href: without }, "Clear filters") : null;
  return h("form.filters", { onsubmit: (event) => event.preventDefault() },
    h("label", {}, "Search ", h("kbd", {}, "/"), search), choices(fields.main, params, change), more, clear);
}

function detailView(base, params, shown, openMetric) {
  const order = base.orders.find(({ problem }) => problem.id === (params.get("order") ?? params.get("id"))) ?? base.orders[0];
  const place = list.indexOf(base);
  const step = (by, title, key) => {
    const other = list[place < 0 ? 0 : place + by];
    if (!other) return h("span.button.off", {}, title);
    return h("a.button", { href: problemHash(params, other.id) }, title, h("kbd", {}, key));
  };
  const link = problemHash(new URLSearchParams(), base.id, base.orders.length > 1 && order.problem.id);
  const back = new URLSearchParams(params);
  back.delete("id");
  back.delete("order");
  return [
    h("div.steps", {}, h("a.button.back", { href: `#problems?${back}` }, "All problems"),
      step(-1, "Previous ", "←"), step(1, "Next ", "→"),
      h("span.note", {}, place < 0 ? "not among the filtered" : `${place + 1} of ${list.length}`),
      h("a.note", { href: link }, "Link to this problem")),
    h("h2", { id: "heading", tabindex: "-1", dir: "auto" }, textOf(order.problem.triplets.at(-1).question)),
    ...problemView(base, order, shown, openMetric, ({ problem }) => problemHash(params, base.id, problem.id)).flat(),
  ];
}
