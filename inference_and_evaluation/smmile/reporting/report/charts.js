// Small charts of estimates with their intervals, one per run, on one scale.

function svg(name, attributes, ...children) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.append(...children);
  return node;
}

const plot = { left: 34, right: 256, top: 8, bottom: 122, width: 264, height: 142 };

// Charts with a title and a note; `panels` are {title, points: [{x, y, low, high}]}, in points or per cent.
function charts(title, note, panels) {
  const drawn = panels.filter(({ points }) => points.length);
  if (!drawn.length) return null;
  const values = drawn.flatMap(({ points }) => points.flatMap(({ y, low, high }) => [y, low, high]));
  const [least, most] = [Math.min(0, ...values), Math.max(0, ...values)];
  const step = [1, 2, 5, 10, 20, 50].find((one) => (most - least) / one <= 5) ?? 100;
  const ticks = [];
  for (let tick = Math.floor(least / step); tick * step < most + step; tick += 1) ticks.push(tick * step);
  return h("section", { "aria-label": title }, h("h3", {}, title), h("p.note", {}, note),
    h("div.charts", {}, drawn.map((panel) => h("figure", {}, h("figcaption", {}, panel.title), chart(panel, ticks)))));
}

function chart({ title, points }, ticks) {
  const { left, right, top, bottom, width, height } = plot;
  const scale = (value) => (bottom - ((value - ticks[0]) / (ticks.at(-1) - ticks[0])) * (bottom - top)).toFixed(1);
  const across = (index) => left + ((right - left) * (index + 0.5)) / points.length;
  const words = ({ x, y, low, high }) => `${x}: ${fixed(y)}, 95 % interval ${fixed(low)} to ${fixed(high)}`;
  const grid = ticks.flatMap((tick) => [
    svg("line", { class: tick ? "grid-line" : "zero", x1: left, x2: right, y1: scale(tick), y2: scale(tick) }),
    svg("text", { x: left - 5, y: scale(tick), dy: "0.32em", "text-anchor": "end" }, String(tick)),
  ]);
  const path = points.map(({ y }, index) => `${across(index)},${scale(y)}`).join(" ");
  const marks = points.flatMap((point, index) => {
    const x = across(index);
    return [
      svg("text", { x, y: height - 4, "text-anchor": "middle" }, String(point.x)),
      svg("g", {}, svg("title", {}, words(point)),
        svg("line", { class: "bar", x1: x, x2: x, y1: scale(point.low), y2: scale(point.high) }),
        svg("circle", { cx: x, cy: scale(point.y), r: 4.5 })),
    ];
  });
  const label = `${title}. ${points.map(words).join("; ")}`;
  return svg("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label },
    ...grid, svg("polyline", { points: path }), ...marks);
}

// Panels of items that share a title, in their order.
function panelsOf(items, titleOf, pointOf) {
  const panels = new Map();
  for (const item of items) panels.set(titleOf(item), [...(panels.get(titleOf(item)) ?? []), pointOf(item)]);
  return [...panels].map(([title, points]) => ({ title, points }));
}
