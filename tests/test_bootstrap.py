"""Resampling: exactness, intervals, pairing."""

from __future__ import annotations

import numpy as np
import pytest

from lm_eval_calib.bootstrap import bootstrap, paired_bootstrap, replicate
from lm_eval_calib.draws import draw_counts
from lm_eval_calib.errors import CalibrationValueError
from lm_eval_calib.inputs import Bools, Floats
from lm_eval_calib.metrics import METRICS, Metric
from lm_eval_calib.questions import Questions
from lm_eval_calib.replicates import average, difference

CASES = [
    (size, decimals, choices)
    for size in (1, 2, 3, 7, 30, 400)
    for decimals in (None, 2, 1)
    for choices in ("even", "ragged", "sets")
]


def made(size: int, decimals: int | None = None, choices: str = "even", seed: int = 0, power: float = 0.5) -> Questions:
    """Dirichlet forecasts whose gold is drawn from them; few decimals make ties."""
    rng = np.random.default_rng((seed, size))
    weights = rng.gamma(power, size=(size, 4)) + 1e-9
    if decimals is not None:
        weights = np.ceil(weights * 10**decimals)
    present = np.full(size, 4) if choices == "even" else rng.integers(2, 5, size=size)
    weights[np.arange(4) >= present[:, None]] = np.nan
    probabilities = weights / np.nansum(weights, axis=1, keepdims=True)
    draw = rng.random((size, 1))
    gold = np.minimum((np.nancumsum(probabilities, axis=1) < draw).sum(axis=1), present - 1)
    if choices == "sets":
        return Questions.from_probabilities(probabilities, [sorted({0, int(g)}) for g in gold])
    return Questions.from_probabilities(probabilities, gold)


@pytest.mark.parametrize(("size", "decimals", "choices"), CASES)
@pytest.mark.parametrize("num_bins", [7, 10])  # with an even number mid-ranks fall on boundaries
def test_each_replicate_is_the_metric_of_the_resampled_questions(
    size: int, decimals: int | None, choices: str, num_bins: int
) -> None:
    questions = made(size, decimals, choices)
    options = {"num_bins": num_bins, "coverage": 0.33}
    got = replicate({0: questions}, resamples=12, seed=5, **options)[0]
    assert list(got.values) == list(METRICS)
    for row, counts in enumerate(draw_counts([np.arange(size)], size, range(12), 5)):
        drawn = questions.take(np.repeat(np.arange(size), counts))
        expected = drawn.evaluate(**options)
        for name, value in expected.items():
            np.testing.assert_allclose(got.replicates[name][row], value, rtol=0, atol=1e-12, err_msg=name)


def test_intervals_by_hand() -> None:
    # Two questions, one right: a resample is right in 0, 1, 1 or 2 of 2, each with probability 1/4.
    questions = Questions.from_confidence([0.5, 0.5], [1, 0])
    got = replicate({"a": questions}, ["acc", "ece"], resamples=4000, seed=1)["a"]
    shares = [(got.replicates["acc"] == value).mean() for value in (0.0, 0.5, 1.0)]
    np.testing.assert_allclose(shares, [0.25, 0.5, 0.25], atol=0.03)
    interval = got.interval("acc", level=0.4, method="percentile")
    assert (interval.value, interval.low, interval.high, interval.undefined) == (0.5, 0.5, 0.5, 0)
    assert interval.stderr == pytest.approx(0.125**0.5, abs=0.02)
    # The ECE is 0 or 1/2: its basic interval reflects [0, 0.5] at 0 and is clipped to its range.
    percentile, basic = got.interval("ece", method="percentile"), got.interval("ece")
    assert (percentile.value, percentile.low, percentile.high) == (0.0, 0.0, 0.5)
    assert (basic.low, basic.high) == (0.0, 0.0)


