"""Every metric on many resamples of questions at once.

A resample of N questions is the number of times that each was drawn. Sorted by confidence, the sums that a
binned or ranking metric needs are differences of cumulative sums, and all other sums are one matrix product;
so a metric on R resamples is a few passes over an [R, N] array, and each value is that of the resampled data,
not an approximation of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from lm_eval_calib.binning import equal_width_bins, equal_width_edges
from lm_eval_calib.inputs import Floats, Ints, check_positive_int
from lm_eval_calib.metrics import METRICS, Metric
from lm_eval_calib.metrics.classwise import brier_parts, classwise_from_sums, outcome_shares
from lm_eval_calib.metrics.cumulative import Cumulative
from lm_eval_calib.metrics.ranking import check_coverage
from lm_eval_calib.metrics.smooth import CELLS, cells, smooth_error
from lm_eval_calib.metrics.sweep import sweep_error
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
        distinct = confidence[edges[:-1]]
        self.bin_edges = np.searchsorted(distinct, equal_width_edges(self.num_bins), side="right")
        self.bin_edges[0] = 0
        self.cell_edges = np.searchsorted(cells(distinct), np.arange(CELLS + 1))
        self.columns, self.parts, self.infinite = self._columns()

    def _columns(self) -> tuple[Floats, dict[str, slice], Floats | None]:
        """What is summed over questions: [N, M] columns, and where each kind stands among them."""
        kinds: dict[str, Floats] = {}
        for metric in self.metrics:
            if metric.per_question is not None:
                first, second = self.questions.confidence, self.questions.correct
                if metric.inputs == "distribution":
                    first, second, _ = self.distribution
                kinds[metric.name] = metric.per_question(first, second)[:, None]
        means = list(kinds)
        bins = equal_width_bins(self.questions.confidence, self.num_bins)
        kinds["bins"] = np.zeros((self.gap.size, self.num_bins))
        kinds["bins"][np.arange(self.gap.size), bins] = self.gap
        if any(KERNELS.get(metric.name) in _OF_CLASSES for metric in self.metrics):
            kinds |= self._class_columns()
        columns = np.concatenate(list(kinds.values()), axis=1)
        ends = np.cumsum([kind.shape[1] for kind in kinds.values()])
        parts = {
            name: slice(int(end) - kind.shape[1], int(end))
            for (name, kind), end in zip(kinds.items(), ends, strict=True)
        }
        infinite = np.isinf(columns[:, : len(means)])
        if not infinite.any():
            return columns, parts, None
        columns[:, : len(means)][infinite] = 0.0
        return columns, parts, infinite.astype(np.float64)

    @property
    def distribution(self) -> tuple[Floats, Any, Any]:
        """Probabilities, gold mask and the mask of real choices."""
        values, gold, real = self.questions.probabilities, self.questions.gold, self.questions.real
        if values is None or gold is None or real is None:
            raise ValueError("only confidence is known")  # Questions.resolve has ruled it out
        return values, gold, real

    def _class_columns(self) -> dict[str, Floats]:
        """Gaps in every filled bin of a choice position; outcomes too where they are not all 0 or 1."""
        values, gold, real = self.distribution
        shares = outcome_shares(gold)
        bins = equal_width_bins(values, self.num_bins)
        # Per choice position: its questions by bin and outcome, and where each such run ends.
        self.class_runs = []
        for k in range(values.shape[1]):
            kinds_of = np.where(real[:, k], 2 * bins[:, k] + (shares[:, k] == 1), 2 * self.num_bins)
            order = np.argsort(kinds_of, kind="stable")
            self.class_runs.append((order, np.searchsorted(kinds_of[order], np.arange(2 * self.num_bins + 1)).tolist()))
        cell = (bins + self.num_bins * np.arange(values.shape[1]))[real]
        self.filled, cell = np.unique(cell, return_inverse=True)
        row = np.nonzero(real)[0]
        kinds = {"gaps": values - shares}
        if (gold.sum(axis=1) != 1).any():
            kinds["outcomes"] = shares
        for name, kind in kinds.items():
            kinds[name] = np.zeros((len(values), self.filled.size))
            kinds[name][row, cell] = kind[real]
        if "outcomes" in kinds:
            kinds["squares"] = np.square(shares)
        return kinds


class Workspace:
    """Arrays that the blocks of one thread use again: fresh ones cost as much time as computing with them."""

    def __init__(self) -> None:
        self._arrays: dict[str, Floats] = {}

    def array(self, name: str, shape: tuple[int, ...]) -> Floats:
        """An uninitialised array; what was in the last one of this name is lost."""
        size = int(np.prod(shape))
        if name not in self._arrays or self._arrays[name].size < size:
            self._arrays[name] = np.empty(size)
        return self._arrays[name][:size].reshape(shape)


class Block:
    """Some resamples of a prepared group: how often each question, in the order of confidence, was drawn."""

    def __init__(self, group: Prepared, drawn: npt.NDArray[np.uint8], workspace: Workspace) -> None:
        self.group = group
        self.workspace = workspace
        self.weights = workspace.array("weights", drawn.shape)
        np.copyto(self.weights, drawn)
        self.drawn = drawn.T
        self.total = self.weights.sum(axis=1)
        self.table = self.weights @ group.columns

    @cached_property
    def hit_weights(self) -> Floats:
        """[R, N] drawn and right."""
        out = self.workspace.array("hit_weights", self.weights.shape)
        return np.multiply(self.weights, self.group.correct, out=out)

    @cached_property
    def sums(self) -> Cumulative:
        """Sums over rising confidence."""
        rows, size = self.weights.shape
        # One running sum through all rows; row r is the run of size + 1 that begins at r size.
        flat = self.workspace.array("counts", (rows * size + 1,))
        flat[0] = 0.0
        np.cumsum(self.weights.ravel(), out=flat[1:])
        counts = np.lib.stride_tricks.as_strided(flat, (rows, size + 1), (size * 8, 8), writeable=False)
        hits, gaps = (self.workspace.array(name, (rows, size + 1)) for name in ("hits", "gaps"))
        hits[:, 0] = gaps[:, 0] = 0.0
        np.cumsum(self.hit_weights, axis=1, out=hits[:, 1:])
        gap_weights = self.workspace.array("scratch", (rows, size))
        np.multiply(self.weights, self.group.gap, out=gap_weights)
        np.cumsum(gap_weights, axis=1, out=gaps[:, 1:])
        if self.group.edges is not None:
            counts, hits, gaps = (sums[:, self.group.edges] for sums in (counts, hits, gaps))
        return Cumulative(counts, hits, gaps)

    def values(self) -> dict[str, Floats]:
        """Every metric on every resample [R]; NaN where the resample is empty or the metric undefined."""
        results = {}
        with np.errstate(divide="ignore", invalid="ignore"):
            means = self._means()
            for metric in self.group.metrics:
                if metric.per_question is not None:
                    value = means[metric.name]
                elif METRICS.get(metric.name) is metric and metric.name in KERNELS:
                    value = KERNELS[metric.name](self)
                else:
                    value = self._one_by_one(metric)
                results[metric.name] = np.where(self.total > 0, value, np.nan)
        return results

    def _means(self) -> dict[str, Floats]:
        names = [metric.name for metric in self.group.metrics if metric.per_question is not None]
        means = self.table[:, : len(names)] / self.total[:, None]
        if self.group.infinite is not None:
            means = np.where(self.weights @ self.group.infinite > 0, np.inf, means)
        return dict(zip(names, means.T, strict=True))

    def _one_by_one(self, metric: Metric) -> Floats:
        """A metric that nothing here knows how to vectorise."""
        values = np.full(self.total.size, np.nan)
        for row in np.flatnonzero(self.total):
            drawn = np.repeat(np.arange(self.weights.shape[1]), self.weights[row].astype(np.int64))
            values[row] = self.group.questions.take(drawn).value(metric, **self.group.options)
        return values

    @cached_property
    def held(self) -> Floats:
        """[R, G] questions in each group of equal confidence."""
        return self.weights if self.group.edges is None else np.diff(self.sums.counts, axis=1)

    @cached_property
    def bins(self) -> tuple[Floats, Floats, Floats]:
        """Counts, right answers and gaps summed in each equal-width bin [R, B]."""
        edges = self.group.bin_edges
        held, hits = (np.diff(sums[:, edges], axis=1) for sums in (self.sums.counts, self.sums.hits))
        return held, hits, self.bin_gaps

    @property
    def bin_gaps(self) -> Floats:
        """Gaps summed in each equal-width bin [R, B]."""
        return self.table[:, self.group.parts["bins"]]

    @cached_property
    def classes(self) -> tuple[Floats, Floats, Floats, Floats]:
        """Counts, gaps and outcomes [R, K, B], and squared outcomes [R, K]."""
        rows, num_bins, parts = self.total.size, self.group.num_bins, self.group.parts
        # Sums of bytes over runs of questions are many times faster than the matrix product.
        counts, outcomes = np.zeros((2, len(self.group.class_runs), num_bins, rows))
        for k, (order, cuts) in enumerate(self.group.class_runs):
            drawn = self.drawn[order]
            for b in range(num_bins):
                wrong, right, end = cuts[2 * b : 2 * b + 3]
                outcomes[k, b] = drawn[right:end].sum(axis=0, dtype=np.uint32)
                counts[k, b] = drawn[wrong:right].sum(axis=0, dtype=np.uint32)
        counts = np.moveaxis(counts + outcomes, -1, 0)
        gaps = self._filled("gaps", counts.shape)
        if "outcomes" in parts:
            return counts, gaps, self._filled("outcomes", counts.shape), self.table[:, parts["squares"]]
        outcomes = np.moveaxis(outcomes, -1, 0)
        return counts, gaps, outcomes, outcomes.sum(axis=-1)

    def _filled(self, kind: str, shape: tuple[int, ...]) -> Floats:
        full = np.zeros((shape[0], shape[1] * shape[2]))
        full[:, self.group.filled] = self.table[:, self.group.parts[kind]]
        return full.reshape(shape)


def _ece(block: Block) -> Floats:
    return np.asarray(np.abs(block.bin_gaps).sum(axis=1) / block.total)


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


def _ace(block: Block) -> Floats:
    return block.sums.mass_error(block.group.num_bins, np.arange(block.total.size))


def _smooth_ece(block: Block) -> Floats:
    return smooth_error(np.diff(block.sums.gaps[:, block.group.cell_edges], axis=1) / block.total[:, None])


def _auroc(block: Block) -> Floats:
    # Twice the sum of the right answers' mid-ranks, in whole numbers, hence exact.
    rises = block.hit_weights if block.group.edges is None else np.diff(block.sums.hits, axis=1)
    right = block.sums.right
    counts = block.sums.counts
    ranks = 2 * (np.einsum("rg,rg->r", rises, counts[:, 1:]) - right * counts[:, 0])
    ranks -= np.einsum("rg,rg->r", rises, block.held)
    return np.asarray((ranks - right**2) / (2 * right * (block.total - right)))


def _aurc(block: Block) -> Floats:
    shape = block.held.shape
    above = block.workspace.array("above", shape)
    np.subtract(block.sums.counts[:, -1:], block.sums.counts[:, :-1], out=above)
    right = block.workspace.array("scratch", shape)
    np.subtract(block.sums.right[:, None], block.sums.hits[:, :-1], out=right)
    # Groups above the highest that was drawn hold nothing, and nothing lies above them.
    highest = block.sums.first_reaching(block.total[:, None], np.arange(shape[0])).min()
    np.maximum(above[:, highest:], 1.0, out=above[:, highest:])
    np.divide(right, above, out=right)
    return np.asarray(1 - np.einsum("rg,rg->r", block.held, right) / block.total)


def _accuracy_at_coverage(block: Block) -> Floats:
    sums = block.sums
    answered = block.group.coverage * block.total
    withheld = block.total - answered
    row = np.arange(withheld.size)
    group = sums.first_reaching(withheld[:, None], row)[:, 0]
    held = block.held[row, group]
    share = np.where(held > 0, (withheld - sums.counts[row, group] + sums.counts[:, 0]) / held, 0.0)
    below, upto = sums.hits[row, group], sums.hits[row, group + 1]
    return np.asarray((sums.right - below - share * (upto - below)) / answered)


def _classwise_ece(block: Block) -> Floats:
    return classwise_from_sums(*block.classes[:2])


def _brier_reliability(block: Block) -> Floats:
    return brier_parts(*block.classes, block.total)[0]


def _brier_resolution(block: Block) -> Floats:
    return brier_parts(*block.classes, block.total)[1]


def _brier_uncertainty(block: Block) -> Floats:
    return brier_parts(*block.classes, block.total)[2]


KERNELS: Mapping[str, Callable[[Block], Floats]] = MappingProxyType(
    {
        "ece": _ece,
        "rms_ce": _rms_ce,
        "rms_ce_debiased": _rms_ce_debiased,
        "mce": _mce,
        "ace": _ace,
        "ece_sweep": lambda block: sweep_error(block.sums),
        "smooth_ece": _smooth_ece,
        "auroc": _auroc,
        "aurc": _aurc,
        "accuracy_at_coverage": _accuracy_at_coverage,
        "classwise_ece": _classwise_ece,
        "brier_reliability": _brier_reliability,
        "brier_resolution": _brier_resolution,
        "brier_uncertainty": _brier_uncertainty,
    }
)
_OF_CLASSES = (_classwise_ece, _brier_reliability, _brier_resolution, _brier_uncertainty)
