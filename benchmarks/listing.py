"""What our task files cost `lm_eval ls tasks`: python benchmarks/listing.py [--pairs 7]

The same command runs with and without us (LM_EVAL_CALIB_AUTOLOAD=0), in turns; processor seconds of the child processes
are compared, which other load on the machine disturbs less than wall time. Target: at most 3 % more.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import time
from importlib.resources import files
from pathlib import Path


def measure(autoload: str, command: list[str]) -> tuple[float, float, int]:
    """Processor seconds, wall seconds and lines printed."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(
        command, env={**os.environ, "LM_EVAL_CALIB_AUTOLOAD": autoload}, capture_output=True, text=True, check=True
    )
    after, end = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    processor = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return processor, end - start, done.stdout.count("\n")


def main() -> None:
    """Run the comparison and print it."""
    parser = argparse.ArgumentParser(description=__doc__.partition(":")[0])
    parser.add_argument("--pairs", type=int, default=7)
    arguments = parser.parse_args()
    command = [sys.executable, "-m", "lm_eval", "ls", "tasks"]
    runs: dict[str, list[tuple[float, float, int]]] = {"0": [], "1": []}
    for pair in range(-1, arguments.pairs):  # the first pair only warms the file cache
        for autoload in ("0", "1") if pair % 2 else ("1", "0"):
            run = measure(autoload, command)
            if pair >= 0:
                runs[autoload].append(run)
    ratios = [ours[0] / without[0] for without, ours in zip(runs["0"], runs["1"], strict=True)]
    ours, stock = (
        len(list(Path(str(files(name))).rglob("*.yaml"))) for name in ("lm_eval_calib.tasks", "lm_eval.tasks")
    )
    print(f"task files: {stock} of lm-eval, {ours} of ours; lines listed: {runs['0'][0][2]} -> {runs['1'][0][2]}")
    for name, autoload in (("without", "0"), ("with", "1")):
        seconds = [run[0] for run in runs[autoload]]
        wall = statistics.median(run[1] for run in runs[autoload])
        print(f"{name:8} median {statistics.median(seconds):6.2f} s of processor time ({wall:.2f} s wall)")
    low, high = min(ratios), max(ratios)
    print(f"ratio    median {statistics.median(ratios):.3f} over {len(ratios)} pairs ({low:.3f} to {high:.3f})")


if __name__ == "__main__":
    main()
