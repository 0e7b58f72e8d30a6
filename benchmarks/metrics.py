"""All metrics with bootstrap intervals for Global-MMLU's 42 x 14,042 questions, beside peers called in a loop.

    python benchmarks/metrics.py [--languages 42] [--questions 14042] [--resamples 1000]

The answers are simulated: four choices, overconfident by a factor that differs from language to language. Peers have
no bootstrap, so each is called once a resample; a few calls are timed and the time of all 42 x (1 + 1,000) follows.
The last figures are in benchmarks/README.md.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from lm_eval_calib.bootstrap import replicate
from lm_eval_calib.metrics import METRICS
from lm_eval_calib.questions import Questions

BINNED = ["ece", "rms_ce", "mce", "ace"]


def simulate(languages: int, questions: int) -> dict[int, tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]]:
    """Probabilities and gold of each language."""
    answers = {}
    for language in range(languages):
        rng = np.random.default_rng(language)
        scores = rng.normal(size=(questions, 4)) * rng.uniform(0.5, 2.0)
        honest = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
        gold = np.minimum((honest.cumsum(axis=1) < rng.random((questions, 1))).sum(axis=1), 3)
        sharp = honest ** rng.uniform(1.0, 2.5)
        answers[language] = (sharp / sharp.sum(axis=1, keepdims=True), gold)
    return answers


def peers() -> dict[str, Callable[[npt.NDArray[np.float64], npt.NDArray[np.int64]], object]]:
    """One call of each peer on one resample."""
    import netcal.metrics  # type: ignore[import-untyped]
    import relplot  # type: ignore[import-untyped]
    import torch
    from sklearn.metrics import roc_auc_score
    from torchmetrics.functional.classification import multiclass_calibration_error

    def torchmetrics(norm: Any) -> Callable[..., object]:
        def call(probabilities: npt.NDArray[np.float64], gold: npt.NDArray[np.int64]) -> object:
            return multiclass_calibration_error(
                torch.from_numpy(probabilities), torch.from_numpy(gold), num_classes=4, n_bins=15, norm=norm
            )

        return call

    def top(probabilities: npt.NDArray[np.float64], gold: npt.NDArray[np.int64]) -> tuple[np.ndarray, np.ndarray]:
        return probabilities.max(axis=1), (probabilities.argmax(axis=1) == gold).astype(float)

    return {
        "netcal ECE": lambda p, gold: netcal.metrics.ECE(15).measure(p, gold),
        "netcal MCE": lambda p, gold: netcal.metrics.MCE(15).measure(p, gold),
        "netcal equal-mass ECE": lambda p, gold: netcal.metrics.ECE(15, equal_intervals=False).measure(p, gold),
        "torchmetrics l1 (ECE)": torchmetrics("l1"),
        "torchmetrics l2 (RMS)": torchmetrics("l2"),
        "relplot smECE": lambda p, gold: relplot.smECE(*top(p, gold)),
        "scikit-learn AUROC": lambda p, gold: roc_auc_score(top(p, gold)[1], top(p, gold)[0]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--languages", type=int, default=42)
    parser.add_argument("--questions", type=int, default=14042)
    parser.add_argument("--resamples", type=int, default=1000)
    parser.add_argument("--calls", type=int, default=5, help="of each peer that are timed; 0 leaves them out")
    arguments = parser.parse_args()
    answers = simulate(arguments.languages, arguments.questions)
    evaluations = arguments.languages * (1 + arguments.resamples)
    cores = len(os.sched_getaffinity(0))
    print(
        f"{arguments.languages} x {arguments.questions:,} questions, {arguments.resamples:,} resamples; {cores} cores, "
        f"load {os.getloadavg()[0]:.1f} at the start\n"
    )
    print("| implementation | metrics | wall s | CPU s | ms a metric and resample |")
    print("| --- | ---: | ---: | ---: | ---: |")
    for name, chosen in ((f"ours, all {len(METRICS)}", None), ("ours, four binned", BINNED), ("ours, ECE", ["ece"])):
        wall, cpu = time.perf_counter(), time.process_time()
        groups = {language: Questions.from_probabilities(*pair) for language, pair in answers.items()}
        metrics = len(chosen or METRICS)
        got = replicate(groups, chosen, resamples=arguments.resamples)
        intervals = [got[language].intervals() for language in groups]
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        assert len(intervals) == arguments.languages
        print(f"| {name} | {metrics} | {wall:.1f} | {cpu:.1f} | {wall / evaluations / metrics * 1e3:.4f} |")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    for name, call in peers().items() if arguments.calls else ():
        seconds, busy = [], []
        rng = np.random.default_rng(0)
        for number in range(arguments.calls + 1):
            probabilities, gold = answers[number % arguments.languages]
            drawn = rng.integers(0, arguments.questions, size=arguments.questions)
            wall, cpu = time.perf_counter(), time.process_time()
            call(probabilities[drawn], gold[drawn])
            seconds.append(time.perf_counter() - wall)
            busy.append(time.process_time() - cpu)
        # The first call warms up.
        one, one_busy = statistics.median(seconds[1:]), statistics.median(busy[1:])
        print(f"| {name}, in a loop* | 1 | {one * evaluations:.0f} | {one_busy * evaluations:.0f} | {one * 1e3:.4f} |")
    print(f"\n* the median of {arguments.calls} calls times {evaluations:,}. Peak memory of ours {peak:.1f} GiB.")


if __name__ == "__main__":
    main()
