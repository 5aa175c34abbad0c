// One problem: as the data set poses it, and the answers of the runs side by side.

const signs = { true: ["correct", "✓"], false: ["incorrect", "✗"] };

// `shown` are the runs to show; `hrefOf(order)` is the link to another order of the problem.
function problemView(base, order, shown, openMetric, hrefOf) {
  const { problem, entries } = order;
  const query = problem.triplets.at(-1);
  const found = entries.filter(({ run }) => shown.has(run));
  const flags = Object.entries(problem.flags ?? {}).filter(([, value]) => value && value !== "None");
  return [
    flags.length ? h("ul.flags", { "aria-label": "Flags" }, flags.map(([flag, value]) =>
      h("li", {}, h("span", {}, `${data.flags[flag]} `), value))) : null,
    examplesView(problem.triplets.slice(0, -1), base.orders.length > 1),
    h("section.query", { "aria-label": "Query" },
      imageOf(query.image, "Image of the query"),
      h("div", {}, h("h3", {}, "Query"), prose(textOf(query.question)),
        h("h3", {}, "Reference answer"), h("p.text.reference", { dir: "auto" }, textOf(query.answer)),
        glanceView(found, openMetric),
        h("p.note.id", {}, problem.id))),
    base.orders.length > 1 ? orderGrid(base, order, shown, openMetric, hrefOf) : null,
    answersView("Open answers", found.filter(({ run }) => run.format !== "mcqa"), openMetric),
    answersView("Multiple choice", found.filter(({ run }) => run.format === "mcqa"), openMetric),
    found.length ? null : h("p.note", {}, "No run that is shown has this problem."),
  ];
}

function examplesView(examples, areOrdered) {
  if (!examples.length) return null;
  const title = `${plural(examples.length, "example")}${areOrdered ? ", in this order" : ", as shown to runs with examples (ICL)"}`;
  return h("section", { "aria-label": "Examples" }, h("h3", {}, title),
    h("ol.examples", {}, examples.map((one, index) => h("li", {},
      imageOf(one.image, `Image of example ${index + 1}`),
      prose(textOf(one.question)), h("p.text.reference", { dir: "auto" }, textOf(one.answer))))));
}

// The orders as rows, the runs as columns: correct or incorrect at a glance.
function orderGrid(base, current, shown, openMetric, hrefOf) {
  const runs = data.runs.filter((run) => shown.has(run) && base.orders.some(({ entries }) => entries.some((one) => one.run === run)));
  const correct = new Map();
  const rows = base.orders.map((order) => {
    const byRun = new Map(order.entries.filter(counts).map((entry) => [entry.run, entry]));
    const cells = runs.map((run) => {
      const entry = byRun.get(run);
      const verdict = entry && verdictOf(entry, openMetric);
      if (verdict === undefined) return h("td", {});
      correct.set(run, (correct.get(run) ?? 0) + isCorrect(verdict));
      const [kind, sign] = signs[isCorrect(verdict)];
      return h(`td.${kind}`, {}, entry.answer.error ? "E" : sign);
    });
    const own = order.problem.triplets.at(-1).answer;
    const places = order.problem.triplets.slice(0, -1).map((one) => (one.answer === own ? "●" : "○")).join("");
    const isCurrent = order === current;
    return h(isCurrent ? "tr.current" : "tr", {}, h("th", { scope: "row" },
      h("a", { href: hrefOf(order), "aria-current": isCurrent && "true" }, orderName(order)),
      h("span.places", { "aria-hidden": "true" }, places)), cells);
  });
  const heads = runs.map((run) => h("th.run", { scope: "col" }, h("span", {}, runName(run))));
  const totals = runs.map((run) => h("td", {}, String(correct.get(run) ?? "–")));
  const caption = `${base.orders.length} orders of this problem by ${plural(runs.length, "run")}`;
  return h("section", { "aria-label": "Orders" }, h("h3", {}, caption),
    h("p.note", {}, "✓ correct, ✗ incorrect, E error. ● an example with the query's answer, ○ another."),
    table("table.grid", caption, [h("th", { scope: "col" }, "Order"), heads], rows,
      [h("th", { scope: "row" }, "Correct"), totals]));
}

const orderName = ({ problem }) => `Order ${problem.id.slice(problem.base.length).replace("_perm_", "") || "as given"}`;

function runName(run) {
  return `${run.label} ${run.mode}${run.format === "mcqa" ? " MCQA" : ""}`;
}

// Which runs are correct: a row per model, a column per format and mode, each verdict a button to its answer.
function glanceView(entries, openMetric) {
  const kindOf = ({ run }) => `${run.format === "mcqa" ? "MCQA" : "Open"} ${run.mode}`;
  const scored = entries.filter((entry) => counts(entry) && verdictOf(entry, openMetric) !== undefined);
  const kinds = [...new Set(scored.map(kindOf))].sort().reverse();
  const rows = [...new Set(scored.map(({ run }) => run.label))].map((label) => h("tr", {}, h("th", { scope: "row" }, label),
    kinds.map((kind) => {
      const entry = scored.find((one) => one.run.label === label && kindOf(one) === kind);
      if (!entry) return h("td", {});
      const [name, sign] = signs[isCorrect(verdictOf(entry, openMetric))];
      const jump = () => document.getElementById(entry.run.stem).focus();
      return h(`td.${name}`, {}, h("button", { type: "button", onclick: jump }, entry.answer.error ? "E" : sign,
        unseen(` ${entry.answer.error ? "error" : name}: go to the answer`)));
    })));
  const totals = kinds.map((kind) => scored.filter((one) => kindOf(one) === kind).map((one) => verdictOf(one, openMetric)))
    .map((verdicts) => h("td", {}, `${verdicts.filter(isCorrect).length} of ${verdicts.length}`));
  const heads = ["Run", ...kinds].map((kind) => h("th", { scope: "col" }, kind));
  return rows.length ? table("table.grid", "Correct runs", heads, rows, [h("th", { scope: "row" }, "Correct"), totals]) : null;
}

