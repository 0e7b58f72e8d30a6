"""How well confidence ranks right answers above wrong ones."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from lm_eval_calib.inputs import check_confidence


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
