// The sortable table of languages and the table of temperatures.
"use strict";

function direction(difference, metric) {
  const better = { "↑": 1, "↓": -1 }[DATA.metrics[metric].arrow] || 0;
  if (difference[3] === null || difference[3] >= 0.05 || !better) return "";
  return Math.sign(difference[0]) === better ? "better" : "worse";
}

function languageTable() {
  const b = bench(),
    runs = shownRuns(),
    others = runs.filter((run) => run > 0),
    metric = state.metric;
  // Runs side by side for one metric; of a single run, several metrics.
  const columns = compared()
    ? runs.map((run) => ({ run, metric, name: DATA.runs[run] }))
    : [...new Set(["acc", "confidence", metric])].map((shown) => ({ run: 0, metric: shown, name: metricName(shown) }));
  for (const column of columns) {
    const same = columns.filter((other) => other.metric === column.metric).map((other) => other.run);
    const all = same
      .flatMap((run) => [...b.values[column.metric][run], ...(b.tierValues[column.metric][run] || [])])
      .filter(Boolean);
    column.range = range(all.flat(), {
      zero: DATA.metrics[column.metric].range[0] === 0 && !["acc", "confidence", "auroc"].includes(column.metric),
    });
  }
  const order = { high: 0, mid: 1, low: 2 },
    several = new Set(b.n.flat()).size > 1;
  const keys = {
    language: (l) => l.label,
    tier: (l) => [order[l.tier] ?? 3, l.label],
    n: (l) => Math.max(...b.n.map((row) => row[l.index])),
    ...Object.fromEntries(
      columns.map((column, i) => [`value-${i}`, (l) => b.values[column.metric][column.run][l.index]?.[0] ?? -Infinity]),
    ),
    ...Object.fromEntries(
      others.map((run) => [`difference-${run}`, (l) => b.differences[metric][run - 1][l.index]?.[0] ?? -Infinity]),
    ),
  };
  if (!keys[state.sort.key]) state.sort = { key: "tier", down: false };
  const wanted = state.search.trim().toLowerCase();
  const rows = shownLanguages().filter(
    (l) => !wanted || [l.label, l.own, l.code].some((word) => word && word.toLowerCase().includes(wanted)),
  );
  const compare = (a, c) =>
    typeof a === "string" ? a.localeCompare(c) : Array.isArray(a) ? a[0] - c[0] || a[1].localeCompare(c[1]) : a - c;
  rows.sort((a, c) => compare(keys[state.sort.key](a), keys[state.sort.key](c)) * (state.sort.down ? -1 : 1));
  const header = (key, label, attributes = {}) =>
    el(
      "th",
      {
        "aria-sort": state.sort.key === key ? (state.sort.down ? "descending" : "ascending") : "none",
        scope: "col",
        ...attributes,
      },
      el(
        "button",
        {
          type: "button",
          onclick: () => {
            state.sort = { key, down: state.sort.key === key ? !state.sort.down : key.includes("-") };
            languageTable();
          },
        },
        label,
      ),
    );
  const valueCell = (triple, { run, metric: shown, range: shared }) =>
    el(
      "td",
      {},
      el(
        "span",
        { class: "cell", "data-tip": triple ? `${DATA.runs[run]} · ${metricName(shown)}\n${span(triple)}` : null },
        fixed(triple?.[0]),
        glyph(triple, run, shared, width() < 560 ? 52 : columns.length > 2 ? 68 : 90),
      ),
    );
  const differenceCell = (difference, corrected) => {
    if (!difference) return el("td", {}, "–");
    const verdict = direction(difference, metric),
      p = difference[3],
      significant = p !== null && p < 0.05;
    const tip = `${signed(difference[0])} [${signed(difference[1])}, ${signed(difference[2])}]\n${corrected ? "corrected p" : "p"} ${p === null ? "–" : p < 0.001 ? "< 0.001" : p.toFixed(3)}${verdict ? `\n${verdict}` : ""}`;
    return el(
      "td",
      { class: significant ? "up" : "weak", "data-tip": tip },
      signed(difference[0]),
      significant ? " *" : "",
    );
  };
  const body = el("tbody");
  if (!wanted)
    b.tiers.forEach((tier, index) => {
      if (state.tier !== null && tier !== state.tier) return;
      body.append(
        el(
          "tr",
          { class: "mean" },
          el("td", {}, tierName(tier)),
          el("td", { class: "left" }, el("small", {}, `${b.tierSizes[index]} lang.`)),
          several ? el("td", {}, "") : null,
          ...columns.map((column) => valueCell(b.tierValues[column.metric][column.run][index], column)),
          ...others.map((run) => differenceCell(b.tierDifferences[metric][run - 1][index], false)),
        ),
      );
    });
  for (const l of rows) {
    body.append(
      el(
        "tr",
        {},
        el(
          "td",
          { title: l.code || l.label },
          l.label,
          l.own ? el("small", { class: "own", lang: l.code?.slice(0, 2) }, l.own) : null,
        ),
        el("td", { class: "left" }, l.tier ? el("span", { class: `tier tier-${l.tier}` }, l.tier) : "–"),
        several ? el("td", {}, keys.n(l).toLocaleString("en")) : null,
        ...columns.map((column) => valueCell(b.values[column.metric][column.run][l.index], column)),
        ...others.map((run) => differenceCell(b.differences[metric][run - 1][l.index], true)),
      ),
    );
  }
  const head = el(
    "tr",
    {},
    header("language", "Language"),
    header("tier", "Tier", { class: "left" }),
    several ? header("n", "Questions") : null,
    ...columns.map((column, i) => header(`value-${i}`, column.name)),
    ...others.map((run) => header(`difference-${run}`, `${DATA.runs[run]} − ${DATA.runs[0]}`)),
  );
  fill("language-table", el("thead", {}, head), body);
  const count = several ? "" : ` ${Math.max(...b.n.flat()).toLocaleString("en")} questions in each.`;
  $("languages-about").textContent = compared()
    ? `${LABELS[metric] || metric} with its 95 % interval, and the difference from ${DATA.runs[0]} on the same questions; * is significant at 5 % after correction over languages.${count} Select a heading to sort.`
    : `Values with their 95 % intervals.${count} Select a heading to sort.`;
}

