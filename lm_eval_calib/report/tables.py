"""Scores as text: a terminal's table, JSON, CSV, Markdown and LaTeX."""

from __future__ import annotations

import csv
import io
import json
import math
import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path

from lm_eval_calib.metrics import METRICS
from lm_eval_calib.replicates import Interval
from lm_eval_calib.report.scores import Score, number

# What a table shows on a terminal unless more is asked for.
HEADLINE = ("acc", "confidence", "overconfidence", "ece", "rms_ce")
_NAMES = ("run", "task", "language", "tier", "subject")


def arrow(metric: str) -> str:
    """The direction in which a metric is better, as lm-eval marks it."""
    return {True: "↑", False: "↓", None: ""}[METRICS[metric].higher_is_better if metric in METRICS else None]


def interval_text(value: Interval, *, digits: int = 3) -> str:
    """`0.123 [0.101, 0.145]`; a dash where undefined."""
    if math.isnan(value.value):
        return "–"
    if math.isnan(value.low):
        return f"{value.value:.{digits}f}"
    return f"{value.value:.{digits}f} [{value.low:.{digits}f}, {value.high:.{digits}f}]"


def to_json(scores: Sequence[Score]) -> str:
    """A list of objects, one a group; undefined numbers are null."""
    return json.dumps([score.to_dict() for score in scores], ensure_ascii=False, indent=1) + "\n"


def to_csv(scores: Sequence[Score]) -> str:
    """One line a group: its names, n, and each metric with its interval in three columns."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    metrics = _metrics(scores)
    ends = [f"{metric}{end}" for metric in metrics for end in ("", "_low", "_high")]
    writer.writerow(["run", "task", "benchmark", "language", "language_name", "tier", "subject", "n", *ends])
    for score in scores:
        told = score.to_dict()
        cells = [told[name] for name in ("run", "task", "benchmark", "language", "language_name", "tier", "subject")]
        numbers: list[float | None] = []
        for metric in metrics:
            value = score.metrics.get(metric)
            numbers += [number(v) for v in (value.value, value.low, value.high)] if value else [None] * 3
        writer.writerow(["" if cell is None else cell for cell in [*cells, score.n, *numbers]])
    return out.getvalue()


def to_markdown(scores: Sequence[Score]) -> str:
    """A GitHub table: names, n, and every metric with its interval."""
    header, rows = _wide(scores, _metrics(scores))
    escaped = [[cell.replace("|", "\\|") for cell in row] for row in [header, *rows]]
    marks = ["---" if index < _columns(scores) else "---:" for index in range(len(header))]
    return "".join(f"| {' | '.join(row)} |\n" for row in [escaped[0], marks, *escaped[1:]])


def to_latex(scores: Sequence[Score]) -> str:
    """A booktabs `tabular`; intervals stand small behind the values."""
    metrics = _metrics(scores)
    header, rows = _wide(scores, metrics, cell=_latex_interval)
    names = _columns(scores)
    align = "l" * names + "r" * (len(header) - names)
    arrows = {"↑": " $\\uparrow$", "↓": " $\\downarrow$"}
    titles = []
    for title in header:
        word, mark = (title[:-2], title[-1]) if title[-1] in arrows else (title, "")
        titles.append(_latex(word) + arrows.get(mark, ""))
    lines = [" & ".join([*map(_latex, row[: names + 1]), *row[names + 1 :]]) + " \\\\" for row in rows]
    return "\n".join(
        [
            "% needs \\usepackage{booktabs}",
            f"\\begin{{tabular}}{{{align}}}",
            "\\toprule",
            " & ".join(titles) + " \\\\",
            "\\midrule",
            *lines,
            "\\bottomrule",
            "\\end{tabular}",
            "",
        ]
    )


def to_table(scores: Sequence[Score]) -> str:
    """Aligned columns for a terminal; up to three groups are laid on their side, so that all metrics fit."""
    metrics = _metrics(scores)
    if len(scores) <= 3:
        header, rows = _wide(scores, metrics)
        turned = [list(column) for column in zip(header, *rows, strict=True)]
        return _aligned(turned[: _columns(scores)] + turned[_columns(scores) :], left=1, rule=_columns(scores))
    header, rows = _wide(scores, metrics)
    return _aligned([header, *rows], left=_columns(scores), rule=1)


FORMATS: dict[str, Callable[[Sequence[Score]], str]] = {
    "table": to_table,
    "json": to_json,
    "csv": to_csv,
    "markdown": to_markdown,
    "latex": to_latex,
}
SUFFIXES = {".json": "json", ".csv": "csv", ".md": "markdown", ".tex": "latex", ".txt": "table"}


def write_text(path: Path, text: str) -> Path:
    """Write a text file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.part")
    try:
        beside.write_text(text, encoding="utf-8")
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
    return path


def _metrics(scores: Sequence[Score]) -> list[str]:
    return list(dict.fromkeys(metric for score in scores for metric in score.metrics))


def _shown_names(scores: Sequence[Score]) -> list[str]:
    """Columns of names that say something: not those that are the same everywhere, but at least the task."""
    shown = []
    for name in _NAMES:
        values = {getattr(score.group, name) for score in scores}
        if name == "task" or (len(values) > 1 and values != {None}):
            shown.append(name)
    return shown


def _columns(scores: Sequence[Score]) -> int:
    return len(_shown_names(scores))


def _wide(
    scores: Sequence[Score], metrics: Sequence[str], *, cell: Callable[[Interval], str] = interval_text
) -> tuple[list[str], list[list[str]]]:
    names = _shown_names(scores)
    header = [*names, "n", *[f"{metric} {arrow(metric)}".rstrip() for metric in metrics]]
    rows = []
    for score in scores:
        words = []
        for name in names:
            word = score.group.language_name if name == "language" else getattr(score.group, name)
            words.append(word or "–")
        values = [cell(score.metrics[metric]) if metric in score.metrics else "–" for metric in metrics]
        rows.append([*words, f"{score.n:,}", *values])
    return header, rows


def _latex_interval(value: Interval) -> str:
    text = interval_text(value)
    head, bracket, tail = text.partition(" [")
    head = "--" if head == "–" else head.replace("-", "$-$")
    return f"{head} {{\\scriptsize [{tail.replace('-', '$-$')}}}" if bracket else head


def _latex(text: str) -> str:
    if text == "–":
        return "--"
    special = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    return "".join(special.get(c, f"\\{c}" if c in "&%$#_{}" else c) for c in text)


def _width(text: str) -> int:
    """Columns of a terminal: East Asian letters take two, combining marks none."""
    return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def _aligned(rows: Sequence[Sequence[str]], *, left: int, rule: int) -> str:
    widths = [max(_width(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for position, row in enumerate(rows):
        cells = []
        for column, text in enumerate(row):
            space = " " * (widths[column] - _width(text))
            cells.append(text + space if column < left else space + text)
        lines.append("  ".join(cells).rstrip())
        if position == rule - 1:
            lines.append("  ".join("─" * width for width in widths))
    return "\n".join(lines) + "\n"
