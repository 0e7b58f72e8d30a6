"""`lm-eval-calib score LOGS...`: every metric with intervals from the sample logs of lm-eval runs."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from lm_eval_calib.errors import CalibrationValueError
from lm_eval_calib.logfiles import sources
from lm_eval_calib.logs import load_predictions
from lm_eval_calib.metrics import METRICS
from lm_eval_calib.predictions import NORMALIZATIONS, Predictions
from lm_eval_calib.report.scores import GROUPINGS, score
from lm_eval_calib.report.tables import FORMATS, HEADLINE, SUFFIXES, write_text


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `score`; those of reading logs are shared with `report`."""
    parser.add_argument("logs", nargs="+", metavar="[NAME=]PATH", help=LOGS_HELP)
    parser.add_argument(
        "--by",
        choices=GROUPINGS,
        default="task",
        help="task (default); language pools subjects; tier and benchmark are means over languages",
    )
    parser.add_argument("--format", choices=FORMATS, help="default: by the ending of --output, else table")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write there instead of printing")
    parser.add_argument(
        "--metrics",
        help=f"comma-separated names, or 'all'; default all, in a table of many rows {', '.join(HEADLINE)}",
    )
    parser.add_argument(
        "--save-predictions",
        type=Path,
        metavar="FILE.parquet",
        help="also write the table of questions",
    )
    add_reading_arguments(parser)


LOGS_HELP = "sample log, results file, output folder of lm-eval, or a stored table; NAME= names the run"


def add_reading_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of every command that reads logs."""
    parser.add_argument(
        "--normalization",
        choices=list(NORMALIZATIONS),
        help="what log-likelihoods are divided by before the softmax (default: as the task was run)",
    )
    parser.add_argument("--tokenizer", metavar="NAME", help="of the model, for --normalization token")
    parser.add_argument("--num-bins", type=int, metavar="B", help="default: as the task was run, else 15")
    parser.add_argument("--resamples", type=int, default=1000, help="of the bootstrap (default 1000)")
    parser.add_argument("--seed", type=int, default=0, help="of the bootstrap (default 0)")
    parser.add_argument("--filter", metavar="NAME", help="which filter's rows to read (default: none)")
    parser.add_argument(
        "--language",
        action="append",
        default=[],
        metavar="TASK=CODE",
        help="the language of a task (or pattern with *) whose name does not tell; repeatable",
    )
    parser.add_argument("--strict", action="store_true", help="stop at the first row that cannot be used")


def read(arguments: argparse.Namespace, words: Sequence[str]) -> Predictions:
    """The predictions that the shared options name; what could not be read goes to standard error."""
    languages = {}
    for word in arguments.language:
        task, equals, code = word.rpartition("=")
        if not equals or not task or not code:
            raise CalibrationValueError(f"--language: expected TASK=CODE, such as 'mytask_*=sw', got {word!r}")
        languages[task] = code
    if arguments.normalization == "token" and not arguments.tokenizer:
        # A stored table may hold the lengths already, so that only logs need it.
        stored = all(Path(word.rpartition("=")[2]).suffix == ".parquet" for word in words)
        if not stored:
            raise CalibrationValueError("--normalization token needs --tokenizer NAME: logs hold no token counts")
    predictions = load_predictions(
        sources(words),
        languages=languages,
        tokenizer=arguments.tokenizer,
        filter=arguments.filter,
        strict=arguments.strict,
    )
    for line in remarks(predictions):
        print(line, file=sys.stderr)
    return predictions


def remarks(predictions: Predictions, *, limit: int = 12) -> list[str]:
    """What was not read, for people."""
    lines = [*map(str, predictions.problems[:limit])]
    if more := predictions.problems[limit:]:
        lines.append(f"... and {sum(p.count for p in more):,} rows in {len(more)} more entries")
    lines += predictions.notes[:limit]
    return lines


def run(arguments: argparse.Namespace) -> int:
    """Score and print; exit status 0."""
    if arguments.resamples < 1:
        raise CalibrationValueError(f"--resamples: expected at least 1, got {arguments.resamples}")
    suffix = arguments.output.suffix if arguments.output else ""
    layout = arguments.format or SUFFIXES.get(suffix, "table")
    predictions = read(arguments, arguments.logs)
    if arguments.save_predictions:
        predictions.write_parquet(arguments.save_predictions)
    names = None
    if arguments.metrics and arguments.metrics != "all":
        names = [name.strip() for name in arguments.metrics.split(",") if name.strip()]
    scores = score(
        predictions,
        by=arguments.by,
        metrics=names,
        normalization=arguments.normalization,
        num_bins=arguments.num_bins,
        resamples=arguments.resamples,
        seed=arguments.seed,
    )
    shown = scores
    if layout == "table" and len(scores) > 3 and arguments.metrics is None:
        shown = [s.only(HEADLINE) for s in scores]
    text = FORMATS[layout](shown)
    if arguments.output:
        write_text(arguments.output, text)
    else:
        print(text, end="")
    if shown is not scores and sys.stderr.isatty():
        print(f"{len(METRICS) - len(HEADLINE)} more metrics with --metrics all", file=sys.stderr)
    return 0
