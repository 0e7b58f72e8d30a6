"""How well confidence ranks right answers above wrong ones."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from lm_eval_calib.errors import CalibrationValueError
from lm_eval_calib.inputs import Floats, check_confidence


def auroc(confidence: npt.ArrayLike, correct: npt.ArrayLike) -> float:
    """Area under the ROC curve of confidence as a detector of right answers.

    `P(confidence of a right answer > that of a wrong one) + P(equal) / 2`; in [0, 1], higher is better, 0.5
    is chance, NaN when all answers are right, all are wrong or there is none. Equals scikit-learn's
    `roc_auc_score`.

    Args:
        confidence: [N] in [0, 1].
        correct: [N], boolean or 0 and 1.
    """
    values, right = check_confidence(confidence, correct)
    _, group, same = np.unique(values, return_inverse=True, return_counts=True)
    positives = int(right.sum())
    negatives = right.size - positives
    if not positives or not negatives:
        return float("nan")
    below = np.cumsum(same) - same
    # Twice the mid-rank is whole, so that the sums are exact.
    ranks = (2 * below + same)[group][right].sum() - positives**2
    return float(ranks / (2 * positives * negatives))


def aurc(confidence: npt.ArrayLike, correct: npt.ArrayLike) -> float:
    """Area under the risk-coverage curve: the error rate met when the least confident answers are withheld.

    `mean_i (share of wrong answers among the questions with confidence >= confidence_i)`; in [0, 1], lower is
    better, NaN of nothing. Geifman and El-Yaniv 2017; Geifman et al. 2019. It mixes accuracy and ranking: a
    perfect ranking still has an AURC above 0. Equal confidences pass a threshold together, so that their
    order does not matter; implementations that sort and count one by one differ there.

    Args:
        confidence: [N] in [0, 1].
        correct: [N], boolean or 0 and 1.
    """
    values, right = check_confidence(confidence, correct)
    if not values.size:
        return float("nan")
    same, wrong = _from_the_top(values, ~right)
    return float((same * np.cumsum(wrong) / np.cumsum(same)).sum() / values.size)


def accuracy_at_coverage(confidence: npt.ArrayLike, correct: npt.ArrayLike, *, coverage: float = 0.8) -> float:
    """Accuracy on the most confident share of the questions.

    The share of right answers among the `coverage * N` most confident questions, where a group of equal
    confidence that is only partly covered, and a fraction of a question, count in proportion; in [0, 1],
    higher is better, NaN of nothing. With coverage 1 it is the accuracy. El-Yaniv and Wiener 2010 (selective
    accuracy).

    Args:
        confidence: [N] in [0, 1].
        correct: [N], boolean or 0 and 1.
        coverage: in (0, 1].
    """
    values, right = check_confidence(confidence, correct)
    coverage = check_coverage(coverage)
    if not values.size:
        return float("nan")
    same, hits = _from_the_top(values, right)
    reached = np.concatenate([[0.0], np.cumsum(same)])
    answered = coverage * values.size
    return float(np.interp(answered, reached, np.concatenate([[0.0], np.cumsum(hits)])) / answered)


def check_coverage(coverage: Any) -> float:
    """`coverage` as a float in (0, 1]."""
    if not isinstance(coverage, float | int | np.number) or not 0 < float(coverage) <= 1:
        raise CalibrationValueError(f"coverage: expected a share of the questions in (0, 1], got {coverage!r}")
    return float(coverage)


def _from_the_top(values: Floats, flags: npt.NDArray[np.bool_]) -> tuple[Floats, Floats]:
    """Over groups of equal confidence, the most confident first: questions, and those flagged."""
    _, group, same = np.unique(values, return_inverse=True, return_counts=True)
    flagged = np.bincount(group, weights=flags, minlength=same.size)
    return same[::-1].astype(np.float64), flagged[::-1].astype(np.float64, copy=False)
