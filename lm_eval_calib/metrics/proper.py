"""Proper scores of the whole distribution: Brier, negative log-likelihood, and the entropy beside them."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from lm_eval_calib.inputs import Bools, Floats, check_probabilities, gold_mask, row_sums
from lm_eval_calib.metrics.accuracy import mean


def brier(probabilities: npt.ArrayLike, gold: Any) -> float:
    """Brier score over all choices.

    `mean_i sum_k (p_ik - y_ik)^2`; in [0, 2], lower is better, NaN of nothing. Brier 1950; lm-eval's
    `brier_score`, but questions may differ in their number of choices. A gold set counts as one choice with
    the sum of its
    probabilities: `(1 - P_gold)^2 + sum of the others' squares`.

    Args:
        probabilities: [N, K], rows sum to 1, NaN in unused places.
        gold: N indices from 0, a boolean mask [N, K], or N sequences of indices.
    """
    return mean(brier_values(*_distribution(probabilities, gold)))


def nll(probabilities: npt.ArrayLike, gold: Any) -> float:
    """Negative log-likelihood of the gold choice among the choices, in nats.

    `mean_i -log P_i(gold)`, where a gold set has the sum of its probabilities; in [0, inf], lower is better,
    NaN of nothing; infinite where a gold choice has probability 0 (scikit-learn's `log_loss` clips instead).

    Args:
        probabilities: [N, K], rows sum to 1, NaN in unused places.
        gold: N indices from 0, a boolean mask [N, K], or N sequences of indices.
    """
    return mean(nll_values(*_distribution(probabilities, gold)))


def entropy(probabilities: npt.ArrayLike, gold: Any) -> float:
    """Mean entropy of the distribution over choices, in nats.

    `mean_i -sum_k p_ik log p_ik`; in [0, log K], neither direction is better, NaN of nothing. Where it is
    below the NLL, the model is surer than its answers deserve.

    Args:
        probabilities: [N, K], rows sum to 1, NaN in unused places.
        gold: as for `nll`; checked, not used.
    """
    return mean(entropy_values(*_distribution(probabilities, gold)))


def _distribution(probabilities: npt.ArrayLike, gold: Any) -> tuple[Floats, Bools]:
    values, real = check_probabilities(probabilities)
    return values, gold_mask(gold, real)


def brier_values(probabilities: Floats, gold: Bools) -> Floats:
    """Per question: the squared distance to the outcome, from probabilities padded with zeros."""
    others = np.where(gold, 0.0, probabilities)
    return np.asarray(np.square(1.0 - _gold_probability(probabilities, gold)) + row_sums(np.square(others)))


def nll_values(probabilities: Floats, gold: Bools) -> Floats:
    """Per question: minus the log-probability of the gold set."""
    with np.errstate(divide="ignore"):
        return np.abs(np.log(_gold_probability(probabilities, gold)))  # abs: no minus zero


def entropy_values(probabilities: Floats, _gold: Bools) -> Floats:
    """Per question: the entropy over its choices."""
    safe = np.where(probabilities > 0, probabilities, 1.0)
    return np.asarray(np.abs(row_sums(probabilities * np.log(safe))))


def _gold_probability(probabilities: Floats, gold: Bools) -> Floats:
    # The sum over a set of several may pass 1 by rounding.
    return np.asarray(np.minimum(row_sums(np.where(gold, probabilities, 0.0)), 1.0))
