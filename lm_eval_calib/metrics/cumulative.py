"""Questions, right answers and gaps summed over rising confidence, of one data set or of many resamples."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from lm_eval_calib.inputs import Bools, Floats, Ints


@dataclass(frozen=True, eq=False)
class Cumulative:
    """Sums over the groups of equal confidence below each of G + 1 boundaries, [R, G + 1].

    Attributes:
        counts: questions. Every row starts where the one before ends, so that they can be searched at once.
        hits: right answers, from 0 in every row.
        gaps: confidence - correct, from 0 in every row.
    """

    counts: Floats
    hits: Floats
    gaps: Floats

    @classmethod
    def of(cls, confidence: Floats, correct: Bools) -> Cumulative:
        """One row from checked confidence [N] and correctness [N]."""
        _, group = np.unique(confidence, return_inverse=True)
        counts, hits, gaps = (
            np.concatenate([[0.0], np.cumsum(np.bincount(group, weights=weights))])[None]
            for weights in (np.ones(confidence.size), correct, confidence - correct)
        )
        return cls(counts, hits, gaps)

    @cached_property
    def total(self) -> Floats:
        """[R] questions."""
        return np.asarray(self.counts[:, -1] - self.counts[:, 0])

    @cached_property
    def right(self) -> Floats:
        """[R] right answers."""
        return np.ascontiguousarray(self.hits[:, -1])

    @cached_property
    def _ends(self) -> Floats:
        # Without a copy where the rows overlap in memory, the end of one being the start of the next.
        groups = self.counts.shape[1] - 1
        if self.counts.strides[0] == groups * self.counts.itemsize:
            return np.lib.stride_tricks.as_strided(self.counts[:, 1:], (self.total.size * groups,), (8,))
        return np.ravel(self.counts[:, 1:])

    def first_reaching(self, targets: npt.NDArray[Any], rows: Ints) -> Ints:
        """The first group [len(rows), M] with which a row's count reaches the target, at most its total."""
        groups = self.counts.shape[1] - 1
        lifted = targets + self.counts[rows, :1]
        found = np.searchsorted(self._ends, lifted.ravel(), side="left").reshape(rows.size, -1)
        # A target of 0 is reached before the row begins.
        return np.asarray(np.maximum(found - rows[:, None] * groups, 0))

    def boundaries(self, num_bins: Ints | int, bins: Ints, rows: Ints) -> Ints:
        """Where equal-mass bins begin.

        Args:
            num_bins, bins: [M] the number of bins and one of them, from 0.
            rows: the rows wanted.

        Returns:
            [len(rows), M] the first group whose mid-rank lies in that bin or a later one; G where there is
            none. The rule is that of `lm_eval_calib.binning.equal_mass_bins`.
        """
        last = self.counts.shape[1] - 1
        total = self.total[rows, None].astype(np.int64)
        # In whole numbers. A group that even with its last question does not reach it lies before.
        first = self.first_reaching(-(-(total * bins) // num_bins), rows)
        row = rows[:, None]
        ranks = self.counts[row, first] + self.counts[row, np.minimum(first + 1, last)]
        ranks -= 2 * self.counts[rows, :1]
        short = (ranks * num_bins < 2 * total * bins) & (first < last)
        return np.asarray(np.where(bins == num_bins, last, first + short))

    def mass_error(self, num_bins: int, rows: Ints) -> Floats:
        """Calibration error [len(rows)] over equal-mass bins."""
        edges = self.boundaries(num_bins, np.arange(num_bins + 1), rows)
        sums = np.diff(self.gaps[rows[:, None], edges], axis=1)
        return np.asarray(np.abs(sums).sum(axis=1) / self.total[rows])
