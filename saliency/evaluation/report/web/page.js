// The page: every section that the run has something for.
function showAbout() {
  show("about");
  byId("about-notes").append(...DATA.notes.map((text) => el("li", {}, text)));
  byId("about-shared").textContent = JSON.stringify(DATA.shared, null, 2);
  const rows = Object.entries(DATA.configs).map(([fingerprint, { method, metric, ...own }]) => {
    const text = JSON.stringify(own);
    return [{ text: method || "unknown", sort: method }, { text: metric, sort: metric }, { node: el("code", {}, text), sort: text, class: "message" },
      { node: el("code", {}, fingerprint), sort: fingerprint }];
  });
  byId("about-configs").append(sortableTable("Every configuration: what it does not share", [{ label: "method" }, { label: "metric" }, { label: "settings" }, { label: "fingerprint" }], rows));
}

byId("facts").append(...DATA.facts.map(([name, text]) => el("div", {}, el("dt", {}, name), el("dd", {}, text))));
for (const section of [showResults, showEarlier, showPublished, showCurves, showGallery, showClasses, showPairs, showAgreement, showTime, showFailures, showAbout]) section();
