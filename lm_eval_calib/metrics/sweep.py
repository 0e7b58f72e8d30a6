"""The calibration error over as many equal-mass bins as keep accuracy monotone."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from lm_eval_calib.inputs import Floats, check_confidence
from lm_eval_calib.metrics.cumulative import Cumulative


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
    return float(sweep_error(Cumulative.of(values, right))[0])


def sweep_error(sums: Cumulative) -> Floats:
    """ECE_SWEEP of every row of cumulative sums [R]; NaN of nothing."""
    result = np.full(sums.total.size, np.nan)
    chosen = np.ones(sums.total.size, dtype=np.int64)
    rows = np.flatnonzero(sums.total > 0)
    following, low, high = 2, 0.0, 1.0
    while rows.size:
        if following > _FEW:
            counts, hits, gaps = sums.of_groups(rows)
            finest = _monotone(counts, hits)
            done = rows[finest]
            result[done] = np.abs(np.diff(gaps[finest])).sum(axis=1) / sums.total[done]
            rows = rows[~finest]
            if not rows.size:
                break
            low, high = _mixed(counts[~finest], hits[~finest])
        # As many numbers of bins at once as make some boundaries.
        sizes = [following]
        while sum(sizes) * (high - low) + 4 * len(sizes) < _BOUNDARIES:
            sizes.append(sizes[-1] + 1)
        # Bins below `low` hold wrong answers only, those above `high` right ones: accuracy cannot fall there.
        spans = [np.arange(max(0, int(low * size) - 1), min(size, int(np.ceil(high * size)) + 1) + 1) for size in sizes]
        num_bins = np.repeat(sizes, [span.size for span in spans])
        edges = sums.boundaries(num_bins, np.concatenate(spans), rows)
        held = np.diff(sums.counts_at(edges, rows), axis=1)
        right = np.diff(sums.hits_at(edges, rows), axis=1)
        # Each size is lifted above the one before, so that one running maximum serves all; empty bins and the
        # steps back from one size to the next hold nothing.
        lifted = np.where(held > 0, right / np.where(held > 0, held, 1.0), -np.inf)
        lifted += 2.0 * (num_bins[1:] - sizes[0])
        falls = (held > 0) & (lifted < np.maximum.accumulate(lifted, axis=1))
        fallen = falls.any(axis=1)
        chosen[rows] = np.where(fallen, num_bins[1:][falls.argmax(axis=1)] - 1, sizes[-1])
        rows = rows[~fallen]
        following = sizes[-1] + 1
    open_rows = np.flatnonzero(np.isnan(result) & (sums.total > 0))
    # The few rows with many bins one by one: every row is given the room of the largest.
    many = chosen[open_rows] > _FEW
    for rows in [open_rows[~many], *open_rows[many, None]]:
        if rows.size:
            result[rows] = sums.mass_error(chosen[rows], rows)
    return result


# Numbers of bins up to which nothing is looked up to cut the search short, and boundaries computed at once.
_FEW = 64
_BOUNDARIES = 80


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
    shares = counts[row, [first_right, last_wrong]] / total
    return float(shares[0].min()), float(shares[1].max())
