"""Tests beside the bootstrap: McNemar's for accuracy, and the correction for many languages."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import scipy.stats

from lm_eval_calib.errors import CalibrationValueError
from lm_eval_calib.inputs import check_correct

Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True)
class McNemar:
    """How two models' right answers to the same questions differ.

    Attributes:
        only_first: questions that only the first answers right.
        only_second: questions that only the second answers right.
        p_value: exact, two-sided.
    """

    only_first: int
    only_second: int
    p_value: float


def mcnemar(first_correct: npt.ArrayLike, second_correct: npt.ArrayLike) -> McNemar:
    """Test whether two models that answered the same questions are equally accurate.

    Where only one of them is right, under equality each is as likely to be the one: a two-sided exact
    binomial test with probability 1/2 (McNemar 1947). The p-value is 1 where they never disagree.

    Args:
        first_correct, second_correct: [N], boolean or 0 and 1; row i of both is the same question.
    """
    first, second = (
        check_correct(first_correct, "first_correct"),
        check_correct(second_correct, "second_correct"),
    )
    if first.shape != second.shape:
        raise CalibrationValueError(
            f"second_correct: expected the {first.size} questions of the first, in their order, got {second.size}"
        )
    only_first, only_second = int((first & ~second).sum()), int((second & ~first).sum())
    p_value = 1.0
    if only_first + only_second:
        p_value = float(scipy.stats.binomtest(only_first, only_first + only_second).pvalue)
    return McNemar(only_first, only_second, p_value)


def benjamini_hochberg(p_values: Mapping[Key, float]) -> dict[Key, float]:
    """Adjust the p-values of many comparisons, such as one a language, for their number.

    Calling significant what is at most alpha after this keeps the expected share of false discoveries at
    alpha (Benjamini and Hochberg 1995): `adjusted_(i) = min over j >= i of (m p_(j) / j)`, at most 1.

    Args:
        p_values: key -> p in [0, 1]; NaN, where no test was possible, stays NaN and does not count in m.

    Returns:
        key -> adjusted p, in the order given.
    """
    keys, values = list(p_values), np.array(list(p_values.values()), dtype=np.float64)
    tested = ~np.isnan(values)
    if ((values[tested] < 0) | (values[tested] > 1)).any():
        raise CalibrationValueError(f"p_values: expected values in [0, 1], got {values[tested].tolist()}")
    if tested.any():
        values[tested] = scipy.stats.false_discovery_control(values[tested], method="bh")
    return {key: float(value) for key, value in zip(keys, values, strict=True)}
