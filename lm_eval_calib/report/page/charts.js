// The figures, drawn as SVG from arrays.
"use strict";

// Accuracy (solid) and confidence (open) of each run on one line: the distance is the overconfidence.
function gapChart(groups, runs, width) {
  const narrow = width < 560;
  const left = narrow ? 98 : 124,
    right = narrow ? 52 : 190,
    row = 22,
    head = 26,
    pad = 14;
  const height = groups.length * (runs.length * row + pad) + head + 18;
  const all = groups.flatMap((group) =>
    ["acc", "confidence"].flatMap((metric) => runs.flatMap((run) => group.values[metric]?.[run] || [])),
  );
  const ends = [
    Math.floor(all.reduce((a, b) => Math.min(a, b), 1) * 10) / 10,
    Math.ceil(all.reduce((a, b) => Math.max(a, b), 0) * 10) / 10,
  ];
  const x = scale(ends[0], ends[1], left, width - right);
  const root = picture(width, height, "Accuracy and confidence of each run by resource tier");
  for (const value of ticks(ends[0], ends[1], narrow ? 4 : 6)) {
    root.append(line(x(value), head - 8, x(value), height - 20, { class: "grid" }));
    root.append(text(x(value), height - 6, tickText(value), { class: "tick", "text-anchor": "middle" }));
  }
  root.append(text(width - right + 14, 12, narrow ? "ECE" : "ECE with 95 % interval", { class: "tick" }));
  let y = head;
  for (const group of groups) {
    root.append(text(0, y + row / 2 + 1, group.name, { class: "label strong" }));
    root.append(text(0, y + row / 2 + 15, group.note, { class: "tick" }));
    for (const run of runs) {
      const [acc, conf, ece] = ["acc", "confidence", "ece"].map((metric) => group.values[metric]?.[run]);
      if (acc && conf) {
        const middle = y + row / 2;
        root.append(line(x(acc[0]), middle, x(conf[0]), middle, { class: `gap run-${run}` }));
        root.append(line(x(acc[1]), middle, x(acc[2]), middle, { class: `whisker run-${run}` }));
        const tip = `${group.run[run]} · ${group.name}\naccuracy ${span(acc)}\nconfidence ${span(conf)}\nECE ${span(ece)}`;
        root.append(marker(run, x(acc[0]), middle, 4.6, { "data-tip": tip }));
        root.append(marker(run, x(conf[0]), middle, 4.6, { class: `mark open run-${run}`, "data-tip": tip }));
        root.append(
          text(width - right + 14, middle + 4, narrow ? fixed(ece?.[0]) : span(ece), { class: `value ink-${run}` }),
        );
      }
      y += row;
    }
    y += pad;
  }
  return root;
}

// One panel a tier: an arrow a language from the baseline to a run, and the mean of the tier in bold.
function arrowPanel(panel, runs, range, size) {
  const left = 34,
    bottom = 34,
    top = 8,
    right = 8;
  const x = scale(range[0], range[1], left, size - right),
    y = scale(range[0], range[1], size - bottom, top);
  const root = picture(size, size, `Confidence against accuracy, ${panel.name}`);
  root.append(
    s("path", {
      d: `M${x(range[0])} ${y(range[0])}L${x(range[1])} ${y(range[1])}L${x(range[1])} ${y(range[0])}Z`,
      class: "over",
    }),
  );
  for (const value of ticks(range[0], range[1], 4)) {
    root.append(line(x(value), y(range[0]), x(value), y(range[1]), { class: "grid" }));
    root.append(line(x(range[0]), y(value), x(range[1]), y(value), { class: "grid" }));
    root.append(text(x(value), size - bottom + 14, tickText(value), { class: "tick", "text-anchor": "middle" }));
    root.append(text(left - 6, y(value) + 4, tickText(value), { class: "tick", "text-anchor": "end" }));
  }
  root.append(line(x(range[0]), y(range[0]), x(range[1]), y(range[1]), { class: "diagonal" }));
  root.append(text((left + size - right) / 2, size - 4, "confidence", { class: "tick", "text-anchor": "middle" }));
  root.append(text(left + 5, top + 12, "accuracy", { class: "tick" }));
  const mean = (points, run) => {
    const known = points.filter((point) => point.at[run] && point.at[0]);
    const average = (r, axis) => known.reduce((sum, point) => sum + point.at[r][axis], 0) / known.length;
    return known.length > 1 ? [average(0, 0), average(0, 1), average(run, 0), average(run, 1)] : null;
  };
  if ((runs.length === 1 && runs[0] === 0) || !panel.compared) {
    for (const run of runs)
      for (const point of panel.points) {
        if (point.at[run])
          root.append(
            marker(run, x(point.at[run][0]), y(point.at[run][1]), 4, {
              class: `mark soft run-${run}`,
              "data-tip": point.tip(run),
              "data-language": point.key,
            }),
          );
      }
    return root;
  }
  for (const run of runs.filter((candidate) => candidate > 0)) {
    for (const point of panel.points) {
      if (!point.at[run] || !point.at[0]) continue;
      const [x1, y1] = [x(point.at[0][0]), y(point.at[0][1])],
        [x2, y2] = [x(point.at[run][0]), y(point.at[run][1])];
      root.append(
        s(
          "g",
          { class: `arrow run-${run}`, "data-tip": point.tip(run), "data-language": point.key },
          line(x1, y1, x2, y2, { class: "hit" }),
          line(x1, y1, x2, y2),
          s("circle", { cx: x1, cy: y1, r: 1.8, class: "mark run-0" }),
          head(x1, y1, x2, y2, 5),
        ),
      );
    }
  }
  for (const run of runs.filter((candidate) => candidate > 0)) {
    const m = mean(panel.points, run);
    if (!m) continue;
    const [x1, y1, x2, y2] = [x(m[0]), y(m[1]), x(m[2]), y(m[3])];
    root.append(
      s(
        "g",
        {
          class: `arrow bold run-${run}`,
          "data-tip": `Mean of ${panel.points.length} languages\nconfidence ${fixed(m[0])} → ${fixed(m[2])}\naccuracy ${fixed(m[1])} → ${fixed(m[3])}`,
        },
        line(x1, y1, x2, y2, { class: "halo" }),
        line(x1, y1, x2, y2),
        s("circle", { cx: x1, cy: y1, r: 4, class: "mark run-0" }),
        head(x1, y1, x2, y2, 11),
      ),
    );
  }
  return root;
}

