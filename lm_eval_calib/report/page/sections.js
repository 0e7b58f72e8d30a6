// The sections that hold figures.
"use strict";

function overview() {
  const b = bench();
  const groups = b.tiers
    .map((tier, index) => ({
      name: tierName(tier),
      note: `${b.tierSizes[index]} language${b.tierSizes[index] === 1 ? "" : "s"}`,
      tier,
      run: DATA.runs,
      values: Object.fromEntries(
        ["acc", "confidence", "ece"].map((metric) => [metric, b.tierValues[metric].map((row) => row[index])]),
      ),
    }))
    .filter((group) => state.tier === null || group.tier === "all" || group.tier === state.tier);
  if (!groups.length) {
    groups.push(
      ...b.languages.map((language, index) => ({
        name: language.label,
        note: `${b.n
          .map((row) => row[index])
          .reduce((a, c) => Math.max(a, c), 0)
          .toLocaleString("en")} questions`,
        run: DATA.runs,
        values: Object.fromEntries(
          ["acc", "confidence", "ece"].map((metric) => [metric, b.values[metric].map((row) => row[index])]),
        ),
      })),
    );
  }
  fill("overview-chart", gapChart(groups, shownRuns(), width()));
}

function arrows() {
  const b = bench(),
    languages = shownLanguages();
  const points = languages.map((language) => ({
    key: language.label,
    tier: language.tier,
    at: b.values.acc.map((row, run) =>
      row[language.index] ? [b.values.confidence[run][language.index][0], row[language.index][0]] : null,
    ),
    tip(run) {
      const told = [language.label + (language.own ? ` · ${language.own}` : "")];
      for (const r of run > 0 && compared() ? [0, run] : [run])
        if (this.at[r])
          told.push(`${DATA.runs[r]}: confidence ${fixed(this.at[r][0])}, accuracy ${fixed(this.at[r][1])}`);
      return told.join("\n");
    },
  }));
  const tiers = b.tiers.filter((tier) => tier !== "all" && (state.tier === null || tier === state.tier));
  const panels = tiers.length
    ? tiers.map((tier) => ({ name: tierName(tier), points: points.filter((point) => point.tier === tier) }))
    : [{ name: b.name, points }];
  const unknown = points.filter((point) => !point.tier);
  if (tiers.length && unknown.length && state.tier === null) panels.push({ name: "Unknown tier", points: unknown });
  const both = range(
    points.flatMap((point) => point.at.filter(Boolean).flat()),
    { pad: 0.08 },
  );
  const shared = [Math.max(0, both[0]), Math.min(1, both[1])];
  const size = width() < 560 ? width() : Math.max(280, Math.min(350, width() / Math.min(3, panels.length)));
  const used = shownRuns().some((run) => run > 0) ? shownRuns() : [0];
  fill(
    "arrows-panels",
    ...panels.map((panel) =>
      el(
        "figure",
        {},
        el("figcaption", {}, panel.name, el("small", {}, `${panel.points.length}`)),
        arrowPanel({ ...panel, compared: compared() && used.some((run) => run > 0) }, used, shared, size),
      ),
    ),
  );
  $("arrows-about").textContent = compared()
    ? `An arrow a language, from ${DATA.runs[0]} to ${DATA.runs.slice(1).join(" and ")}; bold, the mean of the tier. An arrow to the right is more confidence, upwards more accuracy; in the tinted half the model is surer than it is right.`
    : "A point a language. In the tinted half the model is surer than it is right.";
}

function differences() {
  $("differences").hidden = !compared() || !shownRuns().some((run) => run > 0);
  if ($("differences").hidden) return;
  const b = bench(),
    metric = state.metric,
    runs = shownRuns().filter((run) => run > 0);
  const first = runs[0];
  const rows = shownLanguages().map((l) => ({
    label: l.label,
    differences: b.differences[metric].map((row) => row[l.index]),
    runs: DATA.runs,
  }));
  rows.sort((a, c) => (c.differences[first - 1]?.[0] ?? -9) - (a.differences[first - 1]?.[0] ?? -9));
  const means = b.tiers
    .map((tier, index) => ({
      label: tierName(tier),
      mean: true,
      tier,
      differences: b.tierDifferences[metric].map((row) => row[index]),
      runs: DATA.runs,
    }))
    .filter((row) => state.tier === null || row.tier === state.tier);
  const all = [...rows, ...means].flatMap((row) => runs.map((run) => row.differences[run - 1])).filter(Boolean);
  const shared = range(
    all.flatMap((difference) => difference.slice(0, 3)),
    { zero: true },
  );
  $("differences-title").textContent =
    `Differences in ${(LABELS[metric] || metric).replace(/^[A-Z](?=[a-z])/, (letter) => letter.toLowerCase())} from ${DATA.runs[0]}`;
  fill("differences-chart", forest([...means, ...rows], runs, shared, width(), 3));
}

