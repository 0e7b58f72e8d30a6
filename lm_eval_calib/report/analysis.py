"""Everything a report says, computed: scores, comparisons, diagrams, curves and temperatures of one or more runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lm_eval_calib.errors import CalibrationValueError
from lm_eval_calib.logs import Source, load_predictions
from lm_eval_calib.metrics import METRICS
from lm_eval_calib.predictions import Predictions
from lm_eval_calib.recalibration import temperature_scaling
from lm_eval_calib.replicates import Replicates
from lm_eval_calib.report.checks import warnings_of
from lm_eval_calib.report.comparisons import Comparison, compare
from lm_eval_calib.report.figures import ReliabilityDiagram, prepare_reliability_diagram
from lm_eval_calib.report.scores import (
    Answers,
    Group,
    Ints,
    Score,
    averages,
    intervals_of,
    replicates_of,
)

_FOLDS = 5  # of temperature scaling
COVERAGES = np.arange(1, 51) / 50


@dataclass(frozen=True)
class Report:
    """A calibration report over runs; `from_logs` or `from_predictions` computes it.

    Attributes:
        predictions: the questions.
        answers: the same as arrays.
        baseline: the run that the others are compared with.
        rows: language group -> rows of the table. A task whose language is unknown is a group of its own.
        cells: language group -> metrics and their resamples.
        comparisons: other runs against the baseline: languages, then means over tiers, then over benchmarks.
        temperatures: language group -> temperature scaling before and after.
    """

    predictions: Predictions
    answers: Answers
    baseline: str
    rows: Mapping[Group, Ints]
    cells: Mapping[Group, Replicates]
    comparisons: tuple[Comparison, ...]
    temperatures: Mapping[Group, dict[str, float]]
    level: float = 0.95

    @staticmethod
    def from_logs(source: Source, **options: Any) -> Report:
        """From sample logs, as `load_predictions` reads them; options as for `from_predictions`."""
        progress = options.get("progress")
        return Report.from_predictions(load_predictions(source, progress=progress), **options)

    @staticmethod
    def from_predictions(
        predictions: Predictions,
        *,
        baseline: str | None = None,
        normalization: str | None = None,
        num_bins: int | None = None,
        resamples: int = 1000,
        seed: int = 0,
        progress: bool | None = None,
    ) -> Report:
        """Compute a report.

        Args:
            predictions: of one or more runs.
            baseline: name of the run that the others are compared with; by default the first.
            normalization, num_bins, resamples, seed: as for `score`.
            progress: show bars; by default on a terminal.
        """
        if not len(predictions):
            raise CalibrationValueError(
                "predictions: expected at least one multiple-choice question, got none; "
                "give logs that `lm_eval run --log_samples` wrote, with questions in them"
                + "".join(f"\n  {problem}" for problem in predictions.problems[:5])
            )
        baseline = baseline or predictions.runs[0]
        if baseline not in predictions.runs:
            raise CalibrationValueError(
                f"baseline: expected one of the runs {', '.join(predictions.runs)}, got {baseline!r}"
            )
        answers = Answers(predictions, normalization, num_bins)
        rows = answers.groups("language")
        options: dict[str, Any] = {"resamples": resamples, "seed": seed, "progress": progress}
        cells = replicates_of(answers, rows, **options)
        compared = [
            comparison
            for run in predictions.runs
            if run != baseline
            for comparison in compare(answers, rows, cells, baseline, run, options)
        ]
        return Report(
            predictions=predictions,
            answers=answers,
            baseline=baseline,
            rows=rows,
            cells=cells,
            comparisons=tuple(compared),
            temperatures=_temperatures(answers, rows),
        )

    @property
    def runs(self) -> tuple[str, ...]:
        """The baseline first, then the others as given."""
        others = [run for run in self.predictions.runs if run != self.baseline]
        return (self.baseline, *others)

    @cached_property
    def tiers(self) -> dict[Group, tuple[Replicates, int]]:
        """Unweighted means over the languages of each tier, and the number of languages."""
        return averages(self.cells, "tier")

    @cached_property
    def benchmarks(self) -> dict[Group, tuple[Replicates, int]]:
        """Unweighted means over all languages of each benchmark, and the number of languages."""
        return averages(self.cells, "benchmark")

    def scores(self, by: str = "language") -> list[Score]:
        """Metrics with intervals by language, tier or benchmark."""
        if by == "language":
            return [Score(g, r.size, intervals_of(r, level=self.level)) for g, r in self.cells.items()]
        if by not in ("tier", "benchmark"):
            raise CalibrationValueError(f"by: expected language, tier or benchmark, got {by!r}; see `score`")
        means = self.tiers if by == "tier" else self.benchmarks
        return [Score(g, r.size, intervals_of(r, level=self.level), k) for g, (r, k) in means.items()]

    @cached_property
    def warnings(self) -> tuple[str, ...]:
        """What a reader should know before trusting a number."""
        return warnings_of(self.predictions, self.answers, self.comparisons, self.cells)

    @cached_property
    def findings(self) -> tuple[str, ...]:
        """Two sentences, written from the numbers and hedged by their intervals."""
        from lm_eval_calib.report.findings import findings_of

        return findings_of(self)

    def diagram(self, rows: Ints) -> ReliabilityDiagram:
        """The reliability diagram of some rows."""
        questions = self.answers.questions
        return prepare_reliability_diagram(
            questions.confidence[rows], questions.correct[rows], num_bins=self.answers.bins
        )

    def pooled_rows(self, run: str, benchmark: str, tier: str | None = None) -> Ints:
        """Rows of all languages of a benchmark, or of one of its tiers."""
        parts = [
            rows
            for group, rows in self.rows.items()
            if group.run == run and group.benchmark == benchmark and tier in (None, group.tier)
        ]
        return np.concatenate(parts) if parts else np.zeros(0, np.int64)

    def selective(self, rows: Ints) -> NDArray[np.float64]:
        """Accuracy among the most confident share of the questions, at each of COVERAGES."""
        return selective_accuracy(self.answers.questions.confidence[rows], self.answers.questions.correct[rows])

    @cached_property
    def summary(self) -> dict[str, Any]:
        """The whole report as strict JSON: what `summary.json` holds."""
        from lm_eval_calib.report.summary import summary_of

        return summary_of(self)

    def to_html(self, *, questions: int = 0) -> str:
        """The self-contained page; `questions` shows that many confident errors a run, with their texts."""
        from lm_eval_calib.report.html import render

        return render(self, questions=questions)

    def _repr_html_(self) -> str:
        import html

        page = html.escape(self.to_html(), quote=True)
        return f'<iframe srcdoc="{page}" style="width:100%;height:720px;border:0" title="Calibration report"></iframe>'

    def write(self, out: str | Path, *, questions: int = 0) -> list[Path]:
        """Write report.html, summary.json, tables and figures into a folder; returns the files."""
        from lm_eval_calib.report.files import write_report

        return write_report(self, Path(out), questions=questions)


def selective_accuracy(
    confidence: NDArray[np.float64], correct: NDArray[np.bool_], coverages: NDArray[np.float64] = COVERAGES
) -> NDArray[np.float64]:
    """Accuracy of the answers kept when only the most confident share is answered (El-Yaniv and Wiener 2010).

    Questions of equal confidence count with their mean, so that their order does not matter; at least one
    question is answered. [len(coverages)], NaN of nothing.
    """
    if not confidence.size:
        return np.full(len(coverages), np.nan)
    order = np.argsort(-confidence, kind="stable")
    _, group, counts = np.unique(-confidence[order], return_inverse=True, return_counts=True)
    means = np.bincount(group, weights=correct[order]) / counts
    kept = np.maximum(1, np.round(coverages * confidence.size)).astype(np.int64)
    return np.asarray(np.cumsum(means[group])[kept - 1] / kept)


def _temperatures(answers: Answers, rows: Mapping[Group, Ints]) -> dict[Group, dict[str, float]]:
    """Temperature scaling of each group that has questions enough for folds."""
    predictions = answers.predictions
    scores = predictions.log_likelihoods() / predictions.lengths(answers.normalization)
    gold = predictions.gold()
    found = {}
    for group, mine in rows.items():
        if len(mine) < 2 * _FOLDS:
            continue
        width = int((~np.isnan(scores[mine])).sum(axis=1).max())
        told = temperature_scaling(scores[mine][:, :width], gold[mine][:, :width], folds=_FOLDS)
        values = {"temperature": next(iter(told.temperatures.values()))}
        for when, questions in (("before", told.before), ("after", told.after)):
            for metric in ("ece", "nll"):
                values[f"{metric}_{when}"] = questions.value(METRICS[metric], num_bins=answers.bins)
        found[group] = values
    return found
