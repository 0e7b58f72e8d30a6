"""Temperature scaling and its kin: the fit, and that nothing is scored by a fit that has seen it."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lm_eval_calib import recalibration
from lm_eval_calib.confidence import choice_probabilities
from lm_eval_calib.errors import CalibrationValueError
from lm_eval_calib.inputs import Bools, Floats, Ints
from lm_eval_calib.questions import Questions
from lm_eval_calib.recalibration import fit_temperature, recalibrated_confidence, temperature_scaling


def answered(size: int, sharpness: float, seed: int = 0) -> tuple[Floats, Ints]:
    """Log-likelihoods `sharpness` times too sharp, and answers drawn from the honest ones."""
    rng = np.random.default_rng(seed)
    honest = rng.normal(size=(size, 4)) * 1.5
    probabilities = choice_probabilities(honest)
    gold = (probabilities.cumsum(axis=1) < rng.random((size, 1))).sum(axis=1)
    return honest * sharpness - 50.0, np.minimum(gold, 3)


def test_by_hand() -> None:
    # One score apart by 1, right in 3 of 4: sigmoid(1 / T) = 3/4, so 1 / T = log 3.
    scores = np.array([[1.0, 0.0]] * 4)
    assert fit_temperature(scores, [0, 0, 0, 1]) == pytest.approx(1 / np.log(3), rel=1e-10)
    # All right: the sharper the better. Worse than chance: the flatter the better. Nothing to tell: as it is.
    assert fit_temperature(scores, [0, 0, 0, 0]) == 0.01
    assert fit_temperature(scores, [1, 1, 1, 0]) == 100.0
    assert fit_temperature(np.zeros((3, 2)), [0, 1, 1]) == 1.0
    # Lengths divide first.
    assert fit_temperature(scores, [0, 0, 0, 1], lengths=np.full((4, 2), 2)) == pytest.approx(0.5 / np.log(3))


@pytest.mark.parametrize("sharpness", [0.3, 1.0, 4.0])
def test_the_temperature_minimises_nll(sharpness: float) -> None:
    scores, gold = answered(4000, sharpness)
    temperature = fit_temperature(scores, gold)
    assert temperature == pytest.approx(sharpness, rel=0.05)

    def loss(value: float) -> float:
        return Questions.from_log_likelihoods(scores, gold, temperature=value).evaluate("nll")["nll"]

    best = loss(temperature)
    for factor in (0.9, 0.999, 1.001, 1.1):
        assert loss(temperature * factor) > best


def test_against_a_general_minimiser() -> None:
    from scipy.optimize import minimize_scalar
    from sklearn.metrics import log_loss

    scores, gold = answered(500, 2.5)

    def loss(log_temperature: float) -> float:
        return float(log_loss(gold, choice_probabilities(scores / np.exp(log_temperature)), labels=range(4)))

    peer = minimize_scalar(loss, bracket=(0.0, 2.0), tol=1e-10)
    assert fit_temperature(scores, gold) == pytest.approx(np.exp(peer.x), rel=1e-6)


def test_gold_sets() -> None:
    # With both choices right nothing is learnt from the second half.
    scores = np.array([[1.0, 0.0]] * 8)
    gold = [[0], [0], [0], [1], [0, 1], [0, 1], [0, 1], [0, 1]]
    assert fit_temperature(scores, gold) == pytest.approx(1 / np.log(3), rel=1e-10)


def test_far_apart_log_likelihoods() -> None:
    # Whole sentences differ by thousands of nats: probabilities underflow, and the fit must not.
    scores, gold = answered(300, 3000.0)
    assert fit_temperature(scores, gold) == 100.0
    lengths = np.full(scores.shape, 3000)
    assert fit_temperature(scores, gold, lengths=lengths) == pytest.approx(1.0, rel=0.2)


def test_scaling_reports_before_and_after() -> None:
    scores, gold = answered(3000, 3.0)
    result = temperature_scaling(scores, gold)
    before, after = result.before.evaluate(), result.after.evaluate()
    assert after["acc"] == before["acc"]
    assert before["ece"] > 0.15
    for name in ("ece", "rms_ce", "smooth_ece", "nll", "brier"):
        assert after[name] < before[name], name
    assert after["ece"] < 0.04
    assert result.temperatures[None] == fit_temperature(scores, gold)
    assert len(result.fold_temperatures[None]) == 5
    np.testing.assert_allclose(result.fold_temperatures[None], result.temperatures[None], rtol=0.05)


def test_each_language_has_its_own() -> None:
    sharp, gold_sharp = answered(1000, 4.0, seed=1)
    flat, gold_flat = answered(1000, 0.5, seed=2)
    order = np.random.default_rng(0).permutation(2000)
    scores, gold = np.concatenate([sharp, flat])[order], np.concatenate([gold_sharp, gold_flat])[order]
    languages = np.array(["sw"] * 1000 + ["en"] * 1000)[order]
    result = temperature_scaling(scores, gold, groups=languages)
    assert set(result.temperatures) == {"sw", "en"}
    assert result.temperatures["sw"] == pytest.approx(fit_temperature(sharp, gold_sharp), rel=1e-9)
    assert result.temperatures["en"] == pytest.approx(fit_temperature(flat, gold_flat), rel=1e-9)
    pooled = temperature_scaling(scores, gold)
    assert result.after.evaluate("nll")["nll"] < pooled.after.evaluate("nll")["nll"]


@pytest.mark.parametrize("with_ids", [False, True])
def test_no_question_is_scored_by_a_fit_that_has_seen_it(monkeypatch: pytest.MonkeyPatch, with_ids: bool) -> None:
    # Rows are told apart by their scores; the fit notes what it sees and answers with its own temperature.
    size = 60
    scores = np.stack([np.linspace(0.5, 3.0, size), np.zeros(size)], axis=1)
    gold = np.arange(size) % 2
    ids = [f"q{row % 20}" for row in range(size)] if with_ids else None
    seen: dict[float, set[int]] = {}

    def spy(rows: Floats, _: Bools) -> float:
        temperature = 1.0 + len(seen) / 100
        seen[temperature] = {int(np.abs(-scores[:, 0] - row[1]).argmin()) for row in rows}
        return temperature

    monkeypatch.setattr(recalibration, "_fit", spy)
    result = temperature_scaling(scores, gold, ids=ids, folds=4, seed=3)
    assert result.after.probabilities is not None
    ratio = np.log(result.after.probabilities[:, 0] / result.after.probabilities[:, 1])
    used = np.round(scores[:, 0] / ratio, 6)
    for row, temperature in enumerate(used.tolist()):
        trained = seen[temperature]
        assert row not in trained
        if ids is not None:
            assert ids[row] not in {ids[other] for other in trained}
        assert len(trained) == 45
    assert len(set(used.tolist())) == 4


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 30), st.integers(2, 8), st.integers(0, 1000))
def test_argmax_and_sums_stay(size: int, folds: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows = [rng.normal(size=rng.integers(2, 6)) * 10 for _ in range(size)]
    gold = [int(rng.integers(0, row.size)) for row in rows]
    result = temperature_scaling(rows, gold, folds=folds, seed=seed)
    assert (result.after.correct == result.before.correct).all()
    assert result.after.probabilities is not None
    np.testing.assert_allclose(result.after.probabilities.sum(axis=1), 1.0, atol=1e-12)
    again = temperature_scaling(rows, gold, folds=folds, seed=seed)
    np.testing.assert_array_equal(result.after.confidence, again.after.confidence)
    assert len(result.fold_temperatures[None]) == min(folds, size)


@pytest.mark.parametrize("method", ["isotonic", "platt"])
def test_recalibrated_confidence(method: str) -> None:
    scores, gold = answered(3000, 3.0)
    before = Questions.from_log_likelihoods(scores, gold)
    confidence = recalibrated_confidence(before.confidence, before.correct, method=method)  # type: ignore[arg-type]
    after = Questions.from_confidence(confidence, before.correct)
    assert before.evaluate("ece")["ece"] > 0.15
    assert after.evaluate("ece")["ece"] < 0.05
    languages = np.repeat(["en", "sw"], 1500)
    apart = recalibrated_confidence(
        before.confidence,
        before.correct,
        method=method,
        groups=languages,
        seed=1,  # type: ignore[arg-type]
    )
    assert Questions.from_confidence(apart, before.correct).evaluate("ece")["ece"] < 0.06


@pytest.mark.parametrize("method", ["isotonic", "platt"])
def test_no_confidence_is_recalibrated_by_a_fit_that_has_seen_it(
    monkeypatch: pytest.MonkeyPatch, method: Literal["isotonic", "platt"]
) -> None:
    confidence = np.linspace(0.1, 0.9, 40)
    groups = np.repeat(["en", "sw"], 20)
    sizes = []

    def spy(seen: Floats, correct: Bools, new: Floats) -> Floats:
        assert not set(seen.tolist()) & set(new.tolist())
        assert seen.size == correct.size
        assert max(seen.max(), new.max()) - min(seen.min(), new.min()) < 0.5  # one language
        sizes.append((seen.size, new.size))
        return new / 2

    monkeypatch.setattr(recalibration, f"_{method}", spy)
    got = recalibrated_confidence(confidence, np.arange(40) % 2, method=method, groups=groups, folds=4)
    np.testing.assert_array_equal(got, confidence / 2)
    assert sizes == [(15, 5)] * 8


def test_platt_with_one_class() -> None:
    np.testing.assert_array_equal(recalibrated_confidence([0.5, 0.9, 0.2], [1, 1, 1], method="platt"), 1.0)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"folds": 1}, "folds: expected at least 2"),
        ({"groups": ["en"]}, "groups: expected one for each of 4 questions"),
        ({"groups": ["en", "en", "en", "sw"]}, "groups: expected at least 2 questions in 'sw'"),
        ({"ids": ["a", "a", "a", "a"]}, "expected at least 2 questions"),
        ({"ids": ["a"]}, "ids: expected one for each of 4 questions"),
    ],
)
def test_bad_options(options: dict[str, object], words: str) -> None:
    with pytest.raises(CalibrationValueError, match=words):
        temperature_scaling(np.zeros((4, 2)), [0, 1, 0, 1], **options)  # type: ignore[arg-type]


def test_bad_input() -> None:
    with pytest.raises(CalibrationValueError, match="expected questions to fit a temperature on"):
        fit_temperature([], [])
    with pytest.raises(CalibrationValueError, match="index 5 of row 0"):
        fit_temperature([[0.0, 1.0]], [5])
    with pytest.raises(CalibrationValueError, match="method: expected 'isotonic' or 'platt'"):
        recalibrated_confidence([0.5], [1], method="beta")  # type: ignore[arg-type]
