"""McNemar's test and the correction for many comparisons."""

from __future__ import annotations

import numpy as np
import pytest

from lm_eval_calib.errors import CalibrationValueError
from lm_eval_calib.significance import benjamini_hochberg, mcnemar


def test_mcnemar_by_hand() -> None:
    # Right only in the first: 1; only in the second: 5. P(at most 1 of 6) = 7/64, twice that.
    first = [1, 0, 0, 0, 0, 0, 1, 0]
    second = [0, 1, 1, 1, 1, 1, 1, 0]
    result = mcnemar(first, second)
    assert (result.only_first, result.only_second) == (1, 5)
    assert result.p_value == pytest.approx(14 / 64)
    assert mcnemar(np.array(first, dtype=bool), first).p_value == 1.0
    assert mcnemar([], []).p_value == 1.0


def test_mcnemar_is_exact_for_many() -> None:
    from scipy.stats import binomtest

    rng = np.random.default_rng(0)
    first, second = rng.random(20_000) < 0.5, rng.random(20_000) < 0.51
    result = mcnemar(first, second)
    both = result.only_first + result.only_second
    assert result.p_value == pytest.approx(binomtest(result.only_second, both).pvalue)


def test_benjamini_hochberg_by_hand() -> None:
    # m = 4, sorted 0.01, 0.02, 0.03, 0.5: 0.04, 0.04, 0.04, 0.5; the NaN does not count.
    adjusted = benjamini_hochberg({"sw": 0.03, "en": 0.01, "yo": float("nan"), "de": 0.5, "fr": 0.02})
    assert list(adjusted) == ["sw", "en", "yo", "de", "fr"]
    assert adjusted["yo"] != adjusted["yo"]
    assert [adjusted[key] for key in ("en", "fr", "sw", "de")] == pytest.approx([0.04, 0.04, 0.04, 0.5])
    assert benjamini_hochberg({}) == {}


def test_errors() -> None:
    with pytest.raises(CalibrationValueError, match="second_correct: expected the 2 questions"):
        mcnemar([1, 0], [1])
    with pytest.raises(CalibrationValueError, match="first_correct: expected booleans"):
        mcnemar([2, 0], [1, 0])
    with pytest.raises(CalibrationValueError, match=r"p_values: expected values in \[0, 1\]"):
        benjamini_hochberg({"a": 1.2})
