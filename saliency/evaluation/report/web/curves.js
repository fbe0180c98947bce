// Curves: one figure for each metric that has them, one colour and dash for each method in all figures.
const PLOT = { width: 560, height: 340, left: 58, right: 22, top: 12, bottom: 52, broken: 26 };
const WIDEST = { figure: 460, gap: 32 };
const HIDDEN = { blur: "the blurred image", zero: "an image of zeros", mean: "an image of its mean colour" };
const hidden = (column) => HIDDEN[column.baseline] || "the image with all pixels hidden";
const AXES = {
  insertion: ["share of the pixels put in", "probability of the class",
    (column) => `All curves start at ${hidden(column)} and end at the image itself; the steeper the rise, the better the order of the pixels.`],
  deletion: ["share of the pixels taken out", "probability of the class",
    (column) => `All curves start at the image itself and end at ${hidden(column)}; the steeper the fall, the better the order of the pixels.`],
  box_iou: ["threshold, of the map scaled to 0 … 1", "IoU",
    () => "All curves start at the threshold 0, which every pixel reaches: the box is the whole image."],
  mask_iou: ["threshold, of the map scaled to 0 … 1", "IoU",
    () => "All curves start at the threshold 0, which every pixel reaches: the region is the whole image."],
  cascading_randomisation: ["layers drawn anew, from the output down", "rank correlation",
    () => "A curve starts after the first step, the layers next to the output; with no layer drawn anew it would be 1."],
  independent_randomisation: ["the layer drawn anew, from the output down", "rank correlation",
    () => "A curve starts at the layers next to the output, drawn anew alone; with none drawn anew it would be 1."],
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

// Grid and axes. The axis starts at 0, or has a break between 0 and the lowest value that is marked.
function plotFrame(x, y, ticks, names, broken) {
  const { width, height, left, right, top, bottom } = PLOT;
  const foot = height - bottom;
  const middle = (top + foot) / 2;
  const parts = [];
  const label = (value, at) => svg("text", { x: left - 8, y: at + 5, "text-anchor": "end" }, minus(String(value)));
  for (const value of ticks) {
    parts.push(svg("line", { class: "grid", x1: left, x2: width - right, y1: y(value), y2: y(value) }), label(value, y(value)));
  }
  if (broken) {
    const at = foot - PLOT.broken / 2;
    parts.push(label(0, foot), svg("polyline", { class: "break", points: [[0, foot], [0, at + 4], [-5, at + 2], [5, at - 2], [0, at - 4], [0, y(ticks[0])]]
      .map(([dx, py]) => `${left + dx},${py}`).join(" ") }));
  }
  for (const value of [0, 0.25, 0.5, 0.75, 1]) {
    parts.push(svg("line", { class: "axis", x1: x(value), x2: x(value), y1: foot, y2: foot + 4 }),
      svg("text", { x: x(value), y: foot + 20, "text-anchor": "middle" }, `${100 * value} %`));
  }
  parts.push(svg("line", { class: "axis", x1: left, x2: width - right, y1: foot, y2: foot }),
    svg("text", { class: "title", x: (left + width - right) / 2, y: height - 8, "text-anchor": "middle" }, names[0]),
    svg("text", { class: "title", x: 14, y: middle, "text-anchor": "middle", transform: `rotate(-90 14 ${middle})` }, names[1]));
  return parts;
}

function curveFigure(column, items) {
  const { width, height, left, right, top, bottom } = PLOT;
  const values = items.flatMap((item) => item.curve);
  const [least, most] = [Math.min(...values), Math.max(...values)];
  const broken = least > most / 2;
  const ticks = ticksOf(broken ? least : least < -0.05 * Math.max(most, 0) ? least : 0, Math.max(most, 0));
  const [low, high] = [ticks[0], ticks[ticks.length - 1]];
  const x = (share) => left + share * (width - left - right);
  const floor = height - bottom - (broken ? PLOT.broken : 0);
  const y = (value) => floor - ((value - low) / (high - low || 1)) * (floor - top);
  const [xName, yName, start] = AXES[column.metric] || ["share of the steps", column.label, null];
  const share = (curve, place) => (curve.length > 1 ? place / (curve.length - 1) : 0);
  const paths = items.map((item) => svg("polyline", { ...lineStyle(item.line), points: item.curve.map((value, i) => `${x(share(item.curve, i)).toFixed(1)},${y(value).toFixed(1)}`).join(" ") }));
  const cursor = svg("line", { class: "cursor", y1: top, y2: height - bottom, visibility: "hidden" });
  const plot = svg("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `Curves of ${column.label}` },
    plotFrame(x, y, ticks, [xName, yName], broken), cursor, paths);

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
  start || broken ? el("p", { class: "note" }, [start && start(column), broken && `The axis is broken between 0 and ${low}.`].filter(Boolean).join(" ")) : null,
  el("div", { class: "legend-head" }, el("span", {}, "method"), read), legend);
}

function showCurves() {
  const found = DATA.columns.map((column) => [column, DATA.lines.map((line) => summary(line, column.label)).filter((item) => item && item.curve.length > 1)])
    .filter(([, items]) => items.length);
  if (!found.length) return;
  show("curves");
  // As wide as there is room, so that the letters of a figure are those of the text.
  const room = byId("curves-figures").clientWidth || PLOT.width;
  const columns = Math.max(1, Math.min(found.length, Math.floor((room + WIDEST.gap) / (WIDEST.figure + WIDEST.gap))));
  PLOT.width = Math.min(700, Math.floor((room - (columns - 1) * WIDEST.gap) / columns));
  PLOT.height = Math.max(260, Math.round(0.6 * PLOT.width));
  const better = (column) => (a, b) => (column.higher === false ? 1 : -1) * (a.means[0][0] - b.means[0][0]);
  byId("curves-figures").append(...found.map(([column, items]) => curveFigure(column, items.sort(better(column)))));
}