def test_standard_errors_of_means_are_the_classical_ones() -> None:
    questions = made(800)
    got = bootstrap(questions, ["acc", "confidence", "brier", "nll"], resamples=4000)
    assert questions.probabilities is not None
    assert questions.gold is not None
    for name, interval in got.items():
        metric = METRICS[name]
        first, second = questions.confidence, questions.correct
        if metric.inputs == "distribution":
            first, second = questions.probabilities, questions.gold
        assert metric.per_question is not None
        classical = metric.per_question(first, second).std() / 800**0.5
        assert interval.stderr == pytest.approx(classical, rel=0.06)
        assert interval.high - interval.low == pytest.approx(2 * 1.96 * classical, rel=0.08)
        assert interval.value == questions.evaluate(name)[name]


@pytest.fixture(scope="module")
def coverage() -> dict[tuple[str, str], float]:
    """How often 90 % intervals hold the truth, over 200 data sets whose confidence is 0.03 too high."""
    truths = {"acc": 0.6, "overconfidence": 0.03, "ece": 0.03, "smooth_ece": 0.03}
    hits = dict.fromkeys([(name, method) for name in truths for method in ("percentile", "basic")], 0)
    for trial in range(200):
        rng = np.random.default_rng(trial)
        frequency = rng.uniform(0.3, 0.9, size=500)
        questions = Questions.from_confidence(frequency + 0.03, rng.random(500) < frequency)
        got = replicate({0: questions}, list(truths), resamples=300, seed=trial, num_bins=10)[0]
        for name, method in hits:
            interval = got.interval(name, level=0.9, method=method)  # type: ignore[arg-type]
            hits[name, method] += interval.low <= truths[name] <= interval.high
    return {key: count / 200 for key, count in hits.items()}


@pytest.mark.parametrize(
    ("name", "method", "low", "high"),
    [
        ("acc", "percentile", 0.85, 0.95),
        ("acc", "basic", 0.85, 0.95),
        ("overconfidence", "percentile", 0.85, 0.95),
        # Calibration errors are biased upwards where they are small, and resampling adds the bias once more:
        # percentile intervals lie too high, and reflecting them at the value repairs most of it.
        ("ece", "percentile", 0.0, 0.3),
        ("ece", "basic", 0.75, 0.95),
        ("smooth_ece", "percentile", 0.0, 0.3),
        ("smooth_ece", "basic", 0.75, 0.99),
    ],
)
def test_coverage(coverage: dict[tuple[str, str], float], name: str, method: str, low: float, high: float) -> None:
    assert low <= coverage[name, method] <= high


def test_seeds_workers_and_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    groups = {language: made(211, seed=number) for number, language in enumerate("abcdef")}
    first = replicate(groups, resamples=50, seed=1, workers=1)
    monkeypatch.setattr("lm_eval_calib.bootstrap._BLOCK", 1000)  # four resamples at a time
    monkeypatch.setattr("lm_eval_calib.draws._KEPT", 0)  # drawn anew for every group
    again = replicate(groups, resamples=50, seed=1, workers=2)
    few = replicate(groups, resamples=20, seed=1)
    other = replicate(groups, resamples=50, seed=2)
    for language in groups:
        for name, values in first[language].replicates.items():
            np.testing.assert_allclose(again[language].replicates[name], values, rtol=0, atol=1e-12)
            np.testing.assert_allclose(few[language].replicates[name], values[:20], rtol=0, atol=1e-12)
        assert (other[language].replicates["acc"] != first[language].replicates["acc"]).any()


def test_strata_keep_their_sizes() -> None:
    # All right in stratum x, all wrong in y: stratified, accuracy does not vary.
    questions = Questions.from_confidence(np.full(30, 0.5), [1] * 10 + [0] * 20)
    strata = ["x"] * 10 + ["y"] * 20
    assert bootstrap(questions, "acc", strata=strata)["acc"].stderr == pytest.approx(0, abs=1e-15)
    assert bootstrap(questions, "acc")["acc"].stderr == pytest.approx((2 / 9 / 30) ** 0.5, rel=0.1)
    by_id = replicate(
        {0: questions},
        "acc",
        ids={0: range(30)},
        strata={0: np.array(strata)},
        resamples=100,  # type: ignore[dict-item]
    )
    assert by_id[0].interval("acc").stderr == pytest.approx(0, abs=1e-15)


