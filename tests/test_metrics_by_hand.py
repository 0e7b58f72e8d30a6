"""Metrics on cases small enough to derive on paper."""

from __future__ import annotations

import numpy as np
import pytest

from lm_eval_calib import metrics
from lm_eval_calib.metrics import METRICS

# Two bins of width 1/2 hold (0.2, right), (0.4, wrong) and (0.6, right), (0.8, right), (1.0, wrong):
# confidence 0.3 and 0.8, accuracy 1/2 and 2/3, gaps 0.2 and -2/15.
CONFIDENCE = [0.2, 0.4, 0.6, 0.8, 1.0]
CORRECT = [1, 0, 1, 1, 0]


def test_binned_by_hand() -> None:
    assert metrics.acc(CONFIDENCE, CORRECT) == pytest.approx(0.6)
    assert metrics.confidence(CONFIDENCE, CORRECT) == pytest.approx(0.6)
    assert metrics.overconfidence(CONFIDENCE, CORRECT) == pytest.approx(0.0)
    assert metrics.ece(CONFIDENCE, CORRECT, num_bins=2) == pytest.approx(0.4 * 0.2 + 0.6 * 2 / 15, rel=1e-14)
    assert metrics.rms_ce(CONFIDENCE, CORRECT, num_bins=2) == pytest.approx((0.4 * 0.04 + 0.6 * 4 / 225) ** 0.5)
    assert metrics.mce(CONFIDENCE, CORRECT, num_bins=2) == pytest.approx(0.2)
    # Variances of the accuracies: 1/4 / 1 and 2/9 / 2.
    assert metrics.rms_ce_debiased(CONFIDENCE, CORRECT, num_bins=2) == 0.0
    # Confidence 0.9 in one bin, 10 questions, all wrong: 0.81 - 0.
    assert metrics.rms_ce_debiased([0.9] * 10, [0] * 10) == pytest.approx(0.9)


def test_brier_and_nll_by_hand() -> None:
    probabilities = [[0.5, 0.25, 0.25], [0.75, 0.25, np.nan]]
    # (1/4 + 1/16 + 1/16 = 3/8) and (9/16 + 9/16 = 9/8).
    assert metrics.brier(probabilities, [0, 1]) == pytest.approx(0.75, rel=1e-15)
    assert metrics.nll(probabilities, [0, 1]) == pytest.approx((np.log(2) + np.log(4)) / 2, rel=1e-15)
    # The set {0, 2} has 3/4: (1/16 + 1/16), against 9/8 again.
    assert metrics.brier(probabilities, [[0, 2], [1]]) == pytest.approx(0.625, rel=1e-15)
    assert metrics.nll([[1.0, 0.0]], [1]) == np.inf


def test_auroc_by_hand() -> None:
    # Right: 0.2, 0.6, 0.8; wrong: 0.4, 1.0. Of six pairs, (0.6, 0.4) and (0.8, 0.4) are in order.
    assert metrics.auroc(CONFIDENCE, CORRECT) == pytest.approx(2 / 6)
    assert metrics.auroc([0.5, 0.5], [1, 0]) == 0.5
    assert np.isnan(metrics.auroc([0.5, 0.6], [1, 1]))


@pytest.mark.parametrize("name", METRICS)
def test_nothing_is_nan(name: str) -> None:
    metric = METRICS[name]
    first = np.empty(0) if metric.inputs == "confidence" else np.empty((0, 4))
    assert np.isnan(metric(first, np.empty(0, dtype=int)))


@pytest.mark.parametrize("name", [name for name, metric in METRICS.items() if metric.per_question])
def test_the_mean_of_per_question_values_is_the_metric(name: str) -> None:
    metric = METRICS[name]
    assert metric.per_question is not None
    rng = np.random.default_rng(0)
    probabilities = rng.dirichlet(np.ones(4), size=50)
    gold = rng.integers(0, 4, size=50)
    if metric.inputs == "confidence":
        first, second = probabilities.max(axis=1), probabilities.argmax(axis=1) == gold
        values = metric.per_question(first, second)
    else:
        first, second = probabilities, gold
        values = metric.per_question(probabilities, gold[:, None] == np.arange(4))
    assert values.shape == (50,)
    assert values.mean() == pytest.approx(metric(first, second), rel=1e-15)
