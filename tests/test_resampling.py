"""The arrays behind `replicate`: steps and tiles of questions, types that hold the sums, blocks of resamples."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from test_bootstrap import made

from lm_eval_calib.binning import equal_mass_bins
from lm_eval_calib.draws import Draws, draw_counts
from lm_eval_calib.inputs import Ints
from lm_eval_calib.metrics import METRICS
from lm_eval_calib.metrics.cumulative import STEP, Cumulative, Rising
from lm_eval_calib.prepared import Prepared
from lm_eval_calib.questions import Questions
from lm_eval_calib.resampling import Block
from lm_eval_calib.workspace import Workspace

FAST = [name for name in METRICS if name != "smooth_ece"]


def check(questions: Questions, counts: npt.NDArray[np.uint8], names: list[str] | None = None) -> None:
    """All metrics of a block of resamples [R, N] are those of the resampled questions."""
    metrics = questions.resolve(names, {})
    prepared = Prepared(questions, metrics, {})
    draws = Draws(None, len(counts), int(counts.sum(axis=1, dtype=int).max()), counts.T.copy(), lambda _: counts, None)
    got = Block(prepared, draws, range(len(counts)), Workspace()).values()
    for row, drawn in enumerate(counts):
        expected = questions.take(np.repeat(np.arange(len(questions)), drawn)).evaluate(metrics)
        for name, value in expected.items():
            np.testing.assert_allclose(got[name][row], value, rtol=0, atol=1e-12, err_msg=name)


@pytest.mark.parametrize("tile", [STEP, 2 * STEP])
@pytest.mark.parametrize("decimals", [None, 2, 1])
def test_questions_in_several_tiles(tile: int, decimals: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    # One, whole steps and tiles, and a rest of every kind; ties of few decimals reach across tiles.
    monkeypatch.setattr("lm_eval_calib.metrics.cumulative.TILE", tile)
    for size in (1, 15, 16, 17, 33, 64, 77, 96):
        check(made(size, decimals), draw_counts([np.arange(size)], size, range(30), 3))


def test_one_confidence_in_several_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lm_eval_calib.metrics.cumulative.TILE", STEP)
    questions = Questions.from_confidence(np.full(70, 0.7), np.arange(70) % 3 > 0)
    check(questions, draw_counts([np.arange(70)], 70, range(12), 0))


def test_only_the_lowest_or_the_highest_are_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    # Nothing is drawn in whole tiles at either end, and one question as often as there are questions.
    monkeypatch.setattr("lm_eval_calib.metrics.cumulative.TILE", STEP)
    questions = made(80)
    counts = np.zeros((8, 80), dtype=np.uint8)
    order = np.argsort(questions.confidence)
    for row, question in enumerate(order[[0, 1, 15, 16, 40, 64, 78, 79]]):
        counts[row, question] = 80
    spread = np.zeros((3, 80), dtype=np.uint8)
    spread[0, order[:20]], spread[1, order[30:50]], spread[2, order[60:]] = 4, 4, 4
    check(questions, np.concatenate([counts, spread]))


@pytest.mark.parametrize("size", [254, 255, 256, 300])
def test_sums_do_not_overflow(size: int) -> None:
    # The sum of all counts is at most 255 or needs two bytes; one question is drawn up to 255 times.
    counts = draw_counts([np.arange(size)], size, range(6), 1)
    counts[-2:] = 0
    counts[-2, :2] = min(size, 255), size - min(size, 255)
    counts[-1, -2:] = size - min(size, 255), min(size, 255)
    check(made(size), counts)
    check(made(size, 1), counts)


@pytest.mark.parametrize("size", [65535, 65536, 70000])
def test_sums_of_many_questions_do_not_overflow(size: int) -> None:
    check(made(size), draw_counts([np.arange(size)], size, range(2), 1), FAST)


def test_resamples_that_draw_nothing() -> None:
    # As of a group whose questions are few among all that are resampled together.
    check(made(1), np.array([[0], [1], [3], [255]], dtype=np.uint8))
    counts = draw_counts([np.arange(40)], 40, range(6), 0)
    counts[[1, 4]] = 0
    check(made(40), counts)


def test_metrics_one_by_one_need_no_other() -> None:
    questions = made(50, 2)
    counts = draw_counts([np.arange(50)], 50, range(5), 0)
    for name in METRICS:
        check(questions, counts, [name])


def test_a_sweep_that_ends_late_or_never() -> None:
    # One wrong answer above a right one, which only hundreds of bins part; accuracy never falls without either.
    correct = np.repeat([False, True], 300)
    correct[[300, 301]] = True, False
    counts = draw_counts([np.arange(600)], 600, range(12), 0)
    assert {bool(drawn[300] and drawn[301]) for drawn in counts} == {True, False}
    check(Questions.from_confidence(np.linspace(0, 1, 600), correct), counts, ["ece_sweep"])


@pytest.mark.parametrize("decimals", [1, 3])
def test_boundaries_of_equal_mass(decimals: int) -> None:
    rng = np.random.default_rng(decimals)
    for size in (1, 16, 50, 200):
        confidence = np.round(rng.random(size), decimals)
        sums = Cumulative.of(confidence, rng.random(size) < confidence)
        _, group = np.unique(confidence, return_inverse=True)
        for num_bins in (1, 2, 15, size):
            bins = equal_mass_bins(confidence, num_bins)
            begin = [group[bins >= number].min(initial=group.max() + 1) for number in range(num_bins + 1)]
            got = sums.boundaries(np.array([num_bins]), np.arange(num_bins + 1), np.array([0]))
            assert got[0].tolist() == begin


def test_places() -> None:
    for size in (1, 15, 16, 17, 511, 512, 513, 1500):
        rising = Rising(np.linspace(1, 0, size))
        place = rising.place[:-1]
        assert sorted(place.tolist()) == list(range(len(place)))
        assert len(place) % STEP == 0
        assert len(place) < size + STEP * rising.shape[0]
        placed: Ints = rising.placed(rising.ascending)
        assert placed[place[:size]].tolist() == list(range(size))[::-1]
        assert not placed[place[size:]].any()


def test_blocks_are_about_equal() -> None:
    draws = Draws(None, 1000, 5, None, lambda _: np.zeros((0, 5), dtype=np.uint8), None)
    for size in (1, 7, 298, 500, 999, 1000, 5000):
        blocks = draws.blocks(size)
        assert [number for block in blocks for number in block] == list(range(1000))
        assert max(map(len, blocks)) <= size
        assert len(blocks) == -(-1000 // size)
        assert len(blocks[0]) - len(blocks[-1]) < len(blocks)
