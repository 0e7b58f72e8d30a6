"""`lm-eval-calib report RUN... --out DIR`: a page with figures and tables over one or more runs."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from lm_eval_calib.errors import CalibrationValueError
from lm_eval_calib.report.analysis import Report
from lm_eval_calib.report.score import LOGS_HELP, add_reading_arguments, read


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `report`."""
    parser.add_argument("runs", nargs="*", metavar="[NAME=]PATH", help=LOGS_HELP)
    parser.add_argument(
        "--run",
        action="append",
        default=[],
        metavar="NAME=PATH",
        help="the same as NAME=PATH above; repeatable; the first run is the baseline of comparisons",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write into")
    parser.add_argument("--baseline", metavar="NAME", help="run that the others are compared with")
    parser.add_argument(
        "--show-questions",
        type=int,
        default=0,
        metavar="N",
        help="show the texts of the N most confident errors of each run (default: no text of any document)",
    )
    add_reading_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Write the report and say where it is; exit status 0."""
    words = [*arguments.run, *arguments.runs]
    if not words:
        raise CalibrationValueError(
            "runs: expected at least one sample log or output folder of lm-eval, got none; "
            "for example: lm-eval-calib report --run base=OUTPUT1 --run tuned=OUTPUT2 --out report"
        )
    for name in ("show_questions", "resamples"):
        if getattr(arguments, name) < (1 if name == "resamples" else 0):
            raise CalibrationValueError(
                f"--{name.replace('_', '-')}: expected a positive number, got {getattr(arguments, name)}"
            )
    if arguments.out.is_file():
        raise CalibrationValueError(f"--out: expected a folder, got the file {arguments.out}")
    predictions = read(arguments, words)
    report = Report.from_predictions(
        predictions,
        baseline=arguments.baseline,
        normalization=arguments.normalization,
        num_bins=arguments.num_bins,
        resamples=arguments.resamples,
        seed=arguments.seed,
    )
    written = report.write(arguments.out, questions=arguments.show_questions)
    for line in report.warnings:
        print(f"note: {line}", file=sys.stderr)
    print("\n".join(report.findings))
    print(f"\n{written[0]}")
    return 0
