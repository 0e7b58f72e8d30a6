"""What the start-up file costs: python benchmarks/startup.py [--listing]

Interpreters that never import lm_eval, with our start-up file and without it (the same environment, the file moved
away), interleaved; with --listing also `lm_eval ls tasks`. Medians and their difference.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

PTH = Path(sysconfig.get_path("purelib")) / "lm_eval_calib_autoload.pth"


def seconds(command: list[str]) -> float:
    start = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.perf_counter() - start


def compare(name: str, command: list[str], rounds: int) -> None:
    aside = PTH.with_suffix(".aside")
    with_us, without = [], []
    for _ in range(rounds + 1):
        with_us.append(seconds(command))
        PTH.rename(aside)
        try:
            without.append(seconds(command))
        finally:
            aside.rename(PTH)
    ours, base = statistics.median(with_us[1:]), statistics.median(without[1:])  # the first round warms the disk
    paired = statistics.median(a - b for a, b in zip(with_us[1:], without[1:], strict=True))
    print(f"{name:<22}{base * 1e3:>12.2f}{ours * 1e3:>12.2f}{paired * 1e3:>12.2f}{paired / base:>10.1%}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--listing", action="store_true", help="also `lm_eval ls tasks` (a minute or more)")
    arguments = parser.parse_args()
    if not PTH.exists():
        sys.exit(f"{PTH.name} is not installed here; pip install lm-eval-calib into this environment first")
    print(f"{'median, ms':<22}{'without':>12}{'with us':>12}{'paired':>12}{'relative':>10}")
    compare("python -c pass", [sys.executable, "-c", "pass"], 200)
    compare("python -c import numpy", [sys.executable, "-c", "import numpy"], 30)
    if arguments.listing:
        compare("lm_eval ls tasks", [sys.executable, "-m", "lm_eval", "ls", "tasks"], 7)


if __name__ == "__main__":
    main()
