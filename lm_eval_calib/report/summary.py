"""A report as strict JSON (`summary.json`), and the compact form of it that the page draws."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from lm_eval_calib import __version__
from lm_eval_calib.metrics import METRICS
from lm_eval_calib.replicates import Difference, Interval
from lm_eval_calib.report.figures import ReliabilityDiagram
from lm_eval_calib.report.scores import Group, Ints, interval_of
from lm_eval_calib.report.tables import arrow

if TYPE_CHECKING:
    from lm_eval_calib.report.analysis import Report
    from lm_eval_calib.report.comparisons import Comparison

TIERS = ("high", "mid", "low")


def summary_of(report: Report) -> dict[str, Any]:
    """Everything in the report that is a number or a sentence, with full precision."""
    return {
        "lm_eval_calib": __version__,
        "findings": list(report.findings),
        "warnings": list(report.warnings),
        "baseline": report.baseline,
        "runs": list(report.runs),
        "num_bins": report.answers.bins,
        "normalization": report.answers.normalization or "as run",
        "tasks": [dataclasses.asdict(task) for task in report.predictions.tasks],
        "problems": [dataclasses.asdict(problem) for problem in report.predictions.problems],
        "notes": list(report.predictions.notes),
        "scores": {by: [s.to_dict() for s in report.scores(by)] for by in ("language", "tier", "benchmark")},
        "comparisons": [comparison.to_dict() for comparison in report.comparisons],
        "temperature": [
            {"run": group.run, "benchmark": group.benchmark, "task": group.task, "language": group.language, **told}
            for group, told in report.temperatures.items()
        ],
    }


def page_data(report: Report) -> dict[str, Any]:
    """What the page's scripts draw: numbers rounded to what a screen shows, arrays instead of objects."""
    benchmarks = list(dict.fromkeys(group.benchmark for group in report.cells))
    metrics = list(dict.fromkeys(name for part in report.cells.values() for name in part.values))
    return {
        "runs": list(report.runs),
        "metrics": {
            name: {"arrow": arrow(name), "citation": METRICS[name].citation, "range": _range(name)} for name in metrics
        },
        "benchmarks": [_benchmark(report, name, metrics) for name in benchmarks],
    }


def _benchmark(report: Report, benchmark: str, metrics: list[str]) -> dict[str, Any]:
    """One benchmark: languages and tiers in order, then every quantity by run and language."""
    keys = list(dict.fromkeys(_key(g) for g in report.cells if g.benchmark == benchmark))
    by_key = {(g.run, _key(g)): g for g in report.cells if g.benchmark == benchmark}
    first = [next(by_key[run, key] for run in report.runs if (run, key) in by_key) for key in keys]
    order = sorted(range(len(keys)), key=lambda i: (_tier_rank(first[i].tier), first[i].label))
    keys, first = [keys[i] for i in order], [first[i] for i in order]
    tiers: list[str | None] = [tier for tier in TIERS if any(group.tier == tier for group in first)]
    tiers = [None, *tiers] if len(first) > 1 else []
    cells = [[by_key.get((run, key)) for key in keys] for run in report.runs]
    parts = [[report.cells[g] if g else None for g in row] for row in cells]
    means = [[_mean_of(report, run, benchmark, tier) for tier in tiers] for run in report.runs]
    rows = [[report.rows[g] if g else None for g in row] for row in cells]
    pooled = [[report.pooled_rows(run, benchmark, tier) for tier in tiers] for run in report.runs]
    compared = {
        (c.group.run, _key(c.group)): c
        for c in report.comparisons
        if c.group.benchmark == benchmark and c.adjusted is not None
    }
    compared_tiers = {
        (c.group.run, c.group.tier): c
        for c in report.comparisons
        if c.group.benchmark == benchmark and c.adjusted is None
    }
    others = report.runs[1:]
    return {
        "name": benchmark,
        "languages": [_language(group) for group in first],
        "tiers": [tier or "all" for tier in tiers],
        "tierSizes": [sum(tier in (None, group.tier) for group in first) for tier in tiers],
        "n": [[part.size if part else 0 for part in row] for row in parts],
        "values": {
            m: [[_triple(interval_of(part, m)) if part and m in part.values else None for part in row] for row in parts]
            for m in metrics
        },
        "tierValues": {
            m: [[_triple(interval_of(part, m)) if part and m in part.values else None for part in row] for row in means]
            for m in metrics
        },
        "differences": {
            m: [[_difference(compared.get((run, key)), m) for key in keys] for run in others] for m in metrics
        },
        "tierDifferences": {
            m: [[_difference(compared_tiers.get((run, tier)), m) for tier in tiers] for run in others] for m in metrics
        },
        "mcnemar": [
            [
                _round(c.accuracy_test.p_value, 5) if (c := compared.get((run, key))) and c.accuracy_test else None
                for key in keys
            ]
            for run in others
        ],
        "bins": [[_bins(report, r) for r in row] for row in rows],
        "tierBins": [[_bins(report, r) for r in row] for row in pooled],
        "curves": [[_curve(report, r) for r in row] for row in rows],
        "tierCurves": [[_mean_curve(report, run, benchmark, tier) for tier in tiers] for run in report.runs],
        "temperature": [[_temperature(report, g) for g in row] for row in cells],
    }


