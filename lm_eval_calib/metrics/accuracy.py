"""Accuracy, mean confidence and their difference."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from lm_eval_calib.inputs import Bools, Floats, check_confidence


def mean(values: Floats) -> float:
    """The mean, NaN of nothing, added up in order as lm-eval does: its tables and ours agree to the last digit."""
    return sum(values.tolist()) / values.size if values.size else float("nan")


def acc(confidence: npt.ArrayLike, correct: npt.ArrayLike) -> float:
    """Accuracy: the share of questions whose most probable choice is right.

    `mean_i correct_i`; in [0, 1], higher is better, NaN of nothing. Equals lm-eval's `acc`.

    Args:
        confidence: [N] in [0, 1]; checked, not used.
        correct: [N], boolean or 0 and 1.
    """
    return mean(correct_values(*check_confidence(confidence, correct)))


def confidence(confidence: npt.ArrayLike, correct: npt.ArrayLike) -> float:
    """Mean confidence: how often the model believes that it is right.

    `mean_i confidence_i`; in [0, 1], neither direction is better, NaN of nothing.

    Args:
        confidence: [N] in [0, 1].
        correct: [N], boolean or 0 and 1; checked, not used.
    """
    return mean(confidence_values(*check_confidence(confidence, correct)))


def overconfidence(confidence: npt.ArrayLike, correct: npt.ArrayLike) -> float:
    """Mean confidence minus accuracy: above 0 the model promises more than it holds.

    `mean_i (confidence_i - correct_i)`; in [-1, 1], best at 0, NaN of nothing. Its absolute value is at most
    the ECE, and equals it when every bin errs in the same direction.

    Args:
        confidence: [N] in [0, 1].
        correct: [N], boolean or 0 and 1.
    """
    return mean(overconfidence_values(*check_confidence(confidence, correct)))


def correct_values(_confidence: Floats, correct: Bools) -> Floats:
    """Per question: 1 where right."""
    return correct.astype(np.float64)


def confidence_values(confidence: Floats, _correct: Bools) -> Floats:
    """Per question: the confidence."""
    return confidence


def overconfidence_values(confidence: Floats, correct: Bools) -> Floats:
    """Per question: confidence minus correctness."""
    return confidence - correct
