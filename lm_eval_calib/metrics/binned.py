"""Calibration errors over bins of confidence."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from lm_eval_calib.binning import BinStatistics, bin_statistics


def ece(confidence: npt.ArrayLike, correct: npt.ArrayLike, *, num_bins: int = 15) -> float:
    """Expected calibration error over equal-width bins.

    `sum_b n_b / N |acc_b - conf_b|` with bins (lo, hi], 0 in the first; in [0, 1], lower is better, NaN of
    nothing. Guo et al. 2017, "On Calibration of Modern Neural Networks". Biased upwards: a perfectly
    calibrated model has an ECE of the order of sqrt(num_bins / N).

    torchmetrics puts confidence 1.0 into an extra bin; otherwise the values agree.

    Args:
        confidence: [N] in [0, 1].
        correct: [N], boolean or 0 and 1.
        num_bins: bins over [0, 1].
    """
    return _weighted_mean(bin_statistics(confidence, correct, num_bins=num_bins), power=1)


def rms_ce(confidence: npt.ArrayLike, correct: npt.ArrayLike, *, num_bins: int = 15) -> float:
    """Root-mean-square calibration error over equal-width bins.

    `sqrt(sum_b n_b / N (acc_b - conf_b)^2)` on the bins of `ece`; in [0, 1], lower is better, NaN of nothing;
    at least the ECE. Kumar et al. 2019 (the plug-in estimate). Hendrycks's script uses equal-mass bins and
    leaves the most confident one out.

    Args:
        confidence: [N] in [0, 1].
        correct: [N], boolean or 0 and 1.
        num_bins: bins over [0, 1].
    """
    return math.sqrt(_weighted_mean(bin_statistics(confidence, correct, num_bins=num_bins), power=2))


def ace(confidence: npt.ArrayLike, correct: npt.ArrayLike, *, num_bins: int = 15) -> float:
    """Adaptive calibration error: the ECE over equal-mass bins.

    `sum_b n_b / N |acc_b - conf_b|` over bins of equal numbers of questions, equal confidences kept together
    (`lm_eval_calib.binning.equal_mass_bins`); in [0, 1], lower is better, NaN of nothing. Nixon et al. 2019,
    "Measuring Calibration in Deep Learning", for the top label.

    Args:
        confidence: [N] in [0, 1].
        correct: [N], boolean or 0 and 1.
        num_bins: bins; with fewer questions than bins every question has its own.
    """
    return _weighted_mean(bin_statistics(confidence, correct, num_bins=num_bins, scheme="equal_mass"), power=1)


def mce(confidence: npt.ArrayLike, correct: npt.ArrayLike, *, num_bins: int = 15) -> float:
    """Maximum calibration error over equal-width bins.

    `max_b |acc_b - conf_b|` over the bins that hold a question; in [0, 1], lower is better, NaN of nothing.
    Naeini et al. 2015. One question alone in a bin can decide it: read it beside the counts.

    Args:
        confidence: [N] in [0, 1].
        correct: [N], boolean or 0 and 1.
        num_bins: bins over [0, 1].
    """
    gap = bin_statistics(confidence, correct, num_bins=num_bins).gap
    filled = np.abs(gap[~np.isnan(gap)])
    return float(filled.max()) if filled.size else float("nan")


def rms_ce_debiased(confidence: npt.ArrayLike, correct: npt.ArrayLike, *, num_bins: int = 15) -> float:
    """Root-mean-square calibration error with its bias from noisy accuracies removed.

    `sqrt(max(0, sum_b n_b / N [(acc_b - conf_b)^2 - acc_b (1 - acc_b) / (n_b - 1)]))` on the bins of `ece`;
    in [0, 1], lower is better, at most `rms_ce`, NaN of nothing. Kumar et al. 2019, "Verified Uncertainty
    Calibration", whose default bins are equal-mass. A bin of one question, whose variance is unknown, counts
    as 0, as there.

    Args:
        confidence: [N] in [0, 1].
        correct: [N], boolean or 0 and 1.
        num_bins: bins over [0, 1].
    """
    bins = bin_statistics(confidence, correct, num_bins=num_bins)
    if not bins.counts.sum():
        return float("nan")
    many = bins.counts > 1
    counts, accuracy, gap = bins.counts[many], bins.accuracy[many], bins.gap[many]
    squares = gap**2 - accuracy * (1 - accuracy) / (counts - 1)
    return float(np.sqrt(max(0.0, np.sum(counts * squares) / bins.counts.sum())))


def _weighted_mean(bins: BinStatistics, *, power: int) -> float:
    """The mean over questions of their bin's absolute gap to a power."""
    total = bins.counts.sum()
    if not total:
        return float("nan")
    return float(np.nansum(bins.counts * np.abs(bins.gap) ** power) / total)
