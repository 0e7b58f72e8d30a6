// What is shown, and the sections that follow from it.
"use strict";

const DATA = JSON.parse(document.getElementById("data").textContent);
const $ = (id) => document.getElementById(id);
const LABELS = {
  acc: "Accuracy", confidence: "Confidence", overconfidence: "Overconfidence", ece: "ECE", rms_ce: "RMS calibration error", ace: "ACE (equal mass)", mce: "MCE",
  classwise_ece: "Classwise ECE", rms_ce_debiased: "RMS calibration error, debiased", ece_sweep: "ECE (sweep)", smooth_ece: "Smooth ECE", brier: "Brier score",
  brier_reliability: "Brier reliability", brier_resolution: "Brier resolution", brier_uncertainty: "Brier uncertainty", nll: "NLL", entropy: "Entropy", auroc: "AUROC",
  aurc: "AURC", accuracy_at_coverage: "Accuracy at 80 % coverage",
};
const state = { benchmark: 0, runs: new Set(DATA.runs.map((_, run) => run)), tier: null, metric: "ece", sort: { key: "tier", down: false }, search: "" };

const bench = () => DATA.benchmarks[state.benchmark];
const shownRuns = () => DATA.runs.map((_, run) => run).filter((run) => state.runs.has(run));
const compared = () => DATA.runs.length > 1;
const shownLanguages = () => bench().languages.map((language, index) => ({ ...language, index })).filter((language) => state.tier === null || language.tier === state.tier);
const width = () => Math.min(1064, Math.max(288, document.documentElement.clientWidth - (document.documentElement.clientWidth <= 640 ? 32 : 56)));
const tierName = (tier) => (tier === "all" ? "All languages" : `${tier[0].toUpperCase()}${tier.slice(1)}-resource`);
const metricName = (metric) => `${LABELS[metric] || metric}${DATA.metrics[metric]?.arrow ? ` ${DATA.metrics[metric].arrow}` : ""}`;

function fill(id, ...nodes) { $(id).replaceChildren(...nodes); }

function range(values, { zero = false, pad = 0.06 } = {}) {
  const known = values.filter((value) => value !== null && value !== undefined && Number.isFinite(value));
  if (zero) known.push(0);
  if (!known.length) return [0, 1];
  let [lo, hi] = [known.reduce((a, b) => Math.min(a, b)), known.reduce((a, b) => Math.max(a, b))];
  const space = (hi - lo || 0.1) * pad;
  return [zero && lo === 0 ? 0 : lo - space, zero && hi === 0 ? 0 : hi + space];
}

function controls() {
  fill("runs", ...DATA.runs.map((name, run) => el("button", {
    class: "chip", type: "button", "aria-pressed": String(state.runs.has(run)), title: name,
    onclick: () => { state.runs.has(run) && state.runs.size > 1 ? state.runs.delete(run) : state.runs.add(run); render(); },
  }, s("svg", { width: 13, height: 13, viewBox: "0 0 13 13", "aria-hidden": "true" }, marker(run, 6.5, 6.5, 4.6)), el("span", {}, name))));
  $("runs").hidden = !compared();
  $("benchmark-control").hidden = DATA.benchmarks.length < 2;
  fill("benchmark", ...DATA.benchmarks.map((benchmark, index) => el("option", { value: index, selected: index === state.benchmark }, benchmark.name)));
  const tiers = bench().tiers.filter((tier) => tier !== "all");
  $("tiers").hidden = tiers.length < 2;
  fill("tiers", ...[null, ...tiers].map((tier) => el("button", {
    class: "chip", type: "button", "aria-pressed": String(state.tier === tier), onclick: () => { state.tier = tier; render(); },
  }, el("span", {}, tier === null ? "all tiers" : tier))));
  fill("metric", ...Object.keys(DATA.metrics).map((metric) => el("option", { value: metric, selected: metric === state.metric }, metricName(metric))));
  document.querySelector("nav").hidden = !compared() && DATA.benchmarks.length < 2 && tiers.length < 2;
}

