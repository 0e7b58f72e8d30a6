"""A report as a folder: the page, `summary.json`, tables and figures. Each file is whole or not there."""

from __future__ import annotations

import csv
import io
import json
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

from lm_eval_calib.report.scores import number
from lm_eval_calib.report.tables import FORMATS, write_text

if TYPE_CHECKING:
    from lm_eval_calib.report.analysis import Report

_ENDINGS = {"csv": "csv", "markdown": "md", "latex": "tex"}


def write_report(report: Report, out: Path, *, questions: int = 0) -> list[Path]:
    """Write everything into a folder and return the files, the page first."""
    written = [write_text(out / "report.html", report.to_html(questions=questions))]
    written.append(write_text(out / "summary.json", json.dumps(report.summary, ensure_ascii=False, indent=1) + "\n"))
    for by in ("language", "tier", "benchmark"):
        scores = report.scores(by)
        for name, ending in _ENDINGS.items():
            written.append(write_text(out / "tables" / f"by_{by}.{ending}", FORMATS[name](scores)))
    if report.comparisons:
        written.append(write_text(out / "tables" / "differences.csv", differences_csv(report)))
    return written + write_figures(report, out / "figures")


def write_figures(report: Report, folder: Path) -> list[Path]:
    """PNG and PDF of every figure; none, with a warning, where matplotlib is not installed."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        print("no figures: matplotlib is not installed (pip install 'lm-eval-calib[report]')", file=sys.stderr)
        return []
    from lm_eval_calib.report.figures import save_figure
    from lm_eval_calib.report.plots import figures_of

    written = []
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        for name, figure in tqdm(figures_of(report), desc="figures", delay=2, disable=not sys.stderr.isatty()):
            safe = "".join(c if c.isalnum() or c in "-_." else "_" for c in name)
            written += [save_figure(figure, folder / f"{safe}.{ending}") for ending in ("png", "pdf")]
    return written


def differences_csv(report: Report) -> str:
    """Every paired difference, one line a group and metric."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(
        [
            *("baseline", "run", "benchmark", "language", "tier", "mean_over_languages", "shared", "metric"),
            *("difference", "low", "high", "p", "p_adjusted", "mcnemar_p"),
        ]
    )
    for c in report.comparisons:
        group = c.group
        mcnemar = number(c.accuracy_test.p_value) if c.accuracy_test else None
        for metric, d in c.differences.items():
            values = [number(v) for v in (d.value, d.low, d.high, d.p_value)]
            values.append(number(c.adjusted[metric]) if c.adjusted else None)
            values.append(mcnemar if metric == "acc" else None)
            names = [c.baseline, group.run, group.benchmark, group.language or "", group.tier or ""]
            cells = ["" if value is None else value for value in values]
            writer.writerow([*names, int(c.adjusted is None), c.shared, metric, *cells])
    return out.getvalue()
