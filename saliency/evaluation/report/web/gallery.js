// The gallery: for each case the picture and every method's map, with boxes, point, and hit or miss.
// So many cases at a time that there are about as many maps as a screen or two can hold.
const FIRST_CASES = Math.max(4, Math.round((window.innerWidth < 620 ? 24 : 48) / Math.max(1, ...DATA.gallery.map((found) => found.maps.length))));
const state = { image: "", class: "", method: "", result: "all", difficult: false, boxes: true, maps: true, cases: FIRST_CASES };

// Boxes of the class in full, of other classes dashed; the point with the disc that counts as a hit.
function drawing(found, map, large) {
  const [width, height] = found.size;
  const radius = Math.max(width, height) / (large ? 90 : 40);
  const rectangle = (box, kind) => svg("rect", { class: `box ${kind}`, x: box[0], y: box[1], width: box[2] - box[0], height: box[3] - box[1] });
  const [px, py] = (map && map.point) || [];
  const point = map && map.point ? [
    map.radius ? svg("circle", { class: "disc", cx: px + 0.5, cy: py + 0.5, r: map.radius }) : null,
    svg("circle", { class: "point", cx: px + 0.5, cy: py + 0.5, r: radius }),
    svg("circle", { class: "dot", cx: px + 0.5, cy: py + 0.5, r: radius / 2.2 }),
  ] : [];
  return svg("svg", { viewBox: `0 0 ${width} ${height}`, "aria-hidden": "true" },
    found.others.map((box) => rectangle(box, "other")), found.boxes.map((box) => rectangle(box, "own")), point);
}

function frame(found, map, large) {
  const [width, height] = found.size;
  return el("div", { class: "frame", style: `aspect-ratio:${width}/${height}` },
    el("img", { class: "plain", src: found.picture, alt: "", decoding: "async" }),
    map ? el("img", { class: "map", src: map.picture, alt: "", decoding: "async" }) : null, drawing(found, map, large));
}

const RESULTS = { hit: ["✓", "hit"], miss: ["✗", "miss"], none: ["", "no result"] };
const resultOf = (map) => (map.hit === true ? "hit" : map.hit === false ? "miss" : "none");

function tile(found, map) {
  const result = resultOf(map);
  const [sign, word] = RESULTS[result];
  const label = `${map.method}, ${found.class}, ${found.image}: ${word}`;
  return el("li", {}, el("button", { type: "button", class: `tile ${result}`, "aria-label": label, onclick: () => enlarge(found, map) },
    frame(found, map), el("span", { class: "tile-name" }, el("span", { class: "name" }, breakable(map.method)), sign ? el("span", { class: "result", title: word }, sign) : null)));
}

function caseNode({ found, maps }) {
  return el("article", { class: "case" },
    el("h3", {}, el("span", { class: "chip" }, found.class), found.difficult ? el("span", { class: "chip quiet" }, "difficult") : null, el("span", { class: "image-name" }, found.image)),
    el("ul", { class: "tiles" }, el("li", {}, el("button", { type: "button", class: "tile", "aria-label": `picture ${found.image}`, onclick: () => enlarge(found, null) },
      frame(found, null), el("span", { class: "tile-name quiet" }, "picture"))), maps.map((map) => tile(found, map))));
}

function enlarge(found, map) {
  const dialog = byId("zoom");
  const scores = map ? map.scores.map(([name, value, error]) => el("tr", {}, el("th", { scope: "row" }, name), el("td", {}, error ? error : format(value, false)))) : [];
  const [width, height] = found.size;
  const result = map ? RESULTS[resultOf(map)] : ["", ""];
  dialog.replaceChildren(
    el("div", { class: "zoom-head" }, el("h3", {}, map ? map.method : "picture", " ", result[0] ? el("span", { class: `result ${resultOf(map)}` }, `${result[0]} ${result[1]}`) : null),
      el("button", { type: "button", class: "close", "aria-label": "Close", onclick: () => dialog.close() }, "×")),
    el("p", { class: "note" }, `${found.class}${found.difficult ? ", difficult" : ""} · ${found.image} · ${width} × ${height} px`),
    el("div", { class: "zoom-frame", style: `--ratio:${width / height}` }, frame(found, map, true)),
    scores.length ? el("div", { class: "scroll" }, el("table", {}, el("tbody", {}, scores))) : "");
  dialog.showModal();
}

// What a method misses says more than what it finds: cases with most misses come first, and in a case the misses.
const misses = ({ maps }) => maps.filter((map) => map.hit === false).length;
const missesFirst = (maps) => [...maps].sort((a, b) => (b.hit === false) - (a.hit === false));

function matching() {
  const name = state.image.trim().toLowerCase();
  return DATA.gallery
    .filter((found) => (!state.class || found.class === state.class) && (!state.difficult || found.difficult) && found.image.toLowerCase().includes(name))
    .map((found) => ({ found, maps: missesFirst(found.maps).filter((map) => (!state.method || map.method === state.method) && (state.result === "all" || resultOf(map) === state.result)) }))
    .filter(({ maps }) => maps.length)
    .sort((a, b) => misses(b) - misses(a));
}

function drawGallery() {
  const cases = matching();
  const maps = cases.reduce((sum, { maps: own }) => sum + own.length, 0);
  const images = new Set(cases.map(({ found }) => found.image)).size;
  byId("gallery-count").textContent = `${plural(maps, "map")} of ${plural(cases.length, "case")} in ${plural(images, "image")}`;
  byId("gallery-cases").replaceChildren(...cases.slice(0, state.cases).map(caseNode));
  byId("gallery-more").hidden = cases.length <= state.cases;
}

function filterBy(change) {
  Object.assign(state, { cases: FIRST_CASES }, change);
  byId("gallery").classList.toggle("no-boxes", !state.boxes);
  byId("gallery").classList.toggle("no-maps", !state.maps);
  drawGallery();
}

function showGallery() {
  if (!DATA.gallery.length) return;
  show("gallery");
  const unique = (values) => [...new Set(values)].sort((a, b) => a.localeCompare(b, "en", { numeric: true }));
  const classes = unique(DATA.gallery.map((found) => found.class));
  const methods = [...new Set(DATA.gallery.flatMap((found) => found.maps.map((map) => map.method)))];
  const tick = (label, name, checked) => el("label", { class: "tick" },
    el("input", { type: "checkbox", checked, name, onchange: (event) => filterBy({ [name]: event.target.checked }) }), el("span", {}, label));
  const filters = [
    el("label", { class: "field" }, el("span", {}, "Image"), el("input", { type: "search", name: "image", placeholder: "name", oninput: (event) => filterBy({ image: event.target.value }) })),
    select("Class", ["all", ...classes], (place) => filterBy({ class: place ? classes[place - 1] : "" })),
    select("Method", ["all", ...methods], (place) => filterBy({ method: place ? methods[place - 1] : "" })),
    choice("Result", ["all", "hits", "misses"], (place) => filterBy({ result: ["all", "hit", "miss"][place] })),
    el("div", { class: "ticks" }, DATA.gallery.some((found) => found.difficult) ? tick("difficult only", "difficult", false) : null,
      tick("maps", "maps", true), tick("boxes", "boxes", true)),
  ];
  byId("gallery-filters").append(...filters);
  byId("gallery-filters").addEventListener("submit", (event) => event.preventDefault());
  byId("gallery-more").addEventListener("click", () => { state.cases += FIRST_CASES; drawGallery(); });
  byId("zoom").addEventListener("click", (event) => { if (event.target === byId("zoom")) byId("zoom").close(); });
  drawGallery();
}