function overview() {
  const b = bench();
  const groups = b.tiers.map((tier, index) => ({
    name: tierName(tier), note: `${b.tierSizes[index]} language${b.tierSizes[index] === 1 ? "" : "s"}`, tier, run: DATA.runs,
    values: Object.fromEntries(["acc", "confidence", "ece"].map((metric) => [metric, b.tierValues[metric].map((row) => row[index])])),
  })).filter((group) => state.tier === null || group.tier === "all" || group.tier === state.tier);
  if (!groups.length) {
    groups.push(...b.languages.map((language, index) => ({
      name: language.label, note: `${b.n.map((row) => row[index]).reduce((a, c) => Math.max(a, c), 0).toLocaleString("en")} questions`, run: DATA.runs,
      values: Object.fromEntries(["acc", "confidence", "ece"].map((metric) => [metric, b.values[metric].map((row) => row[index])])),
    })));
  }
  fill("overview-chart", gapChart(groups, shownRuns(), width()));
}

function arrows() {
  const b = bench(), languages = shownLanguages();
  const points = languages.map((language) => ({
    key: language.label, tier: language.tier,
    at: b.values.acc.map((row, run) => (row[language.index] ? [b.values.confidence[run][language.index][0], row[language.index][0]] : null)),
    tip(run) {
      const told = [language.label + (language.own ? ` · ${language.own}` : "")];
      for (const r of run > 0 && compared() ? [0, run] : [run]) if (this.at[r]) told.push(`${DATA.runs[r]}: confidence ${fixed(this.at[r][0])}, accuracy ${fixed(this.at[r][1])}`);
      return told.join("\n");
    },
  }));
  const tiers = b.tiers.filter((tier) => tier !== "all" && (state.tier === null || tier === state.tier));
  const panels = tiers.length ? tiers.map((tier) => ({ name: tierName(tier), points: points.filter((point) => point.tier === tier) })) : [{ name: b.name, points }];
  const unknown = points.filter((point) => !point.tier);
  if (tiers.length && unknown.length && state.tier === null) panels.push({ name: "Unknown tier", points: unknown });
  const both = range(points.flatMap((point) => point.at.filter(Boolean).flat()), { pad: 0.08 });
  const shared = [Math.max(0, both[0]), Math.min(1, both[1])];
  const size = width() < 560 ? width() : Math.max(280, Math.min(350, width() / Math.min(3, panels.length)));
  const used = shownRuns().some((run) => run > 0) ? shownRuns() : [0];
  fill("arrows-panels", ...panels.map((panel) => el("figure", {}, el("figcaption", {}, panel.name, el("small", {}, `${panel.points.length}`)),
    arrowPanel({ ...panel, compared: compared() && used.some((run) => run > 0) }, used, shared, size))));
  $("arrows-about").textContent = compared()
    ? `An arrow a language, from ${DATA.runs[0]} to ${DATA.runs.slice(1).join(" and ")}; bold, the mean of the tier. An arrow to the right is more confidence, upwards more accuracy; in the tinted half the model is surer than it is right.`
    : "A point a language. In the tinted half the model is surer than it is right.";
}

function direction(difference, metric) {
  const better = { "↑": 1, "↓": -1 }[DATA.metrics[metric].arrow] || 0;
  if (difference[3] === null || difference[3] >= 0.05 || !better) return "";
  return Math.sign(difference[0]) === better ? "better" : "worse";
}

