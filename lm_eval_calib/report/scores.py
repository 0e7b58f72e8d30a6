"""Metrics with intervals by task, language, tier, benchmark or subject, from a predictions table."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from typing import Any, Literal, TypeVar

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray
from tqdm import tqdm

from lm_eval_calib.bootstrap import replicate
from lm_eval_calib.errors import CalibrationError, CalibrationValueError
from lm_eval_calib.languages import language as find_language
from lm_eval_calib.predictions import Predictions
from lm_eval_calib.questions import Questions
from lm_eval_calib.replicates import Difference, Interval, Replicates, average, difference

GROUPINGS = ("task", "language", "tier", "benchmark", "subject")
TIER_ORDER = {"high": 0, "mid": 1, "low": 2, None: 3}
Ints = NDArray[np.int64]


# Plug-in estimates of a distance from honesty are biased upwards, and resampling adds the bias once more: their
# percentile intervals lie too high (measured in benchmarks/README.md), the reflected ones do not.
BIASED_UP = frozenset(
    (
        *("ece", "rms_ce", "ace", "mce", "classwise_ece", "ece_sweep", "smooth_ece"),
        *("brier_reliability", "brier_resolution"),
    )
)


AnyInterval = TypeVar("AnyInterval", bound=Interval)


def method_of(metric: str) -> Literal["basic", "percentile"]:
    """The bootstrap interval that fits a metric."""
    return "basic" if metric in BIASED_UP else "percentile"


def interval_of(part: Replicates, metric: str, *, level: float = 0.95) -> Interval:
    """The interval of a metric, widened to hold the value where the correction for bias went beyond it."""
    return _holding(part.interval(metric, level=level, method=method_of(metric)))


def intervals_of(part: Replicates, *, level: float = 0.95) -> dict[str, Interval]:
    """The intervals of all metrics."""
    return {metric: interval_of(part, metric, level=level) for metric in part.values}


def differences_of(first: Replicates, second: Replicates, *, level: float = 0.95) -> dict[str, Difference]:
    """Second minus first for every metric, with the interval that fits it."""
    both = {m: difference(first, second, level=level, method=m) for m in ("basic", "percentile")}
    return {metric: _holding(both[method_of(metric)][metric]) for metric in both["basic"]}


def contrast(terms: Sequence[tuple[int, Replicates]], metric: str) -> tuple[float, float, float]:
    """A signed sum of groups of one `replicate` call: its value and 95 % interval."""
    value = float(sum(sign * part.values[metric] for sign, part in terms))
    replicates = np.asarray(sum(sign * part.replicates[metric] for sign, part in terms))
    low, high = np.nanquantile(replicates, [0.025, 0.975])
    if method_of(metric) == "basic":
        low, high = 2 * value - high, 2 * value - low
    return value, min(value, float(low)), max(value, float(high))


def _holding(interval: AnyInterval) -> AnyInterval:
    low, high = np.fmin(interval.low, interval.value), np.fmax(interval.high, interval.value)
    if np.isnan([interval.low, interval.value]).any():
        return interval
    return replace(interval, low=float(low), high=float(high))


@dataclass(frozen=True)
class Group:
    """Some questions of one run, or a mean over such groups; None where a property is unknown or not one."""

    run: str
    benchmark: str
    task: str  # the benchmark's name where there are several tasks
    language: str | None = None
    tier: str | None = None
    subject: str | None = None

    @property
    def language_name(self) -> str | None:
        """English name of the language."""
        try:
            return find_language(self.language).name if self.language else None
        except CalibrationError:
            return self.language

    @property
    def label(self) -> str:
        """What to call the group's language, or else its task."""
        return self.language_name or self.task


@dataclass(frozen=True)
class Score:
    """The metrics of one group."""

    group: Group
    n: int
    metrics: Mapping[str, Interval]
    languages: int | None = None  # how many a mean is over

    def only(self, metrics: Iterable[str]) -> Score:
        """The same group with some of its metrics."""
        return replace(self, metrics={name: self.metrics[name] for name in metrics if name in self.metrics})

    def to_dict(self) -> dict[str, Any]:
        """A JSON object; undefined numbers are null."""
        group = self.group
        told = {
            "run": group.run,
            "task": group.task,
            "benchmark": group.benchmark,
            "language": group.language,
            "language_name": group.language_name,
            "tier": group.tier,
            "subject": group.subject,
            "n": self.n,
            "metrics": {
                name: {"value": number(m.value), "low": number(m.low), "high": number(m.high)}
                for name, m in self.metrics.items()
            },
        }
        return told if self.languages is None else {**told, "languages": self.languages}


