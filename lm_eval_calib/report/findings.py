"""The findings of a report in two sentences: what the numbers say, and only as far as their intervals let them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from lm_eval_calib.replicates import Difference, Replicates
from lm_eval_calib.report.scores import contrast, interval_of

if TYPE_CHECKING:
    from lm_eval_calib.report.analysis import Report
    from lm_eval_calib.report.comparisons import Comparison


def findings_of(report: Report) -> tuple[str, ...]:
    """Two sentences about the benchmark with the most questions."""
    sizes: dict[str, int] = {}
    for group, rows in report.rows.items():
        sizes[group.benchmark] = sizes.get(group.benchmark, 0) + len(rows)
    benchmark = max(sizes, key=lambda name: sizes[name])
    others = [run for run in report.runs[1:] if _mean(report, run, benchmark)]
    if others:
        first = _change(report, benchmark, others)
        second = (
            _remedy(report, benchmark, others) if len(others) > 1 else _change_by_tier(report, benchmark, others[0])
        )
    else:
        first, second = _level(report, benchmark), _level_by_tier(report, benchmark)
    return tuple(sentence for sentence in (first, second) if sentence)


def _level(report: Report, benchmark: str) -> str:
    means = {group.run: part for group, part in report.benchmarks.items() if group.benchmark == benchmark}
    run = report.baseline if report.baseline in means else next(iter(means))
    mean, languages = means[run]
    over = interval_of(mean, "overconfidence")
    if over.low > 0:
        verdict = "is overconfident"
    elif over.high < 0:
        verdict = "is underconfident"
    else:
        verdict = "is not detectably over- or underconfident on average"
    where = f"{benchmark} in {languages} languages" if languages > 1 else benchmark
    return (
        f"On {where}, {run} {verdict}: its mean confidence is {mean.values['confidence']:.2f} and its accuracy "
        f"{mean.values['acc']:.2f} (difference {_span(over.value, over.low, over.high)}), with a calibration "
        f"error (ECE) of {_value(mean, 'ece')}."
    )


def _level_by_tier(report: Report, benchmark: str) -> str:
    run = next(group.run for group in report.benchmarks if group.benchmark == benchmark)
    tiers = _tiers(report, run, benchmark)
    if "high" in tiers and "low" in tiers:
        gap = contrast([(1, tiers["low"]), (-1, tiers["high"])], "ece")
        values = f"{_value(tiers['low'], 'ece')} against {_value(tiers['high'], 'ece')}"
        if gap[1] > 0 or gap[2] < 0:
            word = "higher" if gap[0] > 0 else "lower"
            return f"The error is {word} in low-resource than in high-resource languages ({values})."
        return (
            f"The error does not differ detectably between low- and high-resource languages ({values}; difference "
            f"{_span(*gap)})."
        )
    cells = {g: r for g, r in report.cells.items() if g.run == run and g.benchmark == benchmark}
    if len(cells) > 1:
        worst = max(cells, key=lambda group: cells[group].values["ece"])
        best = min(cells, key=lambda group: cells[group].values["ece"])
        return (
            f"It ranges from {_value(cells[best], 'ece')} in {best.label} to {_value(cells[worst], 'ece')} in "
            f"{worst.label}."
        )
    return ""


def _change(report: Report, benchmark: str, others: Sequence[str]) -> str:
    """How the run that the paper's claim is about (the first after the baseline) moved."""
    run = others[0]
    comparison = _mean(report, run, benchmark)
    assert comparison is not None  # `others` holds only runs with one
    change = comparison.differences
    languages = _languages(report, run, benchmark)
    significant = [c for c in languages if c.adjusted and c.adjusted["ece"] < 0.05 and c.differences["ece"].value > 0]
    fallen = [c for c in languages if c.adjusted and c.adjusted["ece"] < 0.05 and c.differences["ece"].value < 0]
    before = _of(report, report.baseline, benchmark)[0].values["ece"]
    after = before + change["ece"].value
    counted = ""
    if len(languages) > 1:
        counted = f", significantly up in {len(significant)} and down in {len(fallen)} of {len(languages)} languages"
    return (
        f"On {benchmark}, {run} is {_moved(change['confidence'], 'more confident', 'less confident')} than "
        f"{report.baseline} and {_moved(change['acc'], 'more accurate', 'less accurate')}; its calibration error "
        f"(ECE) {_moved(change['ece'], 'is higher', 'is lower', 'does not detectably differ')}, {before:.2f} before "
        f"and {after:.2f} after{counted}."
    )


