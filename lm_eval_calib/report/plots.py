"""The report's figures for papers, drawn with matplotlib from a `Report`; the page draws its own."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from lm_eval_calib.report.figures import COLOR, COLORS, GRID, INK, MUTED, new_figure, plot_small_multiples
from lm_eval_calib.report.scores import Group

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from lm_eval_calib.report.analysis import Report

TIERS = ("high", "mid", "low")
MOST_BENCHMARKS = 12  # the largest ones; the page has them all
_MARKERS = ("o", "D", "s", "^")


def figures_of(report: Report) -> Iterator[tuple[str, Figure]]:
    """Name and figure, benchmark by benchmark; the names of several benchmarks' figures end in the benchmark's."""
    sizes: dict[str, int] = {}
    for group, rows in report.rows.items():
        sizes[group.benchmark] = sizes.get(group.benchmark, 0) + len(rows)
    benchmarks = sorted(sizes, key=lambda name: -sizes[name])[:MOST_BENCHMARKS]
    for benchmark in benchmarks:
        end = f"_{benchmark}" if len(sizes) > 1 else ""
        groups = [group for group in report.cells if group.benchmark == benchmark]
        yield f"reliability{end}", plot_reliability(report, benchmark)
        if len({_key(group) for group in groups}) > 1:
            yield f"reliability_by_language{end}", plot_reliability_by_language(report, benchmark)
        yield f"confidence_accuracy{end}", plot_confidence_accuracy(report, benchmark)
        yield f"selective_prediction{end}", plot_selective(report, benchmark)
        if any(c.group.benchmark == benchmark and c.adjusted for c in report.comparisons):
            yield f"ece_differences{end}", plot_differences(report, benchmark, "ece")


def plot_reliability(report: Report, benchmark: str) -> Figure:
    """Reliability diagrams of a benchmark's pooled questions, and of each tier's."""
    tiers: list[str | None] = [None, *_tiers(report, benchmark)]
    panels: dict[str, Any] = {}
    for tier in tiers:
        runs = {run: report.pooled_rows(run, benchmark, tier) for run in report.runs}
        panels[f"{tier}-resource" if tier else "all questions"] = {
            run if len(report.runs) > 1 else "": report.diagram(rows) for run, rows in runs.items() if len(rows)
        }
    return plot_small_multiples(panels, title=benchmark)


def plot_reliability_by_language(report: Report, benchmark: str) -> Figure:
    """Small multiples: one reliability diagram a language, the runs over each other."""
    panels: dict[str, dict[str, Any]] = {}
    for group in sorted(
        (group for group in report.cells if group.benchmark == benchmark),
        key=lambda group: (TIERS.index(group.tier) if group.tier in TIERS else 3, group.label),
    ):
        run = group.run if len(report.runs) > 1 else ""
        panels.setdefault(group.label, {})[run] = report.diagram(report.rows[group])
    return plot_small_multiples(panels, title=benchmark)


def plot_confidence_accuracy(report: Report, benchmark: str) -> Figure:
    """One point a language and run; arrows lead from the baseline to the other runs, the mean's is bold."""
    tiers: list[str | None] = [*_tiers(report, benchmark)] or [None]
    points: dict[tuple[str, Any], tuple[float, float, str | None]] = {}
    for group, part in report.cells.items():
        if group.benchmark == benchmark:
            points[group.run, _key(group)] = (part.values["confidence"], part.values["acc"], group.tier)
    both = [value for point in points.values() for value in point[:2]]
    low, high = max(0, min(both) - 0.05), min(1, max(both) + 0.05)
    figure = new_figure((3.1 * len(tiers) + 0.6, 3.7))
    axes = figure.subplots(1, len(tiers), squeeze=False, sharey=True)[0]
    for ax, tier in zip(axes, tiers, strict=True):
        _style(ax)
        ax.fill_between([low, high], [low, high], low, color=COLORS[1], alpha=0.06, linewidth=0)
        ax.plot([low, high], [low, high], color=MUTED, linewidth=0.8, linestyle=(0, (4, 3)))
        ax.set(xlim=(low, high), ylim=(low, high), aspect="equal")
        ax.set_xlabel("confidence", fontsize=8, color=MUTED)
        ax.set_title(f"{tier}-resource" if tier else benchmark, fontsize=9, loc="left", color=INK)
        mine = {key: point for key, point in points.items() if tier in (None, point[2])}
        _arrows(ax, mine, report.runs)
    axes[0].set_ylabel("accuracy", fontsize=8, color=MUTED)
    _legend(figure, report.runs)
    figure.subplots_adjust(left=0.09 if len(tiers) > 1 else 0.16, right=0.98, bottom=0.13, top=0.84, wspace=0.1)
    return figure


def _arrows(ax: Axes, points: dict[tuple[str, Any], Any], runs: tuple[str, ...]) -> None:
    keys = list(dict.fromkeys(key for _, key in points))
    for position, run in enumerate(runs):
        color = _color(runs, position)
        shown = [points[run, key] for key in keys if (run, key) in points]
        if position == 0:
            ax.scatter([p[0] for p in shown], [p[1] for p in shown], s=9, color=color, linewidths=0, zorder=3)
            continue
        pairs = [(points[runs[0], k], points[run, k]) for k in keys if (run, k) in points and (runs[0], k) in points]
        for start, end in pairs:
            _arrow(ax, start[:2], end[:2], color, linewidth=0.7, alpha=0.5, size=5)
        if len(pairs) > 1:
            mean = np.mean([[start[:2], end[:2]] for start, end in pairs], axis=0)
            _arrow(ax, mean[0], mean[1], color, linewidth=2.4, alpha=1, size=12)


