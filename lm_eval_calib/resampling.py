"""Every metric on many resamples of questions at once.

A resample of N questions is the number of times that each was drawn. Sorted by confidence, the sums that a
binned or ranking metric needs are differences of cumulative sums, and all other sums are one matrix product;
so a metric on R resamples is a few passes over an [R, N] array, and each value is that of the resampled data,
not an approximation of it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from lm_eval_calib.binning import equal_width_bins, equal_width_edges
from lm_eval_calib.inputs import Floats, Ints, check_positive_int
from lm_eval_calib.kernels import KERNELS, OF_CLASSES, OF_SUMS
from lm_eval_calib.metrics import METRICS, Metric
from lm_eval_calib.metrics.classwise import outcome_shares
from lm_eval_calib.metrics.cumulative import Cumulative
from lm_eval_calib.metrics.ranking import check_coverage
from lm_eval_calib.metrics.smooth import CELLS, cells
from lm_eval_calib.questions import Questions

# Questions whose columns of a block are worked on at a time, in whole steps.
_TILE = 512
# A running sum waits for the one before at every entry; a product with a triangle of ones does not.
_STEP = 16
_ONES = np.ones(_STEP)
_TRIANGLE = np.triu(np.ones((_STEP, _STEP)))


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
        self.columns, self.parts = self._columns()
        names = {metric.name for metric in metrics}
        self.needs_sums = not OF_SUMS.isdisjoint(names)
        self.needs_ranking = not names.isdisjoint(("auroc", "aurc"))
        self.wrong = 1 - self.correct

    def _columns(self) -> tuple[Floats, dict[str, slice]]:
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
        if not OF_CLASSES.isdisjoint(metric.name for metric in self.metrics):
            kinds |= self._class_columns()
        infinite = [np.isinf(kinds[name]) for name in means]
        if any(there.any() for there in infinite):
            kinds |= {name: np.where(there, 0.0, kinds[name]) for name, there in zip(means, infinite, strict=True)}
            kinds["infinite"] = np.concatenate(infinite, axis=1, dtype=np.float64)
        ends = np.cumsum([kind.shape[1] for kind in kinds.values()])
        parts = {
            name: slice(int(end) - kind.shape[1], int(end))
            for (name, kind), end in zip(kinds.items(), ends, strict=True)
        }
        return np.concatenate(list(kinds.values()), axis=1), parts

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
        size = math.prod(shape)
        if name not in self._arrays or self._arrays[name].size < size:
            self._arrays[name] = np.empty(size)
        return self._arrays[name][:size].reshape(shape)


class Block:
    """Some resamples of a prepared group.

    Attributes:
        drawn: [N, R] how often each question, in the order of confidence, was drawn.
        total: [R] questions drawn.
        table: [R, M] the group's columns summed over the questions drawn.
        sums: over rising confidence; only where a metric of the group needs them.
    """

    def __init__(self, group: Prepared, drawn: npt.NDArray[np.uint8], workspace: Workspace) -> None:
        self.group = group
        self.workspace = workspace
        self.drawn = drawn.T
        self.total = self.drawn.sum(axis=0, dtype=np.uint32).astype(np.float64)
        rows, size = drawn.shape
        self.table = np.zeros((rows, group.columns.shape[1]))
        counts, hits, gaps = (np.empty((rows, 1)) for _ in range(3))
        if group.needs_sums:
            # A row of counts starts where the one before ends, in memory too.
            flat = workspace.array("counts", (rows * size + 1,))
            counts = np.lib.stride_tricks.as_strided(flat, (rows, size + 1), (size * 8, 8))
            counts[:, 0] = np.cumsum(self.total) - self.total
            hits, gaps = (workspace.array(name, (rows, size + 1)) for name in ("hits", "gaps"))
            hits[:, 0] = gaps[:, 0] = 0.0
        if group.needs_ranking and group.edges is None:
            right = self.drawn.take(np.flatnonzero(group.correct), axis=0).sum(axis=0, dtype=np.uint32)[:, None]
            end = np.cumsum(self.total)[:, None]
            pairs, shares = np.zeros((2, rows))
        # What is done to some columns is done while they are in the cache: the time goes into memory otherwise.
        for low in range(0, size, _TILE):
            high = min(low + _TILE, size)
            weights, weighted, running = (
                workspace.array(name, (rows, high - low)) for name in ("weights", "weighted", "running")
            )
            np.copyto(weights, self.drawn[low:high].T)
            self.table += weights @ group.columns[low:high]
            if group.needs_sums:
                for factor, sums in ((None, counts), (group.correct, hits), (group.gap, gaps)):
                    terms = weights if factor is None else np.multiply(weights, factor[low:high], out=weighted)
                    sums[:, low + 1 : high + 1] = _running_sums(terms, sums[:, low], running)
                if group.needs_ranking and group.edges is None:
                    above = np.subtract(end, counts[:, low:high], out=running)
                    if above[:, -1].min() < 1:  # nothing drawn from here on
                        np.maximum(above, 1.0, out=above)
                    better = np.subtract(right, hits[:, low:high], out=weighted)
                    better *= weights
                    pairs += better @ group.wrong[low:high]
                    better /= above
                    shares += better @ np.ones(high - low)
        if group.needs_ranking and group.edges is None:
            self.ranking = 2 * pairs + np.square(right[:, 0], dtype=np.float64), shares
        if group.edges is not None and group.needs_sums:
            counts, hits, gaps = (sums[:, group.edges] for sums in (counts, hits, gaps))
        self.sums = Cumulative(counts, hits, gaps)

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
        if "infinite" in self.group.parts:
            means = np.where(self.table[:, self.group.parts["infinite"]] > 0, np.inf, means)
        return dict(zip(names, means.T, strict=True))

    def _one_by_one(self, metric: Metric) -> Floats:
        """A metric that nothing here knows how to vectorise."""
        values = np.full(self.total.size, np.nan)
        for row in np.flatnonzero(self.total):
            drawn = np.repeat(np.arange(self.drawn.shape[0]), self.drawn[:, row])
            values[row] = self.group.questions.take(drawn).value(metric, **self.group.options)
        return values

    @cached_property
    def ranking(self) -> tuple[Floats, Floats]:
        """Twice the sum of the right answers' mid-ranks, and the sum over questions of the share of right answers
        among those at least as confident, [R] each."""
        counts, hits = self.sums.counts, self.sums.hits
        end, right = counts[:, -1:], hits[:, -1:]
        # Groups above the highest that was drawn hold nothing, and nothing lies above them.
        highest = int(self.sums.first_reaching(self.total[:, None], np.arange(self.total.size)).min())
        ranks = -2 * right[:, 0] * counts[:, 0]
        shares = np.zeros_like(self.total)
        for low in range(0, counts.shape[1] - 1, _TILE):
            high = min(low + _TILE, counts.shape[1] - 1)
            held, rises, above, share = (
                self.workspace.array(name, (self.total.size, high - low))
                for name in ("weights", "weighted", "above", "share")
            )
            upto = counts[:, low + 1 : high + 1]
            np.subtract(upto, counts[:, low:high], out=held)
            np.subtract(hits[:, low + 1 : high + 1], hits[:, low:high], out=rises)
            ranks += 2 * np.einsum("rg,rg->r", rises, upto) - np.einsum("rg,rg->r", rises, held)
            np.subtract(end, counts[:, low:high], out=above)
            np.subtract(right, hits[:, low:high], out=share)
            if high > highest:
                np.maximum(above, 1.0, out=above)
            np.divide(share, above, out=share)
            shares += np.einsum("rg,rg->r", held, share)
        return ranks, shares

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
            drawn = self.drawn.take(order, axis=0)
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


def _running_sums(terms: Floats, start: Floats, out: Floats) -> Floats:
    """`start + cumsum(terms)` along rows, in `out`; all [R, N] but start [R]."""
    rows, size = terms.shape
    if size % _STEP:
        first = terms[:, 0] + start
        np.cumsum(np.concatenate([first[:, None], terms[:, 1:]], axis=1), axis=1, out=out)
        return out
    steps = terms.reshape(rows, -1, _STEP)
    firsts = steps[:, :, 0].copy()
    steps[:, 0, 0] += start
    steps[:, 1:, 0] += np.cumsum((terms.reshape(-1, _STEP) @ _ONES).reshape(rows, -1)[:, :-1], axis=1)
    np.matmul(terms.reshape(-1, _STEP), _TRIANGLE, out=out.reshape(-1, _STEP))
    steps[:, :, 0] = firsts
    return out
