"""How often the 95 % bootstrap intervals of calibration errors hold the true value, by simulation.

    python benchmarks/intervals.py --trials 300

The model's confidence is 1 - 0.75 X with X ~ Beta(1.2, 3); the probability of a right answer is confidence - shift.
The truth is the metric of three million questions. `report` is what reports print: the basic interval for the metrics
of BIASED_UP and the percentile interval for the others, widened to hold the value.
"""

from __future__ import annotations

import argparse

import numpy as np

from lm_eval_calib.bootstrap import replicate
from lm_eval_calib.metrics import METRICS
from lm_eval_calib.questions import Questions
from lm_eval_calib.report.scores import interval_of

CHOSEN = ("acc", "ece", "rms_ce", "ace", "smooth_ece", "rms_ce_debiased", "auroc")


def simulate(rng: np.random.Generator, size: int, shift: float) -> Questions:
    confidence = 1 - 0.75 * rng.beta(1.2, 3, size)
    return Questions.from_confidence(confidence, rng.random(size) < np.clip(confidence - shift, 0, 1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=300)
    arguments = parser.parse_args()
    rng = np.random.default_rng(0)
    print("| metric | shift | questions | bias of the value | percentile | basic | report |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    for shift in (0.0, 0.05, 0.15):
        crowd = simulate(rng, 3_000_000, shift)
        # The debiased estimate is of the same quantity as the plain one.
        truth = {name: METRICS[name.removesuffix("_debiased")](crowd.confidence, crowd.correct) for name in CHOSEN}
        for size in (100, 500, 2000):
            held = {name: np.zeros(3) for name in CHOSEN}
            bias = dict.fromkeys(CHOSEN, 0.0)
            for trial in range(arguments.trials):
                part = replicate({0: simulate(rng, size, shift)}, CHOSEN, resamples=400, seed=trial, workers=1)[0]
                for name in CHOSEN:
                    ends = [part.interval(name, method=method) for method in ("percentile", "basic")]
                    ends.append(interval_of(part, name))
                    held[name] += [end.low <= truth[name] <= end.high for end in ends]
                    bias[name] += (part.values[name] - truth[name]) / arguments.trials
            for name in CHOSEN:
                shares = " | ".join(f"{share:.0%}" for share in held[name] / arguments.trials)
                print(f"| {name} | {shift} | {size:,} | {bias[name]:+.3f} | {shares} |", flush=True)


if __name__ == "__main__":
    main()
