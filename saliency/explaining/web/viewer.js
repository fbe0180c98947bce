"use strict";
const DATA = JSON.parse(document.getElementById("data").textContent);
const byId = (id) => document.getElementById(id);
const LOADED = new Map();
let alone = false; // the photo without a map

function load(uri) {
  if (!LOADED.has(uri)) {
    LOADED.set(uri, new Promise((resolve, reject) => {
      const image = new Image();
      image.onload = () => resolve(image);
      image.onerror = reject;
      image.src = uri;
    }));
  }
  return LOADED.get(uri);
}

// The colour (r, g, b) in 0 ... 255 of each of 256 values; of control points, evenly spaced.
function table(name) {
  const points = name === "grey" ? [[0, 0, 0], [1, 1, 1]] : DATA.colours[name];
  return Array.from({ length: 256 }, (_, value) => {
    const place = (value / 255) * (points.length - 1), at = Math.min(Math.floor(place), points.length - 2);
    return points[at].map((low, i) => 255 * (low + (points[at + 1][i] - low) * (place - at)));
  });
}

const photo = () => DATA.photos[byId("photo").selectedIndex];
const target = () => byId("target").selectedIndex;

function fill(id, names, keep) {
  const select = byId(id), before = select.selectedIndex;
  select.replaceChildren(...names.map((name) => new Option(name)));
  select.selectedIndex = keep && before >= 0 && before < names.length ? before : 0;
}

function caption(column) {
  const layer = column.layer === null || column.name.endsWith(` ${column.layer}`) ? "" : ` · ${column.layer || "input"}`;
  return column.name + layer;
}

const chosen = (side) => photo().columns[byId(side).selectedIndex];

async function draw(side) {
  const column = chosen(side), map = column.maps[target()];
  const [picture, grey] = await Promise.all([load(photo().pictures[column.picture]), load(map.picture)]);
  if (map !== chosen(side).maps[target()]) return; // another one was chosen meanwhile
  const canvas = byId(`canvas-${side}`), context = canvas.getContext("2d", { willReadFrequently: true });
  const scale = Math.max(1, Math.floor(720 / Math.max(picture.width, picture.height)));
  [canvas.width, canvas.height] = [picture.width * scale, picture.height * scale];
  context.imageSmoothingQuality = "high";
  context.drawImage(grey, 0, 0, canvas.width, canvas.height);
  const values = context.getImageData(0, 0, canvas.width, canvas.height).data;
  context.drawImage(picture, 0, 0, canvas.width, canvas.height);
  byId(`caption-${side}`).textContent = alone ? photo().name : `${caption(column)} — ${photo().targets[target()]}`;
  if (alone) return;
  const pixels = context.getImageData(0, 0, canvas.width, canvas.height), out = pixels.data;
  const named = byId("colours").value, signed = map.signed;
  const colours = table(named === "auto" ? (signed ? "diverging" : "heat") : named);
  const opacity = byId("opacity").value / 100;
  for (let i = 0; i < out.length; i += 4) {
    const strength = Math.min(1, signed ? Math.abs(values[i] - 128) / 127 : values[i] / 255);
    const value = signed || named !== "diverging" ? values[i] : 128 + values[i] / 2;
    const cover = opacity * (1 - (1 - strength) ** 2), colour = colours[Math.min(255, Math.round(value))];
    for (let c = 0; c < 3; c++) out[i + c] += cover * (colour[c] - out[i + c]);
  }
  context.putImageData(pixels, 0, 0);
}

async function show() {
  document.body.classList.toggle("beside", byId("beside").checked);
  await Promise.all([draw("left"), ...(byId("beside").checked ? [draw("right")] : [])]);
  document.body.dataset.shown = String(Number(document.body.dataset.shown || 0) + 1);
}

function choosePhoto(keep) {
  fill("target", photo().targets, false);
  const names = photo().columns.map(caption);
  fill("left", names, keep);
  fill("right", names, keep);
  if (!keep && names.length > 1) byId("right").selectedIndex = 1;
  byId("predicted").textContent = photo().predicted.length ? `Predicted: ${photo().predicted.join(", ")}` : "";
  byId("why").replaceChildren(...photo().why.map((line) => Object.assign(document.createElement("li"), { textContent: line })));
  show();
}

function step(id, by) {
  const select = byId(id), count = select.options.length;
  select.selectedIndex = (select.selectedIndex + by + count) % count;
  if (id === "photo") choosePhoto(true);
  else show();
}

function turn(by) {
  byId("opacity").value = Number(byId("opacity").value) + by;
  show();
}

const KEYS = {
  ArrowLeft: () => step("left", -1),
  ArrowRight: () => step("left", 1),
  ArrowUp: () => step("target", -1),
  ArrowDown: () => step("target", 1),
  p: () => step("photo", 1),
  c: () => step("colours", 1),
  s: () => byId("beside").click(),
  "-": () => turn(-5),
  "+": () => turn(5),
  "=": () => turn(5),
  " ": () => { alone = !alone; show(); },
};

document.addEventListener("keydown", (event) => {
  const inside = event.target.matches("select, input") && (event.key.startsWith("Arrow") || event.key === " ");
  if (inside || event.ctrlKey || event.metaKey || event.altKey || !(event.key in KEYS)) return;
  event.preventDefault();
  KEYS[event.key]();
});
byId("photo").addEventListener("change", () => choosePhoto(true));
for (const id of ["target", "left", "right", "colours", "beside"]) byId(id).addEventListener("change", show);
byId("opacity").addEventListener("input", show);
fill("photo", DATA.photos.map((each) => each.name), false);
choosePhoto(false);
