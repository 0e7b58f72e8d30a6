"""Checks that turn what a caller passes into the arrays that metrics compute with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from lm_eval_calib.errors import CalibrationValueError

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]

# Rows of probabilities may miss one by this much, as a float16 softmax does; logits miss by far more.
SUM_TOLERANCE = 2e-3


def numeric(values: Any, name: str, *, ndim: int) -> npt.NDArray[Any]:
    """`values` as a boolean, integer or real array of `ndim` dimensions; anything else is an error."""
    try:
        array = np.asarray(values)
    except ValueError as error:
        raise CalibrationValueError(
            f"{name}: expected an array with {ndim} dimension(s), got a ragged sequence; "
            "pad rows with NaN, or pass log-likelihoods to choice_probabilities"
        ) from error
    if array.size == 0 and array.dtype == object:
        array = array.astype(np.float64)
    if array.dtype.kind not in "biuf":
        raise CalibrationValueError(f"{name}: expected numbers, got an array of {array.dtype}; convert it first")
    if array.ndim != ndim:
        raise CalibrationValueError(
            f"{name}: expected {ndim} dimension(s), got shape {array.shape}; pass one entry a question"
            + (" and one column a choice" if ndim == 2 else "")
        )
    return array


def check_confidence(confidence: npt.ArrayLike, correct: npt.ArrayLike) -> tuple[Floats, Bools]:
    """Confidence as float64 in [0, 1] and correctness as booleans, one of each a question."""
    values = numeric(confidence, "confidence", ndim=1).astype(np.float64, copy=False)
    right = check_correct(correct, "correct")
    if values.shape != right.shape:
        raise CalibrationValueError(
            f"correct: expected as many entries as confidence has ({values.size}), got {right.size}"
        )
    bad = ~((values >= 0) & (values <= 1))
    if bad.any():
        row = int(bad.argmax())
        raise CalibrationValueError(
            f"confidence: expected probabilities in [0, 1], got {values[row]} at row {row} "
            f"({int(bad.sum())} such rows); drop missing rows, turn logits or percentages into probabilities"
        )
    return values, right


def check_correct(correct: npt.ArrayLike, name: str) -> Bools:
    """Correctness as booleans [N]."""
    right = numeric(correct, name, ndim=1)
    if right.dtype.kind == "b":
        return right
    bad = (right != 0) & (right != 1)
    if bad.any():
        row = int(bad.argmax())
        raise CalibrationValueError(
            f"{name}: expected booleans or 0 and 1, got {right[row]} at row {row}; pass whether the "
            "most probable choice was right, not a label or a score"
        )
    return right.astype(np.bool_)


def check_probabilities(probabilities: npt.ArrayLike) -> tuple[Floats, Bools]:
    """Probabilities with zeros for padding, and the mask of real choices, both [N, K].

    Padding is NaN after a row's last choice. Every row sums to one within 2e-3.
    """
    values = numeric(probabilities, "probabilities", ndim=2).astype(np.float64)
    real = ~np.isnan(values)
    check_padding(real, "probabilities")
    values[~real] = 0.0
    bad = ((values < 0) | (values > 1)).any(axis=1)
    if bad.any():
        row = int(bad.argmax())
        raise CalibrationValueError(
            f"probabilities: expected values in [0, 1], got {values[row].tolist()} at row {row} "
            f"({int(bad.sum())} such rows); pass log-likelihoods through choice_probabilities first"
        )
    sums = values.sum(axis=1)
    bad = np.abs(sums - 1) > SUM_TOLERANCE
    if bad.any():
        row = int(bad.argmax())
        raise CalibrationValueError(
            f"probabilities: expected every row to sum to 1, got {sums[row]} at row {row} "
            f"({int(bad.sum())} such rows); normalise over the choices of the question"
        )
    return values, real


def row_sums(values: Floats) -> Floats:
    """The sum of each row, column by column: padding with zeros changes no digit, as it would in pairwise sums."""
    total = np.zeros(values.shape[0])
    for column in range(values.shape[1]):
        total += values[:, column]
    return total


def check_padding(real: Bools, name: str) -> None:
    """Padding may only follow a row's choices, of which there is at least one."""
    if real.shape[1] and (real[:, 1:] & ~real[:, :-1]).any():
        row = int((real[:, 1:] & ~real[:, :-1]).any(axis=1).argmax())
        raise CalibrationValueError(
            f"{name}: expected NaN only as padding after the last choice, got one before a choice at "
            f"row {row}; drop the question or give the missing value"
        )
    if real.shape[0] and (not real.shape[1] or not real[:, 0].all()):
        row = int((~real.any(axis=1)).argmax())
        raise CalibrationValueError(f"{name}: expected at least one choice, got none at row {row}; drop the question")