function diagrams() {
  const b = bench(),
    runs = shownRuns();
  const items = shownLanguages().map((l) => ({
    name: l.label,
    own: l.own,
    bins: b.bins.map((row) => row[l.index]),
    ece: b.values.ece.map((row) => row[l.index]),
    n: Math.max(...b.n.map((row) => row[l.index])),
  }));
  if ($("diagram-order").value === "worst") {
    const worst = (item) => Math.max(...runs.map((run) => item.ece[run]?.[0] ?? 0));
    items.sort((a, c) => worst(c) - worst(a));
  }
  const pooled = b.tiers
    .map((tier, index) => ({
      name: tierName(tier),
      tier,
      note: "pooled questions",
      bins: b.tierBins.map((row) => row[index]),
      ece: b.tierBins.map((row) => row[index] && [binned(row[index]), null, null]),
    }))
    .filter((item) => state.tier === null || item.tier === state.tier);
  fill(
    "diagrams-grid",
    ...[...pooled, ...items].map((item) =>
      el(
        "figure",
        {},
        el(
          "button",
          { type: "button", onclick: () => enlarge(item) },
          el(
            "figcaption",
            {},
            item.name,
            el("small", {}, item.note || item.own || "\u00a0"),
            el(
              "small",
              {},
              "ECE ",
              ...runs.flatMap((run, i) => [
                i ? " · " : "",
                el("span", { class: `ink-${run}` }, fixed(item.ece[run]?.[0], 2)),
              ]),
            ),
          ),
          reliability(item.name, item.bins, runs, 170, DATA.runs),
        ),
      ),
    ),
  );
}

const binned = (bins) => {
  const total = bins.reduce((sum, bin) => sum + bin[2], 0);
  return bins.reduce((sum, bin) => sum + (bin[2] / total) * Math.abs(bin[4] - bin[3]), 0);
};

function enlarge(item) {
  const runs = shownRuns();
  const rows = runs
    .filter((run) => item.bins[run])
    .flatMap((run) =>
      item.bins[run].map((bin) =>
        el(
          "tr",
          {},
          el("td", { class: `ink-${run}` }, DATA.runs[run]),
          el("td", {}, `${fixed(bin[0], 2)} – ${fixed(bin[1], 2)}`),
          el("td", {}, bin[2].toLocaleString("en")),
          el("td", {}, fixed(bin[3])),
          el("td", {}, `${fixed(bin[4])} [${fixed(bin[5])}, ${fixed(bin[6])}]`),
        ),
      ),
    );
  const dialog = $("large");
  dialog.replaceChildren(
    el("button", { class: "close", type: "button", "aria-label": "Close", onclick: () => dialog.close() }, "×"),
    el("h3", {}, item.name, item.own ? ` · ${item.own}` : ""),
    reliability(item.name, item.bins, runs, Math.min(440, document.documentElement.clientWidth - 90), DATA.runs, true),
    el(
      "div",
      { class: "table" },
      el(
        "table",
        {},
        el(
          "thead",
          {},
          el(
            "tr",
            {},
            ...["Run", "Confidence", "Questions", "Mean confidence", "Accuracy"].map((name) => el("th", {}, name)),
          ),
        ),
        el("tbody", {}, ...rows),
      ),
    ),
  );
  dialog.showModal();
}

function selective() {
  const b = bench();
  const panels = b.tiers.length
    ? b.tiers.map((tier, index) => ({ name: tierName(tier), tier, curves: b.tierCurves.map((row) => row[index]) }))
    : b.languages.map((l, index) => ({ name: l.label, tier: l.tier, curves: b.curves.map((row) => row[index]) }));
  const shown = panels.filter((panel) => state.tier === null || panel.tier === state.tier);
  const values = shown.flatMap((panel) => shownRuns().flatMap((run) => (panel.curves[run] || []).slice(2)));
  const shared = range(values);
  const size = width() < 560 ? width() : Math.max(236, Math.min(350, width() / Math.min(4, shown.length)));
  fill(
    "selective-panels",
    ...shown.map((panel) =>
      el(
        "figure",
        {},
        el("figcaption", {}, panel.name),
        curvePanel(
          panel.name,
          panel.curves,
          shownRuns(),
          [Math.max(0, shared[0]), Math.min(1, shared[1])],
          size,
          DATA.runs,
        ),
      ),
    ),
  );
}