def test_the_same_questions_share_resamples() -> None:
    base = made(300, seed=1)
    order = np.random.default_rng(0).permutation(300)
    ids = np.array([f"q{number}" for number in range(300)])
    # The same answers in another order, and half of them: with ids they are the same resamples.
    half = order[:150]
    got = replicate(
        {"base": base, "shuffled": base.take(order), "half": base.take(half)},
        ["acc", "ece", "auroc"],
        ids={"base": ids, "shuffled": ids[order], "half": ids[half].tolist()},
        resamples=200,
    )
    for name in ("acc", "ece", "auroc"):
        np.testing.assert_allclose(got["shuffled"].replicates[name], got["base"].replicates[name], rtol=0, atol=1e-12)
    gain = difference(got["base"], got["shuffled"])["acc"]
    assert (gain.value, gain.stderr, gain.p_value) == (0.0, pytest.approx(0, abs=1e-12), 1.0)
    # A part of the questions varies as many as it has.
    expected = base.take(half).evaluate("acc")["acc"]
    assert got["half"].interval("acc").stderr == pytest.approx((expected * (1 - expected) / 150) ** 0.5, rel=0.15)


def test_paired_differences_are_narrower_and_tested() -> None:
    rng = np.random.default_rng(0)
    hard = rng.random(500)
    draws = rng.random(500)
    first = Questions.from_confidence(np.full(500, 0.7), draws < 0.9 - hard / 2)
    second = Questions.from_confidence(np.full(500, 0.7), draws < 0.97 - hard / 2)
    gain = paired_bootstrap(first, second, resamples=2000)["acc"]
    apart = [bootstrap(questions, "acc")["acc"].stderr for questions in (first, second)]
    assert gain.value == pytest.approx(second.evaluate("acc")["acc"] - first.evaluate("acc")["acc"])
    assert gain.stderr < 0.5 * np.hypot(*apart)
    assert gain.low > 0
    assert gain.p_value == pytest.approx(2 / 2001)
    percentile = paired_bootstrap(first, second, "acc", method="percentile")["acc"]
    assert percentile.low > 0
    assert percentile.p_value < 0.01
    back = paired_bootstrap(second, first, "acc", resamples=2000)["acc"]
    assert (back.value, back.low, back.high) == (-gain.value, -gain.high, -gain.low)
    assert back.p_value == gain.p_value


def test_p_values_are_uniform_without_a_difference() -> None:
    values = []
    for trial in range(300):
        rng = np.random.default_rng(trial)
        questions = [Questions.from_confidence(np.full(150, 0.6), rng.random(150) < 0.6) for _ in range(2)]
        values.append(paired_bootstrap(*questions, "acc", resamples=199, seed=trial)["acc"].p_value)
    # Within four standard errors of the nominal share.
    for alpha in (0.05, 0.2, 0.5):
        assert np.mean(np.array(values) <= alpha) == pytest.approx(alpha, abs=4 * (alpha / 300) ** 0.5 + 0.02)


def test_means_over_languages_keep_what_questions_share() -> None:
    # Five languages answer the same questions alike: their mean varies as one does, not five times less.
    alike = made(400, seed=3)
    languages = dict.fromkeys("abcde", alike)
    same = replicate(languages, "acc", resamples=400)
    one = same["a"].interval("acc")
    mean = average(list(same.values()))
    assert mean.size == 2000
    assert mean.interval("acc").stderr == pytest.approx(one.stderr, abs=1e-12)
    # Unrelated questions: the variance of the mean is a fifth.
    apart = replicate(
        languages, "acc", resamples=400, ids={key: [f"{key}{n}" for n in range(400)] for key in languages}
    )
    spread = average(list(apart.values())).interval("acc").stderr
    assert spread == pytest.approx(one.stderr / 5**0.5, rel=0.2)


