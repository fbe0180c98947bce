const FAILURES_SHOWN = 100;

// Tables. A cell is {text | node, sort, class, style, title}; a column {label, numeric, higher, title}.
function cellNode(tag, cell, attributes) {
  return el(tag, { class: cell.class, style: cell.style, title: cell.title, ...attributes }, cell.node ?? cell.text ?? "");
}

function sortableTable(caption, columns, rows) {
  const body = el("tbody");
  const heads = columns.map((column, place) =>
    el("th", { scope: "col", "aria-sort": "none", class: column.numeric ? "number" : null, title: column.title },
      el("button", { type: "button", onclick: () => sort(place) }, el("span", {}, breakable(column.label)))));
  const nodes = rows.map((cells) => ({ cells, node: el("tr", {}, cells.map((cell, place) => place
    ? cellNode("td", cell, {})
    : cellNode("th", { ...cell, node: cell.node ?? el("span", {}, breakable(cell.text)) }, { scope: "row" }))) }));
  body.append(...nodes.map((row) => row.node));

  function sort(place) {
    const before = heads[place].getAttribute("aria-sort");
    // The first click shows what is best: the most where more is better, the least where less is.
    const first = columns[place].numeric && columns[place].higher !== false ? "descending" : "ascending";
    const second = first === "ascending" ? "descending" : "ascending";
    const order = before === first ? second : first;
    heads.forEach((head, other) => head.setAttribute("aria-sort", other === place ? order : "none"));
    const sign = order === "ascending" ? 1 : -1;
    const missing = (value) => value === null || value === undefined || value === "";
    nodes.sort((a, b) => {
      const [x, y] = [a.cells[place].sort, b.cells[place].sort];
      if (missing(x) || missing(y)) return missing(x) - missing(y);
      return sign * (isNumber(x) ? x - y : String(x).localeCompare(String(y), "en", { numeric: true }));
    });
    body.append(...nodes.map((row) => row.node));
  }
  const table = el("table", { class: "sortable" }, el("caption", {}, caption), el("thead", {}, el("tr", {}, heads)), body);
  return scroller(table, caption, rows.length > 40);
}

const scroller = (table, label, tall) => el("div", { class: tall ? "scroll tall" : "scroll", tabindex: "0", role: "region", "aria-label": label }, table);

function matrixTable(caption, names, cell) {
  const head = el("tr", {}, el("td"), names.map((name) => el("th", { scope: "col", class: "turned" }, el("span", {}, name))));
  const rows = names.map((name, i) =>
    el("tr", {}, el("th", { scope: "row" }, breakable(name)), names.map((_, j) => cellNode("td", cell(i, j), {}))));
  return scroller(el("table", { class: "matrix" }, el("caption", {}, caption), el("thead", {}, head), el("tbody", {}, rows)), caption);
}

// A method's name, with the date of its last trial where it has several.
const lineCell = (line) => ({ sort: line, text: line, node: el("span", {}, breakable(line),
  DATA.dates[line] ? el("span", { class: "date" }, DATA.dates[line]) : null) });

const summaryOf = new Map(DATA.summaries.map((item) => [JSON.stringify([item.line, item.column]), item]));
const summary = (line, column) => summaryOf.get(JSON.stringify([line, column]));

// Results: a mean, its interval in figures, and the same as a bar on the scale of its column.
function estimateCell(numbers, range, share, mark, failed, constant) {
  const [value, low, high, cases] = numbers;
  const remarks = el("div", { class: "failed" }, failed, failed && constant ? ", " : null, constant ? plural(constant, "constant map") : null);
  if (!isNumber(value)) return { node: el("div", {}, "–", remarks), class: "number", sort: null };
  const place = (x) => (range[1] > range[0] ? (100 * (x - range[0])) / (range[1] - range[0]) : 50);
  const interval = isNumber(low) ? `${format(low, share)} – ${format(high, share)}` : "";
  const sign = { best: el("span", { class: "badge" }, "best"), tied: el("span", { class: "tie", title: "not significantly different from the best" }, "≈") }[mark];
  const bar = el("div", { class: "whisker", "aria-hidden": "true" },
    isNumber(low) ? el("i", { style: `left:${place(low)}%;width:${Math.max(0, place(high) - place(low))}%` }) : null,
    el("b", { style: `left:${place(value)}%` }));
  const node = el("div", { class: "estimate" }, el("div", { class: "value" }, sign, el("span", {}, format(value, share))), bar,
    el("div", { class: "interval" }, interval), remarks);
  return { node, sort: value, class: `number ${mark || ""}`, title: plural(cases, "case") };
}

