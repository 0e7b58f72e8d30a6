"""Every metric on many resamples of questions at once.

A resample of N questions is the number of times that each was drawn. Most of what metrics need are sums of such
numbers, times a value of the question, over the questions of a bin: products with a sparse matrix. The rest
depends on the order of confidence and follows from running sums of whole numbers. So each value is that of the
resampled data, not an approximation of it.

Arrays hold the numbers of one question in all resamples of a block side by side: what is done to questions is
then done to long runs of memory.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from lm_eval_calib.draws import Draws
from lm_eval_calib.inputs import Floats
from lm_eval_calib.kernels import KERNELS
from lm_eval_calib.metrics import METRICS, Metric, classwise
from lm_eval_calib.metrics.cumulative import Cumulative
from lm_eval_calib.metrics.smooth import CELLS
from lm_eval_calib.prepared import Prepared
from lm_eval_calib.workspace import Workspace


class Block:
    """Some resamples of a prepared group.

    Attributes:
        drawn: [P, R] how often the question at each place was drawn, of a type that holds their sum.
        total: [R] questions drawn.
        means: [1 + M, R] questions drawn, and sums of the group's means.
        table: [H, R] the sums of the group's table.
        cells: [CELLS, R] gaps summed in each cell of `lm_eval_calib.metrics.smooth`.
        steps: [P / STEP, R] gaps summed in each step of the order of confidence.
    """

    def __init__(self, group: Prepared, draws: Draws, numbers: range, workspace: Workspace) -> None:
        self.group = group
        self.workspace = workspace
        resamples = len(numbers)
        self.drawn = workspace.array("drawn", (group.order.size, resamples), draws.dtype)
        self.means = np.zeros((len(group.means), resamples))
        self.table = np.zeros((group.height, resamples))
        self.cells = np.zeros((CELLS if group.needs_cells else 0, resamples))
        self.steps = np.empty((group.rising.shape[0] * group.rising.shape[2] if group.needs_sums else 0, resamples))
        pool, columns = draws.counts(numbers), draws.columns(group.order)
        # What is done to some questions is done while they are in the cache: the time goes into memory otherwise.
        for tile in group.tiles:
            drawn = self.drawn[tile.places]
            np.copyto(drawn, pool[columns[tile.places]])
            drawn[tile.filling] = 0
            weights = workspace.array("weights", drawn.shape)
            np.copyto(weights, drawn)
            self.means += group.means[:, tile.places] @ weights
            sums = tile.terms @ weights
            cells = group.height + tile.cells.stop - tile.cells.start
            self.table += sums[: group.height]
            self.cells[tile.cells] += sums[group.height : cells]
            self.steps[tile.steps] = sums[cells:]
        self.total = self.means[0]

    @cached_property
    def sums(self) -> Cumulative:
        """Sums over rising confidence."""
        group = self.group
        return Cumulative(group.rising, self.drawn, group.correct, group.gap, self.steps, self.workspace)

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
        means, infinite = self.means[1 : 1 + len(names)] / self.total, self.means[1 + len(names) :]
        if len(infinite):
            means = np.where(infinite > 0, np.inf, means)
        return dict(zip(names, means, strict=True))

    def _one_by_one(self, metric: Metric) -> Floats:
        """A metric that nothing here knows how to vectorise."""
        values = np.full(self.total.size, np.nan)
        for row in np.flatnonzero(self.total):
            drawn = np.repeat(self.group.order, self.drawn[:, row])
            values[row] = self.group.questions.take(drawn).value(metric, **self.group.options)
        return values

    @cached_property
    def ranking(self) -> tuple[Floats, Floats]:
        """Twice the pairs of a wrong answer and a right one of higher confidence, those of equal confidence counted
        once; and the sum over questions of the share of right answers among those at least as confident; [R] each."""
        sums, ties, wrong = self.sums, self.group.rising.ties, self.group.wrong
        pairs, shares = np.zeros((2, self.total.size))
        for places in (tile.places for tile in self.group.tiles):
            begin = places if ties is None else ties[0][places]
            drawn, hits, counts = self.drawn[places], sums.hits[begin], sums.counts[begin]
            if not counts[-1].all():  # nothing is drawn from some place on
                counts = np.maximum(counts, 1)
            better = self.workspace.array("weights", drawn.shape)
            np.multiply(drawn, hits, out=better, dtype=np.float64)
            pairs += 2 * (wrong[places] @ better)
            np.divide(better, counts, out=better)
            shares += np.ones(len(better)) @ better
            if ties is not None:
                np.multiply(drawn, hits - sums.hits[ties[1][places]], out=better, dtype=np.float64)
                pairs -= wrong[places] @ better
        return pairs, shares

    @cached_property
    def bins(self) -> tuple[Floats, Floats, Floats]:
        """Counts, right answers and gaps summed in each equal-width bin [R, B]."""
        place = self.group.rising.place[self.group.bin_edges]
        held, hits = (-np.diff(sums[place].astype(np.float64), axis=0).T for sums in (self.sums.counts, self.sums.hits))
        return held, hits, self.bin_gaps

    @property
    def bin_gaps(self) -> Floats:
        """Gaps summed in each equal-width bin [R, B]."""
        return self.table[self.group.parts["bins"]].T

    @cached_property
    def classes(self) -> tuple[Floats, Floats, Floats, Floats]:
        """Counts, gaps and outcomes [R, K, B], and squared outcomes [R, K]."""
        parts = self.group.parts
        shape = (self.group.num_choices, self.group.num_bins, self.total.size)

        def moved(sums: npt.NDArray[Any]) -> Floats:
            return np.moveaxis(sums.reshape(shape), -1, 0)

        split = (self.group.classes @ self.drawn).astype(np.float64)
        outcomes = moved(split[1::2])
        counts = moved(split[::2]) + outcomes
        gaps = moved(self.table[parts["gaps"]])
        if "outcomes" in parts:
            return counts, gaps, moved(self.table[parts["outcomes"]]), self.table[parts["squares"]].T
        return counts, gaps, outcomes, outcomes.sum(axis=-1)

    @cached_property
    def brier_parts(self) -> tuple[Floats, Floats, Floats]:
        """Reliability, resolution and uncertainty [R] each."""
        return classwise.brier_parts(*self.classes, self.total)
