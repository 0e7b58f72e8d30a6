"""Resampling: exactness, intervals, pairing."""

from __future__ import annotations

import numpy as np
import pytest

from lm_eval_calib.bootstrap import average, bootstrap, difference, paired_bootstrap, replicate
from lm_eval_calib.draws import draw_counts
from lm_eval_calib.errors import CalibrationValueError
from lm_eval_calib.metrics import METRICS, Metric
from lm_eval_calib.questions import Questions

CASES = [
    (size, decimals, choices)
    for size in (1, 2, 3, 7, 30, 400)
    for decimals in (None, 2, 1)
    for choices in ("even", "ragged", "sets")
]


def made(
    size: int, decimals: int | None = None, choices: str = "even", seed: int = 0, power: float = 0.5
) -> Questions:
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
def test_each_replicate_is_the_metric_of_the_resampled_questions(
    size: int, decimals: int | None, choices: str
) -> None:
    questions = made(size, decimals, choices)
    options = {"num_bins": 7, "coverage": 0.33}
    got = replicate({0: questions}, resamples=12, seed=5, **options)[0]
    assert list(got.values) == list(METRICS)
    for row, counts in enumerate(draw_counts([np.arange(size)], size, range(12), 5)):
        drawn = questions.take(np.repeat(np.arange(size), counts))
        expected = drawn.evaluate(**options)
        for name, value in expected.items():
            np.testing.assert_allclose(got.replicates[name][row], value, rtol=0, atol=1e-12, err_msg=name)
