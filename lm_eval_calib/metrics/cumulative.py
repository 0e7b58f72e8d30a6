"""Questions, right answers and gaps summed over rising confidence, of one data set or of many resamples."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from lm_eval_calib.inputs import Bools, Floats, Ints
from lm_eval_calib.workspace import Workspace

# Questions of a step, and of a tile: few enough for the caches, whole steps.
STEP, TILE = 16, 512

Whole = npt.NDArray[np.unsignedinteger[Any]]


class Rising:
    """Questions in the order of rising confidence, and their places in arrays that are summed over it.

    Sorted questions are cut into steps of STEP, and steps into tiles. A tile holds the first questions of its
    steps, then their second ones, and so on: then the running sums of all steps and resamples are STEP - 1
    additions of long runs of memory. Places beyond the last question fill its tile and count 0.

    Attributes:
        ascending: [N] the questions by rising confidence; what is said of sorted questions is in this order.
        place: [P + 1] of every sorted question, then of the filling; the last is P.
        edges: [G + 1] where groups of equal confidence begin among sorted questions; the last is N.
        group: [P] of every sorted question, and G of the filling.
        shape: tiles, STEP, and steps of a tile.
    """

    def __init__(self, confidence: Floats) -> None:
        size = confidence.size
        tiles = -(-size // TILE)
        self.shape = (tiles, STEP, -(-size // (tiles * STEP)))
        places = int(np.prod(self.shape))
        self.place = np.append(np.arange(places).reshape(self.shape).swapaxes(1, 2).ravel(), places)
        self.ascending = np.argsort(confidence, kind="stable")
        values = confidence[self.ascending]
        self.edges: Ints = np.concatenate([[0], np.flatnonzero(values[1:] != values[:-1]) + 1, [size]])
        self.group = np.repeat(np.arange(self.edges.size), np.diff(self.edges, append=places))

    @cached_property
    def ties(self) -> tuple[Ints, Ints] | None:
        """[P] where the group of the question at every place begins and ends; None if each has but one."""
        if self.edges.size > self.ascending.size:
            return None
        edges = np.append(self.edges, self.edges[-1])  # the filling's group is empty
        begin, end = np.empty((2, self.group.size), dtype=np.int64)
        begin[self.place[:-1]], end[self.place[:-1]] = self.place[edges[self.group]], self.place[edges[self.group + 1]]
        return begin, end

    def placed(self, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """What belongs to each sorted question [N, ...], at its place [P, ...]; 0 where there is none."""
        result = np.zeros((self.group.size, *values.shape[1:]), dtype=values.dtype)
        result[self.place[: len(values)]] = values
        return result


class Cumulative:
    """Sums over the questions from each one upwards in confidence, of R resamples.

    Attributes:
        counts: [P + 1, R] how many were drawn, from the question at each place on; 0 in the end.
        hits: [P + 1, R] the right answers among them.
        total, right: [R] of all.
    """

    def __init__(
        self, rising: Rising, drawn: Whole, correct: Floats, gap: Floats, gap_steps: Floats, workspace: Workspace
    ) -> None:
        """Sum up.

        Args:
            rising: the order.
            drawn: [P, R] how often each question was drawn, of a type that holds the sums.
            correct, gap: [P] 1 where right, and confidence - correct.
            gap_steps: [P / STEP, R] gaps summed over the questions drawn in each step.
            workspace: holds the sums.
        """
        self.rising = rising
        self.drawn = drawn
        self.gap = gap
        # Below each step. A product with a triangle of ones is faster than cumsum, which goes column by column.
        tiles, _, steps = rising.shape
        self.gap_steps = np.zeros((tiles * steps + 1, drawn.shape[1]))
        gaps = self.gap_steps[1:].reshape(tiles, steps, -1)
        np.matmul(np.tri(steps), gap_steps.reshape(gaps.shape), out=gaps)
        gaps[1:] += np.cumsum(gaps[:-1, -1:], axis=0)
        self.counts, self.hits = (
            workspace.array(name, (len(drawn) + 1, drawn.shape[1]), drawn.dtype) for name in ("counts", "hits")
        )
        np.copyto(self.counts[:-1], drawn)
        np.multiply(drawn, correct.astype(drawn.dtype)[:, None], out=self.hits[:-1])
        for sums in (self.counts, self.hits):
            self._sum_up(sums)
        self.total, self.right = self.counts[0].astype(np.float64), self.hits[0].astype(np.float64)

    @classmethod
    def of(cls, confidence: Floats, correct: Bools) -> Cumulative:
        """The one data set itself, from checked confidence [N] and correctness [N]."""
        rising = Rising(confidence)
        drawn = np.ones(confidence.size, dtype=np.min_scalar_type(confidence.size))[:, None]
        right = correct.astype(np.float64)[rising.ascending]
        gap = rising.placed(confidence[rising.ascending] - right)
        steps = gap.reshape(rising.shape).sum(axis=1).reshape(-1, 1)
        return cls(rising, rising.placed(drawn), rising.placed(right), gap, steps, Workspace())

    def _sum_up(self, sums: Whole) -> None:
        """Turns what questions have, at their places, into the sums from each one on."""
        parts = sums[:-1].reshape(*self.rising.shape, -1)
        steps = parts.sum(axis=1, dtype=sums.dtype).reshape(-1, sums.shape[1])
        later = np.zeros_like(steps)
        np.cumsum(steps[:0:-1], axis=0, dtype=sums.dtype, out=later[-2::-1])
        parts[:, -1] += later.reshape(parts[:, -1].shape)
        for number in reversed(range(STEP - 1)):
            parts[:, number] += parts[:, number + 1]
        sums[-1] = 0

    @cached_property
    def _place(self) -> Ints:
        return np.asarray(self.rising.place * self.total.size)

    def _from(self, sums: npt.NDArray[Any], positions: Ints, rows: Ints) -> Floats:
        return np.asarray(sums.reshape(-1).take(self._place[positions] + rows[:, None]), dtype=np.float64)

    def counts_at(self, edges: Ints, rows: Ints) -> Floats:
        """Questions below edges [len(rows), M] between groups."""
        return np.asarray(self.total[rows, None] - self._from(self.counts, self.rising.edges[edges], rows))

    def hits_at(self, edges: Ints, rows: Ints) -> Floats:
        """Right answers below edges [len(rows), M] between groups."""
        return np.asarray(self.right[rows, None] - self._from(self.hits, self.rising.edges[edges], rows))

    def gaps_at(self, edges: Ints, rows: Ints) -> Floats:
        """Gaps summed below edges [len(rows), M] between groups."""
        step, rest = np.divmod(self.rising.edges[edges], STEP)
        sums = self.gap_steps[step, rows[:, None]]
        gap, drawn = self.gap.take(self.rising.place[:-1]), self.drawn.reshape(-1)
        # The questions of the step that are below: of all steps the first, then the second, ...
        for number in range(int(rest.max(initial=0))):
            position = np.minimum(step * STEP + number, gap.size - 1)
            terms = gap.take(position) * drawn.take(self._place.take(position) + rows[:, None])
            sums += np.where(number < rest, terms, 0.0)
        return np.asarray(sums)

    def of_groups(self, rows: Ints) -> tuple[Floats, Floats, Floats]:
        """Questions, right answers and gaps below every edge [len(rows), G + 1]."""
        places, edges = self.rising.place[:-1], self.rising.place[self.rising.edges]
        gaps = np.zeros((places.size + 1, rows.size))
        np.cumsum(self.drawn[places][:, rows] * self.gap[places, None], axis=0, out=gaps[1:])
        counts, hits = (sums[edges][:, rows].astype(np.float64) for sums in (self.counts, self.hits))
        return (counts[0] - counts).T, (hits[0] - hits).T, gaps[self.rising.edges].T

    def first_reaching(self, targets: npt.NDArray[Any], rows: Ints) -> Ints:
        """The first group [len(rows), M] with which a row's count reaches the target, at most its total."""
        last = self.rising.group.size
        left = self.total[rows, None] - targets
        position = np.zeros(targets.shape, dtype=np.int64)
        # The highest position from which on more than that is drawn, a binary digit at a time.
        for digit in reversed(range(last.bit_length())):
            ahead = np.minimum(position + (1 << digit), last)
            position = np.where(self._from(self.counts, ahead, rows) > left, ahead, position)
        return np.asarray(self.rising.group[position])

    def boundaries(self, num_bins: Ints, bins: Ints, rows: Ints) -> Ints:
        """Where equal-mass bins begin.

        Args:
            num_bins, bins: [M] or [len(rows), M] the number of bins and one of them, from 0.
            rows: the rows wanted.

        Returns:
            [len(rows), M] the first group whose mid-rank lies in that bin or a later one; G where there is
            none. The rule is that of `lm_eval_calib.binning.equal_mass_bins`.
        """
        last = self.rising.edges.size - 1
        total = self.total[rows, None].astype(np.int64)
        # In whole numbers. A group that even with its last question does not reach it lies before.
        first = self.first_reaching(-(-(total * bins) // num_bins), rows)
        ranks = self.counts_at(first, rows) + self.counts_at(np.minimum(first + 1, last), rows)
        short = (ranks * num_bins < 2 * total * bins) & (first < last)
        return np.asarray(np.where(bins == num_bins, last, first + short))

    def mass_error(self, num_bins: Ints, rows: Ints) -> Floats:
        """Calibration error [len(rows)] over equal-mass bins, as many as is said for each row."""
        bins = np.minimum(np.arange(num_bins.max() + 1), num_bins[:, None])
        edges = self.boundaries(num_bins[:, None], bins, rows)
        sums = np.diff(self.gaps_at(edges, rows), axis=1)
        return np.asarray(np.abs(sums).sum(axis=1) / self.total[rows])
