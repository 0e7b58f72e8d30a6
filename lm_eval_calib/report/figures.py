"""Figures for papers: data first (`prepare_*`), then drawing on given axes (`plot_*`); PNG, PDF or SVG."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lm_eval_calib.binning import Scheme, bin_statistics
from lm_eval_calib.errors import CalibrationValueError, MissingExtraError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOR = "#0b63ce"  # of one run alone
# Of several: a neutral baseline, then Okabe and Ito's hues, which differ for every common colour vision.
COLORS = ("#5f6b7c", "#d55e00", "#0072b2", "#00855f", "#b4478a", "#a87900")
INK, MUTED, GRID = "#1d2430", "#687385", "#e3e7ee"
Z95 = 1.959963984540054


@dataclass(frozen=True)
class ReliabilityDiagram:
    """What a reliability diagram shows: one entry a non-empty bin, and the numbers beside it."""

    edges: NDArray[np.float64]  # all edges, also of empty bins, ascending from 0 to 1
    lower: NDArray[np.float64]  # [B] edges of the non-empty bins
    upper: NDArray[np.float64]
    counts: NDArray[np.int64]  # [B] questions
    confidence: NDArray[np.float64]  # [B] mean confidence
    accuracy: NDArray[np.float64]  # [B]
    low: NDArray[np.float64]  # [B] Wilson interval of the accuracy
    high: NDArray[np.float64]
    n: int
    mean_confidence: float
    mean_accuracy: float
    ece: float


def wilson_interval(successes: ArrayLike, trials: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The 95 % Wilson score interval of a proportion; NaN where there is no trial (Wilson 1927)."""
    k, n = np.asarray(successes, float), np.asarray(trials, float)
    with np.errstate(divide="ignore", invalid="ignore"):
        p = k / n
        centre = (p + Z95**2 / (2 * n)) / (1 + Z95**2 / n)
        half = Z95 / (1 + Z95**2 / n) * np.sqrt(p * (1 - p) / n + Z95**2 / (4 * n**2))
    return np.clip(centre - half, 0, 1), np.clip(centre + half, 0, 1)


def prepare_reliability_diagram(
    confidence: ArrayLike, correct: ArrayLike, *, num_bins: int = 15, scheme: Scheme = "equal_width"
) -> ReliabilityDiagram:
    """Bin confidences as the metrics do and add a 95 % Wilson interval to each bin's accuracy.

    `confidence` is [N] in [0, 1], `correct` [N] of 0 and 1; `scheme` is "equal_width" or "equal_mass". The
    expected calibration error of the diagram is the count-weighted mean of |accuracy - confidence| over its
    bins (Guo et al. 2017), NaN for no questions.
    """
    statistics = bin_statistics(confidence, correct, num_bins=num_bins, scheme=scheme)
    edges = np.asarray(statistics.edges, float)
    counts = np.asarray(statistics.counts, np.int64)
    full = counts > 0
    n = int(counts.sum())
    mean_confidence, accuracy = (
        np.asarray(values, float)[full] for values in (statistics.confidence, statistics.accuracy)
    )
    weights = counts[full] / max(n, 1)
    low, high = wilson_interval(accuracy * counts[full], counts[full])
    return ReliabilityDiagram(
        edges=edges,
        lower=edges[:-1][full],
        upper=edges[1:][full],
        counts=counts[full],
        confidence=mean_confidence,
        accuracy=accuracy,
        low=low,
        high=high,
        n=n,
        mean_confidence=float(weights @ mean_confidence) if n else math.nan,
        mean_accuracy=float(weights @ accuracy) if n else math.nan,
        ece=float(weights @ np.abs(accuracy - mean_confidence)) if n else math.nan,
    )


