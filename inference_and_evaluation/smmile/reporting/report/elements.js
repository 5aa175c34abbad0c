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
  const isLong = text.length + 60 * text.split("\n").length > 600;
  return h("p.text", { dir: "auto", tabindex: isLong ? "0" : undefined }, content.length ? content : text || "(empty)");
}

function plural(count, noun) {
  return `${count} ${noun}${count === 1 ? "" : "s"}`;
}

// The data URI of an image. They come last in the page, so that the rest is shown before they are read.
const uriOf = (number) => document.getElementById(`image-${number}`)?.textContent;

// An image of the data, to enlarge; or a link to it; or a note that there is none.
function imageOf(number, what) {
  const image = data.images[number];
  const uri = uriOf(number);
  if (uri) {
    const shown = h("img", { src: uri, alt: what, "data-sha256": image.sha256, decoding: "async" });
    return h("button.image", { type: "button", onclick: () => enlarge(uri) }, shown);
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

// The parameters without those values of fields that are no options of theirs: anyone can write an address.
function known(params, fields) {
  const found = new URLSearchParams(params);
  for (const { name, options } of fields) {
    if (!options.some(([value]) => value === found.get(name))) found.delete(name);
  }
  return found;
}

// The distinct values as options, behind one for all of them.
function withAll(values) {
  const distinct = [...new Set(values)];
  return distinct.length > 1 ? [["", "all"], ...distinct.map((value) => [value, value])] : [];
}

// A table in a box of its own, which scrolls; with a `foot` it has no caption.
function table(kind, caption, heads, lines, foot) {
  return h("div.scroll", { tabindex: "0", role: "region", "aria-label": caption },
    h(kind, {}, foot ? null : h("caption", {}, caption), h("thead", {}, h("tr", {}, heads)), h("tbody", {}, lines),
      foot && h("tfoot", {}, h("tr", {}, foot))));
}

// Columns of a sortable table; `value` is what sorts, undefined or null where there is none.
const textColumn = (key, title, value, cell = value) => ({ key, title, value, cell, isText: true });

function numberColumn(key, title, value, digits = 1, cell = (row) => fixed(value(row), digits)) {
  return { key, title, value, cell };
}

const intervalColumn = (key, title, score) =>
  ({ key, title, value: (row) => score(row)?.accuracy, cell: (row) => (score(row) ? interval(score(row)) : "–") });

// A table that its heads sort; `initial` is its order at first, as in the address.
function sortable(caption, columns, rows, params, change, initial = "") {
  const [key, direction] = (params.get("sort") ?? initial).split(" ");
  const sign = direction === "up" ? 1 : -1;
  const column = columns.find((one) => one.key === key);
  const sorted = column ? [...rows].sort((one, other) => compareValues(column.value(one), column.value(other), sign)) : rows;
  const heads = columns.map((one) => {
    const state = one.key !== key ? "none" : sign > 0 ? "ascending" : "descending";
    const isUpNext = state === "none" ? one.isText : sign < 0;
    const mark = h("span", { "aria-hidden": "true" }, { none: "↕", ascending: "↑", descending: "↓" }[state]);
    const sort = () => change("sort", `${one.key} ${isUpNext ? "up" : "down"}`);
    return h(one.isText ? "th" : "th.number", { scope: "col", "aria-sort": state },
      h("button", { type: "button", "data-sort": one.key, onclick: sort }, `${one.title} `, mark));
  });
  const lines = sorted.map((row) => h("tr", {}, columns.map((one, index) => {
    const kind = `${index === 0 ? "th" : "td"}${one.isText ? "" : ".number"}`;
    return h(kind, { scope: index === 0 && "row" }, one.cell(row));
  })));
  return table("table", caption, heads, lines);
}

// Missing values come last, whatever the direction.
function compareValues(first, second, sign) {
  const [isNone, isOtherNone] = [first ?? null, second ?? null].map((value) => value === null);
  if (isNone || isOtherNone) return isNone - isOtherNone;
  return sign * (typeof first === "string" ? first.localeCompare(second, "en", { numeric: true }) : first - second);
}

// An accuracy with its interval, if there is one, drawn on a line from 0 to 100 %.
function interval({ accuracy, low, high, letters }) {
  if (low === null) return h("span.score", {}, fixed(accuracy));
  const drawn = h("span.interval", { "aria-hidden": "true" }, h("i"), h("b"));
  drawn.firstChild.style.left = `${low}%`;
  drawn.firstChild.style.width = `${high - low}%`;
  drawn.lastChild.style.left = `${accuracy}%`;
  const title = `95 % interval ${fixed(low)} to ${fixed(high)}`;
  return h("span.score", { title }, h("span", {}, fixed(accuracy), letters ? h("sup", {}, letters) : null,
    h("small", {}, ` ${fixed(low, 0)}–${fixed(high, 0)}`)), drawn);
}
