"""How often 95 % bootstrap intervals hold the true value, by metric and method.

    python benchmarks/coverage.py [--questions 500] [--sets 300]

Simulated: confidence is the true frequency of right answers plus 0, 0.03 or 0.1. The last figures are in
docs/metrics.md.
"""

from __future__ import annotations

import argparse

import numpy as np

from lm_eval_calib.bootstrap import replicate
from lm_eval_calib.metrics import auroc
from lm_eval_calib.questions import Questions

ERRORS = ["ece", "ace", "rms_ce", "rms_ce_debiased", "ece_sweep", "smooth_ece"]
METHODS = ("percentile", "basic")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", type=int, default=500)
    parser.add_argument("--sets", type=int, default=300)
    parser.add_argument("--resamples", type=int, default=500)
    arguments = parser.parse_args()
    rng = np.random.default_rng(0)
    frequency = rng.uniform(0.3, 0.9, size=2_000_000)
    ranking = auroc(frequency, rng.random(frequency.size) < frequency)
    print("| metric | true | mean estimate | percentile | basic |")
    print("| --- | ---: | ---: | ---: | ---: |")
    for shift in (0.0, 0.03, 0.1):
        truths = {"acc": 0.6, "overconfidence": shift, "auroc": ranking, **dict.fromkeys(ERRORS, shift)}
        hits = dict.fromkeys([(name, method) for name in truths for method in METHODS], 0)
        values: dict[str, list[float]] = {name: [] for name in truths}
        for number in range(arguments.sets):
            rng = np.random.default_rng(number)
            frequency = rng.uniform(0.3, 0.9, size=arguments.questions)
            answers = Questions.from_confidence(frequency + shift, rng.random(arguments.questions) < frequency)
            got = replicate({0: answers}, list(truths), resamples=arguments.resamples, seed=number)[0]
            for name, truth in truths.items():
                values[name].append(got.values[name])
                for method in METHODS:
                    interval = got.interval(name, method=method)  # type: ignore[arg-type]
                    hits[name, method] += interval.low <= truth <= interval.high
        for name, truth in truths.items():
            shares = " | ".join(f"{hits[name, method] / arguments.sets:.2f}" for method in METHODS)
            print(f"| `{name}` | {truth:.3f} | {np.mean(values[name]):.3f} | {shares} |", flush=True)


if __name__ == "__main__":
    main()
