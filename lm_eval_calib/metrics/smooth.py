"""The smooth calibration error, which needs no bins."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import scipy.fft

from lm_eval_calib.inputs import Floats, Ints, check_confidence

# Residuals are gathered in this many cells, and the smoothed residual is integrated at their centres. The
# relative error is about (width / bandwidth)^2 / 24: 4e-4 at a bandwidth, hence a value, of 0.01.
CELLS = 1024
# Below the width of a cell a bandwidth means nothing.
SMALLEST_BANDWIDTH = 1 / CELLS
_TOLERANCE = 1e-13


def smooth_ece(confidence: npt.ArrayLike, correct: npt.ArrayLike) -> float:
    """Smooth calibration error: residuals smoothed over confidence instead of binned.

    `smECE_s = integral over t in [0, 1] of |mean_i (correct_i - confidence_i) K_s(t, confidence_i)|`, with
    K_s the Gaussian kernel of bandwidth s reflected at 0 and 1. The value is the s at which `smECE_s = s`,
    which exists once, since smECE_s falls with s. In [0, 1], lower is better, NaN of nothing; at least
    |overconfidence|. Błasiok and Nakkiran 2023, "Smooth ECE: Principled Reliability Diagrams via Kernel
    Smoothing".

    Unlike the ECE it has no bins to choose and is continuous in the confidences. The reflected kernel is
    diagonal in the cosines, so a bandwidth costs one cosine transform of 1,024 points. The authors' relplot
    finds the bandwidth by ten halvings, to 0.001; values agree to that. A bandwidth below 1/1024 is not
    resolved: there the value is smECE at 1/1024.

    Args:
        confidence: [N] in [0, 1].
        correct: [N], boolean or 0 and 1.
    """
    values, right = check_confidence(confidence, correct)
    if not values.size:
        return float("nan")
    residuals = np.bincount(cells(values), weights=values - right, minlength=CELLS) / values.size
    return float(smooth_error(residuals[None])[0])


def cells(values: Floats) -> Ints:
    """The cell of every value in [0, 1]: [lo, hi), and 1 in the last."""
    return np.minimum((values * CELLS).astype(np.int64), CELLS - 1)


def smooth_error(residuals: Floats) -> Floats:
    """The fixed point `smECE_s = s` of every row of residuals.

    Args:
        residuals: [R, CELLS] sums of confidence - correct in every cell, over the number of questions.

    Returns:
        [R]
    """
    empty = np.isnan(residuals[:, 0])  # a resample that drew none of the group's questions
    if empty.any():
        result = np.full(len(residuals), np.nan)
        result[~empty] = smooth_error(residuals[~empty]) if not empty.all() else []
        return result
    # Cosine coefficients: the reflected Gaussian multiplies the k-th by exp(-(pi k s)^2 / 2).
    spectrum = scipy.fft.dct(residuals, type=2, axis=1) / 2
    decay = -((np.pi * np.arange(CELLS)) ** 2) / 2
    tiny = -600.0  # whose exponential vanishes without being subnormal, which is slow

    def error(rows: Ints, bandwidth: Floats) -> Floats:
        # Beyond these, coefficients vanish in double precision.
        modes = min(CELLS, int(2.8 / bandwidth.min()) + 2)
        smoothed = spectrum[rows, :modes] * np.exp(np.maximum(decay[:modes] * bandwidth[:, None] ** 2, tiny))
        curve = scipy.fft.dct(smoothed, type=3, n=CELLS, axis=1, overwrite_x=True)
        return np.asarray(np.abs(curve, out=curve).mean(axis=1))

    # The error is at least the mean residual, and falls with the bandwidth: both bracket the fixed point.
    low = np.maximum(np.abs(spectrum[:, 0]), SMALLEST_BANDWIDTH)
    result = error(np.arange(low.size), low)
    rows = np.flatnonzero(result - low > _TOLERANCE)
    if not rows.size:
        return result
    left, right = low[rows], result[rows]
    above, below = right - left, error(rows, right) - right
    side = np.zeros(rows.size)
    while rows.size:
        # The Illinois variant of regula falsi on the rows still open: an end kept twice has its value halved.
        middle = np.clip((left * below - right * above) / (below - above), left, right)
        value = error(rows, middle) - middle
        result[rows] = middle
        now = np.where(value > 0, 1, -1)
        left, right = np.where(now > 0, middle, left), np.where(now > 0, right, middle)
        above, below = (
            np.where(now > 0, value, np.where(side < 0, above / 2, above)),
            np.where(now < 0, value, np.where(side > 0, below / 2, below)),
        )
        going = (np.abs(value) > _TOLERANCE) & (right - left > _TOLERANCE)
        rows, left, right, above, below, side = (x[going] for x in (rows, left, right, above, below, now))
    return result
