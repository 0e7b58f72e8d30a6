"""Probabilities, confidence and correctness."""

from __future__ import annotations

import numpy as np
import pytest

from lm_eval_calib.confidence import choice_probabilities, confidence_and_correct
from lm_eval_calib.errors import CalibrationValueError


def test_softmax_by_hand() -> None:
    # log 1, log 3: probabilities 1/4 and 3/4; log 1, log 2, log 5: eighths.
    got = choice_probabilities([np.log([1, 3]), np.log([1, 2, 5])])
    np.testing.assert_allclose(got, [[0.25, 0.75, np.nan], [0.125, 0.25, 0.625]], rtol=1e-15)


def test_padded_array_equals_ragged_rows() -> None:
    padded = np.array([[-1.0, -2.0, np.nan], [-3.0, -1.0, -7.0]])
    np.testing.assert_array_equal(
        choice_probabilities(padded), choice_probabilities([[-1.0, -2.0], [-3.0, -1.0, -7.0]])
    )


def test_lengths_and_temperature_divide() -> None:
    # -2 / 2 = -1 and -9 / 3 = -3, over temperature 2: a difference of 1.
    got = choice_probabilities([[-2.0, -9.0]], lengths=[[2, 3]], temperature=2.0)
    np.testing.assert_allclose(got[0, 1] / got[0, 0], np.exp(-1.0), rtol=1e-14)


@pytest.mark.parametrize("shift", [-1e5, 0.0, 700.0])
def test_large_log_likelihoods_do_not_overflow(shift: float) -> None:
    got = choice_probabilities([[shift - 1.0, shift]])
    np.testing.assert_allclose(got, [[1 / (1 + np.e), np.e / (1 + np.e)]], rtol=1e-9)


def test_nothing_in_nothing_out() -> None:
    assert choice_probabilities([]).shape == (0, 0)
    confidence, correct = confidence_and_correct(np.empty((0, 4)), [])
    assert confidence.shape == correct.shape == (0,)


@pytest.mark.parametrize(
    ("values", "options", "words"),
    [
        ([[-1.0, -2.0], [-np.inf, -1.0]], {}, "finite.*row 1"),
        ([[-1.0, -2.0], [-1.0, np.nan]], {}, "finite.*row 1"),
        (np.array([[-1.0, np.nan, -2.0]]), {}, "padding.*row 0"),
        (np.array([[-1.0, -2.0], [np.nan, np.nan]]), {}, "at least one choice.*row 1"),
        ([[-1.0], []], {}, "at least one choice.*row 1"),
        ([["a", "b"]], {}, "expected numbers"),
        (np.zeros(3), {}, "2 dimension"),
        ([[-1.0, -2.0]], {"lengths": [[1, 0]]}, "positive lengths.*row 0"),
        ([[-1.0, -2.0]], {"lengths": [[1, 2, 3]]}, "one for each"),
        ([[-1.0, -2.0]], {"temperature": 0.0}, "temperature"),
        ([[-1.0, -2.0]], {"temperature": float("nan")}, "temperature"),
    ],
)
def test_bad_log_likelihoods_name_what_is_wrong(values: object, options: dict[str, object], words: str) -> None:
    with pytest.raises(CalibrationValueError, match=words):
        choice_probabilities(values, **options)  # type: ignore[arg-type]


def test_ties_go_to_the_first_choice() -> None:
    confidence, correct = confidence_and_correct([[0.4, 0.4, 0.2], [0.1, 0.45, 0.45]], [1, 1])
    np.testing.assert_array_equal(confidence, [0.4, 0.45])
    np.testing.assert_array_equal(correct, [False, True])


@pytest.mark.parametrize(
    "gold",
    [
        [[0, 2], [1]],
        [np.array([0, 2]), np.array([1])],
        np.array([[True, False, True], [False, True, False]]),
    ],
)
def test_gold_sets(gold: object) -> None:
    probabilities = [[0.2, 0.3, 0.5], [0.6, 0.4, np.nan]]
    _, correct = confidence_and_correct(probabilities, gold)
    np.testing.assert_array_equal(correct, [True, False])


@pytest.mark.parametrize(
    ("gold", "words"),
    [
        ([0, 2], "index 2 of row 1.*2 choices"),
        ([-1, 0], "index -1 of row 0"),
        ([0], "one entry a question"),
        ([[0], []], "none at row 1"),
        ([0.0, 1.0], "integer indices"),
        (np.array([[True, False, False], [False, False, True]]), "row 1 marks a choice"),
        (np.array([[True, False], [False, True]]), "mask of shape"),
    ],
)
def test_bad_gold_names_the_row(gold: object, words: str) -> None:
    with pytest.raises(CalibrationValueError, match=words):
        confidence_and_correct([[0.2, 0.3, 0.5], [0.6, 0.4, np.nan]], gold)


@pytest.mark.parametrize(
    ("probabilities", "words"),
    [
        ([[0.5, 0.6]], "sum to 1.*row 0"),
        ([[1.5, -0.5]], r"values in \[0, 1\]"),
        ([[-1.0, -2.0]], "log-likelihoods"),
        ([[np.nan, 1.0]], "padding"),
    ],
)
def test_what_is_no_distribution_is_rejected(probabilities: object, words: str) -> None:
    with pytest.raises(CalibrationValueError, match=words):
        confidence_and_correct(probabilities, [0])  # type: ignore[arg-type]
