"""From the log-likelihoods of the choices to probabilities, confidence and correctness."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from lm_eval_calib.errors import CalibrationValueError
from lm_eval_calib.inputs import Bools, Floats, check_padding, check_probabilities, gold_mask, numeric, row_sums


def choice_probabilities(
    log_likelihoods: Sequence[npt.ArrayLike] | npt.ArrayLike,
    *,
    lengths: Sequence[npt.ArrayLike] | npt.ArrayLike | None = None,
    temperature: float = 1.0,
) -> Floats:
    """Turn log-likelihoods into a distribution over each question's choices.

    `softmax_k(l_k / length_k / temperature)`, computed in float64 whatever comes in.

    Args:
        log_likelihoods: nats; a sequence of N one-dimensional arrays (questions may differ in their number of
            choices) or an [N, K] array whose unused places at the end of a row are NaN.
        lengths: characters, bytes or tokens of the choices, in the same form, all positive; None divides by
            nothing. Per token this is the softmax of the negative log-perplexities of the candidates.
        temperature: positive; above 1 flattens.

    Returns:
        [N, K] probabilities, K the largest number of choices, NaN in the unused places. Rows sum to 1.

    Raises:
        CalibrationValueError: naming the row, for infinite or missing log-likelihoods, no choices, lengths of
            another shape or not positive, a temperature that is not positive.
    """
    scores, real = padded(log_likelihoods, "log_likelihoods", lengths)
    if not (isinstance(temperature, float | int | np.number) and 0 < float(temperature) < np.inf):
        raise CalibrationValueError(f"temperature: expected a positive number, got {temperature!r}")
    scores = np.where(real, scores, -np.inf) / float(temperature)
    if not scores.size:
        return np.empty(scores.shape)
    scores -= scores.max(axis=1, keepdims=True)
    np.exp(scores, out=scores)
    scores /= row_sums(scores)[:, None]
    scores[~real] = np.nan
    return scores


def confidence_and_correct(probabilities: npt.ArrayLike, gold: Any) -> tuple[Floats, Bools]:
    """The largest probability of every question, and whether its choice is in the gold set.

    Ties go to the first index, as in `numpy.argmax` and lm-eval's `acc`.

    Args:
        probabilities: [N, K], rows sum to 1, NaN in unused places.
        gold: N indices from 0, a boolean mask [N, K], or N sequences of indices where several choices are
            right.

    Returns:
        confidence [N] in [0, 1] and correct [N], boolean.
    """
    values, real = check_probabilities(probabilities)
    mask = gold_mask(gold, real)
    if not values.shape[0]:
        return np.empty(0), np.empty(0, dtype=np.bool_)
    best = np.where(real, values, -1.0).argmax(axis=1)
    rows = np.arange(best.size)
    return values[rows, best], mask[rows, best]


def padded(log_likelihoods: Any, name: str, lengths: Any = None) -> tuple[Floats, Bools]:
    """Ragged rows or a padded array, over lengths, as [N, K] with zeros for padding, and what is real."""
    scores, real = _rows(log_likelihoods, name)
    if lengths is None:
        return scores, real
    divisors, divisors_real = _rows(lengths, "lengths")
    if divisors.shape != scores.shape or (divisors_real != real).any():
        raise CalibrationValueError(
            f"lengths: expected one for each of the {name}, got shape {divisors.shape} for {scores.shape} or "
            "other padding; measure every choice"
        )
    if (divisors[real] <= 0).any():
        row = int(((divisors <= 0) & real).any(axis=1).argmax())
        raise CalibrationValueError(
            f"lengths: expected positive lengths, got {divisors[row][real[row]].tolist()} at row {row}; "
            "an empty choice has no per-length score, use another normalisation"
        )
    return scores / np.where(real, divisors, 1.0), real


def _rows(values: Any, name: str) -> tuple[Floats, Bools]:
    if not isinstance(values, np.ndarray):
        values = list(values)
        rows = [numeric(row, f"{name}[{index}]", ndim=1) for index, row in enumerate(values)]
        sizes = np.fromiter((row.size for row in rows), dtype=np.int64, count=len(rows))
        real = np.arange(sizes.max(initial=0)) < sizes[:, None]
        array = np.zeros(real.shape)
        if real.any():
            array[real] = np.concatenate(rows)
    else:
        array = numeric(values, name, ndim=2).astype(np.float64)
        real = ~np.isnan(array)
        array[~real] = 0.0
    check_padding(real, name)
    bad = ~np.isfinite(array).all(axis=1)
    if bad.any():
        row = int(bad.argmax())
        raise CalibrationValueError(
            f"{name}: expected finite numbers, got {array[row][real[row]].tolist()} at row {row} "
            f"({int(bad.sum())} such rows); drop the question or score it again"
        )
    return array, real
