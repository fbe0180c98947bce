// Curves: one figure for each metric that has them, one colour and dash for each method in all figures.
const PLOT = { width: 420, height: 280, left: 54, right: 20, top: 10, bottom: 44 };
const AXES = {
  insertion: ["share of the pixels put in", "probability of the class"],
  deletion: ["share of the pixels taken out", "probability of the class"],
  box_iou: ["thresholds, from the lowest to the highest", "IoU"],
  mask_iou: ["thresholds, from the lowest to the highest", "IoU"],
  cascading_randomisation: ["steps through the layers", "rank correlation with the map before"],
  independent_randomisation: ["steps through the layers", "rank correlation with the map before"],
};

function ticksOf(low, high) {
  const rough = (high - low) / 4 || 1;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 2.5, 5, 10].map((factor) => factor * power).find((size) => size >= rough * 0.999);
  const found = [];
  for (let k = Math.floor(low / step + 1e-9); ; k++) {
    found.push(Number((k * step).toPrecision(12)));
    if (k * step >= high - 1e-9 * step) return found;
  }
}

const lineStyle = (line) => {
  const place = DATA.lines.indexOf(line);
  return { class: `line colour-${place % 8}`, "stroke-dasharray": ["none", "7 3", "2 3", "9 3 2 3"][Math.floor(place / 8) % 4] };
};

function plotFrame(x, y, ticks, names) {
  const { width, height, left, right, top, bottom } = PLOT;
  const parts = [];
  for (const value of ticks) {
    parts.push(svg("line", { class: "grid", x1: left, x2: width - right, y1: y(value), y2: y(value) }),
      svg("text", { x: left - 8, y: y(value) + 4, "text-anchor": "end" }, minus(String(value))));
  }
  for (const value of [0, 0.25, 0.5, 0.75, 1]) {
    parts.push(svg("line", { class: "axis", x1: x(value), x2: x(value), y1: height - bottom, y2: height - bottom + 4 }),
      svg("text", { x: x(value), y: height - bottom + 18, "text-anchor": "middle" }, `${100 * value} %`));
  }
  parts.push(svg("line", { class: "axis", x1: left, x2: width - right, y1: height - bottom, y2: height - bottom }),
    svg("text", { class: "title", x: (left + width - right) / 2, y: height - 6, "text-anchor": "middle" }, names[0]),
    svg("text", { class: "title", x: 12, y: (top + height - bottom) / 2, "text-anchor": "middle", transform: `rotate(-90 12 ${(top + height - bottom) / 2})` }, names[1]));
  return parts;
}

function curveFigure(column, items) {
  const { width, height, left, right, top, bottom } = PLOT;
  const values = items.flatMap((item) => item.curve);
  const [least, most] = [Math.min(...values), Math.max(...values)];
  const ticks = ticksOf(least > most / 2 ? least : Math.min(0, least), most);
  const [low, high] = [ticks[0], ticks[ticks.length - 1]];
  const x = (share) => left + share * (width - left - right);
  const y = (value) => height - bottom - ((value - low) / (high - low)) * (height - top - bottom);
  const names = AXES[column.metric] || ["share of the steps", column.label];
  const share = (curve, place) => (curve.length > 1 ? place / (curve.length - 1) : 0);
  const paths = items.map((item) => svg("polyline", { ...lineStyle(item.line), points: item.curve.map((value, i) => `${x(share(item.curve, i)).toFixed(1)},${y(value).toFixed(1)}`).join(" ") }));
  const cursor = svg("line", { class: "cursor", y1: top, y2: height - bottom, visibility: "hidden" });
  const plot = svg("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `Curves of ${column.label}` },
    plotFrame(x, y, ticks, names), cursor, paths);

  const readouts = items.map((item) => el("span", { class: "readout" }, format(item.means[0][0], false)));
  const single = (place) => [...paths, ...legend.children].forEach((node, i) =>
    node.classList.toggle("faded", place !== null && i % items.length !== place));
  const legend = el("ul", { class: "legend" }, items.map((item, place) =>
    el("li", {}, el("button", { type: "button", onmouseenter: () => single(place), onmouseleave: () => single(null), onfocus: () => single(place), onblur: () => single(null) },
      svg("svg", { viewBox: "0 0 26 8", class: "swatch", "aria-hidden": "true" }, svg("line", { ...lineStyle(item.line), x1: 0, x2: 26, y1: 4, y2: 4 })),
      el("span", { class: "name" }, breakable(item.line)), readouts[place]))));
  const read = el("span", { class: "at" }, "score");
  const follow = (event) => {
    const box = plot.getBoundingClientRect();
    const at = Math.min(1, Math.max(0, (((event.clientX - box.left) / box.width) * width - left) / (width - left - right)));
    build(cursor, { x1: x(at), x2: x(at), visibility: "visible" }, []);
    read.textContent = `at ${Math.round(100 * at)} %`;
    items.forEach((item, i) => { readouts[i].textContent = format(item.curve[Math.round(at * (item.curve.length - 1))], false); });
  };
  const leave = () => {
    cursor.setAttribute("visibility", "hidden");
    read.textContent = "score";
    items.forEach((item, i) => { readouts[i].textContent = format(item.means[0][0], false); });
  };
  plot.addEventListener("pointermove", follow);
  plot.addEventListener("pointerleave", leave);
  return el("figure", { class: "figure" }, el("figcaption", {}, el("strong", {}, column.label),
    el("span", { class: "quiet" }, column.higher === true ? " higher is better" : column.higher === false ? " lower is better" : "")), plot,
  el("div", { class: "legend-head" }, el("span", {}, "method"), read), legend);
}

function showCurves() {
  const found = DATA.columns.map((column) => [column, DATA.lines.map((line) => summary(line, column.label)).filter((item) => item && item.curve.length > 1)])
    .filter(([, items]) => items.length);
  if (!found.length) return;
  show("curves");
  const better = (column) => (a, b) => (column.higher === false ? 1 : -1) * (a.means[0][0] - b.means[0][0]);
  byId("curves-figures").append(...found.map(([column, items]) => curveFigure(column, items.sort(better(column)))));
}
