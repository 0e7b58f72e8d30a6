// The report's data, what of it is shown, and how it is called.
"use strict";

const $ = (id) => document.getElementById(id);
const DATA = JSON.parse($("data").textContent);
const LABELS = {
  acc: "Accuracy",
  confidence: "Confidence",
  overconfidence: "Overconfidence",
  ece: "ECE",
  rms_ce: "RMS calibration error",
  ace: "ACE (equal mass)",
  mce: "MCE",
  classwise_ece: "Classwise ECE",
  rms_ce_debiased: "RMS calibration error, debiased",
  ece_sweep: "ECE (sweep)",
  smooth_ece: "Smooth ECE",
  brier: "Brier score",
  brier_reliability: "Brier reliability",
  brier_resolution: "Brier resolution",
  brier_uncertainty: "Brier uncertainty",
  nll: "NLL",
  entropy: "Entropy",
  auroc: "AUROC",
  aurc: "AURC",
  accuracy_at_coverage: "Accuracy at 80 % coverage",
};

const state = {
  benchmark: 0,
  runs: new Set(DATA.runs.map((_, run) => run)),
  tier: null,
  metric: "ece",
  sort: { key: "tier", down: false },
  search: "",
};

const bench = () => DATA.benchmarks[state.benchmark];
const shownRuns = () => DATA.runs.map((_, run) => run).filter((run) => state.runs.has(run));
const compared = () => DATA.runs.length > 1;
const shownLanguages = () =>
  bench()
    .languages.map((language, index) => ({ ...language, index }))
    .filter((language) => state.tier === null || language.tier === state.tier);

const width = () =>
  Math.min(
    1064,
    Math.max(288, document.documentElement.clientWidth - (document.documentElement.clientWidth <= 640 ? 32 : 56)),
  );

const tierName = (tier) => (tier === "all" ? "All languages" : `${tier[0].toUpperCase()}${tier.slice(1)}-resource`);
const metricName = (metric) =>
  `${LABELS[metric] || metric}${DATA.metrics[metric]?.arrow ? ` ${DATA.metrics[metric].arrow}` : ""}`;

function fill(id, ...nodes) {
  $(id).replaceChildren(...nodes);
}

function range(values, { zero = false, pad = 0.06 } = {}) {
  const known = values.filter((value) => value !== null && value !== undefined && Number.isFinite(value));
  if (zero) known.push(0);
  if (!known.length) return [0, 1];
  let [lo, hi] = [known.reduce((a, b) => Math.min(a, b)), known.reduce((a, b) => Math.max(a, b))];
  const space = (hi - lo || 0.1) * pad;
  return [zero && lo === 0 ? 0 : lo - space, zero && hi === 0 ? 0 : hi + space];
}
