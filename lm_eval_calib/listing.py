"""`lm-eval-calib tasks`: the benchmarks, their languages and tiers; `--path` prints the folder of the task files."""

from __future__ import annotations

import argparse
import json
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict

from lm_eval_calib.autoload import task_folder
from lm_eval_calib.errors import CalibrationValueError
from lm_eval_calib.languages import TIERS


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the subcommand."""
    parser.add_argument("benchmark", nargs="*", help="list the tasks of these, as 'xnli' or 'calib_xnli'")
    parser.add_argument("--path", action="store_true", help="print the folder for lm_eval's --include_path, no more")
    parser.add_argument("--json", action="store_true", help="print all that is known, for programs")


def run(arguments: argparse.Namespace) -> int:
    """Run the subcommand."""
    if arguments.path:
        print(task_folder())
        return 0
    from lm_eval_calib.tasks.generate import read_benchmarks

    benchmarks = {benchmark.name: benchmark for benchmark in read_benchmarks()}
    asked = [name.removeprefix("calib_") for name in arguments.benchmark]
    if unknown := [name for name in asked if name not in benchmarks]:
        raise CalibrationValueError(f"no benchmark {unknown[0]!r}; there are {', '.join(benchmarks)}")
    shown = [benchmarks[name] for name in asked or benchmarks]
    if arguments.json:
        print(
            json.dumps(
                [
                    {
                        "benchmark": f"calib_{item.name}",
                        "title": item.title,
                        "about": item.about,
                        "source": item.source,
                        "tasks": [
                            {"task": item.task_name(suffix), **asdict(item.language(suffix))}
                            for suffix in item.languages
                        ],
                    }
                    for item in shown
                ],
                ensure_ascii=False,
                indent=1,
            )
        )
        return 0
    if not asked:
        rows = [["group or task", "languages", *TIERS, "unknown", "what"]]
        for item in shown:
            tiers = Counter(item.language(suffix).tier for suffix in item.languages)
            counts = [str(tiers[tier] or "") for tier in (*TIERS, None)]
            rows.append([f"calib_{item.name}", str(len(item.languages)), *counts, f"{item.title}: {item.about}"])
        _print_table(rows)
        further = [name for item in shown for name in item.groups]
        print(
            f"\nTasks are calib_<benchmark>_<language>; groups of a tier are calib_<benchmark>_{{{','.join(TIERS)}}}."
        )
        print(f"Further groups: {', '.join(further)}. `lm-eval-calib tasks xnli` lists the tasks of one benchmark.")
        return 0
    rows = [["task", "language", "own name", "script", "family", "class", "tier"]]
    for item in shown:
        for suffix in item.languages:
            its = item.language(suffix)
            known = (its.own_name, its.script, its.family, its.resource_class, its.tier)
            rows.append([item.task_name(suffix), its.name, *("?" if value is None else str(value) for value in known)])
    _print_table(rows)
    return 0


def _print_table(rows: Sequence[Sequence[str]]) -> None:
    widths = [max(map(_width, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (cell + " " * (width - _width(cell)) for cell, width in zip(row, widths, strict=True))
        print("  ".join(cells).rstrip())


def _width(text: str) -> int:
    """Columns of a terminal that the text takes: marks take none, ideographs two."""
    wide = sum(unicodedata.east_asian_width(letter) in "WF" for letter in text)
    return len(text) + wide - sum(unicodedata.category(letter) in ("Mn", "Me", "Cf") for letter in text)