def _change_by_tier(report: Report, benchmark: str, run: str) -> str:
    tiers = {
        c.group.tier: c
        for c in report.comparisons
        if c.group.run == run and c.group.benchmark == benchmark and c.accuracy_test is None and c.group.tier
    }
    if "high" not in tiers or "low" not in tiers:
        return ""
    low, high = tiers["low"].differences, tiers["high"].differences
    one, two = _tiers(report, report.baseline, benchmark), _tiers(report, run, benchmark)
    terms = [(1, two["low"]), (-1, one["low"]), (-1, two["high"]), (1, one["high"])]
    gap = contrast(terms, "ece")
    shown = f"{_signed(low['ece'])} in low-resource and {_signed(high['ece'])} in high-resource languages"
    if gap[1] > 0 or gap[2] < 0:
        word = "more" if gap[0] > 0 else "less"
        return (
            f"The error changes {word} in low-resource than in high-resource languages: {shown} (confidence "
            f"{_signed(low['confidence'])} and {_signed(high['confidence'])}, accuracy {_signed(low['acc'])} and "
            f"{_signed(high['acc'])})."
        )
    return (
        f"That low-resource languages change otherwise than high-resource ones cannot be told from these data: ECE "
        f"{shown} (difference {_span(*gap)})."
    )


def _remedy(report: Report, benchmark: str, others: Sequence[str]) -> str:
    """The other tuned runs against the first tuned run, on the same questions."""
    first, parts = others[0], []
    start = _of(report, first, benchmark)[0]
    for run in others[1:]:
        mean = _of(report, run, benchmark)[0]
        error, accuracy = (contrast([(1, mean), (-1, start)], metric) for metric in ("ece", "acc"))
        if error[1] > 0 or error[2] < 0:
            verdict = f"{run} is {'worse' if error[0] > 0 else 'better'} calibrated than {first}"
        else:
            verdict = f"{run} is not detectably better or worse calibrated than {first}"
        accurate = "with no detectable change in accuracy"
        if accuracy[1] > 0 or accuracy[2] < 0:
            accurate = f"and {'more' if accuracy[0] > 0 else 'less'} accurate"
        parts.append(f"{verdict} (ECE {mean.values['ece']:.2f}, {_span(*error)}) {accurate} ({_span(*accuracy)})")
    return "; ".join(parts) + "."


def _mean(report: Report, run: str, benchmark: str) -> Comparison | None:
    """The comparison of a run's mean over all languages of a benchmark."""
    for c in report.comparisons:
        if (c.group.run, c.group.benchmark, c.group.tier) == (run, benchmark, None) and c.adjusted is None:
            return c
    return None


def _languages(report: Report, run: str, benchmark: str) -> list[Comparison]:
    return [c for c in report.comparisons if (c.group.run, c.group.benchmark) == (run, benchmark) and c.adjusted]


def _of(report: Report, run: str, benchmark: str) -> tuple[Replicates, int]:
    return next(mean for group, mean in report.benchmarks.items() if (group.run, group.benchmark) == (run, benchmark))


def _tiers(report: Report, run: str, benchmark: str) -> dict[str, Replicates]:
    return {
        group.tier: mean
        for group, (mean, _) in report.tiers.items()
        if (group.run, group.benchmark) == (run, benchmark) and group.tier
    }


def _value(part: Replicates, metric: str) -> str:
    interval = interval_of(part, metric)
    return f"{interval.value:.2f} [{interval.low:.2f}, {interval.high:.2f}]"


def _span(value: float, low: float, high: float) -> str:
    # A third digit where two would hide on which side of 0 an end lies.
    digits = 3 if any(0 < abs(end) < 0.005 for end in (value, low, high)) else 2
    return f"{_plus(value, digits)} [{_plus(low, digits)}, {_plus(high, digits)}]"


def _plus(value: float, digits: int) -> str:
    text = f"{value:+.{digits}f}"
    return text.replace("-", "−") if float(text) else text[1:]


def _signed(change: Difference) -> str:
    return _span(change.value, change.low, change.high)


def _moved(change: Difference, up: str, down: str, same: str = "") -> str:
    """The direction if the interval excludes 0, else that there is none to tell."""
    if change.low > 0 or change.high < 0:
        return f"{up if change.value > 0 else down} ({_signed(change)})"
    same = same or f"not detectably {up.split()[0]} or {down}"  # "not detectably more or less accurate"
    return f"{same} ({_signed(change)})"