function languageTable() {
  const b = bench(), runs = shownRuns(), others = runs.filter((run) => run > 0), metric = state.metric;
  // Runs side by side for one metric; of a single run, several metrics.
  const columns = compared() ? runs.map((run) => ({ run, metric, name: DATA.runs[run] }))
    : [...new Set(["acc", "confidence", metric])].map((shown) => ({ run: 0, metric: shown, name: metricName(shown) }));
  for (const column of columns) {
    const same = columns.filter((other) => other.metric === column.metric).map((other) => other.run);
    const all = same.flatMap((run) => [...b.values[column.metric][run], ...(b.tierValues[column.metric][run] || [])]).filter(Boolean);
    column.range = range(all.flat(), { zero: DATA.metrics[column.metric].range[0] === 0 && !["acc", "confidence", "auroc"].includes(column.metric) });
  }
  const order = { high: 0, mid: 1, low: 2 }, several = new Set(b.n.flat()).size > 1;
  const keys = {
    language: (l) => l.label, tier: (l) => [order[l.tier] ?? 3, l.label], n: (l) => Math.max(...b.n.map((row) => row[l.index])),
    ...Object.fromEntries(columns.map((column, i) => [`value-${i}`, (l) => b.values[column.metric][column.run][l.index]?.[0] ?? -Infinity])),
    ...Object.fromEntries(others.map((run) => [`difference-${run}`, (l) => b.differences[metric][run - 1][l.index]?.[0] ?? -Infinity])),
  };
  if (!keys[state.sort.key]) state.sort = { key: "tier", down: false };
  const wanted = state.search.trim().toLowerCase();
  const rows = shownLanguages().filter((l) => !wanted || [l.label, l.own, l.code].some((word) => word && word.toLowerCase().includes(wanted)));
  const compare = (a, c) => (typeof a === "string" ? a.localeCompare(c) : Array.isArray(a) ? a[0] - c[0] || a[1].localeCompare(c[1]) : a - c);
  rows.sort((a, c) => compare(keys[state.sort.key](a), keys[state.sort.key](c)) * (state.sort.down ? -1 : 1));
  const header = (key, label, attributes = {}) => el("th", { "aria-sort": state.sort.key === key ? (state.sort.down ? "descending" : "ascending") : "none", scope: "col", ...attributes },
    el("button", { type: "button", onclick: () => { state.sort = { key, down: state.sort.key === key ? !state.sort.down : key.includes("-") }; languageTable(); } }, label));
  const valueCell = (triple, { run, metric: shown, range: shared }) => el("td", {}, el("span", { class: "cell", "data-tip": triple ? `${DATA.runs[run]} · ${metricName(shown)}\n${span(triple)}` : null },
    fixed(triple?.[0]), glyph(triple, run, shared, width() < 560 ? 52 : columns.length > 2 ? 68 : 90)));
  const differenceCell = (difference, corrected) => {
    if (!difference) return el("td", {}, "–");
    const verdict = direction(difference, metric), p = difference[3], significant = p !== null && p < 0.05;
    const tip = `${signed(difference[0])} [${signed(difference[1])}, ${signed(difference[2])}]\n${corrected ? "corrected p" : "p"} ${p === null ? "–" : p < 0.001 ? "< 0.001" : p.toFixed(3)}${verdict ? `\n${verdict}` : ""}`;
    return el("td", { class: significant ? "up" : "weak", "data-tip": tip }, signed(difference[0]), significant ? " *" : "");
  };
  const body = el("tbody");
  if (!wanted) b.tiers.forEach((tier, index) => {
    if (state.tier !== null && tier !== state.tier) return;
    body.append(el("tr", { class: "mean" }, el("td", {}, tierName(tier)), el("td", { class: "left" }, el("small", {}, `${b.tierSizes[index]} lang.`)), several ? el("td", {}, "") : null,
      ...columns.map((column) => valueCell(b.tierValues[column.metric][column.run][index], column)), ...others.map((run) => differenceCell(b.tierDifferences[metric][run - 1][index], false))));
  });
  for (const l of rows) {
    body.append(el("tr", {}, el("td", { title: l.code || l.label }, l.label, l.own ? el("small", { class: "own", lang: l.code?.slice(0, 2) }, l.own) : null),
      el("td", { class: "left" }, l.tier ? el("span", { class: `tier tier-${l.tier}` }, l.tier) : "–"), several ? el("td", {}, keys.n(l).toLocaleString("en")) : null,
      ...columns.map((column) => valueCell(b.values[column.metric][column.run][l.index], column)), ...others.map((run) => differenceCell(b.differences[metric][run - 1][l.index], true))));
  }
  const head = el("tr", {}, header("language", "Language"), header("tier", "Tier", { class: "left" }), several ? header("n", "Questions") : null,
    ...columns.map((column, i) => header(`value-${i}`, column.name)), ...others.map((run) => header(`difference-${run}`, `${DATA.runs[run]} − ${DATA.runs[0]}`)));
  fill("language-table", el("thead", {}, head), body);
  const count = several ? "" : ` ${Math.max(...b.n.flat()).toLocaleString("en")} questions in each.`;
  $("languages-about").textContent = compared()
    ? `${LABELS[metric] || metric} with its 95 % interval, and the difference from ${DATA.runs[0]} on the same questions; * is significant at 5 % after correction over languages.${count} Select a heading to sort.`
    : `Values with their 95 % intervals.${count} Select a heading to sort.`;
}

