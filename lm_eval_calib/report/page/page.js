// Controls, drawing and tooltips.
"use strict";

function controls() {
  fill(
    "runs",
    ...DATA.runs.map((name, run) =>
      el(
        "button",
        {
          class: "chip",
          type: "button",
          "aria-pressed": String(state.runs.has(run)),
          title: name,
          onclick: () => {
            state.runs.has(run) && state.runs.size > 1 ? state.runs.delete(run) : state.runs.add(run);
            render();
          },
        },
        s("svg", { width: 13, height: 13, viewBox: "0 0 13 13", "aria-hidden": "true" }, marker(run, 6.5, 6.5, 4.6)),
        el("span", {}, name),
      ),
    ),
  );
  $("runs").hidden = !compared();
  $("benchmark-control").hidden = DATA.benchmarks.length < 2;
  fill(
    "benchmark",
    ...DATA.benchmarks.map((benchmark, index) =>
      el("option", { value: index, selected: index === state.benchmark }, benchmark.name),
    ),
  );
  const tiers = bench().tiers.filter((tier) => tier !== "all");
  $("tiers").hidden = tiers.length < 2;
  fill(
    "tiers",
    ...[null, ...tiers].map((tier) =>
      el(
        "button",
        {
          class: "chip",
          type: "button",
          "aria-pressed": String(state.tier === tier),
          onclick: () => {
            state.tier = tier;
            render();
          },
        },
        el("span", {}, tier === null ? "all tiers" : tier),
      ),
    ),
  );
  fill(
    "metric",
    ...Object.keys(DATA.metrics).map((metric) =>
      el("option", { value: metric, selected: metric === state.metric }, metricName(metric)),
    ),
  );
  document.querySelector("nav").hidden = !compared() && DATA.benchmarks.length < 2 && tiers.length < 2;
}

function render() {
  for (const draw of [controls, overview, arrows, languageTable, differences, diagrams, selective, temperature]) draw();
}

$("benchmark").addEventListener("change", (event) => {
  state.benchmark = Number(event.target.value);
  state.tier = null;
  render();
});

$("metric").addEventListener("change", (event) => {
  state.metric = event.target.value;
  languageTable();
  differences();
});

$("search").addEventListener("input", (event) => {
  state.search = event.target.value;
  languageTable();
});

$("diagram-order").addEventListener("change", diagrams);

$("large").addEventListener("click", (event) => {
  if (event.target === $("large")) $("large").close();
});

const tip = $("tip");

document.addEventListener("pointerover", (event) => {
  const target = event.target.closest?.("[data-tip]");
  tip.classList.toggle("on", Boolean(target));
  if (target) tip.textContent = target.dataset.tip;
  const key = target?.dataset.language;
  $("arrows-panels").classList.toggle("lit", Boolean(key));
  for (const node of $("arrows-panels").querySelectorAll("[data-language]"))
    node.classList.toggle("on", Boolean(key) && node.dataset.language === key);
});

document.addEventListener("pointermove", (event) => {
  if (!tip.classList.contains("on")) return;
  const x = Math.min(event.clientX + 14, innerWidth - tip.offsetWidth - 8),
    y =
      event.clientY + 18 + tip.offsetHeight > innerHeight ? event.clientY - tip.offsetHeight - 12 : event.clientY + 18;
  tip.style.transform = `translate(${Math.max(8, x)}px, ${y}px)`;
});

let before = width();

addEventListener("resize", () => {
  if (width() !== before) {
    before = width();
    render();
  }
});

if (!DATA.metrics[state.metric]) state.metric = Object.keys(DATA.metrics)[0];

render();

document.documentElement.dataset.ready = "yes";
