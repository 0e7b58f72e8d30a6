"""Runs against a baseline, on the questions that both have."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from lm_eval_calib.replicates import Difference, Replicates, average
from lm_eval_calib.report.scores import TIER_ORDER, Answers, Group, Ints, differences_of, number, replicates_of
from lm_eval_calib.significance import McNemar, benjamini_hochberg, mcnemar


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


def compare(
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
    adjusted: dict[int, dict[str, float]] = {index: {} for index in range(len(comparisons))}
    for benchmark in {c.group.benchmark for c in comparisons}:
        indices = [i for i, c in enumerate(comparisons) if c.group.benchmark == benchmark]
        for metric in comparisons[indices[0]].differences:
            values = {i: comparisons[i].differences[metric].p_value for i in indices}
            for index, value in benjamini_hochberg(values).items():
                adjusted[index][metric] = value
    return [replace(c, adjusted=adjusted[index]) for index, c in enumerate(comparisons)]