def test_undefined_resamples_are_counted() -> None:
    # One right answer in four: a resample lacks it with probability (3/4)^4, and then has no AUROC.
    questions = Questions.from_confidence([0.2, 0.4, 0.6, 0.8], [0, 0, 1, 0])
    interval = bootstrap(questions, "auroc", resamples=2000)["auroc"]
    assert interval.value == pytest.approx(2 / 3)
    assert interval.undefined / 2000 == pytest.approx(0.75**4 + 0.25**4, abs=0.04)
    assert 0 <= interval.low < interval.high <= 1
    never = bootstrap(Questions.from_confidence([0.2, 0.4], [1, 1]), "auroc", resamples=10)["auroc"]
    assert np.isnan([never.value, never.low, never.high, never.stderr]).all()
    assert never.undefined == 10
    nothing = bootstrap(Questions.from_confidence([], []), resamples=10)
    assert all(np.isnan(interval.value) and interval.undefined == 10 for interval in nothing.values())


def test_infinite_nll() -> None:
    questions = Questions.from_probabilities([[1.0, 0.0], [0.5, 0.5]], [1, 0])
    got = replicate({0: questions}, ["nll", "brier"], resamples=100)[0]
    assert set(np.round(got.replicates["nll"], 6)) == {np.inf, round(np.log(2), 6)}
    assert got.interval("nll", method="percentile").high == np.inf
    assert np.isfinite(got.interval("brier").high)


def test_metrics_of_ones_own() -> None:
    def share_sure(confidence: Floats, _: Bools) -> float:
        return float((confidence > 0.5).mean()) if confidence.size else float("nan")

    questions = made(60)
    slow = Metric("sure", share_sure, "confidence")
    fast = Metric("sure", share_sure, "confidence", per_question=lambda confidence, _: (confidence > 0.5) * 1.0)
    ours = Metric("ece", share_sure, "confidence")  # the name of ours is no licence to compute ours
    one, two, three = (replicate({0: questions}, metric, resamples=30)[0] for metric in (slow, fast, ours))
    np.testing.assert_allclose(one.replicates["sure"], two.replicates["sure"], atol=1e-12)
    np.testing.assert_allclose(one.replicates["sure"], three.replicates["ece"], atol=1e-12)
    assert one.replicates["sure"].std() > 0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"resamples": 0}, "resamples: expected a whole number"),
        ({"seed": -1}, "seed: expected a whole number of at least 0"),
        ({"seed": 1.5}, "seed"),
        ({"level": 95}, "level: expected a number between 0 and 1"),
        ({"method": "bca"}, "method: expected 'percentile' or 'basic'"),
        ({"strata": ["a"]}, "expected one entry for each of the 5 questions"),
        ({"metrics": "acuracy"}, "metrics: expected names among"),
        ({"bins": 3}, "no metric takes bins"),
        ({"num_bins": 0}, "num_bins"),
    ],
)
def test_bad_options(options: dict[str, object], words: str) -> None:
    with pytest.raises(CalibrationValueError, match=words):
        bootstrap(made(5), **options)  # type: ignore[arg-type]


def test_bad_pairs() -> None:
    with pytest.raises(CalibrationValueError, match="expected the 5 questions of the first"):
        paired_bootstrap(made(5), made(6))
    got = replicate({0: made(5), 1: made(6)}, "acc", resamples=5)
    with pytest.raises(CalibrationValueError, match="expected replicates of the same questions"):
        difference(got[0], got[1])
    with pytest.raises(CalibrationValueError, match="ids: expected an entry for every group, none for 1"):
        replicate({0: made(5), 1: made(5)}, ids={0: range(5)})  # type: ignore[dict-item]
    with pytest.raises(CalibrationValueError, match="a question has one stratum"):
        replicate(
            {0: made(2), 1: made(2)},
            ids={0: ["a", "b"], 1: ["b", "a"]},
            strata={0: ["x", "y"], 1: ["x", "y"]},
        )
    with pytest.raises(CalibrationValueError, match="at least one to average"):
        average([])
