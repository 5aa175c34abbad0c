// Elements. Every text becomes a text node, never markup.

// A new element: `kind` is its name with classes ("p.note"); attributes named on… are listeners.
function h(kind, attributes = {}, ...children) {
  const [name, ...classes] = kind.split(".");
  const node = document.createElement(name);
  if (classes.length) node.className = classes.join(" ");
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else if (value !== undefined && value !== false) node.setAttribute(key, value === true ? "" : value);
  }
  node.append(...children.flat(Infinity).filter((child) => child !== undefined && child !== null && child !== false));
  return node;
}

const fixed = (number, digits = 1) => (number === undefined || number === null ? "–" : number.toFixed(digits));
const unseen = (text) => h("span.unseen", {}, text);

// A text as it is; a long one scrolls in place.
function prose(text, ...content) {
  return h("p.text", { dir: "auto", tabindex: text.length > 600 ? "0" : undefined }, content.length ? content : text || "(empty)");
}

function plural(count, noun) {
  return `${count} ${noun}${count === 1 ? "" : "s"}`;
}

// An image of the data, to enlarge; or a link to it; or a note that there is none.
function imageOf(number, what) {
  const image = data.images[number];
  if (image?.uri) {
    const shown = h("img", { src: image.uri, alt: what, "data-sha256": image.sha256, decoding: "async" });
    return h("button.image", { type: "button", onclick: () => enlarge(image.uri) }, shown);
  }
  if (image?.url && /^https?:\/\//i.test(image.url)) {
    return h("a.image-link", { href: image.url, target: "_blank", rel: "noopener noreferrer" }, `Open ${what.toLowerCase()}`);
  }
  return data.images_as === "none" ? null : h("p.note", {}, "No image");
}

function enlarge(uri) {
  const viewer = document.getElementById("viewer");
  viewer.querySelector("img").src = uri;
  viewer.showModal();
}

// A verdict as a badge: what said so, and what.
function badge(verdict, title) {
  if (verdict === undefined) return null;
  const share = verdict > 0 && verdict < 1;
  const [kind, sign, word] = verdict === null ? ["none", "–", "no verdict"]
    : share ? ["part", `${Math.round(verdict * 100)} %`, "of experts say correct"]
      : isCorrect(verdict) ? ["correct", "✓", "correct"] : ["incorrect", "✗", "incorrect"];
  return h(`span.badge.${kind}`, {}, `${sign} ${title}`, unseen(`: ${word}`));
}

// Drop-down lists for `fields` ({name, label, options: [[value, label]]}), chosen as in `params`.
// A list with one option is left out; `change` gets the name and value that the user chooses.
function choices(fields, params, change) {
  return fields.filter(({ options }) => options.length > 1).map(({ name, label, options }) => {
    const list = h("select", { name, onchange: ({ target }) => change(name, target.value) },
      options.map(([value, shown]) => h("option", { value }, shown)));
    list.value = params.get(name) ?? options[0][0];
    if (list.selectedIndex < 0) list.selectedIndex = 0;
    return h("label", {}, `${label} `, list);
  });
}

// The distinct values as options, behind one for all of them.
function withAll(values) {
  const distinct = [...new Set(values)];
  return distinct.length > 1 ? [["", "all"], ...distinct.map((value) => [value, value])] : [];
}

// A table that its heads sort. Columns: {key, title, cell(row), value(row), isText}; rows of `data`.
function sortable(caption, columns, rows, params, change) {
  const [key, direction] = (params.get("sort") ?? "").split(" ");
  const column = columns.find((one) => one.key === key);
  const sign = direction === "up" ? 1 : -1;
  const sorted = !column ? rows : [...rows].sort((one, other) => {
    const [first, second] = [column.value(one), column.value(other)];
    if (first === undefined || second === undefined) return (first === undefined) - (second === undefined);
    return sign * (typeof first === "string" ? first.localeCompare(second, "en", { numeric: true }) : first - second);
  });
  const heads = columns.map((one) => {
    const state = one.key !== key ? "none" : sign > 0 ? "ascending" : "descending";
    const next = `${one.key} ${state === "none" ? (one.isText ? "up" : "down") : sign > 0 ? "down" : "up"}`;
    const mark = h("span", { "aria-hidden": "true" }, { none: "↕", ascending: "↑", descending: "↓" }[state]);
    return h(one.isText ? "th" : "th.number", { scope: "col", "aria-sort": state },
      h("button", { type: "button", "data-sort": one.key, onclick: () => change("sort", next) }, `${one.title} `, mark));
  });
  const lines = sorted.map((row) => h("tr", {}, columns.map((one, index) =>
    h(index === 0 ? "th" : one.isText ? "td" : "td.number", index === 0 ? { scope: "row" } : {}, one.cell(row)))));
  return h("div.scroll", { tabindex: "0", role: "region", "aria-label": caption },
    h("table", {}, h("caption", {}, caption), h("thead", {}, h("tr", {}, heads)), h("tbody", {}, lines)));
}

// An accuracy with its interval, drawn on a line from 0 to 100 %.
function interval({ accuracy, low, high, letters }) {
  const drawn = h("span.interval", { "aria-hidden": "true" }, h("i"), h("b"));
  drawn.firstChild.style.left = `${low}%`;
  drawn.firstChild.style.width = `${high - low}%`;
  drawn.lastChild.style.left = `${accuracy}%`;
  const title = `95 % interval ${fixed(low)} to ${fixed(high)}`;
  return h("span.score", { title }, h("span", {}, fixed(accuracy), letters ? h("sup", {}, letters) : null,
    h("small", {}, ` ${fixed(low, 0)}–${fixed(high, 0)}`)), drawn);
}