// How many cases have no score, with a link to the row that says why.
function failedLink(item) {
  if (!item || !item.failures) return null;
  const place = DATA.failures.findIndex((found) => found.line === item.line && found.column === item.column);
  return el("a", { href: place < 0 || place >= FAILURES_SHOWN ? "#failures" : `#failure-${place}` }, `${item.failures} failed`);
}

function resultColumns(view) {
  const found = [];
  for (const column of DATA.columns) {
    const items = DATA.lines.map((line) => summary(line, column.label));
    found.push({ ...column, title: column.metric, text: heading(column), numbers: items.map((item) => item && item.means[view]),
      marks: items.map((item) => (item ? item.mark : "")), failures: items.map(failedLink),
      constant: items.map((item) => (item ? item.constant : 0)) });
    if (items.some((item) => item && item.box_accuracy)) {
      found.push({ higher: true, share: true, text: `${column.box_title}\u00a0(%)\u00a0↑`, title: "the best share of boxes that are found, over thresholds, of all cases",
        numbers: items.map((item) => item && item.box_accuracy), marks: [], failures: [], constant: [], fixed: true });
    }
  }
  for (const column of found) {
    const known = column.numbers.filter((numbers) => numbers && isNumber(numbers[0]));
    const ends = known.flatMap((numbers) => numbers.slice(0, 3)).filter(isNumber);
    column.range = [Math.min(...ends), Math.max(...ends)];
    if (view === 0 && !column.fixed) continue;
    // The paired test is of the means over all cases: elsewhere only the best is marked.
    const values = known.map((numbers) => numbers[0]);
    const best = column.higher === true ? Math.max(...values) : column.higher === false ? Math.min(...values) : NaN;
    column.marks = column.numbers.map((numbers) => (numbers && known.length > 1 && numbers[0] === best ? "best" : ""));
  }
  return found;
}

function showResults() {
  if (!DATA.summaries.length) return;
  show("results");
  let classes = 0, difficult = 0;
  const draw = () => {
    const columns = resultColumns(2 * difficult + classes);
    const rows = DATA.lines.map((line, i) => [lineCell(line), ...columns.map((column) =>
      column.numbers[i] ? estimateCell(column.numbers[i], column.range, column.share, column.marks[i], column.failures[i], column.constant[i]) : { text: "", class: "number", sort: null })]);
    const what = `Mean over ${classes ? "classes" : "cases"}, ${difficult ? "difficult cases" : "all cases"}`;
    byId("results-table").replaceChildren(sortableTable(what, [{ label: "method" },
      ...columns.map((column) => ({ label: column.text, numeric: true, higher: column.higher, title: column.title }))], rows));
    byId("results-note").textContent = "The bar is the 95 % bootstrap interval on the scale of its column. " + (classes || difficult
      ? "Only the best value is marked: the paired test is of the means over all cases."
      : "≈ marks what the paired test does not tell from the best (adjusted p ≥ 0.05).");
  };
  byId("results-views").append(choice("Mean over", ["cases", "classes"], (place) => { classes = place; draw(); }));
  if (DATA.summaries.some((item) => item.means[2][3])) {
    byId("results-views").append(choice("Of", ["all cases", "difficult ones"], (place) => { difficult = place; draw(); }));
  }
  draw();
}

// Trials that a later one of the method has superseded.
function showEarlier() {
  if (!DATA.earlier.length) return;
  byId("results-earlier").hidden = false;
  byId("results-earlier").querySelector("summary").textContent = `${plural(DATA.earlier.length, "result")} of earlier trials`;
  const shares = new Map(DATA.columns.map((column) => [column.label, column.share]));
  const rows = DATA.earlier.map(({ line, column, date, mean, differences }) => [{ text: line, sort: line }, { text: date, sort: date },
    { text: column, sort: column }, { text: format(mean[0], shares.get(column)), sort: mean[0], class: "number" },
    { text: mean[3], sort: mean[3], class: "number" }, { text: differences, sort: differences, class: "message" }]);
  byId("results-trials").append(sortableTable("Superseded by a later trial of the method: they take part in no mean and no test", [{ label: "trial" },
    { label: "run" }, { label: "metric" }, { label: "mean", numeric: true }, { label: "cases", numeric: true }, { label: "what differs from the last trial" }], rows));
}