// Rows of a bin: lower, upper, count, confidence, accuracy, low, high.
function reliability(title, perRun, runs, size, names, detailed = false) {
  const left = detailed ? 38 : 20,
    bottom = detailed ? 36 : 18,
    top = 6,
    right = 6;
  const x = scale(0, 1, left, size - right),
    y = scale(0, 1, size - bottom, top);
  const root = picture(size, size, `Reliability diagram, ${title}`);
  for (const value of detailed ? [0, 0.2, 0.4, 0.6, 0.8, 1] : [0, 0.5, 1]) {
    root.append(
      line(x(value), y(0), x(value), y(1), { class: "grid" }),
      line(x(0), y(value), x(1), y(value), { class: "grid" }),
    );
    root.append(
      text(x(value), size - bottom + 13, tickText(value), {
        class: "tick",
        "text-anchor": value === 0 ? "start" : value === 1 ? "end" : "middle",
      }),
    );
    if (value > 0 || detailed)
      root.append(
        text(left - 4, y(value) + (value === 1 ? 8 : 4), tickText(value), { class: "tick", "text-anchor": "end" }),
      );
  }
  if (detailed) {
    root.append(text((left + size) / 2, size - 4, "confidence", { class: "tick", "text-anchor": "middle" }));
    root.append(text(left + 6, top + 13, "accuracy", { class: "tick" }));
  }
  root.append(line(x(0), y(0), x(1), y(1), { class: "diagonal" }));
  const shown = runs.filter((run) => perRun[run]);
  if (shown.length > 1) root.classList.add("several");
  const most = Math.max(...shown.flatMap((run) => perRun[run].map((bin) => bin[2])), 1);
  for (const run of shown) {
    for (const [lower, upper, count] of perRun[run]) {
      const slot = (x(upper) - x(lower)) / shown.length;
      const high = (y(0) - y(0.17)) * (count / most);
      root.append(
        s("rect", {
          x: x(lower) + shown.indexOf(run) * slot + 0.4,
          y: y(0) - high,
          width: Math.max(slot - 0.8, 0.5),
          height: high,
          class: `count run-${run}`,
        }),
      );
    }
  }
  if (shown.length > 1)
    for (const run of shown) {
      const total = perRun[run].reduce((sum, bin) => sum + bin[2], 0);
      const firm = perRun[run].filter((bin) => bin[2] >= 0.012 * total);
      if (firm.length)
        root.append(
          s("path", {
            d: "M" + firm.map((bin) => `${x(bin[3]).toFixed(1)} ${y(bin[4]).toFixed(1)}`).join("L"),
            class: `trend run-${run}`,
          }),
        );
    }
  for (const run of shown) {
    const total = perRun[run].reduce((sum, bin) => sum + bin[2], 0);
    for (const [lower, upper, count, confidence, accuracy, low, high] of perRun[run]) {
      // A bin of few questions says little: it fades.
      const strength = Math.max(0.16, Math.min(1, Math.sqrt(count / Math.max(0.03 * total, 5))));
      root.append(
        s(
          "g",
          {
            opacity: strength.toFixed(2),
            "data-tip": `${names[run]}\nconfidence ${fixed(lower, 2)} to ${fixed(upper, 2)}: ${count.toLocaleString("en")} questions\nmean confidence ${fixed(confidence)}\naccuracy ${fixed(accuracy)} [${fixed(low)}, ${fixed(high)}]`,
          },
          line(x(confidence), y(low), x(confidence), y(high), { class: `whisker run-${run}` }),
          marker(
            run,
            x(confidence),
            y(accuracy),
            (detailed ? 2.6 : 1.6) + (detailed ? 5 : 3) * Math.sqrt(count / total),
          ),
        ),
      );
    }
  }
  return root;
}

