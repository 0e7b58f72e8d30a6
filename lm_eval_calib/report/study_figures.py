"""Figures of a study: what smoothing does to each metric, a line a tier, beside the base model's level."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lm_eval_calib.report.study_stats import Comparison
from lm_eval_calib.report.study_text import NAMES

METRICS = ("acc", "confidence", "ece")
COLOURS = {"high": "#1b6ca8", "mid": "#c77c11", "low": "#a3263a", "unknown": "#6b6b6b"}
Row = Mapping[str, Any]


def draw(table: Sequence[Row], comparison: Comparison, out: Path) -> Path | None:
    """Draw one benchmark under one normalisation, and return the PNG's path (a PDF lies beside it).

    None where no tuned model has results yet.
    """
    from matplotlib.figure import Figure

    benchmark, normalization = comparison.questions.benchmark, comparison.normalization
    own = [row for row in table if row["benchmark"] == benchmark and row["normalization"] == normalization]
    settings = list(dict.fromkeys((r["instruction_set"], r["learning_rate"]) for r in own if r["instruction_set"]))
    if not settings:
        return None
    factors = sorted({r["label_smoothing"] for r in own if r["label_smoothing"] is not None})
    span = max(factors) - min(factors) or 1.0
    shown = {r["scope"] for r in own}
    figure = Figure(figsize=(3.1 * len(METRICS) + 1.2, 2.5 * len(settings) + 0.7), layout="constrained")
    axes = figure.subplots(len(settings), len(METRICS), squeeze=False, sharey="col")
    for line, (data, rate) in enumerate(settings):
        for column, metric in enumerate(METRICS):
            axis = axes[line][column]
            for place, (scope, colour) in enumerate((s, c) for s, c in COLOURS.items() if s in shown):
                levels = [r for r in own if (r["comparison"], r["scope"], r["metric"]) == ("level", scope, metric)]
                tuned = [r for r in levels if (r["instruction_set"], r["learning_rate"]) == (data, rate)]
                tuned.sort(key=lambda r: r["label_smoothing"])
                # A little apart, so that no interval hides another.
                x = [r["label_smoothing"] + (place - 1.5) * 0.015 * span for r in tuned]
                y = [r["value"] for r in tuned]
                error = [r["high"] - r["value"] for r in tuned]
                axis.errorbar(x, y, yerr=error, color=colour, marker="o", ms=4, lw=1.4, capsize=2, label=scope)
                for base in levels:
                    if base["instruction_set"] is None:
                        axis.axhline(base["value"], color=colour, ls=":", lw=1.1)
            axis.set_xticks(factors)
            axis.grid(alpha=0.25, lw=0.5)
            axis.spines[["top", "right"]].set_visible(False)
            if line == 0:
                axis.set_title(NAMES[metric], fontsize=10)
            if column == 0:
                axis.set_ylabel(f"{data}\nlearning rate {rate:g}", fontsize=9)
            if line == len(settings) - 1:
                axis.set_xlabel("label smoothing", fontsize=9)
            axis.tick_params(labelsize=8)
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper", fontsize=8, title="tier", title_fontsize=8, frameon=False)
    figure.suptitle(f"{benchmark}, normalisation {normalization} (dotted: before tuning)", fontsize=10)
    path = out / f"study-{benchmark}-{normalization}.png"
    figure.savefig(path, dpi=150)
    figure.savefig(path.with_suffix(".pdf"))
    return path
