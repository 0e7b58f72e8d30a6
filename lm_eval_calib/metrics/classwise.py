"""Calibration of every choice's probability: classwise ECE and the parts of the Brier score."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from lm_eval_calib.binning import equal_width_bins
from lm_eval_calib.inputs import Bools, Floats, check_positive_int, check_probabilities, gold_mask
from lm_eval_calib.metrics.accuracy import mean
from lm_eval_calib.metrics.proper import brier_values


@dataclass(frozen=True)
class BrierDecomposition:
    """Murphy's parts of the Brier score: `brier = reliability - resolution + uncertainty + within_bins`.

    Attributes:
        brier: `lm_eval_calib.metrics.brier`, in [0, 2].
        reliability: how far probabilities are from frequencies, lower is better, at least 0.
        resolution: how far the bins' frequencies are from the overall ones, higher is better, at least 0.
        uncertainty: the Brier score of always forecasting the overall frequencies; a property of the
            questions.
        within_bins: what binning leaves over: the variance of the probabilities within a bin minus twice
            their covariance with the outcomes (Stephenson et al. 2008); 0 if a bin holds one probability
            only.
    """

    brier: float
    reliability: float
    resolution: float
    uncertainty: float
    within_bins: float


def classwise_ece(probabilities: npt.ArrayLike, gold: Any, *, num_bins: int = 15) -> float:
    """Classwise (static) calibration error: the mean over choice positions of the ECE of their probabilities.

    `1 / K sum_k sum_b n_bk / N_k |freq_bk - prob_bk|` with equal-width bins (lo, hi], 0 in the first, where
    class k is the k-th choice ("A", "B", ...) and N_k counts the questions that have one; in [0, 1], lower is
    better, NaN of nothing. Nixon et al. 2019 (SCE); Kull et al. 2019. A bias towards a letter shows here and
    not in the ECE.

    A gold set's outcome is shared equally among its choices.

    Args:
        probabilities: [N, K], rows sum to 1, NaN in unused places.
        gold: N indices from 0, a boolean mask [N, K], or N sequences of indices.
        num_bins: bins over [0, 1].
    """
    values, real, shares = _shares(probabilities, gold)
    sums = class_sums(values, real, shares, check_positive_int(num_bins, "num_bins"))
    return float(classwise_from_sums(sums.counts, sums.gaps)) if values.size else float("nan")


def brier_decomposition(probabilities: npt.ArrayLike, gold: Any, *, num_bins: int = 15) -> BrierDecomposition:
    """The Brier score as reliability minus resolution plus uncertainty, summed over choice positions.

    Per choice position k with equal-width bins b: `reliability = sum_b n_b / N (prob_b - freq_b)^2`,
    `resolution = sum_b n_b / N (freq_b - freq)^2`, `uncertainty = N_k / N freq (1 - freq)`. Murphy 1973, "A
    New Vector Partition of the Probability Score". All NaN of nothing. A gold set's outcome is shared equally
    among its choices.

    Args:
        probabilities: [N, K], rows sum to 1, NaN in unused places.
        gold: N indices from 0, a boolean mask [N, K], or N sequences of indices.
        num_bins: bins over [0, 1].
    """
    values, real, shares = _shares(probabilities, gold)
    num_bins = check_positive_int(num_bins, "num_bins")
    if not values.size:
        return BrierDecomposition(*[float("nan")] * 5)
    score = mean(brier_values(values, shares > 0))
    sums = class_sums(values, real, shares, num_bins)
    squares = np.square(shares).sum(axis=0)
    reliability, resolution, uncertainty = (
        float(part) for part in brier_parts(sums.counts, sums.gaps, sums.outcomes, squares, values.shape[0])
    )
    return BrierDecomposition(
        brier=score,
        reliability=reliability,
        resolution=resolution,
        uncertainty=uncertainty,
        within_bins=score - (reliability - resolution + uncertainty),
    )


def brier_reliability(probabilities: npt.ArrayLike, gold: Any, *, num_bins: int = 15) -> float:
    """The reliability of `brier_decomposition`: in [0, 2], lower is better, NaN of nothing."""
    return brier_decomposition(probabilities, gold, num_bins=num_bins).reliability


def brier_resolution(probabilities: npt.ArrayLike, gold: Any, *, num_bins: int = 15) -> float:
    """The resolution of `brier_decomposition`: in [0, 1], higher is better, NaN of nothing."""
    return brier_decomposition(probabilities, gold, num_bins=num_bins).resolution


def brier_uncertainty(probabilities: npt.ArrayLike, gold: Any, *, num_bins: int = 15) -> float:
    """The uncertainty of `brier_decomposition`: in [0, 1], a property of the questions, NaN of nothing."""
    return brier_decomposition(probabilities, gold, num_bins=num_bins).uncertainty


@dataclass(frozen=True)
class ClassSums:
    """Sums over the questions whose k-th choice has a probability in bin b, all [K, B].

    Attributes:
        counts: questions.
        gaps: of probability minus outcome.
        outcomes: of outcomes.
    """

    counts: Floats
    gaps: Floats
    outcomes: Floats


def class_sums(values: Floats, real: Bools, shares: Floats, num_bins: int) -> ClassSums:
    """Bin the probabilities of every choice position."""
    classes = values.shape[1]
    cell = (equal_width_bins(values, num_bins) + num_bins * np.arange(classes))[real]

    def total(weights: Floats) -> Floats:
        sums = np.bincount(cell, weights=weights[real], minlength=classes * num_bins)
        return sums.reshape(classes, num_bins).astype(np.float64, copy=False)

    return ClassSums(total(np.ones_like(values)), total(values - shares), total(shares))


def classwise_from_sums(counts: Floats, gaps: Floats) -> Floats:
    """Classwise ECE [...] from sums [..., K, B]; choice positions that no question has are left out."""
    total = counts.sum(axis=-1)
    with np.errstate(invalid="ignore"):
        errors = np.abs(gaps).sum(axis=-1) / total
    return np.asarray(np.where(total > 0, errors, 0.0).sum(axis=-1) / (total > 0).sum(axis=-1))


def brier_parts(
    counts: Floats, gaps: Floats, outcomes: Floats, squares: Floats, questions: Floats | int
) -> tuple[Floats, Floats, Floats]:
    """Reliability, resolution and uncertainty [...].

    From sums [..., K, B], the sum of squared outcomes [..., K] and the number of questions [...].
    """
    filled = np.where(counts > 0, counts, 1.0)
    total = counts.sum(axis=-1)
    frequency = outcomes.sum(axis=-1) / np.where(total > 0, total, 1.0)
    reliability = (np.square(gaps) / filled).sum(axis=(-1, -2))
    resolution = (counts * np.square(outcomes / filled - frequency[..., None])).sum(axis=(-1, -2))
    uncertainty = (squares - total * np.square(frequency)).sum(axis=-1)
    return reliability / questions, resolution / questions, uncertainty / questions


def _shares(probabilities: npt.ArrayLike, gold: Any) -> tuple[Floats, Bools, Floats]:
    values, real = check_probabilities(probabilities)
    return values, real, outcome_shares(gold_mask(gold, real))


def outcome_shares(gold: Bools) -> Floats:
    """The outcome of every question, 1 in all, shared equally among its gold choices [N, K]."""
    return np.asarray(gold / np.maximum(gold.sum(axis=1, keepdims=True), 1))