// Differences with intervals, one row a language; filled where significant after correction.
function forest(rows, runs, range, width, digits) {
  const left = width < 560 ? 104 : 170,
    right = 12,
    top = 24;
  const step = Math.max(15, 8 * runs.length + 4);
  const height = top + rows.reduce((sum, row) => sum + (row.mean ? step + 12 : step), 0) + 22;
  const x = scale(range[0], range[1], left, width - right);
  const root = picture(width, height, "Differences from the baseline by language");
  for (const value of ticks(range[0], range[1], width < 560 ? 6 : 8)) {
    root.append(line(x(value), top - 8, x(value), height - 18, { class: value === 0 ? "zero" : "grid" }));
    root.append(
      text(x(value), height - 4, signed(value, digits).replace(/0+$/, "").replace(/\.$/, ""), {
        class: "tick",
        "text-anchor": "middle",
      }),
    );
  }
  let y = top;
  for (const row of rows) {
    if (row.mean) y += 10;
    root.append(
      text(left - 12, y + step / 2 + 4, row.label, {
        class: row.mean ? "label strong" : "label",
        "text-anchor": "end",
      }),
    );
    runs.forEach((run, index) => {
      const difference = row.differences[run - 1];
      if (!difference) return;
      const at = y + (step * (index + 1)) / (runs.length + 1);
      const clip = (value) => x(Math.max(range[0], Math.min(range[1], value)));
      const significant = difference[3] !== null && difference[3] < 0.05;
      const [low, high] = [difference[1] ?? difference[0], difference[2] ?? difference[0]];
      root.append(
        s(
          "g",
          {
            "data-tip": `${row.label} · ${row.runs[run]}\n${signed(difference[0])} [${signed(low)}, ${signed(high)}]\n${row.mean ? "p" : "corrected p"} ${difference[3] === null ? "–" : difference[3] < 0.001 ? "< 0.001" : difference[3].toFixed(3)}`,
          },
          line(clip(low), at, clip(high), at, { class: `${row.mean ? "bar" : "whisker"} run-${run}` }),
          marker(run, clip(difference[0]), at, row.mean ? 4.8 : 3.2, {
            class: `mark ${significant ? "" : "open "}run-${run}`,
          }),
        ),
      );
    });
    y += step + (row.mean ? 2 : 0);
  }
  return root;
}

// Accuracy among the most confident share of the questions.
function curvePanel(name, curves, runs, range, size, names) {
  const left = 34,
    bottom = 34,
    top = 8,
    right = 10,
    height = Math.round(size * 0.8);
  const x = scale(0, 1, left, size - right),
    y = scale(range[0], range[1], height - bottom, top);
  const root = picture(size, height, `Accuracy by coverage, ${name}`);
  for (const value of [0, 0.25, 0.5, 0.75, 1]) {
    root.append(line(x(value), y(range[0]), x(value), y(range[1]), { class: "grid" }));
    root.append(text(x(value), height - bottom + 14, `${value * 100}%`, { class: "tick", "text-anchor": "middle" }));
  }
  for (const value of ticks(range[0], range[1], 4)) {
    root.append(line(x(0), y(value), x(1), y(value), { class: "grid" }));
    root.append(text(left - 6, y(value) + 4, tickText(value), { class: "tick", "text-anchor": "end" }));
  }
  root.append(
    text((left + size - right) / 2, height - 3, "answered (most confident first)", {
      class: "tick",
      "text-anchor": "middle",
    }),
  );
  for (const run of runs.filter((candidate) => curves[candidate])) {
    const points = curves[run].map((value, index) => [x((index + 1) / curves[run].length), y(value)]);
    root.append(
      s("path", {
        d: "M" + points.map((point) => point.map((v) => v.toFixed(1)).join(" ")).join("L"),
        class: `curve run-${run}`,
      }),
    );
    curves[run].forEach((value, index) => {
      if ((index + 1) % 5) return;
      root.append(
        marker(run, points[index][0], points[index][1], 2.6, {
          "data-tip": `${names[run]} · ${name}\nanswering ${Math.round(((index + 1) / curves[run].length) * 100)}%: accuracy ${fixed(value)}`,
        }),
      );
    });
  }
  return root;
}
