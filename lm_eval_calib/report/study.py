"""The report of a study, from the logs of its evaluations: python -m lm_eval_calib.report.study DESIGN.json
--out DIR

DIR receives `study.md` (the answers), `study.json` and `study.csv` (every number), a figure a benchmark, and
`questions-*.parquet` (what each run gave each question, from which all can be computed again without the
logs).
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from lm_eval_calib.errors import CalibrationError, CalibrationValueError
from lm_eval_calib.report import study_text
from lm_eval_calib.report.study_data import Questions, load_questions, read_questions, write_questions
from lm_eval_calib.report.study_stats import Comparison, rows

OPTIONS = {"resamples": 1000, "confidence_level": 0.95, "num_bins": 15, "seed": 0}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m lm_eval_calib.report.study", description=__doc__.split("\n")[0])
    parser.add_argument("design", type=Path, help="what `lm-eval-calib study` wrote about its runs and logs")
    parser.add_argument("--out", type=Path, required=True, help="folder for the report")
    parser.add_argument(
        "--questions-only",
        action="store_true",
        help="only gather the questions; a later call makes the report of them",
    )
    arguments = parser.parse_args(argv)
    try:
        design = read_design(arguments.design)
        questions = gather(design, arguments.out)
        if not arguments.questions_only:
            write(design, questions, arguments.out)
            # What tells `lm-eval-calib study` that the report over these evaluations is there.
            digest = arguments.design.stem.removeprefix("design-")
            (arguments.out / f"finished-{digest}").write_text("", encoding="utf-8")
    except CalibrationError as error:
        print(f"study report: {error}", file=sys.stderr)
        return 2
    return 0


def read_design(path: Path) -> dict[str, Any]:
    """Read what the study wrote about its runs."""
    try:
        design: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CalibrationValueError(f"design: expected a study's design-*.json, got {path} ({error})") from error
    if unknown := set(design.get("options", {})) - set(OPTIONS):
        raise CalibrationValueError(
            f"report: unknown option {', '.join(sorted(unknown))}; known are {', '.join(OPTIONS)}"
        )
    return design


def gather(design: Mapping[str, Any], out: Path) -> dict[str, tuple[str, Questions]]:
    """Benchmark -> its evaluation's name and its questions, from the logs or from an earlier call."""
    found = {}
    for name, evaluation in design["evaluations"].items():
        logs = {run["name"]: [run["logs"][name]] for run in design["runs"] if name in run["logs"]}
        if not logs:
            continue
        folder = out / f"questions-{name}"
        if all(Path(folder).exists() for folders in logs.values() for folder in folders):
            wanted = "token" in evaluation["normalizations"]
            tokenizers = {run["name"]: run["pretrained"] for run in design["runs"] if wanted and run["pretrained"]}
            questions = load_questions(logs, tokenizers=tokenizers)
            for benchmark, part in questions.items():
                write_questions(folder.with_name(f"{folder.name}-{benchmark}.parquet"), part)
        else:
            paths = sorted(out.glob(f"{folder.name}-*.parquet"))
            if not paths:
                missing = next(f for folders in logs.values() for f in folders if not Path(f).exists())
                raise CalibrationValueError(f"design: there are no logs in {missing} and no {folder}-*.parquet")
            questions = {part.benchmark: part for part in map(read_questions, paths)}
        found.update({benchmark: (name, part) for benchmark, part in questions.items()})
    if not found:
        raise CalibrationValueError("design: no evaluation has results yet")
    return found


def write(design: Mapping[str, Any], questions: Mapping[str, tuple[str, Questions]], out: Path) -> None:
    """Compute everything and write text, tables and figures."""
    options = {**OPTIONS, **design["options"]}
    comparisons, about = [], []
    for evaluation, part in questions.values():
        wanted = design["evaluations"][evaluation]["normalizations"]
        alike = [name for name in wanted if "none" in wanted and part.changes_nothing(name)]
        for name in wanted:
            if name not in alike:
                comparisons.append(Comparison(part, normalization=name, **options))
                about.append(study_text.about(comparisons[-1], alike if name == "none" else ()))
    table = []
    for comparison in tqdm(comparisons, desc="comparing runs", unit="benchmark"):
        table += list(rows(comparison, design["runs"]))
    out.mkdir(parents=True, exist_ok=True)
    with (out / "study.csv").open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, fieldnames=list(table[0]))
        writer.writeheader()
        writer.writerows(table)
    told = {"design": design, "options": options, "benchmarks": about, "rows": table}
    (out / "study.json").write_text(json.dumps(told, indent=1, default=str), encoding="utf-8")
    figures: list[Path | None] = []
    try:
        from lm_eval_calib.report.study_figures import draw

        figures = [draw(table, comparison, out) for comparison in comparisons]
    except ImportError as error:
        print(f"no figures: {error}; pip install 'lm-eval-calib[report]' for them", file=sys.stderr)
    text = study_text.markdown(design, options, about, table, figures)
    (out / "study.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    sys.exit(main())