def number(value: float) -> float | None:
    """A float that strict JSON can hold."""
    return float(value) if np.isfinite(value) else None


@dataclass(frozen=True)
class Answers:
    """Questions of a predictions table as arrays: probabilities once for all groups.

    Attributes:
        predictions: the table.
        normalization: none, char, byte or token for all tasks; None takes each task's own.
        num_bins: for the binned metrics; None takes the tasks' own, 15 where they say nothing.
    """

    predictions: Predictions
    normalization: str | None = None
    num_bins: int | None = None

    @cached_property
    def questions(self) -> Questions:
        """All questions of all runs."""
        return Questions.from_probabilities(
            self.predictions.probabilities(normalization=self.normalization), self.predictions.gold()
        )

    @cached_property
    def bins(self) -> int:
        """The number of bins that all binned metrics use."""
        if self.num_bins is not None:
            return self.num_bins
        told = {task.num_bins or 15 for task in self.predictions.tasks if task.questions}
        if len(told) > 1:
            raise CalibrationValueError(
                "num_bins: the tasks were run with different numbers of bins "
                f"({', '.join(map(str, sorted(told)))}); choose one (--num-bins)"
            )
        return told.pop() if told else 15

    def groups(self, by: str) -> dict[Group, Ints]:
        """Rows of each group, in the order of the table; `by` is task, language or subject."""
        keys = {
            "task": ("run", "benchmark", "task", "language", "tier"),
            "language": ("run", "benchmark", "language", "tier"),
            "subject": ("run", "benchmark", "subject"),
        }[by]
        codes = np.zeros(len(self.predictions), np.int64)
        for name in keys:
            _, inverse = self.predictions.words(name)
            codes = np.unique(codes * (int(inverse.max(initial=0)) + 1) + inverse, return_inverse=True)[1]
        order = np.argsort(codes, kind="stable")
        edges = np.flatnonzero(np.diff(codes[order], prepend=-1, append=-2))
        found: dict[Group, Ints] = {}
        for start, stop in pairwise(edges):
            rows = order[start:stop]
            first = self.predictions.table.slice(int(rows[0]), 1)
            told = {name: first[name][0].as_py() for name in keys}
            if "task" not in told:
                tasks = pc.unique(self.predictions.table["task"].take(rows[[0, -1]])).to_pylist()
                told["task"] = tasks[0] if len(tasks) == 1 else told["benchmark"]
            found[Group(**told)] = rows
        return dict(sorted(found.items(), key=lambda item: int(item[1][0])))

    @cached_property
    def ids(self) -> Ints:
        """[N] identity of each question: equal for the same question in two runs and in two languages.

        Runs are paired by task, document hash and its occurrence; languages by the number of the document,
        since parallel benchmarks have the same questions in the same order in every language. (Where they
        have not, the coupling of resamples is arbitrary and does no harm.)
        """
        predictions = self.predictions
        _, task = predictions.words("task")
        _, run = predictions.words("run")
        pair, document = predictions.codes("doc_hash"), predictions.codes("doc_id")
        pair = _with_occurrence(run, pair + task * (int(pair.max(initial=0)) + 1))
        _, first, inverse = np.unique(pair, return_index=True, return_inverse=True)
        # The first run's number stands for the document; one that two documents of a task share is nobody's.
        numbers = document[first]
        place = task[first] * (int(document.max(initial=0)) + 1) + numbers
        _, where, shared = np.unique(place, return_inverse=True, return_counts=True)
        numbers = np.where(shared[where] > 1, -1 - np.arange(len(numbers)), numbers)[inverse]
        family = self._family()[task]
        numbers = numbers - numbers.min(initial=0)
        _, ids = np.unique(numbers + family * (int(numbers.max(initial=0)) + 1), return_inverse=True)
        return np.asarray(ids, np.int64)

    def _family(self) -> Ints:
        """For each task its name less the language, as a code: one document number is one question in it."""
        names, _ = self.predictions.words("task")
        languages = {task.task: task.language for task in self.predictions.tasks}
        less = [re.sub(rf"(?i)_{languages.get(str(name))}(?=_|$)", "", str(name), count=1) for name in names]
        return np.unique(less, return_inverse=True)[1].astype(np.int64)