function differences() {
  $("differences").hidden = !compared() || !shownRuns().some((run) => run > 0);
  if ($("differences").hidden) return;
  const b = bench(), metric = state.metric, runs = shownRuns().filter((run) => run > 0);
  const first = runs[0];
  const rows = shownLanguages().map((l) => ({ label: l.label, differences: b.differences[metric].map((row) => row[l.index]), runs: DATA.runs }));
  rows.sort((a, c) => (c.differences[first - 1]?.[0] ?? -9) - (a.differences[first - 1]?.[0] ?? -9));
  const means = b.tiers.map((tier, index) => ({ label: tierName(tier), mean: true, tier, differences: b.tierDifferences[metric].map((row) => row[index]), runs: DATA.runs }))
    .filter((row) => state.tier === null || row.tier === state.tier);
  const all = [...rows, ...means].flatMap((row) => runs.map((run) => row.differences[run - 1])).filter(Boolean);
  const shared = range(all.flatMap((difference) => difference.slice(0, 3)), { zero: true });
  $("differences-title").textContent = `Differences in ${(LABELS[metric] || metric).replace(/^[A-Z](?=[a-z])/, (letter) => letter.toLowerCase())} from ${DATA.runs[0]}`;
  fill("differences-chart", forest([...means, ...rows], runs, shared, width(), 3));
}

function diagrams() {
  const b = bench(), runs = shownRuns();
  const items = shownLanguages().map((l) => ({ name: l.label, own: l.own, bins: b.bins.map((row) => row[l.index]), ece: b.values.ece.map((row) => row[l.index]), n: Math.max(...b.n.map((row) => row[l.index])) }));
  if ($("diagram-order").value === "worst") {
    const worst = (item) => Math.max(...runs.map((run) => item.ece[run]?.[0] ?? 0));
    items.sort((a, c) => worst(c) - worst(a));
  }
  const pooled = b.tiers.map((tier, index) => ({ name: tierName(tier), tier, note: "pooled questions", bins: b.tierBins.map((row) => row[index]), ece: b.tierBins.map((row) => row[index] && [binned(row[index]), null, null]) }))
    .filter((item) => state.tier === null || item.tier === state.tier);
  fill("diagrams-grid", ...[...pooled, ...items].map((item) => el("figure", {}, el("button", { type: "button", onclick: () => enlarge(item) },
    el("figcaption", {}, item.name, el("small", {}, item.note || item.own || "\u00a0"), el("small", {}, "ECE ", ...runs.flatMap((run, i) => [i ? " · " : "", el("span", { class: `ink-${run}` }, fixed(item.ece[run]?.[0], 2))]))),
    reliability(item.name, item.bins, runs, 170, DATA.runs)))));
}

const binned = (bins) => { const total = bins.reduce((sum, bin) => sum + bin[2], 0); return bins.reduce((sum, bin) => sum + (bin[2] / total) * Math.abs(bin[4] - bin[3]), 0); };

function enlarge(item) {
  const runs = shownRuns();
  const rows = runs.filter((run) => item.bins[run]).flatMap((run) => item.bins[run].map((bin) => el("tr", {}, el("td", { class: `ink-${run}` }, DATA.runs[run]), el("td", {}, `${fixed(bin[0], 2)} – ${fixed(bin[1], 2)}`),
    el("td", {}, bin[2].toLocaleString("en")), el("td", {}, fixed(bin[3])), el("td", {}, `${fixed(bin[4])} [${fixed(bin[5])}, ${fixed(bin[6])}]`))));
  const dialog = $("large");
  dialog.replaceChildren(el("button", { class: "close", type: "button", "aria-label": "Close", onclick: () => dialog.close() }, "×"), el("h3", {}, item.name, item.own ? ` · ${item.own}` : ""),
    reliability(item.name, item.bins, runs, Math.min(440, document.documentElement.clientWidth - 90), DATA.runs, true),
    el("div", { class: "table" }, el("table", {}, el("thead", {}, el("tr", {}, ...["Run", "Confidence", "Questions", "Mean confidence", "Accuracy"].map((name) => el("th", {}, name)))), el("tbody", {}, ...rows))));
  dialog.showModal();
}

function selective() {
  const b = bench();
  const panels = b.tiers.length ? b.tiers.map((tier, index) => ({ name: tierName(tier), tier, curves: b.tierCurves.map((row) => row[index]) })) : b.languages.map((l, index) => ({ name: l.label, tier: l.tier, curves: b.curves.map((row) => row[index]) }));
  const shown = panels.filter((panel) => state.tier === null || panel.tier === state.tier);
  const values = shown.flatMap((panel) => shownRuns().flatMap((run) => (panel.curves[run] || []).slice(2)));
  const shared = range(values);
  const size = width() < 560 ? width() : Math.max(236, Math.min(350, width() / Math.min(4, shown.length)));
  fill("selective-panels", ...shown.map((panel) => el("figure", {}, el("figcaption", {}, panel.name), curvePanel(panel.name, panel.curves, shownRuns(), [Math.max(0, shared[0]), Math.min(1, shared[1])], size, DATA.runs))));
}

