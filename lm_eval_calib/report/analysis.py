"""Everything a report says, computed: scores, comparisons, diagrams, curves and temperatures of one or more runs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lm_eval_calib.bootstrap import Difference, Replicates, average
from lm_eval_calib.errors import CalibrationValueError
from lm_eval_calib.logs import Source, load_predictions
from lm_eval_calib.metrics import METRICS
from lm_eval_calib.predictions import Predictions
from lm_eval_calib.recalibration import temperature_scaling
from lm_eval_calib.report.checks import warnings_of
from lm_eval_calib.report.figures import ReliabilityDiagram, prepare_reliability_diagram
from lm_eval_calib.report.scores import (
    TIER_ORDER,
    Answers,
    Group,
    Ints,
    Score,
    averages,
    differences_of,
    intervals_of,
    number,
    replicates_of,
)
from lm_eval_calib.significance import McNemar, benjamini_hochberg, mcnemar

_FOLDS = 5  # of temperature scaling
COVERAGES = np.arange(1, 51) / 50


@dataclass(frozen=True)
class Comparison:
    """One group of questions in the baseline and in another run, on the questions that both have.

    Attributes:
        group: of the other run; the mean over a tier or benchmark has no language.
        shared, only_baseline, only_run: questions, paired by document hash.
        differences: metric -> the run's minus the baseline's.
        adjusted: metric -> p-value after Benjamini-Hochberg over the languages; None for means.
        accuracy_test: McNemar's test; None for means.
    """

    baseline: str
    group: Group
    shared: int
    only_baseline: int
    only_run: int
    differences: Mapping[str, Difference]
    adjusted: Mapping[str, float] | None = None
    accuracy_test: McNemar | None = None

    def to_dict(self) -> dict[str, Any]:
        """A JSON object; undefined numbers are null."""
        group = self.group
        return {
            "baseline": self.baseline,
            "run": group.run,
            "benchmark": group.benchmark,
            "language": group.language,
            "tier": group.tier,
            "shared": self.shared,
            "only_baseline": self.only_baseline,
            "only_run": self.only_run,
            "mcnemar_p": self.accuracy_test and number(self.accuracy_test.p_value),
            "differences": {
                name: {
                    "value": number(d.value),
                    "low": number(d.low),
                    "high": number(d.high),
                    "p": number(d.p_value),
                    "p_adjusted": number(self.adjusted[name]) if self.adjusted else None,
                }
                for name, d in self.differences.items()
            },
        }


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
                "predictions: expected at least one multiple-choice question, got none"
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
            for comparison in _compare(answers, rows, cells, baseline, run, options)
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


def _compare(
    answers: Answers,
    rows: Mapping[Group, Ints],
    cells: Mapping[Group, Replicates],
    baseline: str,
    run: str,
    options: Mapping[str, Any],
) -> list[Comparison]:
    """A run against the baseline, over the languages that both have."""
    mine = {(g.benchmark, g.language, g.task): g for g in rows if g.run == run}
    theirs = {(g.benchmark, g.language, g.task): g for g in rows if g.run == baseline}
    pairs = [(theirs[key], mine[key]) for key in theirs if key in mine]
    shared: dict[Group, Ints] = {}
    counts: dict[Group, tuple[int, int, int]] = {}
    for first, second in pairs:
        one, two = rows[first], rows[second]
        common, at_one, at_two = np.intersect1d(answers.ids[one], answers.ids[two], return_indices=True)
        shared[first], shared[second] = one[at_one], two[at_two]
        counts[second] = (len(common), len(one) - len(common), len(two) - len(common))
    pairs = [(first, second) for first, second in pairs if counts[second][0]]
    if any(only_one or only_two for _, only_one, only_two in counts.values()):
        groups = {group: shared[group] for pair in pairs for group in pair}
        cells = replicates_of(answers, groups, label=f"comparing {run}", **options)
    correct = answers.questions.correct
    found = []
    for first, second in pairs:
        found.append(
            Comparison(
                baseline,
                second,
                *counts[second],
                differences_of(cells[first], cells[second]),
                {},
                mcnemar(correct[shared[first]], correct[shared[second]]),
            )
        )
    found = _adjusted(found)
    for by_tier in (True, False):
        members: dict[tuple[str, str | None], list[tuple[Group, Group]]] = {}
        for first, second in pairs:
            key = (second.benchmark, second.tier if by_tier else None)
            members.setdefault(key, []).append((first, second))
        for (benchmark, tier), group in sorted(members.items(), key=lambda m: TIER_ORDER[m[0][1]]):
            shared_by, only_first, only_second = (sum(counts[second][i] for _, second in group) for i in range(3))
            means = [average([cells[pair[side]] for pair in group]) for side in (0, 1)]
            name = tier if tier or not by_tier else "unknown"
            found.append(
                Comparison(
                    baseline=baseline,
                    group=Group(run, benchmark, benchmark, tier=name),
                    shared=shared_by,
                    only_baseline=only_first,
                    only_run=only_second,
                    differences=differences_of(means[0], means[1]),
                )
            )
    return found


def _adjusted(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """With p-values corrected over the languages of each benchmark, metric by metric."""
    from dataclasses import replace

    adjusted: dict[int, dict[str, float]] = {index: {} for index in range(len(comparisons))}
    for benchmark in {c.group.benchmark for c in comparisons}:
        indices = [i for i, c in enumerate(comparisons) if c.group.benchmark == benchmark]
        for metric in comparisons[indices[0]].differences:
            values = {i: comparisons[i].differences[metric].p_value for i in indices}
            for index, value in benjamini_hochberg(values).items():
                adjusted[index][metric] = value
    return [replace(c, adjusted=adjusted[index]) for index, c in enumerate(comparisons)]


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


def group_of(groups: Iterable[Group], run: str, benchmark: str, tier: str | None = None) -> Group | None:
    """The first group of a run and benchmark, and of a tier if one is given."""
    for group in groups:
        if (group.run, group.benchmark) == (run, benchmark) and tier in (None, group.tier):
            return group
    return None
