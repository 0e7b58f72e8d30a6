"""Properties that hold for every input."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from lm_eval_calib import metrics
from lm_eval_calib.inputs import Bools, Floats
from lm_eval_calib.metrics import METRICS
from lm_eval_calib.questions import Questions

UNIT = st.floats(0, 1) | st.sampled_from([0.0, 0.1, 0.25, 1 / 3, 0.5, 2 / 3, 0.9, 1.0])
# Counts of questions enter these: repeating all questions adds weight to what singles out one.
SIZE_MATTERS = {"rms_ce_debiased", "ece_sweep"}


@st.composite
def answered(draw: st.DrawFn) -> tuple[Floats, Bools]:
    size = draw(st.integers(1, 40))
    confidence = draw(hnp.arrays(np.float64, size, elements=UNIT))
    return confidence, draw(hnp.arrays(np.bool_, size))


@st.composite
def distributions(draw: st.DrawFn) -> Questions:
    size, choices = draw(st.integers(1, 20)), draw(st.integers(2, 6))
    scores = draw(hnp.arrays(np.float64, (size, choices), elements=st.floats(-30, 5)))
    present = draw(hnp.arrays(np.int64, size, elements=st.integers(1, choices)))
    gold = draw(hnp.arrays(np.int64, size, elements=st.integers(0, choices - 1))) % present
    rows = [row[:count] for row, count in zip(scores, present, strict=True)]
    return Questions.from_log_likelihoods(rows, gold)


@settings(max_examples=150, deadline=None)
@given(answered(), st.integers(1, 30), st.integers(0, 2**32))
def test_range_and_order(data: tuple[Floats, Bools], num_bins: int, seed: int) -> None:
    questions = Questions.from_confidence(*data)
    values = questions.evaluate(num_bins=num_bins)
    for name, value in values.items():
        low, high = METRICS[name].range
        assert np.isnan(value) == (name == "auroc" and len(set(data[1].tolist())) == 1)
        assert np.isnan(value) or low - 1e-12 <= value <= high + 1e-12, name
    shuffled = questions.take(np.random.default_rng(seed).permutation(len(questions)))
    for name, value in shuffled.evaluate(num_bins=num_bins).items():
        assert value == pytest.approx(values[name], abs=1e-12, nan_ok=True), name


@settings(max_examples=150, deadline=None)
@given(answered(), st.integers(1, 30), st.integers(2, 4))
def test_repetition(data: tuple[Floats, Bools], num_bins: int, times: int) -> None:
    questions = Questions.from_confidence(*data)
    repeated = questions.take(np.repeat(np.arange(len(questions)), times))
    values = questions.evaluate(num_bins=num_bins)
    for name, value in repeated.evaluate(num_bins=num_bins).items():
        if name not in SIZE_MATTERS:
            assert value == pytest.approx(values[name], abs=1e-12, nan_ok=True), name


@settings(max_examples=150, deadline=None)
@given(answered(), st.integers(1, 30))
def test_inequalities(data: tuple[Floats, Bools], num_bins: int) -> None:
    values = Questions.from_confidence(*data).evaluate(num_bins=num_bins)
    slack = 1e-12
    bias = abs(values["overconfidence"])
    for name in ("ece", "ace", "ece_sweep", "smooth_ece"):
        assert values[name] >= bias - slack, name
    assert values["ece"] <= values["rms_ce"] + slack
    assert values["rms_ce"] <= values["mce"] + slack
    assert values["rms_ce_debiased"] <= values["rms_ce"] + slack
    assert values["acc"] == pytest.approx(values["confidence"] - values["overconfidence"], abs=slack)
    assert metrics.ece(*data, num_bins=1) == pytest.approx(bias, abs=slack)
    assert metrics.accuracy_at_coverage(*data, coverage=1.0) == pytest.approx(values["acc"], abs=slack)


@settings(max_examples=150, deadline=None)
@given(answered())
def test_auroc_turns_over(data: tuple[Floats, Bools]) -> None:
    confidence, correct = data
    both = metrics.auroc(confidence, correct) + metrics.auroc(confidence, ~correct)
    assert both == pytest.approx(1.0, abs=1e-12) or correct.all() or not correct.any()


@settings(max_examples=100, deadline=None)
@given(distributions(), st.integers(1, 30))
def test_distributions(questions: Questions, num_bins: int) -> None:
    values = questions.evaluate(num_bins=num_bins)
    for name, value in values.items():
        low, high = METRICS[name].range
        assert np.isnan(value) or low - 1e-12 <= value <= high + 1e-12, name
    parts = metrics.brier_decomposition(
        np.where(questions.real, questions.probabilities, np.nan), questions.gold, num_bins=num_bins
    )
    total = parts.reliability - parts.resolution + parts.uncertainty + parts.within_bins
    assert total == pytest.approx(values["brier"], abs=1e-12)
    repeated = questions.take(np.tile(np.arange(len(questions)), 3))
    for name, value in repeated.evaluate(num_bins=num_bins).items():
        if name not in SIZE_MATTERS:
            assert value == pytest.approx(values[name], abs=1e-12, nan_ok=True), name


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 30), st.integers(0, 2**32))
def test_decomposition_is_exact_where_a_bin_holds_one_probability(num_bins: int, seed: int) -> None:
    # Probabilities at the middles of bins: nothing varies within one.
    rng = np.random.default_rng(seed)
    first = (rng.integers(0, num_bins, size=60) + 0.5) / num_bins
    gold = rng.integers(0, 2, size=60)
    parts = metrics.brier_decomposition(np.stack([first, 1 - first], axis=1), gold, num_bins=num_bins)
    assert parts.within_bins == pytest.approx(0.0, abs=1e-12)
    assert parts.uncertainty == pytest.approx(2 * gold.mean() * (1 - gold.mean()), abs=1e-12)


def test_perfect_calibration_is_zero_in_expectation() -> None:
    # Over 300 sets of 200 perfectly calibrated questions the debiased square and the mean gap vanish within
    # four standard errors, the plug-in does not; and it shrinks as the data grow.
    rng = np.random.default_rng(0)

    def simulate(size: int) -> tuple[Floats, Floats, Floats]:
        squares, gaps, plain = [], [], []
        for _ in range(300):
            confidence = rng.uniform(0.25, 1, size=size)
            correct = rng.random(size) < confidence
            bins = np.minimum((confidence * 15).astype(int), 14)
            held = np.bincount(bins, minlength=15)
            many = held > 1
            accuracy = np.bincount(bins, correct, 15)[many] / held[many]
            gap = np.bincount(bins, confidence - correct, 15)[many] / held[many]
            noise = accuracy * (1 - accuracy) / (held[many] - 1)
            squares.append((held[many] * (gap**2 - noise)).sum() / size)
            debiased = metrics.rms_ce_debiased(confidence, correct)
            assert debiased == pytest.approx(max(0.0, squares[-1]) ** 0.5, abs=1e-9)
            gaps.append(metrics.overconfidence(confidence, correct))
            plain.append(metrics.ece(confidence, correct))
        return np.array(squares), np.array(gaps), np.array(plain)

    squares, gaps, small = simulate(200)
    for values in (squares, gaps):
        assert abs(values.mean()) < 4 * values.std() / 300**0.5
    large = simulate(3200)[2]
    assert small.mean() > 0.05
    # A sixteenth of the variance, a quarter of the error.
    assert large.mean() == pytest.approx(small.mean() / 4, rel=0.15)