function showPublished() {
  if (!DATA.published.length) return;
  show("published");
  const cell = (value) => ({ text: isNumber(value) ? value.toFixed(1) : "–", sort: value, class: "number" });
  const percent = (value) => ({ text: format(value, true), sort: value, class: "number strong" });
  const columns = ["method", "here", "published", "here, difficult", "published, difficult"].map((label, i) => ({ label, numeric: i > 0 }));
  for (const found of DATA.published) {
    const rows = found.rows.map(({ line, measured, published }) =>
      [{ text: line, sort: line }, percent(measured[0]), cell(published[0]), percent(measured[1]), cell(published[1])]);
    byId("published-tables").append(sortableTable(found.title, columns, rows),
      el("ul", { class: "note" }, found.differences.map((text) => el("li", {}, text))));
  }
}

function showClasses() {
  const columns = DATA.columns.filter((column) => DATA.summaries.some((item) => item.column === column.label && item.classes.length));
  if (!columns.length) return;
  show("classes");
  const draw = (place) => {
    const column = columns[place];
    const items = DATA.lines.map((line) => summary(line, column.label)).filter(Boolean);
    const means = items.map((item) => new Map(item.classes.map((found) => [found[0], found])));
    const names = [...new Set(items.flatMap((item) => item.classes.map((found) => found[0])))];
    const values = means.flatMap((map) => [...map.values()].map((found) => found[1])).filter(isNumber);
    const [low, high] = [Math.min(...values), Math.max(...values)];
    const shade = (value) => {
      if (column.higher === null || high === low) return null;
      const good = (value - low) / (high - low);
      return `--heat:${Math.round(40 * (column.higher ? good : 1 - good))}%`;
    };
    const rows = names.map((name) => [{ text: name, sort: name },
      { text: Math.max(...means.map((map) => (map.get(name) || [0, 0, 0, 0, 0])[4])), sort: Math.max(...means.map((map) => (map.get(name) || [0, 0, 0, 0, 0])[4])), class: "number quiet" },
      ...means.map((map) => {
        const found = map.get(name);
        return found ? { text: format(found[1], column.share), sort: found[1], class: "number heat", style: shade(found[1]),
          title: `${plural(found[4], "case")}${isNumber(found[2]) ? `, ${format(found[2], column.share)} – ${format(found[3], column.share)}` : ""}` } : { text: "", sort: null };
      })]);
    byId("classes-table").replaceChildren(sortableTable(`${heading(column)} of each class`, [{ label: "class" }, { label: "cases", numeric: true },
      ...items.map((item) => ({ label: item.line, numeric: true, higher: column.higher }))], rows));
  };
  if (columns.length > 1) byId("classes-views").append(select("Metric", columns.map(heading), draw));
  draw(0);
}

function showPairs() {
  const columns = DATA.columns.filter((column) => DATA.pairs.some((pair) => pair.column === column.label));
  if (!columns.length) return;
  show("pairs");
  const draw = (place) => {
    const column = columns[place];
    const pairs = DATA.pairs.filter((pair) => pair.column === column.label);
    const names = DATA.lines.filter((line) => pairs.some((pair) => pair.first === line || pair.second === line));
    const found = new Map();
    for (const { first, second, cases, difference, adjusted } of pairs) {
      found.set(JSON.stringify([first, second]), [difference, adjusted, cases]);
      found.set(JSON.stringify([second, first]), [-difference, adjusted, cases]);
    }
    byId("pairs-matrix").replaceChildren(matrixTable(`${heading(column)}: row minus column`, names, (i, j) => {
      const own = found.get(JSON.stringify([names[i], names[j]]));
      if (!own) return { text: "", class: "diagonal" };
      const clear = own[1] < DATA.significant && column.higher !== null;
      return { text: signed(own[0], column.share), title: `${names[i]} − ${names[j]}: ${plural(own[2], "case")}, adjusted p ${formatP(own[1])}`,
        class: clear ? ((own[0] > 0) === column.higher ? "good" : "bad") : "quiet" };
    }));
    const rows = [...pairs].sort((a, b) => a.adjusted - b.adjusted).map(({ first, second, cases, difference, p_value: p, adjusted }) => [
      { text: first, sort: first }, { text: second, sort: second }, { text: cases, sort: cases, class: "number" },
      { text: signed(difference, column.share), sort: difference, class: "number" }, { text: formatP(p), sort: p, class: "number" },
      { text: formatP(adjusted), sort: adjusted, class: adjusted < DATA.significant ? "number strong" : "number" }]);
    byId("pairs-list").replaceChildren(sortableTable(`Pairs of ${heading(column)}`, [{ label: "first" }, { label: "second" }, { label: "cases", numeric: true },
      { label: "first − second", numeric: true }, { label: "p", numeric: true, higher: false }, { label: "adjusted p", numeric: true, higher: false }], rows));
  };
  if (columns.length > 1) byId("pairs-views").append(select("Metric", columns.map(heading), draw));
  draw(0);
}