def gold_mask(gold: Any, real: Bools) -> Bools:
    """The gold set of every question as a mask [N, K].

    `gold` is a 1-D array of indices, a boolean mask [N, K], or a sequence of sequences of indices; `real`
    marks the choices that exist.
    """
    rows, columns = real.shape
    if not isinstance(gold, np.ndarray) or gold.dtype == object:
        gold = list(gold)
        # A list of booleans is a row of a mask, everything else in a list of sequences is a set of indices.
        if gold and all(isinstance(row, Sequence | np.ndarray) and not isinstance(row, str) for row in gold):
            rows_of = [np.asarray(row) for row in gold]
            if not all(row.dtype.kind == "b" for row in rows_of):
                flat = np.concatenate([row if row.size else row.astype(np.int64) for row in rows_of])
                sizes = [row.size for row in rows_of]
                return _mask_from_indices(np.repeat(np.arange(len(gold)), sizes), flat, len(gold), real)
    array = np.asarray(gold)
    if array.ndim == 2 and array.dtype.kind == "b":
        if array.shape != (rows, columns):
            raise CalibrationValueError(f"gold: expected a mask of shape {(rows, columns)}, got {array.shape}")
        mask = array & real
        if (mask != array).any():
            row = int((mask != array).any(axis=1).argmax())
            raise CalibrationValueError(f"gold: row {row} marks a choice that the question does not have; check it")
        _no_empty_sets(mask)
        return mask
    array = numeric(gold, "gold", ndim=1)
    return _mask_from_indices(np.arange(array.size), array, array.size, real)


def _mask_from_indices(row_of: Ints, indices: npt.NDArray[Any], questions: int, real: Bools) -> Bools:
    if questions != real.shape[0]:
        raise CalibrationValueError(f"gold: expected one entry a question ({real.shape[0]}), got {questions}")
    if indices.size and indices.dtype.kind not in "iu":
        raise CalibrationValueError(
            f"gold: expected integer indices of choices, counted from 0, got {indices.dtype}; "
            "convert letters or floats to indices"
        )
    mask = np.zeros_like(real)
    if indices.size:
        flat = indices.astype(np.int64)
        outside = (flat < 0) | (flat >= real.sum(axis=1)[row_of])
        if outside.any():
            at = int(outside.argmax())
            raise CalibrationValueError(
                f"gold: index {flat[at]} of row {row_of[at]} is out of range, the question has "
                f"{int(real[row_of[at]].sum())} choices; indices count from 0"
            )
        mask[row_of, flat] = True
    _no_empty_sets(mask)
    return mask


def _no_empty_sets(mask: Bools) -> None:
    empty = ~mask.any(axis=1)
    if empty.any():
        raise CalibrationValueError(
            f"gold: expected at least one right choice a question, got none at row {int(empty.argmax())} "
            f"({int(empty.sum())} such rows); drop questions without a key"
        )


def check_positive_int(value: Any, name: str) -> int:
    """`value` as an integer of at least one."""
    if isinstance(value, bool | np.bool_) or not isinstance(value, int | np.integer) or value < 1:
        raise CalibrationValueError(f"{name}: expected a whole number of at least 1, got {value!r}")
    return int(value)
