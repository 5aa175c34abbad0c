// Which view is on the screen: the address after # names it, with its filters.

const views = {
  leaderboard: leaderboardView,
  problems: problemsView,
  strata: strataView,
  order: orderView,
  experiments: experimentsView,
  runs: runsView,
};

function place() {
  const [name, ...rest] = location.hash.slice(1).split("?");
  return { name: Object.hasOwn(views, name) ? name : "leaderboard", params: new URLSearchParams(rest.join("?")) };
}

// Shows what the address says. After a step to another view or problem, its heading gets the focus.
function render(isStep) {
  const { name, params } = place();
  const main = document.getElementById("main");
  const focused = document.activeElement;
  const again = main.contains(focused) ? selectorOf(focused) : null;
  const scrolled = document.getElementById("list")?.scrollTop ?? 0;
  const caret = focused?.selectionStart;
  main.dataset.view = name;
  main.replaceChildren(...[views[name](params, change)].flat(Infinity).filter(Boolean));
  for (const link of document.querySelectorAll("nav a")) {
    if (link.hash === `#${name}`) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  const list = document.getElementById("list");
  if (list) scrollList(list, scrolled);
  const heading = document.getElementById("heading");
  if (isStep) {
    window.scrollTo(0, 0);
    heading?.focus({ preventScroll: true });
    say(heading?.textContent ?? "Problems");
  } else if (again) {
    const control = main.querySelector(again);
    control?.focus({ preventScroll: true });
    if (control?.type === "search") control.setSelectionRange(caret, caret);
    say(document.getElementById("count")?.textContent ?? main.querySelector("caption")?.textContent ?? "");
  }
}

// What finds a control of a filter or a head again, after the view is made anew.
function selectorOf({ dataset, name, type, value }) {
  if (dataset.sort) return `[data-sort="${dataset.sort}"]`;
  if (!name) return null;
  return type === "checkbox" ? `[name="${name}"][value="${CSS.escape(value)}"]` : `[name="${name}"]`;
}

function say(text) {
  document.getElementById("status").textContent = text;
}

// Scrolls the list to where it was, and on to the open problem if that is out of sight.
function scrollList(list, scrolled) {
  list.scrollTop = scrolled;
  const open = list.querySelector("[aria-current]")?.getBoundingClientRect();
  if (!open) return;
  const box = list.getBoundingClientRect();
  if (open.top < box.top || open.bottom > box.bottom) list.scrollTop += open.top - box.top - box.height / 3;
}

// Changes one filter in the address, which stays in place in the history.
function change(name, value) {
  const { name: current, params } = place();
  if (value) params.set(name, value);
  else params.delete(name);
  history.replaceState(null, "", `#${current}${params.size ? `?${params}` : ""}`);
  render(false);
}

function step(by) {
  const { params } = place();
  const at = list.indexOf(baseOf.get(params.get("id")));
  const next = list[at < 0 ? 0 : at + by];
  if (next) location.hash = problemHash(params, next.id);
}

function press(event) {
  const isTyping = event.target.matches?.("input[type='search'], select, .scroll");
  if (event.key === "Escape" && event.target.id === "search") event.target.blur();
  if (isTyping || event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]")) return;
  if (place().name !== "problems") return;
  const actions = { ArrowLeft: () => step(-1), ArrowRight: () => step(1), "/": () => document.getElementById("search").focus() };
  if (Object.hasOwn(actions, event.key)) {
    event.preventDefault();
    actions[event.key]();
  }
}

function start() {
  const warnings = document.getElementById("warnings");
  warnings.hidden = !data.warnings.length;
  warnings.firstElementChild.textContent = plural(data.warnings.length, "warning");
  warnings.lastElementChild.append(...data.warnings.map((line) => h("li", {}, line)));
  document.addEventListener("keydown", press);
  window.addEventListener("hashchange", () => render(true));
  const viewer = document.getElementById("viewer");
  viewer.addEventListener("click", () => viewer.close());
  render(false);
  document.addEventListener("DOMContentLoaded", () => { // when the images are there
    entriesView.clear();
    render(false);
    setTimeout(() => matchingTexts(" "), 500); // so that the first search is quick
  });
}

start();
