"""Inputs at the edge of what a metric is defined for, and beyond."""

from __future__ import annotations

import time

import numpy as np
import pytest

from lm_eval_calib import metrics
from lm_eval_calib.errors import CalibrationError, CalibrationValueError
from lm_eval_calib.metrics import METRICS, Metric
from lm_eval_calib.questions import Questions

OF_CONFIDENCE = [metric for metric in METRICS.values() if metric.inputs == "confidence"]
OF_DISTRIBUTION = [metric for metric in METRICS.values() if metric.inputs == "distribution"]


@pytest.mark.parametrize("metric", OF_CONFIDENCE, ids=lambda metric: metric.name)
@pytest.mark.parametrize(
    ("confidence", "correct", "words"),
    [
        ([0.5, np.nan], [1, 0], r"confidence: .*got nan at row 1"),
        ([0.5, 1.5], [1, 0], r"confidence: .*got 1.5 at row 1"),
        ([-2.3, 0.1], [1, 0], r"logits or percentages"),
        ([0.5, 0.6], [1, 2], r"correct: .*got 2 at row 1"),
        ([0.5, 0.6], [1.0, np.nan], r"correct: .*got nan at row 1"),
        ([0.5, 0.6], [1], r"correct: expected as many entries as confidence has \(2\), got 1"),
        ([[0.5, 0.6]], [1, 0], r"confidence: expected 1 dimension"),
        ([0.5, 0.6], [[1], [0]], r"correct: expected 1 dimension"),
        (["0.5"], [1], r"confidence: expected numbers"),
        ([0.5, 0.6], [None, 1], r"correct: expected numbers"),
        ([[0.5], [0.6, 0.7]], [1, 0], r"confidence: .*ragged"),
        (0.5, 1, r"confidence: expected 1 dimension"),
        ([0.5 + 1j], [1], r"confidence: expected numbers"),
    ],
)
def test_bad_confidence_is_an_error(metric: Metric, confidence: object, correct: object, words: str) -> None:
    with pytest.raises(CalibrationValueError, match=words):
        metric(confidence, correct)


@pytest.mark.parametrize("metric", OF_DISTRIBUTION, ids=lambda metric: metric.name)
@pytest.mark.parametrize(
    ("probabilities", "gold", "words"),
    [
        ([[0.5, 0.5]], [2], r"gold: index 2 of row 0"),
        ([[0.5, 0.5]], [-100], r"gold: index -100 of row 0"),
        ([[0.5, 0.4]], [0], r"sum to 1"),
        ([[0.5, 0.5], [np.nan, np.nan]], [0, 0], r"at least one choice, got none at row 1"),
        ([[0.5, 0.5]], [0, 1], r"one entry a question"),
        ([0.5, 0.5], [0, 1], r"2 dimension"),
        ([[0.5, 0.5]], ["A"], r"gold: expected numbers"),
        ([[0.5, np.inf]], [0], r"values in"),
    ],
)
def test_bad_distributions_are_errors(metric: Metric, probabilities: object, gold: object, words: str) -> None:
    with pytest.raises(CalibrationValueError, match=words):
        metric(probabilities, gold)


@pytest.mark.parametrize("metric", METRICS.values(), ids=lambda metric: metric.name)
def test_integers_booleans_and_narrow_floats(metric: Metric) -> None:
    if metric.inputs == "confidence":
        confidence, correct = np.array([0.0, 1.0, 1.0, 0.0, 1.0]), np.array([0, 1, 0, 1, 1])
        pairs = [
            (confidence.astype(kind), correct.astype(other))
            for kind in (np.float64, np.float32, np.float16, np.int8, np.uint64, np.bool_)
            for other in (np.bool_, np.int64, np.uint8, np.float32)
        ]
        pairs.append((confidence.tolist(), correct.tolist()))
    else:
        probabilities, gold = np.array([[0.25, 0.75], [0.5, 0.5], [1.0, 0.0]]), np.array([1, 0, 0])
        pairs = [
            (probabilities.astype(kind), gold.astype(other))
            for kind in (np.float64, np.float32, np.float16)
            for other in (np.int64, np.int8, np.uint16)
        ]
        pairs.append((probabilities.tolist(), gold.tolist()))
    values = [metric(*pair) for pair in pairs]
    assert all(type(value) is float for value in values)
    assert len(set(values)) == 1
    assert metric.range[0] <= values[0] <= metric.range[1]


def test_half_precision_rows_that_miss_one_by_rounding_pass() -> None:
    rng = np.random.default_rng(0)
    probabilities = rng.dirichlet(np.ones(10), size=1000).astype(np.float16)
    assert not (probabilities.astype(np.float64).sum(axis=1) == 1).all()
    assert 0 < metrics.brier(probabilities, np.zeros(1000, dtype=int)) < 2


@pytest.mark.parametrize("right", [True, False])
def test_one_class_only(right: bool) -> None:
    confidence, correct = np.array([0.3, 0.6, 0.6, 1.0]), np.full(4, right)
    assert np.isnan(metrics.auroc(confidence, correct))
    # Every number of bins keeps accuracy constant, so that the sweep ends with each group by itself.
    expected = np.abs(confidence - right).mean()
    assert metrics.ece_sweep(confidence, correct) == pytest.approx(expected, abs=1e-15)
    assert metrics.ece(confidence, correct) == pytest.approx(expected, abs=1e-15)
    assert metrics.aurc(confidence, correct) == (0.0 if right else 1.0)
    assert metrics.accuracy_at_coverage(confidence, correct, coverage=0.1) == float(right)


