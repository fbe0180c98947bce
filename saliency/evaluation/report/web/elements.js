// Elements and numbers. All text from the data goes through textContent, so no name is ever read as markup.
const DATA = JSON.parse(document.getElementById("data").textContent);
const byId = (id) => document.getElementById(id);

function build(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes || {})) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value === true) node.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) node.setAttribute(name, value);
  }
  node.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return node;
}
const el = (tag, attributes, ...children) => build(document.createElement(tag), attributes, children);
const svg = (tag, attributes, ...children) =>
  build(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);

const isNumber = (value) => typeof value === "number";
const minus = (text) => text.replace("-", "−");

// A mean: in % with one decimal, or with three decimals, or three digits where that would say nothing.
function format(value, share) {
  if (!isNumber(value)) return "–";
  if (share) return minus((100 * value).toFixed(1));
  const size = Math.abs(value);
  if (value && (size < 1e-3 || size >= 1e5)) return minus(value.toExponential(2));
  return minus(size < 0.01 && value ? value.toPrecision(3) : value.toFixed(size < 100 ? 3 : 1));
}
const formatSeconds = (value) => (value < 0.9995 ? `${(1000 * value).toPrecision(3)} ms` : `${value.toPrecision(3)} s`);
const formatP = (p) => (p < 0.001 ? "< 0.001" : p.toFixed(3));
const signed = (value, share) => (isNumber(value) && value > 0 ? "+" : "") + format(value, share);
const plural = (number, word) => `${number.toLocaleString("en")} ${word}${number === 1 ? "" : "s"}`;
const heading = (column) =>
  column.label + (column.share ? "\u00a0(%)" : "") + (column.higher === true ? "\u00a0↑" : column.higher === false ? "\u00a0↓" : "");

// Buttons of which one is chosen; `change` is told its place.
function choice(label, names, change) {
  const name = `choice-${choice.count = (choice.count || 0) + 1}`;
  const options = names.map((text, place) =>
    el("label", {}, el("input", { type: "radio", name, checked: place === 0, onchange: () => change(place) }), el("span", {}, text)));
  return el("fieldset", { class: "choice" }, el("legend", {}, label), el("div", {}, options));
}

// A name that may be broken behind an underscore, where the room is narrow.
const breakable = (name) => name.split(/(?<=[_|])/).flatMap((part, place) => (place ? [el("wbr"), part] : [part]));

function select(label, names, change) {
  const options = names.map((text, place) => el("option", { value: place }, text));
  const field = el("select", { onchange: (event) => change(Number(event.target.value)) }, options);
  return el("label", { class: "field" }, el("span", {}, label), field);
}

function show(id) {
  byId(id).hidden = false;
  byId("nav").append(el("a", { href: `#${id}` }, byId(id).querySelector("h2").textContent));
}