function showAgreement() {
  if (!DATA.agreements.length) return;
  show("agreement");
  for (const { title, methods, values, cases } of DATA.agreements) {
    byId("agreement-matrices").append(matrixTable(`${title}, ${plural(cases, "case")}`, methods, (i, j) => {
      const value = values[i][j];
      const strength = isNumber(value) ? Math.round(70 * Math.abs(value)) : 0;
      return { text: isNumber(value) ? minus(value.toFixed(2)) : "–", class: i === j ? "diagonal" : value < 0 ? "heat against" : "heat", style: `--heat:${strength}%`,
        title: `${methods[i]} and ${methods[j]}` };
    }));
  }
}

function showTime() {
  const spent = DATA.lines.map((line) => DATA.columns.map((column) => summary(line, column.label)));
  if (!DATA.summaries.some((item) => item.share > 0)) return;
  show("time");
  const totals = spent.map((items) => items.reduce((sum, item) => sum + (item ? item.share : 0), 0));
  const most = Math.max(...totals, DATA.agreement_share);
  const bar = (share) => ({ sort: share, class: "number", node: el("div", { class: "spent" },
    el("span", { class: "track" }, el("i", { style: `width:${(100 * share) / most}%` })), el("span", {}, `${(100 * share).toFixed(1)} %`)) });
  const rows = DATA.lines.map((line, i) => [{ text: line, sort: line }, bar(totals[i]), ...spent[i].map((item) => item
    ? { sort: item.seconds, class: "number", node: el("div", {}, formatSeconds(item.seconds), el("div", { class: "interval" }, `${(100 * item.share).toFixed(1)} %`)) }
    : { text: "", sort: null })]);
  if (DATA.agreement_share > 0) rows.push([{ text: "agreement of all pairs", sort: "agreement" }, bar(DATA.agreement_share), ...DATA.columns.map(() => ({ text: "", sort: null }))]);
  byId("time-table").append(sortableTable("Seconds per case", [{ label: "method" }, { label: "share of all seconds", numeric: true },
    ...DATA.columns.map((column) => ({ label: column.label, numeric: true }))], rows));
}

function showFailures() {
  if (!DATA.failures.length && !DATA.problems.length) return;
  show("failures");
  const rows = DATA.failures.slice(0, FAILURES_SHOWN).map(({ line, column, message, cases }, place) => [
    { node: el("span", { id: `failure-${place}` }, breakable(line)), sort: line }, { text: column, sort: column },
    { text: cases.length, sort: cases.length, class: "number" }, { text: message, sort: message, class: "message" },
    { text: cases.slice(0, 5).join(", ") + (cases.length > 5 ? `, and ${cases.length - 5} more` : ""), sort: cases[0], class: "message" }]);
  if (rows.length) byId("failures-list").append(sortableTable("Cases without a score", [{ label: "method" }, { label: "metric" },
    { label: "cases", numeric: true }, { label: "message" }, { label: "where" }], rows));
  if (DATA.failures.length > FAILURES_SHOWN) byId("failures-list").append(el("p", { class: "note" }, `${DATA.failures.length - FAILURES_SHOWN} more messages are in cases.csv.`));
  if (DATA.problems.length) byId("failures-list").append(el("ul", {}, DATA.problems.map((text) => el("li", {}, text))));
}
