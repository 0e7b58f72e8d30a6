"""The calibration error over as many equal-mass bins as keep accuracy monotone."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from lm_eval_calib.inputs import Floats, Ints, check_confidence


def ece_sweep(confidence: npt.ArrayLike, correct: npt.ArrayLike) -> float:
    """ECE over equal-mass bins whose number the data choose.

    The number of bins grows from 1 for as long as the accuracies of the bins do not fall with confidence; the
    value is `ace` with the last such number. In [0, 1], lower is better, NaN of nothing. Roelofs et al. 2022,
    "Mitigating Bias in Calibration Error Estimation" (ECE_SWEEP with equal mass), less biased than a fixed
    number of bins.

    Args:
        confidence: [N] in [0, 1].
        correct: [N], boolean or 0 and 1.
    """
    values, right = check_confidence(confidence, correct)
    if not values.size:
        return float("nan")
    _, group = np.unique(values, return_inverse=True)
    counts, hits, gaps = (
        np.concatenate([[0.0], np.cumsum(np.bincount(group, weights=weights))])
        for weights in (np.ones(values.size), right, values - right)
    )
    return float(sweep_error(counts[None], hits[None], gaps[None])[0])


def mass_boundaries(counts: Floats, num_bins: Ints, bins: Ints) -> Ints:
    """Where equal-mass bins begin.

    Args:
        counts: [R, G + 1] cumulative numbers of questions over ascending groups of equal confidence, from 0.
        num_bins, bins: [M] the number of bins and one of them, from 0.

    Returns:
        [R, M] the first group whose mid-rank is in that bin or a later one; G where there is none. The rule
        is that of `lm_eval_calib.binning.equal_mass_bins`.
    """
    last = counts.shape[1] - 1
    total = counts[:, -1:]
    # In whole numbers. A group that even with its last question does not reach the boundary lies before it.
    first = first_reaching(counts, -(-(total.astype(np.int64) * bins) // num_bins))
    row = np.arange(counts.shape[0])[:, None]
    ranks = counts[row, first] + counts[row, np.minimum(first + 1, last)]
    return np.asarray(first + ((ranks * num_bins < 2 * total * bins) & (first < last)))


def first_reaching(counts: Floats, targets: npt.NDArray[Any]) -> Ints:
    """The first group [R, M] whose cumulative count [R, G + 1] reaches the target [R, M] (at most all)."""
    rows, width = counts.shape
    # One sorted search for all rows: each is shifted above the one before.
    row = np.arange(rows)[:, None]
    shift = row * (counts[:, -1].max(initial=0.0) + 1)
    found = np.searchsorted((counts[:, 1:] + shift).ravel(), (targets + shift).ravel(), side="left")
    return np.asarray(found.reshape(rows, -1) - row * (width - 1))


def mass_error(counts: Floats, gaps: Floats, num_bins: int) -> Floats:
    """Equal-mass calibration error [R] from cumulative counts and sums of confidence - correct [R, G + 1]."""
    bins = np.arange(num_bins + 1)
    edges = mass_boundaries(counts, np.full(num_bins + 1, num_bins), bins)
    sums = np.diff(np.take_along_axis(gaps, edges, axis=1), axis=1)
    return np.asarray(np.abs(sums).sum(axis=1) / counts[:, -1])


def sweep_error(counts: Floats, hits: Floats, gaps: Floats) -> Floats:
    """ECE_SWEEP [R] of resamples, each given by cumulative sums over groups of equal confidence [R, G + 1].

    Args:
        counts: questions.
        hits: right answers.
        gaps: confidence - correct.
    """
    result = np.full(counts.shape[0], np.nan)
    rows = np.flatnonzero(counts[:, -1] > 0)
    chosen = np.ones(counts.shape[0], dtype=np.int64)
    following = 2
    while rows.size:
        sizes, low, high = [following], 0.0, 1.0
        if following > _FEW:
            finest = _monotone(counts[rows], hits[rows])
            result[rows[finest]] = np.abs(np.diff(gaps[rows[finest]])).sum(axis=1) / counts[rows[finest], -1]
            rows = rows[~finest]
            if not rows.size:
                break
            low, high = _mixed(counts[rows], hits[rows])
        # As many numbers of bins at once as make some hundred boundaries.
        while sum(sizes) * (high - low) + 4 * len(sizes) < _BOUNDARIES:
            sizes.append(sizes[-1] + 1)
        # Bins below `low` hold wrong answers only, those above `high` right ones: accuracy cannot fall there.
        spans = [
            np.arange(max(0, int(low * size) - 1), min(size, int(np.ceil(high * size)) + 1) + 1)
            for size in sizes
        ]
        num_bins = np.repeat(sizes, [span.size for span in spans])
        edges = mass_boundaries(counts[rows], num_bins, np.concatenate(spans))
        held = np.diff(counts[rows[:, None], edges], axis=1)
        right = np.diff(hits[rows[:, None], edges], axis=1)
        # Each size is lifted above the one before, so that one running maximum serves all; empty bins and the
        # steps back from one size to the next hold nothing.
        lifted = np.where(held > 0, right / np.where(held > 0, held, 1.0), -np.inf)
        lifted += 2.0 * (num_bins[1:] - sizes[0])
        falls = (held > 0) & (lifted < np.maximum.accumulate(lifted, axis=1))
        fallen = falls.any(axis=1)
        chosen[rows] = np.where(fallen, num_bins[1:][falls.argmax(axis=1)] - 1, sizes[-1])
        rows = rows[~fallen]
        following = sizes[-1] + 1
    for size in np.unique(chosen):
        rows = np.flatnonzero((chosen == size) & np.isnan(result) & (counts[:, -1] > 0))
        if rows.size:
            result[rows] = mass_error(counts[rows], gaps[rows], int(size))
    return result


# Numbers of bins up to which nothing is looked up to cut the search short, and boundaries computed at once.
_FEW = 64
_BOUNDARIES = 512


def _monotone(counts: Floats, hits: Floats) -> npt.NDArray[np.bool_]:
    """Whether accuracy never falls from one group to the next [R]: then it falls for no number of bins."""
    held = np.diff(counts, axis=1)
    accuracy = np.where(held > 0, np.diff(hits, axis=1) / np.where(held > 0, held, 1.0), -np.inf)
    falls = (held > 0) & (accuracy < np.maximum.accumulate(accuracy, axis=1))
    return np.asarray(~falls.any(axis=1))


def _mixed(counts: Floats, hits: Floats) -> tuple[float, float]:
    """The shares of questions, over all rows, between which right and wrong answers mix."""
    row = np.arange(counts.shape[0])
    first_right = (hits > 0).argmax(axis=1) - 1
    misses = counts - hits
    last_wrong = (misses >= misses[:, -1:]).argmax(axis=1)
    total = counts[:, -1]
    return (
        float((counts[row, first_right] / total).min()),
        float((counts[row, last_wrong] / total).max()),
    )