def _key(group: Group) -> tuple[str | None, str]:
    return (group.language, "" if group.language else group.task)


def _tier_rank(tier: str | None) -> int:
    return TIERS.index(tier) if tier in TIERS else len(TIERS)


def _mean_of(report: Report, run: str, benchmark: str, tier: str | None) -> Any:
    means = report.benchmarks if tier is None else report.tiers
    for group, (mean, _) in means.items():
        if (group.run, group.benchmark, group.tier) == (run, benchmark, tier):
            return mean
    return None


def _language(group: Group) -> dict[str, Any]:
    told: dict[str, Any] = {"label": group.label, "code": group.language, "tier": group.tier}
    if group.language:
        from lm_eval_calib.languages import language

        known = language(group.language)
        own = known.own_name
        told |= {
            "own": own if own and own.lower() != known.name.lower() else None,
            "script": known.script,
            "family": known.family,
            "class": known.resource_class,
        }
    return told


def _round(value: float, digits: int = 4) -> float | None:
    return round(float(value), digits) if math.isfinite(value) else None


def _range(name: str) -> list[float | None]:
    return [_round(end) for end in METRICS[name].range]


def _triple(interval: Interval) -> list[float | None]:
    return [_round(interval.value), _round(interval.low), _round(interval.high)]


def _difference(comparison: Comparison | None, metric: str) -> list[float | None] | None:
    if comparison is None or metric not in comparison.differences:
        return None
    d: Difference = comparison.differences[metric]
    adjusted = comparison.adjusted[metric] if comparison.adjusted else d.p_value
    return [_round(v, digits) for v, digits in ((d.value, 4), (d.low, 4), (d.high, 4), (adjusted, 5))]


def _bins(report: Report, rows: Ints | None) -> list[list[float | None]] | None:
    """Per bin: lower and upper edge, count, confidence, accuracy and its interval."""
    if rows is None or not len(rows):
        return None
    d: ReliabilityDiagram = report.diagram(rows)
    columns: Iterable[Any] = (d.lower, d.upper, d.counts, d.confidence, d.accuracy, d.low, d.high)
    return [[_round(v) for v in values] for values in zip(*columns, strict=True)]


def _curve(report: Report, rows: Ints | None) -> list[float | None] | None:
    return None if rows is None or not len(rows) else [_round(v, 3) for v in report.selective(rows)]


def _mean_curve(report: Report, run: str, benchmark: str, tier: str | None) -> list[float | None] | None:
    """The unweighted mean of the languages' curves."""
    curves = [
        report.selective(rows)
        for group, rows in report.rows.items()
        if group.run == run and group.benchmark == benchmark and tier in (None, group.tier) and len(rows)
    ]
    return [_round(v, 4) for v in np.mean(curves, axis=0)] if curves else None


def _temperature(report: Report, group: Group | None) -> list[float | None] | None:
    """Temperature, then ECE and NLL before and after."""
    told = report.temperatures.get(group) if group else None
    if not told:
        return None
    names = ("temperature", "ece_before", "ece_after", "nll_before", "nll_after")
    return [_round(told[name]) for name in names]