def test_one_question() -> None:
    values = Questions.from_probabilities([[0.7, 0.3]], [0]).evaluate()
    for name in ("ece", "rms_ce", "ace", "mce", "ece_sweep", "smooth_ece"):
        assert values[name] == pytest.approx(0.3, abs=1e-3), name
    # The variance of one answer is unknown; a bin of one counts as 0.
    assert values["rms_ce_debiased"] == 0.0
    assert np.isnan(values["auroc"])
    assert values["overconfidence"] == pytest.approx(-0.3)


def test_all_confidences_equal() -> None:
    # Confidence 0.5, a quarter right; whatever the bins there is one group.
    values = Questions.from_confidence(np.full(8, 0.5), [1, 1, 0, 0, 0, 0, 0, 0]).evaluate()
    for name in ("ece", "rms_ce", "ace", "mce", "ece_sweep", "smooth_ece"):
        assert values[name] == pytest.approx(0.25, abs=1e-12), name
    assert values["auroc"] == 0.5
    assert values["aurc"] == 0.75
    assert values["accuracy_at_coverage"] == pytest.approx(0.25)


def test_certain_and_right_is_perfect() -> None:
    values = Questions.from_probabilities(np.eye(4), np.arange(4)).evaluate()
    asked = ("ece", "rms_ce", "ace", "mce", "ece_sweep", "smooth_ece", "brier", "nll", "entropy", "aurc")
    assert {name: values[name] for name in asked} == dict.fromkeys(asked, 0.0)


def test_sets_share_their_outcome() -> None:
    # Both choices are right and have 1/2 each: nothing to be wrong about.
    questions = Questions.from_probabilities([[0.5, 0.5, 0.0]], [[0, 1]])
    values = questions.evaluate(["brier", "nll", "classwise_ece", "brier_reliability"])
    assert values == {"brier": 0.0, "nll": 0.0, "classwise_ece": 0.0, "brier_reliability": 0.0}


def test_classes_that_only_some_questions_have() -> None:
    # Class 0: 0.5 and 1.0, both right in one; class 2 exists once: 0.25, wrong.
    probabilities = [[0.5, 0.25, 0.25], [1.0, 0.0, np.nan]]
    # Class 0: 0.5 and 1 (both right): (0.5 + 0) / 2; class 1: 0.25 and 0, wrong: 0.125; class 2: 0.25.
    expected = (0.25 + 0.125 + 0.25) / 3
    assert metrics.classwise_ece(probabilities, [0, 0]) == pytest.approx(expected, abs=1e-15)


def test_the_input_is_left_as_it_was() -> None:
    probabilities, gold = np.array([[0.5, 0.5, np.nan], [0.2, 0.3, 0.5]]), np.array([0, 2])
    copies = probabilities.copy(), gold.copy()
    Questions.from_probabilities(probabilities, gold).evaluate()
    np.testing.assert_array_equal(probabilities, copies[0])
    np.testing.assert_array_equal(gold, copies[1])


@pytest.mark.parametrize(
    ("asked", "options", "words"),
    [
        (["ece", "eec"], {}, "metrics: expected names among acc.*got 'eec'"),
        ("brier", {}, "brier needs the probabilities"),
        (None, {"bins": 10}, "options: no metric takes bins; known are coverage, num_bins"),
        ("accuracy_at_coverage", {"coverage": 0.0}, r"coverage: expected a share"),
        ("accuracy_at_coverage", {"coverage": 80}, r"coverage: expected a share"),
    ],
)
def test_evaluate_names_what_is_wrong(asked: object, options: dict[str, object], words: str) -> None:
    with pytest.raises(CalibrationError, match=words):
        Questions.from_confidence([0.5], [1]).evaluate(asked, **options)  # type: ignore[arg-type]


def test_a_million_questions() -> None:
    rng = np.random.default_rng(0)
    confidence = rng.random(1_000_000)
    correct = rng.random(1_000_000) < confidence
    start = time.process_time()
    values = Questions.from_confidence(confidence, correct).evaluate()
    # Perfect calibration: what remains is noise of the order of sqrt(bins / N). A million is a second's work.
    assert values["ece"] < 0.005
    assert values["ace"] < 0.005
    assert values["smooth_ece"] < 0.005
    assert values["rms_ce_debiased"] < 0.002
    assert values["auroc"] == pytest.approx(5 / 6, abs=2e-3)
    assert values["aurc"] == pytest.approx(0.25, abs=2e-3)
    assert time.process_time() - start < 60


def test_the_table_is_complete() -> None:
    for name, metric in METRICS.items():
        assert metric.name == name
        assert getattr(metrics, name) is metric.function
        assert metric.citation
        assert metric.range[0] < metric.range[1]
        assert metric.function.__doc__
        assert metric.function.__doc__.count("\n") == 0 or "`" in metric.function.__doc__
    live = {name for name, metric in METRICS.items() if metric.live}
    means = {"acc", "confidence", "overconfidence", "brier", "nll"}
    assert live == means | {
        *("ece", "rms_ce", "ace", "mce", "classwise_ece", "rms_ce_debiased", "smooth_ece", "auroc", "aurc")
    }
    assert {name for name, metric in METRICS.items() if metric.per_question} == means | {"entropy"}
