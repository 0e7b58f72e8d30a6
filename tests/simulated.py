"""Sample logs of a simulated model, by the benchmark's own generator."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmarks"))

from logs import make

LANGUAGES = ["en", "zh", "bn", "el", "sw", "yo"]


def write_logs(
    folder: Path, *, questions: int = 120, runs: tuple[str, ...] = ("base", "sft", "sft_ls")
) -> dict[str, Path]:
    """Logs in six languages, two of each tier; name of the run -> folder."""
    make(folder, questions=questions, languages=LANGUAGES, runs=list(runs), shots=0)
    return {run: folder / run for run in runs}