def _arrow(ax: Axes, start: Any, end: Any, color: str, *, linewidth: float, alpha: float, size: float) -> None:
    ax.annotate(
        "",
        xy=end,
        xytext=start,
        arrowprops={
            "arrowstyle": "-|>",
            "mutation_scale": size,
            "color": color,
            "linewidth": linewidth,
            "alpha": alpha,
            "shrinkA": 0,
            "shrinkB": 0,
        },
        zorder=4 if size < 10 else 5,
    )


def plot_selective(report: Report, benchmark: str) -> Figure:
    """Accuracy by coverage: the mean of the languages' curves, for all and for each tier."""
    from lm_eval_calib.report.analysis import COVERAGES

    tiers: list[str | None] = [None, *_tiers(report, benchmark)]
    figure = new_figure((2.6 * len(tiers) + 0.7, 2.9))
    axes = figure.subplots(1, len(tiers), squeeze=False, sharey=True)[0]
    for ax, tier in zip(axes, tiers, strict=True):
        _style(ax)
        for position, run in enumerate(report.runs):
            curves = [
                report.selective(rows)
                for group, rows in report.rows.items()
                if (group.run, group.benchmark) == (run, benchmark) and tier in (None, group.tier)
            ]
            if curves:
                ax.plot(COVERAGES, np.mean(curves, axis=0), color=_color(report.runs, position), linewidth=1.5)
        ax.set_xlim(0, 1)
        ax.set_title(f"{tier}-resource" if tier else "all languages", fontsize=9, loc="left", color=INK)
        ax.set_xlabel("coverage", fontsize=8, color=MUTED)
    axes[0].set_ylabel("accuracy", fontsize=8, color=MUTED)
    _legend(figure, report.runs)
    figure.subplots_adjust(left=0.075 if len(tiers) > 1 else 0.18, right=0.98, bottom=0.16, top=0.8, wspace=0.1)
    return figure


def plot_differences(report: Report, benchmark: str, metric: str) -> Figure:
    """Forest plot of a metric's differences from the baseline; filled where significant after correction."""
    found = [c for c in report.comparisons if c.group.benchmark == benchmark and c.adjusted]
    runs = [run for run in report.runs[1:] if any(c.group.run == run for c in found)]
    order = sorted((c for c in found if c.group.run == runs[0]), key=lambda c: c.differences[metric].value)
    places = {_key(c.group): index for index, c in enumerate(order)}
    figure = new_figure((6, 0.9 + 0.19 * len(places)))
    ax = figure.subplots()
    _style(ax)
    ax.axvline(0, color=MUTED, linewidth=0.8)
    for c in found:
        if _key(c.group) not in places or not c.adjusted:
            continue
        position = report.runs.index(c.group.run)
        color = _color(report.runs, position)
        y = places[_key(c.group)] + 0.28 * ((len(runs) - 1) / 2 - runs.index(c.group.run))
        d = c.differences[metric]
        ax.hlines(y, d.low, d.high, color=color, linewidth=1)
        ax.plot(
            d.value,
            y,
            marker=_MARKERS[position % 4],
            markersize=4,
            color=color,
            markerfacecolor=color if c.adjusted[metric] < 0.05 else "white",
        )
    ax.set_yticks(range(len(places)), [c.group.label for c in order], fontsize=7, color=INK)
    ax.set_ylim(-0.8, len(places) - 0.2)
    ax.set_xlabel(f"{metric} minus that of {report.baseline}", fontsize=8, color=MUTED)
    _legend(figure, tuple(runs), skip=report.runs)
    top = 0.35 / (0.9 + 0.19 * len(places))
    figure.subplots_adjust(left=0.24, right=0.97, top=1 - top, bottom=0.45 / (0.9 + 0.19 * len(places)))
    return figure


def _style(ax: Axes) -> None:
    ax.grid(color=GRID, linewidth=0.6)
    ax.set_axisbelow(True)
    ax.tick_params(length=0, labelsize=7, labelcolor=MUTED)
    for side in ax.spines.values():
        side.set(color=GRID, linewidth=0.8)


def _legend(figure: Figure, runs: tuple[str, ...], *, skip: tuple[str, ...] | None = None) -> None:
    from matplotlib.lines import Line2D

    everyone = skip or runs
    if len(everyone) < 2:
        return
    handles = [
        Line2D(
            [], [], color=_color(everyone, everyone.index(run)), marker=_MARKERS[everyone.index(run) % 4],
            markersize=4.5, linewidth=1.5, label=run,
        )
        for run in runs
    ]  # fmt: skip
    figure.legend(handles=handles, loc="upper right", ncols=len(handles), frameon=False, fontsize=8)


def _color(runs: tuple[str, ...], position: int) -> str:
    return COLOR if len(runs) == 1 else COLORS[position % len(COLORS)]


def _tiers(report: Report, benchmark: str) -> list[str]:
    tiers = [t for t in TIERS if any(g.tier == t for g in report.cells if g.benchmark == benchmark)]
    return tiers if len(tiers) > 1 else []


def _key(group: Group) -> tuple[str | None, str]:
    return (group.language, "" if group.language else group.task)