function temperature() {
  const b = bench(),
    runs = shownRuns();
  const known = b.temperature.flat().filter(Boolean);
  $("temperature").hidden = !known.length;
  if (!known.length) return;
  const shared = range(
    known.flatMap((told) => [told[1], told[2]]),
    { zero: true },
  );
  const head = el(
    "thead",
    {},
    el(
      "tr",
      {},
      el("th", {}, "Language"),
      ...runs.flatMap((run) =>
        [
          el("th", { class: `ink-${run}` }, compared() ? `${DATA.runs[run]}: T` : "Temperature"),
          el("th", { class: "left" }, "ECE before → after"),
          compared() ? null : el("th", {}, "NLL before → after"),
        ].filter(Boolean),
      ),
    ),
  );
  const cells = (told, run) => {
    if (!told) return [el("td", {}, "–"), el("td", {}, ""), compared() ? null : el("td", {}, "")].filter(Boolean);
    const tip = `${DATA.runs[run]} · temperature ${fixed(told[0], 2)}\nECE ${fixed(told[1])} → ${fixed(told[2])}\nNLL ${fixed(told[3])} → ${fixed(told[4])}`;
    return [
      el("td", {}, told[0] >= 100 ? "≥ 100" : fixed(told[0], told[0] < 10 ? 2 : 0)),
      el(
        "td",
        { class: "left", "data-tip": tip },
        el(
          "span",
          { class: "cell" },
          dumbbell(told[1], told[2], run, shared, width() < 560 ? 60 : runs.length > 2 ? 72 : 130),
          `${fixed(told[1])} → ${fixed(told[2])}`,
        ),
      ),
      compared() ? null : el("td", {}, `${fixed(told[3], 2)} → ${fixed(told[4], 2)}`),
    ].filter(Boolean);
  };
  const body = el("tbody");
  const languages = shownLanguages();
  b.tiers.forEach((tier) => {
    if (state.tier !== null && tier !== state.tier) return;
    const members = languages.filter((l) => tier === "all" || l.tier === tier);
    const mean = (run) => {
      const told = members.map((l) => b.temperature[run][l.index]).filter(Boolean);
      if (!told.length) return null;
      const average = (f) => told.reduce((sum, values) => sum + f(values), 0) / told.length;
      return told[0].map((_, i) =>
        i ? average((values) => values[i]) : Math.exp(average((values) => Math.log(values[0]))),
      );
    };
    body.append(
      el(
        "tr",
        { class: "mean" },
        el("td", {}, tierName(tier), " ", el("small", {}, "mean")),
        ...runs.flatMap((run) => cells(mean(run), run)),
      ),
    );
  });
  for (const l of languages)
    body.append(el("tr", {}, el("td", {}, l.label), ...runs.flatMap((run) => cells(b.temperature[run][l.index], run))));
  fill("temperature-table", head, body);
}