function answersView(title, entries, openMetric) {
  if (!entries.length) return null;
  const verdicts = entries.filter(counts).map((entry) => verdictOf(entry, openMetric)).filter((one) => one !== undefined);
  const count = verdicts.length ? `: ${verdicts.filter(isCorrect).length} of ${verdicts.length} correct` : "";
  return h("section", { "aria-label": title }, h("h3", {}, `${title}${count}`),
    h("div.answers", {}, entries.map((entry) => answerCard(entry, openMetric))));
}

function answerCard(entry, openMetric) {
  const { run, answer, place } = entry;
  const verdict = verdictOf(entry, openMetric);
  const kind = verdict === undefined ? "" : isCorrect(verdict) ? ".correct" : ".incorrect";
  const badges = Object.entries(run.verdicts).filter(([, verdicts]) => verdicts[place] !== -1)
    .map(([metric, verdicts]) => badge(verdicts[place], data.metrics[metric]));
  const notes = [
    answer.truncated && "Truncated at the token limit.",
    answer.reread && `Option re-extracted from the response: ${answer.reread}.`,
    ...(answer.changed ?? []).map((line) => `Resized or converted: ${line}.`),
    answer.query && `This run posed another query: ${textOf(answer.query[0])} Its reference answer: ${textOf(answer.query[1])}`,
  ].filter(Boolean);
  return h(`article.answer${kind}`, { id: run.stem, tabindex: "-1" },
    h("h4", {}, h("a", { href: `#runs?run=${encodeURIComponent(run.stem)}` }, run.label), h("span.mode", {}, run.mode)),
    h("p.badges", {}, badges),
    answer.error ? h("p.text.error", {}, `Error (${answer.error[0]}): ${textOf(answer.error[1])}`) : null,
    answer.options === undefined ? null : optionsView(data.options[answer.options], answer),
    answer.error || answer.options !== undefined ? null : prose(textOf(answer.answer)),
    answer.response === undefined ? null : responseView(answer),
    ...notes.map((note) => h("p.note.text", {}, note)),
    judgesView(answer),
    answer.turns === undefined ? null : later("Request as sent", () => requestView(data.turns[answer.turns])));
}

function optionsView({ options, correct, is_shown: isShown }, { choice, error }) {
  const label = isShown ? "Options in the order shown" : "Options by letter";
  const list = h("ol.options", { "aria-label": label }, options.map(([letter, text]) => {
    const isChosen = letter === choice;
    const words = [isChosen && "chosen", letter === correct && "correct"].filter(Boolean).join(", ");
    const kind = isChosen ? (letter === correct ? ".right" : ".wrong") : letter === correct ? ".missed" : "";
    return h(`li${kind}`, { dir: "auto" }, `${letter}. ${textOf(text)}`, words ? h("em", {}, ` ${words}`) : null);
  }));
  return error || typeof choice === "string" ? list : [list, h("p.note", {}, "No option could be extracted.")];
}

// The response, with the passage that decided the choice marked.
function responseView({ response, passage: [start, end] = [0, 0] }) {
  const whole = textOf(response);
  const shown = prose(whole, whole.slice(0, start), end ? h("mark", {}, whole.slice(start, end)) : "", whole.slice(end));
  if (whole.length < 300) return shown;
  return h("details", {}, h("summary", {}, `Response, ${whole.length.toLocaleString("en")} characters`), shown);
}

function judgesView({ judges = [], experts = {} }) {
  const word = (verdict) => (verdict === null ? "no verdict" : verdict ? "correct" : "incorrect");
  const lines = judges.map(({ name, verdict, reply, error }) => {
    const said = reply === undefined ? textOf(error) : `replied “${textOf(reply).slice(0, 400)}”`;
    return `${name}: ${word(verdict)}${said ? `, ${said}` : ""}`;
  });
  const rated = Object.entries(experts).map(([name, verdict]) =>
    `Expert ${name}: ${verdict === null ? "cannot say" : word(verdict)}`);
  const all = [...lines, ...rated];
  return all.length ? h("ul.judges", {}, all.map((line) => h("li", {}, line))) : null;
}

// The turns of a request, its images among the texts.
function requestView(turns) {
  return turns.map(([role, parts]) => h("div.turn", {}, h("strong", {}, role), parts.map((part) =>
    typeof part === "number" ? prose(textOf(part)) : imageOf(part[0], "Image as sent"))));
}

// A disclosure whose content is made when it is first opened.
function later(title, make) {
  const details = h("details", {}, h("summary", {}, title));
  details.addEventListener("toggle", () => details.append(...[make()].flat()), { once: true });
  return details;
}
