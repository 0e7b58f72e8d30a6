"""What our task files cost `lm_eval ls tasks`: python benchmarks/listing.py [--pairs 5] (target: at most 3 % more)

First the parts that grow with the number of files, index and table, in one process: processor seconds for lm-eval's own
folder and for ours. Then the command itself with and without us (LM_EVAL_CALIB_AUTOLOAD=0), in turns; on a shared
machine its ratio scatters by more than the target.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path


def processor_seconds(action: Callable[[], object]) -> float:
    """Processor time of a call."""
    start = time.process_time()
    action()
    return time.process_time() - start


def command_seconds(autoload: str) -> float:
    """Processor time of `lm_eval ls tasks`, as its child process used it."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-m", "lm_eval", "ls", "tasks"]
    environment = {**os.environ, "LM_EVAL_CALIB_AUTOLOAD": autoload}
    subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition(":")[0])
    parser.add_argument("--pairs", type=int, default=5, help="runs of the command with and without us")
    arguments = parser.parse_args()
    os.environ["LM_EVAL_CALIB_AUTOLOAD"] = "0"
    from lm_eval.tasks import TaskManager

    stock, ours = (Path(str(files(name))) for name in ("lm_eval.tasks", "lm_eval_calib.tasks"))
    seconds = {}
    for folder in (stock, ours):
        runs = [
            processor_seconds(lambda: TaskManager(include_path=str(folder), include_defaults=False).list_all_tasks())  # noqa: B023
            for _ in range(3)
        ]
        seconds[folder] = statistics.median(runs)
        print(f"{len(list(folder.rglob('*.yaml'))):6} files: {seconds[folder]:.2f} s of processor time")
    print(f"ours / lm-eval's: {100 * seconds[ours] / seconds[stock]:.1f} %", flush=True)
    ratios = []
    for pair in range(arguments.pairs):
        order = ("0", "1") if pair % 2 else ("1", "0")
        used = {autoload: command_seconds(autoload) for autoload in order}
        ratios.append(used["1"] / used["0"])
    if ratios:
        low, high = min(ratios), max(ratios)
        print(f"command, with / without: median {statistics.median(ratios):.3f} ({low:.3f} to {high:.3f})")


if __name__ == "__main__":
    main()
