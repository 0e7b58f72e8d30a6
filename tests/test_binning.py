"""The one binning."""

from __future__ import annotations

import numpy as np
import pytest

from lm_eval_calib import metrics
from lm_eval_calib.binning import bin_statistics, equal_mass_bins
from lm_eval_calib.errors import CalibrationValueError
from lm_eval_calib.inputs import Floats


def test_zero_one_and_edges_are_inside() -> None:
    # (0, 0.25] holds 0 and 0.25, (0.75, 1] holds 1.
    bins = bin_statistics([0.0, 0.25, 0.26, 1.0], [1, 0, 1, 1], num_bins=4)
    np.testing.assert_array_equal(bins.counts, [2, 1, 0, 1])
    np.testing.assert_allclose(bins.confidence, [0.125, 0.26, np.nan, 1.0])
    np.testing.assert_allclose(bins.accuracy, [0.5, 1.0, np.nan, 1.0])
    np.testing.assert_allclose(bins.gap, [0.375, 0.74, np.nan, 0.0])
    np.testing.assert_allclose(bins.edges, [0, 0.25, 0.5, 0.75, 1])


@pytest.mark.parametrize("scheme", ["equal_width", "equal_mass"])
@pytest.mark.parametrize("num_bins", [1, 2, 7, 15, 100])
@pytest.mark.parametrize("decimals", [1, 2, 17])
def test_edges_tell_the_bins(scheme: str, num_bins: int, decimals: int) -> None:
    rng = np.random.default_rng(num_bins)
    confidence = np.round(rng.random(60), decimals)
    bins = bin_statistics(confidence, rng.random(60) < 0.5, num_bins=num_bins, scheme=scheme)  # type: ignore[arg-type]
    assert bins.edges.shape == (num_bins + 1,)
    assert (np.diff(bins.edges) >= 0).all()
    assert bins.counts.sum() == 60
    for b in range(num_bins):
        inside = (confidence > bins.edges[b]) & (confidence <= bins.edges[b + 1])
        inside |= (b == np.flatnonzero(bins.counts)[0]) & (confidence == 0)
        assert inside.sum() == bins.counts[b]
        if inside.any():
            assert bins.confidence[b] == pytest.approx(confidence[inside].mean(), abs=1e-14)


@pytest.mark.parametrize(("size", "num_bins"), [(30, 15), (31, 15), (29, 15), (5, 15), (1, 15), (100, 1)])
def test_equal_mass_counts_differ_by_one_at_most(size: int, num_bins: int) -> None:
    values = np.random.default_rng(0).permutation(size) / size
    counts = np.bincount(equal_mass_bins(values, num_bins), minlength=num_bins)
    assert counts.size == num_bins
    assert counts.max() - counts.min() <= 1
    assert (np.diff(equal_mass_bins(np.sort(values), num_bins)) >= 0).all()


def test_equal_mass_keeps_repeated_confidences_together() -> None:
    # 0.2, 0.9 x 8, 1.0 in five bins: mid-ranks 0.5, 5 and 9.5 of 10, so bins 0, 2 and 4.
    values = np.array([0.9] * 4 + [1.0, 0.2] + [0.9] * 4)
    np.testing.assert_array_equal(equal_mass_bins(np.sort(values), 5), [0] + [2] * 8 + [4])
    bins = bin_statistics(values, values < 0.95, num_bins=5, scheme="equal_mass")
    np.testing.assert_array_equal(bins.counts, [1, 0, 8, 0, 1])
    np.testing.assert_allclose(bins.edges, [0, 0.55, 0.55, 0.95, 0.95, 1])


@pytest.mark.parametrize("high", [1.0, np.nextafter(1.0, 2.0), 1.5])
def test_neighbouring_floats_stay_apart(high: float) -> None:
    values: Floats = np.array([np.nextafter(high / 2, 0), high / 2])
    bins = bin_statistics(values, [0, 1], num_bins=2, scheme="equal_mass")
    np.testing.assert_array_equal(bins.counts, [1, 1])
    assert values[0] <= bins.edges[1] < values[1]


def test_the_metrics_are_those_of_the_bins() -> None:
    rng = np.random.default_rng(1)
    confidence, correct = rng.random(400), rng.random(400) < 0.4
    for scheme, metric in (("equal_width", metrics.ece), ("equal_mass", metrics.ace)):
        bins = bin_statistics(confidence, correct, num_bins=20, scheme=scheme)  # type: ignore[arg-type]
        expected = np.average(np.abs(bins.gap), weights=bins.counts)
        assert metric(confidence, correct, num_bins=20) == pytest.approx(expected, abs=1e-14)


def test_nothing() -> None:
    bins = bin_statistics([], [], scheme="equal_mass")
    assert bins.counts.sum() == 0
    assert np.isnan(bins.accuracy).all()
    assert bins.edges.shape == (16,)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"num_bins": 0}, "num_bins: expected a whole number"),
        ({"num_bins": 2.5}, "num_bins"),
        ({"num_bins": True}, "num_bins"),
        ({"scheme": "uniform"}, "scheme: expected 'equal_width' or 'equal_mass', got 'uniform'"),
    ],
)
def test_bad_options(options: dict[str, object], words: str) -> None:
    with pytest.raises(CalibrationValueError, match=words):
        bin_statistics([0.5], [1], **options)  # type: ignore[arg-type]
