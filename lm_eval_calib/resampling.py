"""Resamples of questions, and every metric on all of them at once.

A resample of N questions is the number of times that each was drawn. Sorted by confidence, the sums that a
binned or ranking metric needs are differences of cumulative sums, and means are matrix products; so a metric
on R resamples is a few passes over an [R, N] array, and each value is that of the resampled data, not an
approximation of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from types import MappingProxyType
from typing import Any

import numpy as np

from lm_eval_calib.binning import equal_width_bins, equal_width_edges
from lm_eval_calib.draws import Counts
from lm_eval_calib.inputs import Floats, Ints, check_positive_int
from lm_eval_calib.metrics import METRICS, Metric
from lm_eval_calib.metrics.classwise import brier_parts, classwise_from_sums, outcome_shares
from lm_eval_calib.metrics.ranking import check_coverage
from lm_eval_calib.metrics.smooth import CELLS, cells, smooth_error
from lm_eval_calib.metrics.sweep import first_reaching, mass_error, sweep_error
from lm_eval_calib.questions import Questions


class Prepared:
    """A group of questions sorted by confidence, with what its metrics need on every resample."""

    def __init__(self, questions: Questions, metrics: Sequence[Metric], options: Mapping[str, Any]) -> None:
        self.metrics = metrics
        self.options = options
        self.num_bins = check_positive_int(options.get("num_bins", 15), "num_bins")
        self.coverage = check_coverage(options.get("coverage", 0.8))
        self.order = np.argsort(questions.confidence, kind="stable")
        self.questions = questions.take(self.order)
        confidence = self.questions.confidence
        self.correct = self.questions.correct.astype(np.float64)
        self.gap = confidence - self.correct
        # Where groups of equal confidence begin and end; None where every confidence differs.
        changes = np.flatnonzero(confidence[1:] != confidence[:-1]) + 1
        edges = np.concatenate([[0], changes, [confidence.size]])
        self.edges: Ints | None = edges if edges.size <= confidence.size else None
        starts = np.searchsorted(confidence, equal_width_edges(self.num_bins)[1:-1], side="right")
        self.bin_starts = np.unique(np.concatenate([[0], starts[starts < confidence.size]]))
        self.cell_edges = np.searchsorted(cells(confidence[edges[:-1]]), np.arange(CELLS + 1))

    @cached_property
    def columns(self) -> Floats:
        """[N, M] the values of the metrics that are means over questions."""
        columns = []
        for metric in self.metrics:
            if metric.per_question is not None:
                if metric.inputs == "confidence":
                    columns.append(metric.per_question(self.questions.confidence, self.questions.correct))
                else:
                    columns.append(metric.per_question(*self.distribution[:2]))
        return np.stack(columns, axis=1)

    @property
    def distribution(self) -> tuple[Floats, Any, Any]:
        """Probabilities, gold mask and the mask of real choices."""
        values, gold, real = self.questions.probabilities, self.questions.gold, self.questions.real
        if values is None or gold is None or real is None:
            raise ValueError("only confidence is known")  # Questions.resolve has ruled it out
        return values, gold, real

    @cached_property
    def class_columns(self) -> tuple[Ints, Floats]:
        """The bins of choice positions that hold a question, [M] numbers below K B, and columns [N, 3 M + K]:
        membership in them, gaps and outcomes; then the squared outcomes of every position."""
        values, gold, real = self.distribution
        shares = outcome_shares(gold)
        cell = (equal_width_bins(values, self.num_bins) + self.num_bins * np.arange(values.shape[1]))[real]
        filled, cell = np.unique(cell, return_inverse=True)
        row = np.nonzero(real)[0]
        columns = np.zeros((len(values), 3 * filled.size + values.shape[1]))
        columns[row, cell] = 1.0
        columns[row, filled.size + cell] = (values - shares)[real]
        columns[row, 2 * filled.size + cell] = shares[real]
        columns[:, 3 * filled.size :] = np.square(shares)
        return filled, columns


class Block:
    """Some resamples of a prepared group: how often each question, in the order of confidence, was drawn."""

    def __init__(self, group: Prepared, drawn: Counts) -> None:
        self.group = group
        self.weights = drawn.astype(np.float64)
        self.total = self.weights.sum(axis=1)

    def values(self) -> dict[str, Floats]:
        """Every metric on every resample [R]; NaN where the resample is empty or the metric undefined."""
        results = {}
        with np.errstate(divide="ignore", invalid="ignore"):
            means = iter(self._means().T) if any(m.per_question for m in self.group.metrics) else iter(())
            for metric in self.group.metrics:
                if metric.per_question is not None:
                    value = next(means)
                elif METRICS.get(metric.name) is metric and metric.name in KERNELS:
                    value = KERNELS[metric.name](self)
                else:
                    value = self._one_by_one(metric)
                results[metric.name] = np.where(self.total > 0, value, np.nan)
        return results

    def _means(self) -> Floats:
        columns = self.group.columns
        infinite = np.isinf(columns)
        if not infinite.any():
            return np.asarray(self.weights @ columns / self.total[:, None])
        means = self.weights @ np.where(infinite, 0.0, columns) / self.total[:, None]
        return np.where(self.weights @ infinite > 0, np.inf, means)

    def _one_by_one(self, metric: Metric) -> Floats:
        """A metric that nothing here knows how to vectorise."""
        values = np.full(self.total.size, np.nan)
        for row in np.flatnonzero(self.total):
            drawn = np.repeat(np.arange(self.weights.shape[1]), self.weights[row].astype(np.int64))
            values[row] = self.group.questions.take(drawn).value(metric, **self.group.options)
        return values

    def _cumulative(self, increments: Floats) -> Floats:
        """[R, G + 1] sums over all groups of lower confidence, from 0."""
        sums = np.zeros((increments.shape[0], increments.shape[1] + 1))
        np.cumsum(increments, axis=1, out=sums[:, 1:])
        return sums if self.group.edges is None else sums[:, self.group.edges]

    @cached_property
    def hit_weights(self) -> Floats:
        return self.weights * self.group.correct

    @cached_property
    def gap_weights(self) -> Floats:
        return self.weights * self.group.gap

    @cached_property
    def counts(self) -> Floats:
        return self._cumulative(self.weights)

    @cached_property
    def hits(self) -> Floats:
        return self._cumulative(self.hit_weights)

    @cached_property
    def gaps(self) -> Floats:
        return self._cumulative(self.gap_weights)

    @cached_property
    def held(self) -> Floats:
        """[R, G] questions in each group of equal confidence."""
        return self.weights if self.group.edges is None else np.diff(self.counts, axis=1)

    @cached_property
    def bins(self) -> tuple[Floats, Floats, Floats]:
        """Counts, right answers and gaps summed in each equal-width bin that holds a question of the data."""
        starts = self.group.bin_starts
        held, hits, gaps = (
            np.add.reduceat(weights, starts, axis=1)
            for weights in (self.weights, self.hit_weights, self.gap_weights)
        )
        return held, hits, gaps

    @cached_property
    def classes(self) -> tuple[Floats, Floats, Floats, Floats]:
        """Counts, gaps and outcomes [R, K, B], and squared outcomes [R, K]."""
        filled, columns = self.group.class_columns
        classes = self.group.distribution[0].shape[1]
        sums = self.weights @ columns
        table = np.zeros((3, sums.shape[0], classes * self.group.num_bins))
        table[:, :, filled] = sums[:, : 3 * filled.size].reshape(sums.shape[0], 3, -1).swapaxes(0, 1)
        counts, gaps, outcomes = table.reshape(3, sums.shape[0], classes, self.group.num_bins)
        return counts, gaps, outcomes, sums[:, 3 * filled.size :]


def _ece(block: Block) -> Floats:
    return np.asarray(np.abs(block.bins[2]).sum(axis=1) / block.total)


def _rms_ce(block: Block) -> Floats:
    held, _, gaps = block.bins
    squares = np.where(held > 0, np.square(gaps) / held, 0.0)
    return np.asarray(np.sqrt(squares.sum(axis=1) / block.total))


def _rms_ce_debiased(block: Block) -> Floats:
    held, hits, gaps = block.bins
    accuracy = hits / held
    squares = np.square(gaps) / held - held * accuracy * (1 - accuracy) / (held - 1)
    return np.asarray(np.sqrt(np.maximum(np.where(held > 1, squares, 0.0).sum(axis=1), 0.0) / block.total))


def _mce(block: Block) -> Floats:
    held, _, gaps = block.bins
    return np.asarray(np.where(held > 0, np.abs(gaps) / held, 0.0).max(axis=1))


def _auroc(block: Block) -> Floats:
    # Twice the sum of the right answers' mid-ranks, as an area; in whole numbers, hence exact.
    rises = block.hit_weights if block.group.edges is None else np.diff(block.hits, axis=1)
    area = np.einsum("rg,rg->r", rises, block.counts[:, 1:]) - np.einsum(
        "rg,rg->r", block.held, block.hits[:, 1:]
    )
    right = block.hits[:, -1]
    return np.asarray((area + right * block.total - right**2) / (2 * right * (block.total - right)))


def _aurc(block: Block) -> Floats:
    above = block.total[:, None] - block.counts[:, :-1]
    right = block.hits[:, -1:] - block.hits[:, :-1]
    share = np.divide(right, np.maximum(above, 1.0, out=above), out=right)
    return np.asarray(1 - np.einsum("rg,rg->r", block.held, share) / block.total)


def _accuracy_at_coverage(block: Block) -> Floats:
    answered = block.group.coverage * block.total
    withheld = block.total - answered
    group = first_reaching(block.counts, withheld[:, None])[:, 0]
    row = np.arange(group.size)
    held = block.held[row, group]
    share = np.where(held > 0, (withheld - block.counts[row, group]) / held, 0.0)
    below, upto = block.hits[row, group], block.hits[row, group + 1]
    return np.asarray((block.hits[:, -1] - below - share * (upto - below)) / answered)


def _brier_part(part: int) -> Callable[[Block], Floats]:
    return lambda block: brier_parts(*block.classes, block.total)[part]


KERNELS: Mapping[str, Callable[[Block], Floats]] = MappingProxyType(
    {
        "ece": _ece,
        "rms_ce": _rms_ce,
        "rms_ce_debiased": _rms_ce_debiased,
        "mce": _mce,
        "ace": lambda block: mass_error(block.counts, block.gaps, block.group.num_bins),
        "ece_sweep": lambda block: sweep_error(block.counts, block.hits, block.gaps),
        "smooth_ece": lambda block: smooth_error(
            np.diff(block.gaps[:, block.group.cell_edges], axis=1) / block.total[:, None]
        ),
        "auroc": _auroc,
        "aurc": _aurc,
        "accuracy_at_coverage": _accuracy_at_coverage,
        "classwise_ece": lambda block: classwise_from_sums(*block.classes[:2]),
        "brier_reliability": _brier_part(0),
        "brier_resolution": _brier_part(1),
        "brier_uncertainty": _brier_part(2),
    }
)
