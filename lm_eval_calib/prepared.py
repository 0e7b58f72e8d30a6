"""What the metrics of a group need of its questions on every resample, computed once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import scipy.sparse

from lm_eval_calib.binning import equal_width_bins, equal_width_edges
from lm_eval_calib.inputs import Floats, Ints, check_positive_int
from lm_eval_calib.kernels import KERNELS, OF_BINS, OF_CLASSES, OF_SUMS
from lm_eval_calib.metrics import METRICS, Metric
from lm_eval_calib.metrics.classwise import outcome_shares
from lm_eval_calib.metrics.cumulative import STEP, Rising
from lm_eval_calib.metrics.ranking import check_coverage
from lm_eval_calib.metrics.smooth import cells
from lm_eval_calib.questions import Questions


class Terms(NamedTuple):
    """What sorted questions add to sums: each term is of one question, in their order, and one sum."""

    sums: Ints
    questions: Ints
    values: npt.NDArray[Any]


class Tile(NamedTuple):
    """Questions that follow each other in confidence.

    Attributes:
        places: of the questions.
        filling: those of the tile that hold no question.
        terms: sparse [H + C + S, T]: their parts of the H sums of the table, of the C cells that they are in,
            and of their S steps.
        cells, steps: which these are.
    """

    places: slice
    filling: Ints
    terms: Any
    cells: slice
    steps: slice


class Prepared:
    """A group of questions by rising confidence, with what its metrics need on every resample.

    Attributes:
        rising: the order, and the places at which the questions stand in what follows.
        order: [P] the question at every place.
        correct, wrong, gap: [P] 1 where right, 1 where wrong, and confidence - correct; 0 without a question.
        means: [1 + M, P] 1, and the values whose means are metrics; then, if one is infinite, 1 where they are.
        parts: name -> rows of the table.
        height: H, the rows of the table.
        tiles: what the questions add to sums of values.
        num_choices: K, where a metric of choice positions is asked for.
        classes: sparse [K * B * 2, P] 1 where a choice position has a probability in a bin, by whether that
            choice is the only gold one.
    """

    num_choices: int
    classes: Any

    def __init__(self, questions: Questions, metrics: Sequence[Metric], options: Mapping[str, Any]) -> None:
        self.metrics = metrics
        self.options = options
        self.questions = questions
        self.num_bins = check_positive_int(options.get("num_bins", 15), "num_bins")
        self.coverage = check_coverage(options.get("coverage", 0.8))
        self.rising = Rising(questions.confidence)
        self.order = self.rising.placed(self.rising.ascending)
        self.sorted = questions.take(self.rising.ascending)
        right = self.sorted.correct.astype(np.float64)
        self.correct, self.wrong = self.rising.placed(right), self.rising.placed(1 - right)
        self.gap = self.rising.placed(self.sorted.confidence - right)
        self.bin_edges = np.searchsorted(self.sorted.confidence, equal_width_edges(self.num_bins), side="right")
        self.bin_edges[0] = 0
        names = {metric.name for metric in metrics if metric.name in KERNELS and METRICS[metric.name] is metric}
        self.needs_sums = not OF_SUMS.isdisjoint(names)
        self.needs_cells = "smooth_ece" in names
        self.means = self._means()
        self.parts: dict[str, slice] = {}
        self.height = 0
        terms = [] if OF_BINS.isdisjoint(names) else [self._bins()]
        if not OF_CLASSES.isdisjoint(names):
            terms += self._classes()
        self.tiles = [self._tile(number, terms) for number in range(self.rising.shape[0])]

    def _means(self) -> Floats:
        kinds = []
        for metric in self.metrics:
            if metric.per_question is not None:
                first, second = self.sorted.confidence, self.sorted.correct
                if metric.inputs == "distribution":
                    first, second, _ = self._distribution()
                kinds.append(metric.per_question(first, second))
        infinite = [np.isinf(kind) for kind in kinds]
        if any(there.any() for there in infinite):
            kinds = [np.where(there, 0.0, kind) for kind, there in zip(kinds, infinite, strict=True)] + infinite
        kinds.insert(0, np.ones(len(self.sorted)))
        return np.array([self.rising.placed(kind) for kind in kinds], dtype=np.float64)

    def _distribution(self) -> tuple[Floats, Any, Any]:
        """Probabilities, gold mask and the mask of real choices."""
        values, gold, real = self.sorted.probabilities, self.sorted.gold, self.sorted.real
        if values is None or gold is None or real is None:
            raise ValueError("only confidence is known")  # Questions.resolve has ruled it out
        return values, gold, real

    def _rows(self, name: str, number: int) -> int:
        """Adds rows of this name to the table and returns the first."""
        self.parts[name] = slice(self.height, self.height + number)
        self.height += number
        return self.height - number

    def _bins(self) -> Terms:
        values = self.sorted.confidence
        bins = equal_width_bins(values, self.num_bins)
        return Terms(self._rows("bins", self.num_bins) + bins, np.arange(values.size), values - self.sorted.correct)

    def _classes(self) -> list[Terms]:
        """Gaps in every bin of a choice position; outcomes too where they are not all 0 or 1."""
        values, gold, real = self._distribution()
        self.num_choices = values.shape[1]
        shares = outcome_shares(gold)
        bins = (equal_width_bins(values, self.num_bins) + self.num_bins * np.arange(self.num_choices))[real]
        questions, choices = np.nonzero(real)
        self.classes = scipy.sparse.csr_array(
            (
                np.ones(bins.size, dtype=np.uint8),
                (2 * bins + (shares[real] == 1), self.rising.place[questions]),
            ),
            shape=(2 * self.num_choices * self.num_bins, self.order.size),
        )
        number = self.num_choices * self.num_bins
        terms = [Terms(self._rows("gaps", number) + bins, questions, (values - shares)[real])]
        if (gold.sum(axis=1) != 1).any():
            terms.append(Terms(self._rows("outcomes", number) + bins, questions, shares[real]))
            terms.append(Terms(self._rows("squares", self.num_choices) + choices, questions, np.square(shares[real])))
        return terms

    def _tile(self, number: int, terms: Sequence[Terms]) -> Tile:
        steps = self.rising.shape[2]
        size = steps * STEP
        low, high = number * size, min((number + 1) * size, len(self.sorted))
        own = [Terms(*(part[slice(*np.searchsorted(kind.questions, [low, high]))] for part in kind)) for kind in terms]
        questions = np.arange(low, high)
        gap = self.sorted.confidence[low:high] - self.sorted.correct[low:high]
        height, in_cells, in_steps = self.height, slice(0, 0), slice(0, 0)
        if self.needs_cells:
            cell = cells(self.sorted.confidence[low:high])
            in_cells = slice(int(cell[0]), int(cell[-1]) + 1)
            own.append(Terms(height + cell - cell[0], questions, gap))
            height += in_cells.stop - in_cells.start
        if self.needs_sums:
            in_steps = slice(number * steps, (number + 1) * steps)
            own.append(Terms(height + (questions - low) // STEP, questions, gap))
            height += steps
        matrix = scipy.sparse.csr_array((height, size))
        if own:
            sums, among, values = (np.concatenate(part) for part in zip(*own, strict=True))
            columns = self.rising.place[among] - number * size
            matrix = scipy.sparse.csr_array((values, (sums, columns)), shape=matrix.shape)
        places = slice(number * size, (number + 1) * size)
        filling = self.rising.place[high : places.stop] - places.start
        return Tile(places, filling, matrix, in_cells, in_steps)
