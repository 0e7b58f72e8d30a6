"""The one binning that metrics and diagrams share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from lm_eval_calib.errors import CalibrationValueError
from lm_eval_calib.inputs import Floats, Ints, check_confidence, check_positive_int

Scheme = Literal["equal_width", "equal_mass"]


@dataclass(frozen=True)
class BinStatistics:
    """What fell into each of B bins.

    Attributes:
        edges: [B + 1], ascending. Bin b is (edges[b], edges[b + 1]]; 0 lies in the first that is filled.
        counts: [B], questions.
        confidence: [B], mean confidence, NaN where a bin is empty.
        accuracy: [B], share of right answers, NaN where a bin is empty.
    """

    edges: Floats
    counts: Ints
    confidence: Floats
    accuracy: Floats

    @property
    def gap(self) -> Floats:
        """[B] accuracy minus confidence: negative where overconfident, NaN where empty."""
        return self.accuracy - self.confidence


def equal_width_edges(num_bins: int) -> Floats:
    """[num_bins + 1] edges from 0 to 1."""
    return np.linspace(0.0, 1.0, num_bins + 1)


def equal_width_bins(values: Floats, num_bins: int) -> Ints:
    """The bin of every value in [0, 1]: (lo, hi], and 0 in the first."""
    return np.maximum(np.searchsorted(equal_width_edges(num_bins), values, side="left") - 1, 0)


def equal_mass_bins(values: Floats, num_bins: int) -> Ints:
    """The bin of every value by its mid-rank, in bins of equal numbers of questions.

    A value with `below` smaller ones and `same` equal ones (itself included) among N goes to bin
    `floor(B (below + same / 2) / N)`. Without ties, and with N a multiple of B, that cuts the sorted values
    into B equal runs. Equal values share a bin, so that neither the order of the questions nor a repetition
    of all of them matters; a value held by many questions leaves its neighbouring bins empty. The arithmetic
    is in integers.
    """
    if not values.size:
        return np.zeros(0, dtype=np.int64)
    _, group, same = np.unique(values, return_inverse=True, return_counts=True)
    below = np.cumsum(same) - same
    bins = num_bins * (2 * below + same) // (2 * values.size)
    return np.asarray(bins[group], dtype=np.int64)


def bin_statistics(
    confidence: npt.ArrayLike,
    correct: npt.ArrayLike,
    *,
    num_bins: int = 15,
    scheme: Scheme = "equal_width",
) -> BinStatistics:
    """Sort questions into bins of confidence.

    Args:
        confidence: [N] in [0, 1].
        correct: [N], boolean or 0 and 1.
        num_bins: B.
        scheme: "equal_width" cuts [0, 1] into bins (lo, hi] with 0 in the first (Guo et al. 2017);
            "equal_mass" cuts the sorted questions into bins of as equal numbers as repeated confidences allow
            (see `equal_mass_bins`), with edges half-way between neighbouring bins' confidences.

    Returns:
        Counts, mean confidence and accuracy. Unlike torchmetrics there is no extra bin for 1.0, and unlike
        `sklearn.calibration.calibration_curve` empty bins stay.
    """
    values, right = check_confidence(confidence, correct)
    num_bins = check_positive_int(num_bins, "num_bins")
    if scheme == "equal_width":
        bins = equal_width_bins(values, num_bins)
        edges = equal_width_edges(num_bins)
    elif scheme == "equal_mass":
        bins = equal_mass_bins(values, num_bins)
        edges = _edges_between(values, bins, num_bins)
    else:
        raise CalibrationValueError(f"scheme: expected 'equal_width' or 'equal_mass', got {scheme!r}")
    counts = np.bincount(bins, minlength=num_bins)
    with np.errstate(invalid="ignore"):
        mean = np.bincount(bins, weights=values, minlength=num_bins) / counts
        accuracy = np.bincount(bins, weights=right, minlength=num_bins) / counts
    return BinStatistics(edges=edges, counts=counts.astype(np.int64), confidence=mean, accuracy=accuracy)


def _edges_between(values: Floats, bins: Ints, num_bins: int) -> Floats:
    """Edges half-way between the bins' values; an empty bin has no width."""
    low = np.full(num_bins, np.inf)
    high = np.full(num_bins, -np.inf)
    np.minimum.at(low, bins, values)
    np.maximum.at(high, bins, values)
    # Highest value at or below each inner edge, and lowest above it: empty bins inherit their neighbours'.
    left = np.maximum.accumulate(high)[:-1]
    right = np.minimum.accumulate(low[::-1])[::-1][1:]
    with np.errstate(invalid="ignore"):
        middle = left + (right - left) / 2
    middle = np.where(middle < right, middle, left)  # neighbouring floats have none between them
    inner = np.where(np.isneginf(left), 0.0, np.where(np.isposinf(right), 1.0, middle))
    return np.concatenate([[0.0], inner, [1.0]])