def replicates_of(
    answers: Answers,
    groups: Mapping[Group, Ints],
    *,
    metrics: Iterable[str] | None = None,
    resamples: int = 1000,
    seed: int = 0,
    progress: bool | None = None,
    label: str = "resampling",
) -> dict[Group, Replicates]:
    """Metrics of groups on shared resamples, with a progress bar."""
    shown = sys.stderr.isatty() if progress is None else progress
    parts = {key: answers.questions.take(rows) for key, rows in groups.items()}
    with tqdm(total=len(parts), desc=label, unit="group", disable=not shown, delay=2) as bar:
        return replicate(
            parts,
            metrics,
            resamples=resamples,
            seed=seed,
            ids={key: answers.ids[rows] for key, rows in groups.items()},
            progress=lambda _: (bar.update(), None)[1],
            num_bins=answers.bins,
        )


def score(
    predictions: Predictions,
    *,
    by: str = "task",
    metrics: Iterable[str] | None = None,
    normalization: str | None = None,
    num_bins: int | None = None,
    resamples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
    progress: bool | None = None,
) -> list[Score]:
    """Every metric with a bootstrap interval, one entry a group.

    Args:
        predictions: of one or more runs.
        by: "task"; "language" pools a language's tasks of a benchmark (subjects) into one group; "tier" and
            "benchmark" are unweighted means over the languages, as lm-eval's group rows are; "subject" pools
            the languages.
        metrics: names in METRICS; None is all.
        normalization: none, char, byte or token; None takes what each task was run with.
        num_bins: None takes what the tasks were run with (15).
        resamples, seed, level: of the bootstrap. Runs and languages share the resamples of their questions.

    Returns:
        Groups in the order of runs and tasks.
    """
    if by not in GROUPINGS:
        raise CalibrationValueError(f"by: expected one of {', '.join(GROUPINGS)}, got {by!r}")
    if not len(predictions):
        raise CalibrationValueError(
            "predictions: expected at least one multiple-choice question, got none; "
            "give logs that `lm_eval run --log_samples` wrote, with questions in them"
            + "".join(f"\n  {problem}" for problem in predictions.problems[:5])
        )
    answers = Answers(predictions, normalization, num_bins)
    cells = answers.groups(by if by in ("task", "subject") else "language")
    found = replicates_of(answers, cells, metrics=metrics, resamples=resamples, seed=seed, progress=progress)
    if by in ("task", "language", "subject"):
        return [Score(group, part.size, intervals_of(part, level=level)) for group, part in found.items()]
    return [
        Score(group, mean.size, intervals_of(mean, level=level), languages)
        for group, (mean, languages) in averages(found, by).items()
    ]


def averages(cells: Mapping[Group, Replicates], by: str) -> dict[Group, tuple[Replicates, int]]:
    """Unweighted means over the languages of each benchmark, or of each of its tiers."""
    members: dict[Group, list[Replicates]] = {}
    for cell, part in cells.items():
        tier = cell.tier if by == "tier" else None
        members.setdefault(Group(cell.run, cell.benchmark, cell.benchmark, tier=tier), []).append(part)
    places = {key: place for place, key in enumerate(dict.fromkeys((c.run, c.benchmark) for c in cells))}
    ordered = sorted(members.items(), key=lambda m: (places[m[0].run, m[0].benchmark], TIER_ORDER[m[0].tier]))
    return {group: (average(parts), len(parts)) for group, parts in ordered}


def _with_occurrence(run: Ints, pair: Ints) -> Ints:
    """Distinguish the second, third, ... document with the same content within a run."""
    key = pair + run * (int(pair.max(initial=0)) + 1)
    if len(np.unique(key)) == len(key):
        return pair
    order = np.argsort(key, kind="stable")
    starts = np.flatnonzero(np.diff(key[order], prepend=-1))
    occurrence = np.empty(len(key), np.int64)
    occurrence[order] = np.arange(len(key)) - np.repeat(starts, np.diff(np.append(starts, len(key))))
    return pair * (int(occurrence.max(initial=0)) + 1) + occurrence