function temperature() {
  const b = bench(), runs = shownRuns();
  const known = b.temperature.flat().filter(Boolean);
  $("temperature").hidden = !known.length;
  if (!known.length) return;
  const shared = range(known.flatMap((told) => [told[1], told[2]]), { zero: true });
  const head = el("thead", {}, el("tr", {}, el("th", {}, "Language"), ...runs.flatMap((run) => [el("th", { class: `ink-${run}` }, compared() ? `${DATA.runs[run]}: T` : "Temperature"),
    el("th", { class: "left" }, "ECE before → after"), compared() ? null : el("th", {}, "NLL before → after")].filter(Boolean))));
  const cells = (told, run) => {
    if (!told) return [el("td", {}, "–"), el("td", {}, ""), compared() ? null : el("td", {}, "")].filter(Boolean);
    const tip = `${DATA.runs[run]} · temperature ${fixed(told[0], 2)}\nECE ${fixed(told[1])} → ${fixed(told[2])}\nNLL ${fixed(told[3])} → ${fixed(told[4])}`;
    return [el("td", {}, told[0] >= 100 ? "≥ 100" : fixed(told[0], told[0] < 10 ? 2 : 0)), el("td", { class: "left", "data-tip": tip }, el("span", { class: "cell" }, dumbbell(told[1], told[2], run, shared, width() < 560 ? 60 : runs.length > 2 ? 72 : 130), `${fixed(told[1])} → ${fixed(told[2])}`)),
      compared() ? null : el("td", {}, `${fixed(told[3], 2)} → ${fixed(told[4], 2)}`)].filter(Boolean);
  };
  const body = el("tbody");
  const languages = shownLanguages();
  b.tiers.forEach((tier) => {
    if (state.tier !== null && tier !== state.tier) return;
    const members = languages.filter((l) => tier === "all" || l.tier === tier);
    const mean = (run) => { const told = members.map((l) => b.temperature[run][l.index]).filter(Boolean); if (!told.length) return null;
      const average = (f) => told.reduce((sum, values) => sum + f(values), 0) / told.length;
      return told[0].map((_, i) => (i ? average((values) => values[i]) : Math.exp(average((values) => Math.log(values[0]))))); };
    body.append(el("tr", { class: "mean" }, el("td", {}, tierName(tier), " ", el("small", {}, "mean")), ...runs.flatMap((run) => cells(mean(run), run))));
  });
  for (const l of languages) body.append(el("tr", {}, el("td", {}, l.label), ...runs.flatMap((run) => cells(b.temperature[run][l.index], run))));
  fill("temperature-table", head, body);
}

function render() {
  for (const draw of [controls, overview, arrows, languageTable, differences, diagrams, selective, temperature]) draw();
}

$("benchmark").addEventListener("change", (event) => { state.benchmark = Number(event.target.value); state.tier = null; render(); });
$("metric").addEventListener("change", (event) => { state.metric = event.target.value; languageTable(); differences(); });
$("search").addEventListener("input", (event) => { state.search = event.target.value; languageTable(); });
$("diagram-order").addEventListener("change", diagrams);
$("large").addEventListener("click", (event) => { if (event.target === $("large")) $("large").close(); });

const tip = $("tip");
document.addEventListener("pointerover", (event) => {
  const target = event.target.closest?.("[data-tip]");
  tip.classList.toggle("on", Boolean(target));
  if (target) tip.textContent = target.dataset.tip;
  const key = target?.dataset.language;
  $("arrows-panels").classList.toggle("lit", Boolean(key));
  for (const node of $("arrows-panels").querySelectorAll("[data-language]")) node.classList.toggle("on", Boolean(key) && node.dataset.language === key);
});
document.addEventListener("pointermove", (event) => {
  if (!tip.classList.contains("on")) return;
  const x = Math.min(event.clientX + 14, innerWidth - tip.offsetWidth - 8), y = event.clientY + 18 + tip.offsetHeight > innerHeight ? event.clientY - tip.offsetHeight - 12 : event.clientY + 18;
  tip.style.transform = `translate(${Math.max(8, x)}px, ${y}px)`;
});

let before = width();
addEventListener("resize", () => { if (width() !== before) { before = width(); render(); } });
if (!DATA.metrics[state.metric]) state.metric = Object.keys(DATA.metrics)[0];
render();
document.documentElement.dataset.ready = "yes";