def plot_reliability_diagram(
    diagram: ReliabilityDiagram,
    *,
    ax: Axes,
    color: str = COLOR,
    title: str | None = None,
    note: bool = True,
    histogram: bool = True,
) -> None:
    """Draw accuracy against confidence: intervals, the gap to the diagonal, and the counts along the bottom.

    Call it once a run on the same axes to overlay runs (`histogram=False, note=False` for all but the first).
    """
    if not ax.lines:
        ax.plot([0, 1], [0, 1], color=MUTED, linewidth=0.8, linestyle=(0, (4, 3)), zorder=1)
        ax.set(xlim=(0, 1), ylim=(0, 1), aspect="equal")
        ax.set_xticks([0, 0.5, 1], ["0", ".5", "1"])
        ax.set_yticks([0, 0.5, 1], ["0", ".5", "1"])
        ax.grid(color=GRID, linewidth=0.6)
        ax.tick_params(length=0, labelsize=7, labelcolor=MUTED)
        for side in ax.spines.values():
            side.set(color=GRID, linewidth=0.8)
        ax.set_axisbelow(True)
    if histogram and diagram.n:
        height = 0.16 * diagram.counts / diagram.counts.max()
        width = diagram.upper - diagram.lower
        ax.bar(diagram.lower, height, width=width, align="edge", color=color, alpha=0.22, linewidth=0, zorder=2)
    # A bin of few questions says little: its marks fade, so that the eye follows the bins that count.
    strength = np.clip(np.sqrt(diagram.counts / max(0.03 * diagram.n, 5)), 0.15, 1)
    if histogram:
        ax.vlines(
            diagram.confidence,
            diagram.confidence,
            diagram.accuracy,
            color=color,
            alpha=0.3 * strength,
            linewidth=4,
            zorder=3,
        )
    ax.vlines(
        diagram.confidence,
        diagram.low,
        diagram.high,
        color=color,
        alpha=0.8 * strength,
        linewidth=0.9,
        zorder=4,
    )
    ax.scatter(
        diagram.confidence,
        diagram.accuracy,
        s=7 + 110 * diagram.counts / max(diagram.n, 1),
        color=color,
        alpha=strength,  # type: ignore[arg-type]  # matplotlib takes one a point
        edgecolors="white",
        linewidths=0.6,
        zorder=5,
        clip_on=False,
    )
    if title:
        ax.set_title(title, fontsize=8.5, color=INK, loc="left", pad=4)
    if note:
        ax.text(
            0.04,
            0.95,
            f"ECE {diagram.ece:.3f}\nn {diagram.n:,}",
            transform=ax.transAxes,
            va="top",
            fontsize=7,
            color=INK,
            linespacing=1.35,
            zorder=6,
            bbox={"facecolor": "white", "alpha": 0.8, "edgecolor": "none", "pad": 1.5},
        )


def plot_small_multiples(
    panels: Mapping[str, ReliabilityDiagram | Mapping[str, ReliabilityDiagram]],
    *,
    title: str | None = None,
    columns: int | None = None,
    colors: Sequence[str] = COLORS,
) -> Figure:
    """One small reliability diagram a panel; a panel is one diagram, or one a run, drawn over each other."""
    if not panels:
        raise CalibrationValueError("panels: expected at least one reliability diagram, got none")
    columns = columns or min(len(panels), 4 if len(panels) <= 12 else 6)
    rows = math.ceil(len(panels) / columns)
    top = 0.62 if title else 0.35
    size = (1.75 * columns + 0.55, 1.95 * rows + top + 0.45)
    figure = new_figure(size)
    axes = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).ravel()
    runs: dict[str, int] = {}
    for ax, (name, panel) in zip(axes, panels.items(), strict=False):
        diagrams = {"": panel} if isinstance(panel, ReliabilityDiagram) else panel
        for run, diagram in diagrams.items():
            position = runs.setdefault(run, len(runs))
            plot_reliability_diagram(
                diagram,
                ax=ax,
                color=COLOR if len(diagrams) == 1 and not run else colors[position % len(colors)],
                title=name,
                note=len(diagrams) == 1,
                histogram=len(diagrams) == 1,
            )
    for ax in axes[len(panels) :]:
        ax.set_visible(False)
    for position in range(max(0, len(panels) - columns), len(panels)):
        axes[position].tick_params(labelbottom=True)
        axes[position].set_xlabel("confidence", fontsize=7.5, color=MUTED)
    for row in range(rows):
        axes[row * columns].set_ylabel("accuracy", fontsize=7.5, color=MUTED)
    if title:
        figure.text(0.25 / size[0], 1 - 0.14 / size[1], title, fontsize=11, weight="bold", color=INK, va="top")
    if len(runs) > 1:
        from matplotlib.lines import Line2D

        handles = [
            Line2D([], [], color=colors[position % len(colors)], marker="o", markersize=5, linewidth=0, label=run)
            for run, position in runs.items()
        ]
        figure.legend(handles=handles, loc="upper right", ncols=len(runs), frameon=False, fontsize=8)
    figure.subplots_adjust(
        left=0.5 / size[0],
        right=1 - 0.12 / size[0],
        top=1 - top / size[1],
        bottom=0.45 / size[1],
        wspace=0.14,
        hspace=0.24,
    )
    return figure


def new_figure(size: tuple[float, float]) -> Figure:
    """A figure outside pyplot's global state: nothing to close, safe in notebooks, servers and threads."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError("drawing figures", "report", error) from error
    return Figure(figsize=size, dpi=160, facecolor="white")


def save_figure(figure: Any, path: str | Path) -> Path:
    """Write a figure in the format of the file's ending; the file is whole or not there."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.part")
    # No date inside: the same numbers give the same file.
    metadata = {"pdf": {"CreationDate": None}, "svg": {"Date": None}}.get(path.suffix[1:])
    try:
        figure.savefig(beside, format=path.suffix[1:], metadata=metadata)
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
    return path
