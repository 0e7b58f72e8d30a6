"""Agreement with independent implementations where they define the same thing, and where they do not, why."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from lm_eval_calib import metrics
from lm_eval_calib.inputs import Bools, Floats, Ints

SIZES = [1, 2, 20, 333, 5000]


def forecasts(size: int, choices: int = 4, seed: int = 0) -> tuple[Floats, Ints]:
    """Overconfident forecasts and the answers."""
    rng = np.random.default_rng((size, choices, seed))
    scores = rng.normal(size=(size, choices)) * 1.5
    truth = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    gold = np.minimum((truth.cumsum(axis=1) < rng.random((size, 1))).sum(axis=1), choices - 1)
    sharp = truth**1.7
    return sharp / sharp.sum(axis=1, keepdims=True), gold


def top(probabilities: Floats, gold: Ints) -> tuple[Floats, Bools]:
    return probabilities.max(axis=1), probabilities.argmax(axis=1) == gold


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("num_bins", [1, 10, 15])
def test_torchmetrics(size: int, num_bins: int) -> None:
    import torch
    from torchmetrics.functional.classification import multiclass_calibration_error
    from torchmetrics.functional.classification.calibration_error import _ce_compute

    probabilities, gold = forecasts(size)
    confidence, correct = top(probabilities, gold)
    for norm, metric in (("l1", metrics.ece), ("l2", metrics.rms_ce), ("max", metrics.mce)):
        ours = metric(confidence, correct, num_bins=num_bins)
        # Its front turns float64 into float32, its core does not.
        peer = _ce_compute(torch.from_numpy(confidence), torch.from_numpy(correct), num_bins, norm=norm)
        assert ours == pytest.approx(float(peer), abs=1e-12)
        front = multiclass_calibration_error(
            torch.from_numpy(probabilities), torch.from_numpy(gold), num_classes=4, n_bins=num_bins, norm=norm
        )
        assert ours == pytest.approx(float(front), abs=1e-6)


def test_torchmetrics_puts_certainty_into_a_bin_of_its_own() -> None:
    import torch
    from torchmetrics.functional.classification import binary_calibration_error

    # One bin (0.9, 1] of confidences 0.95 (right) and 1.0 (wrong): |0.5 - 0.975|. The peer parts them.
    confidence, correct = np.array([0.95, 1.0]), np.array([1, 0])
    assert metrics.ece(confidence, correct, num_bins=10) == pytest.approx(0.475, abs=1e-15)
    peer = binary_calibration_error(torch.from_numpy(confidence), torch.from_numpy(correct), n_bins=10)
    assert float(peer) == pytest.approx((0.05 + 1.0) / 2, abs=1e-12)


@pytest.mark.parametrize("size", SIZES[2:])
@pytest.mark.parametrize("num_bins", [10, 15])
def test_netcal(size: int, num_bins: int) -> None:
    from netcal.metrics import ECE, MCE

    probabilities, gold = forecasts(size, choices=5)
    assert len(np.unique(gold)) > 2  # with two labels netcal turns binary
    confidence, correct = top(probabilities, gold)
    for metric, peer in ((metrics.ece, ECE), (metrics.mce, MCE)):
        ours = metric(confidence, correct, num_bins=num_bins)
        assert ours == pytest.approx(peer(num_bins).measure(probabilities, gold), abs=1e-12)


def test_netcal_scores_the_second_choice_where_there_are_two() -> None:
    from netcal.metrics import ECE

    # Confidence 0.9 twice, once right: |0.5 - 0.9|. netcal takes the 0.9 and 0.1 of the second choice,
    # which is never right: (0.9 + 0.1) / 2.
    probabilities, gold = np.array([[0.1, 0.9], [0.9, 0.1]]), np.array([0, 0])
    assert metrics.ece(*top(probabilities, gold), num_bins=10) == pytest.approx(0.4, abs=1e-15)
    assert ECE(10).measure(probabilities[:, 1], gold) == pytest.approx(0.5)


@pytest.mark.parametrize("size", [15, 330, 4995])
def test_netcal_equal_mass(size: int) -> None:
    from netcal.metrics import ECE

    # Without ties, and with B dividing N, its quantiles cut the same runs.
    probabilities, gold = forecasts(size, choices=5)
    peer = ECE(15, equal_intervals=False).measure(probabilities, gold)
    assert metrics.ace(*top(probabilities, gold)) == pytest.approx(peer, abs=1e-12)


def test_netcal_cannot_bin_repeated_confidences_by_mass() -> None:
    from netcal.metrics import ECE

    # 0.6 four times (two right) has mid-rank 2 of 5, and 0.9 (wrong) 4.5: bins 1 and 3 of four.
    probabilities = np.array([[0.6, 0.2, 0.2]] * 4 + [[0.9, 0.05, 0.05]])
    gold = np.array([0, 0, 1, 2, 1])
    ours = metrics.ace(*top(probabilities, gold), num_bins=4)
    assert ours == pytest.approx(0.8 * 0.1 + 0.2 * 0.9, abs=1e-15)
    with pytest.raises(ValueError, match="edge difference is numerically 0"):
        ECE(4, equal_intervals=False).measure(probabilities, gold)


@pytest.mark.parametrize("size", SIZES[2:])
def test_scikit_learn(size: int) -> None:
    from sklearn.calibration import calibration_curve
    from sklearn.metrics import brier_score_loss, log_loss, roc_auc_score

    probabilities, gold = forecasts(size)
    confidence, correct = top(probabilities, gold)
    labels = np.arange(4)
    assert metrics.nll(probabilities, gold) == pytest.approx(log_loss(gold, probabilities, labels=labels), abs=1e-12)
    peer = brier_score_loss(gold, probabilities, labels=labels, scale_by_half=False)
    assert metrics.brier(probabilities, gold) == pytest.approx(peer, abs=1e-12)
    assert metrics.auroc(confidence, correct) == pytest.approx(roc_auc_score(correct, confidence), abs=1e-12)
    rounded = np.round(confidence, 1)
    peer = roc_auc_score(correct, rounded)
    assert metrics.auroc(rounded, correct) == pytest.approx(peer, abs=1e-12)
    frequency, mean = calibration_curve(correct, confidence, n_bins=10)
    from lm_eval_calib.binning import bin_statistics

    bins = bin_statistics(confidence, correct, num_bins=10)
    filled = bins.counts > 0
    np.testing.assert_allclose(bins.accuracy[filled], frequency, atol=1e-12)
    np.testing.assert_allclose(bins.confidence[filled], mean, atol=1e-12)


def test_lm_eval_brier() -> None:
    from lm_eval.api.metrics import brier_score

    probabilities, gold = forecasts(500)
    peer = brier_score(list(zip(gold.tolist(), probabilities, strict=True)))
    assert metrics.brier(probabilities, gold) == pytest.approx(float(peer), abs=1e-12)


@pytest.mark.parametrize("size", SIZES[2:])
@pytest.mark.parametrize("power", [0.3, 1.0, 3.0])
def test_relplot_smooth_ece(size: int, power: float, monkeypatch: pytest.MonkeyPatch) -> None:
    import relplot

    # It averages over 200 points with 0 and 1 counted in full; more points make that negligible. Its kernel
    # ends at a distance of 1/2, which shows at large bandwidths.
    monkeypatch.setattr(relplot.config, "smECE_mesh_pts", 5000)
    probabilities, gold = forecasts(size)
    confidence, correct = top(probabilities, gold)
    confidence = confidence**power
    # Its bandwidth comes from ten halvings of [0, 1].
    peer = relplot.smECE(confidence, correct.astype(float))
    assert metrics.smooth_ece(confidence, correct) == pytest.approx(peer, abs=1e-3, rel=6e-3)


@pytest.mark.parametrize("size", [1, 7, 60])
def test_smooth_ece_by_quadrature(size: int) -> None:
    from scipy.optimize import brentq
    from scipy.stats import norm

    rng = np.random.default_rng(size)
    confidence = rng.random(size)
    correct = rng.random(size) < confidence
    points = (np.arange(20_000) + 0.5) / 20_000

    def excess(bandwidth: float) -> float:
        # The Gaussian, and its mirror images in 0 and 1.
        curve = np.zeros_like(points)
        for value, right in zip(confidence, correct, strict=True):
            for centre in (value, -value, 2 - value, 2 + value, value - 2):
                curve += (value - right) * norm.pdf(points, centre, bandwidth)
        return float(np.abs(curve).mean() / size - bandwidth)

    expected = brentq(excess, 1e-3, 1.0, xtol=1e-10)
    assert metrics.smooth_ece(confidence, correct) == pytest.approx(expected, abs=2e-4 * expected + 1e-6)


def stated_sweep(confidence: Floats, correct: Bools) -> float:
    """ECE_SWEEP as its paper states it, number of bins by number of bins, on values without ties."""
    order = np.argsort(confidence)
    confidence, correct = confidence[order], correct[order].astype(float)
    error = abs(correct.mean() - confidence.mean())
    for num_bins in range(2, confidence.size + 1):
        # The mid-rank of question i is i + 1/2.
        bins = (num_bins * (2 * np.arange(confidence.size) + 1)) // (2 * confidence.size)
        groups = [np.flatnonzero(bins == b) for b in range(num_bins) if (bins == b).any()]
        accuracies = [correct[group].mean() for group in groups]
        if any(later < earlier for earlier, later in pairwise(accuracies)):
            break
        error = sum(abs((correct[group] - confidence[group]).sum()) for group in groups) / confidence.size
    return float(error)


@pytest.mark.parametrize("size", [1, 2, 3, 5, 20, 100, 333])
@pytest.mark.parametrize("ease", [0.2, 1.0, 5.0, 40.0])
def test_sweep_as_stated(size: int, ease: float) -> None:
    # With much ease right answers are nearly separated from wrong ones, and the sweep goes far.
    rng = np.random.default_rng((size, int(10 * ease)))
    confidence = rng.random(size)
    correct = rng.random(size) < 1 / (1 + np.exp(-ease * (confidence - 0.5) * 4))
    assert metrics.ece_sweep(confidence, correct) == pytest.approx(stated_sweep(confidence, correct), abs=1e-12)


@pytest.mark.parametrize("size", [2, 20, 333])
def test_aurc_and_coverage_by_loops(size: int) -> None:
    rng = np.random.default_rng(size)
    confidence = np.round(rng.random(size), 2)
    correct = rng.random(size) < confidence
    risks = [1 - correct[confidence >= threshold].mean() for threshold in confidence]
    assert metrics.aurc(confidence, correct) == pytest.approx(np.mean(risks), abs=1e-12)
    distinct = rng.permutation(size) / size
    for answered in range(1, size + 1):
        best = np.argsort(-distinct)[:answered]
        got = metrics.accuracy_at_coverage(distinct, correct, coverage=answered / size)
        assert got == pytest.approx(correct[best].mean(), abs=1e-12)


def test_debiased_as_stated_by_its_authors() -> None:
    # Kumar et al., section 4: the mean over bins of (acc - conf)^2 - acc (1 - acc) / (n - 1), by loops.
    probabilities, gold = forecasts(700)
    confidence, correct = top(probabilities, gold)
    total = 0.0
    for b in range(15):
        inside = (confidence > b / 15) & (confidence <= (b + 1) / 15)
        n, accuracy = inside.sum(), correct[inside].mean() if inside.any() else 0.0
        if n > 1:
            gap = (accuracy - confidence[inside].mean()) ** 2
            total += n / 700 * (gap - accuracy * (1 - accuracy) / (n - 1))
    assert metrics.rms_ce_debiased(confidence, correct) == pytest.approx(np.sqrt(total), abs=1e-12)


@pytest.mark.parametrize("choices", [2, 4, 10])
def test_classwise_by_one_ece_a_class(choices: int) -> None:
    probabilities, gold = forecasts(600, choices)
    by_class = [metrics.ece(probabilities[:, k], gold == k) for k in range(choices)]
    assert metrics.classwise_ece(probabilities, gold) == pytest.approx(np.mean(by_class), abs=1e-12)


def test_brier_decomposition_remainder_as_stated() -> None:
    # Stephenson et al. 2008: within-bin variance of the forecast minus twice its covariance with the outcome.
    probabilities, gold = forecasts(600)
    parts = metrics.brier_decomposition(probabilities, gold, num_bins=10)
    remainder = 0.0
    for k in range(4):
        for b in range(10):
            inside = (probabilities[:, k] > b / 10) & (probabilities[:, k] <= (b + 1) / 10)
            if inside.any():
                forecast = probabilities[inside, k] - probabilities[inside, k].mean()
                outcome = (gold[inside] == k) - (gold[inside] == k).mean()
                remainder += (forecast**2 - 2 * forecast * outcome).sum() / 600
    assert parts.within_bins == pytest.approx(remainder, abs=1e-12)
    assert parts.brier == metrics.brier(probabilities, gold)
