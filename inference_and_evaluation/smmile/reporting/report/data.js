// The page's data, by the structures of content.py, and what is computed from it once.

const data = JSON.parse(document.getElementById("data").textContent);
document.getElementById("data").remove(); // the browser need not keep it as text

const textOf = (number) => (number === undefined ? "" : data.texts[number]);
const isPermuted = data.problems.some((problem) => problem.base !== problem.id);

// Whether judges, experts, or both among each other, differ on an answer.
function isDisputed({ judges, experts }) {
  if (!judges && !experts) return false;
  const rated = Object.values(experts ?? {}).map((verdict) => (verdict === null ? null : Number(verdict)));
  const verdicts = [...(judges ?? []).map((judge) => judge.verdict), ...rated];
  return new Set(verdicts.filter((verdict) => verdict !== null)).size > 1;
}

// Base problems, each with its orders: {id, orders: [{problem, entries: [{run, answer, place, isDisputed}]}]}.
const bases = (() => {
  const found = new Map();
  const orders = data.problems.map((problem) => {
    if (!found.has(problem.base)) found.set(problem.base, { id: problem.base, orders: [] });
    const order = { problem, entries: [] };
    found.get(problem.base).orders.push(order);
    return order;
  });
  for (const run of data.runs) {
    run.answers.forEach((answer, place) => {
      orders[answer.problem].entries.push({ run, answer, place, isDisputed: isDisputed(answer) });
    });
  }
  return [...found.values()].filter((base) => base.orders.some((order) => order.entries.length));
})();

// Base problems by their ids and by those of their orders.
const baseOf = new Map(bases.flatMap((base) => [[base.id, base], ...base.orders.map(({ problem }) => [problem.id, base])]));

// The metrics that open-ended runs have scores under, the judge before others.
const openMetrics = ["llm", "expert", "em"].filter((metric) => data.runs.some((run) => run.verdicts[metric]));

// The verdict on an entry: 1, 0, a share, null without a verdict, undefined where it is not scored.
function verdictOf({ run, place }, openMetric) {
  const verdict = run.verdicts[run.format === "mcqa" ? "mcqa" : openMetric]?.[place];
  return verdict === -1 ? undefined : verdict;
}

// Whether an entry counts for the problem: its run posed the same query.
const counts = ({ answer }) => !answer.query;

const isCorrect = (verdict) => verdict >= 0.5;

// The numbers of the texts that contain `query`, whatever its case.
let lowered = null;
function matchingTexts(query) {
  lowered ??= data.texts.map((text) => text.toLowerCase());
  const [wanted, found] = [query.toLowerCase(), new Set()];
  lowered.forEach((text, number) => text.includes(wanted) && found.add(number));
  return found;
}

// Whether a base problem, with answers of `runs`, has one of these texts, or `query` in its id or those of its
// orders, whatever its case.
function hasText(base, matching, query, runs) {
  const wanted = query.toLowerCase();
  const hasId = ({ id }) => id.toLowerCase().includes(wanted);
  return hasId(base) || base.orders.some(({ problem, entries }) => hasId(problem) ||
    problem.triplets.some((one) => matching.has(one.question) || matching.has(one.answer)) ||
    entries.some(({ run, answer }) => runs.has(run) && (matching.has(answer.answer) || matching.has(answer.response))));
}
