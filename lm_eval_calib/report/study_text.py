"""What a study found, as Markdown: written from its numbers and hedged by their intervals."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lm_eval_calib.report.study_stats import Comparison

Row = Mapping[str, Any]
NAMES = {
    "acc": "accuracy",
    "confidence": "confidence",
    "ece": "ECE",
    "rms_ce": "RMS error",
    "rms_ce_debiased": "RMS error, debiased",
    "brier": "Brier score",
}
SMOOTHED_ECE = ("smoothed - unsmoothed", "all", "ece")
SHOWN = ("acc", "confidence", "ece", "rms_ce", "rms_ce_debiased", "brier")


def about(comparison: Comparison, same: Sequence[str] = ()) -> dict[str, Any]:
    """What was compared, for the head of a section; `same` are the normalisations that come to the same."""
    questions = comparison.questions
    return {
        "benchmark": questions.benchmark,
        "normalization": comparison.normalization,
        "same": list(same),
        "questions": len(questions),
        "clusters": int(questions.cluster.max()) + 1,
        "languages": len(comparison.languages),
        "tiers": {tier: comparison.tiers.count(tier) for tier in dict.fromkeys(comparison.tiers)},
        "dropped": questions.dropped,
        "unusable": questions.unusable,
        "runs": len(questions.log_likelihoods),
    }


def markdown(
    design: Mapping[str, Any],
    options: Mapping[str, Any],
    benchmarks: Sequence[Mapping[str, Any]],
    table: Sequence[Row],
    figures: Sequence[Path | None],
) -> str:
    """The whole text."""
    lines = [f"# Study {design['name']}", ""]
    if design["missing"]:
        lines += [
            f"**Incomplete:** {design['missing']} evaluations have no results yet and are left out.",
            "",
        ]
    lines += [
        "Metrics are computed in each language and averaged over the languages of a tier, each with the same "
        "weight; seeds are averaged. Differences are between the same questions, resampled together "
        f"({options['resamples']} draws); brackets hold {options['confidence_level']:.0%} intervals, one at a time, "
        "not corrected for their number. They tell how far other questions of the kind would move a number, not "
        "other languages, seeds or models.",
        "",
    ]
    if any(row["instruction_set"] for row in table):
        lines += [*overview(benchmarks, table), ""]
    for index, part in enumerate(benchmarks):
        own = [
            row
            for row in table
            if row["benchmark"] == part["benchmark"] and row["normalization"] == part["normalization"]
        ]
        lines += section(part, own)
        if index < len(figures) and (figure := figures[index]) is not None:
            lines += ["", f"![{part['benchmark']}, {part['normalization']}]({figure.name})", ""]
    return "\n".join(lines) + "\n"


def overview(benchmarks: Sequence[Mapping[str, Any]], table: Sequence[Row]) -> list[str]:
    """One line a benchmark and setting: what tuning did in all languages, in which tiers the effect is, what helps."""
    lines = [
        "| benchmark | setting | tuned - base: confidence | accuracy | ECE | the papers' effect in | "
        "smoothing, ECE less that without | temperature scaling, the same |",
        "| --- | --- | ---: | ---: | ---: | --- | ---: | ---: |",
    ]
    for part in benchmarks:
        own = [
            row
            for row in table
            if (row["benchmark"], row["normalization"]) == (part["benchmark"], part["normalization"])
        ]
        for setting, rows in by_setting(own):
            change = {metric: find(rows, "tuned - base", "all", metric) for metric in ("confidence", "acc", "ece")}
            if not all(change.values()):
                continue
            tiers = []
            for scope in dict.fromkeys(row["scope"] for row in rows):
                moved = {metric: find(rows, "tuned - base", scope, metric) for metric in ("confidence", "acc", "ece")}
                if scope != "all" and effect(moved).startswith("The papers' effect:"):
                    tiers.append(scope)
            smoothed = [row for row in rows if (row["comparison"], row["scope"], row["metric"]) == SMOOTHED_ECE]
            helped = "; ".join(f"{row['label_smoothing']:g}: {_signed(row)}" for row in smoothed)
            scaled = find(rows, "scaled - unscaled", "all", "ece", 0.0)
            cells = [_signed(row) for row in change.values() if row]
            lines.append(
                f"| {part['benchmark']} ({part['normalization']}) | {setting} | {' | '.join(cells)} | "
                f"{', '.join(tiers) or 'no tier'} | {helped} | {_signed(scaled) if scaled else ''} |"
            )
    return lines


def section(part: Mapping[str, Any], table: Sequence[Row]) -> list[str]:
    """One benchmark under one normalisation."""
    tiers = ", ".join(f"{count} {tier}" for tier, count in part["tiers"].items())
    lines = [
        f"## {part['benchmark']}, normalisation {part['normalization']}",
        "",
        f"{part['questions']:,} questions in {part['languages']} languages ({tiers}), {part['runs']} runs"
        + (f"; {part['dropped']:,} questions were not answered by all runs and are left out" if part["dropped"] else "")
        + (f"; {part['unusable']:,} rows of the logs could not be read" if part["unusable"] else "")
        + "."
        + (f" Every choice has length 1, so {', '.join(part['same'])} comes to the same." if part["same"] else ""),
        "",
    ]
    for setting, own in by_setting(table):
        lines += [f"### {setting}", "", *answers(own), ""]
    lines += ["### Levels", "", *levels(table)]
    tuned = any(row["instruction_set"] for row in table)
    return [*lines, "", "### Differences", "", *differences(table), ""] if tuned else [*lines, ""]


def by_setting(table: Sequence[Row]) -> Iterator[tuple[str, list[Row]]]:
    """The rows of each model, instruction set and learning rate that were tuned."""
    keys = dict.fromkeys(
        (row["model"], row["instruction_set"], row["learning_rate"]) for row in table if row["instruction_set"]
    )
    for key in keys:
        own = [row for row in table if (row["model"], row["instruction_set"], row["learning_rate"]) == key]
        yield f"{key[0]} on {key[1]}, learning rate {key[2]:g}", own


def answers(table: Sequence[Row]) -> list[str]:
    """The papers' questions, by tier, in words."""
    lines = []
    scopes = [scope for scope in dict.fromkeys(row["scope"] for row in table) if scope != "all"]
    factors = [factor for factor in dict.fromkeys(row["label_smoothing"] for row in table) if factor]
    for scope in scopes:
        change = {metric: find(table, "tuned - base", scope, metric) for metric in SHOWN}
        if all(change.values()):
            told = ", ".join(_moved(NAMES[metric], change[metric]) for metric in ("confidence", "acc", "ece", "rms_ce"))
            lines.append(
                f"- **{scope}** ({_languages(change['acc'])}), tuned without smoothing: {told}. " + effect(change)
            )
        for factor in factors:
            gain = {m: find(table, "smoothed - unsmoothed", scope, m, factor) for m in ("ece", "acc", "confidence")}
            rival = find(table, "smoothed - scaled", scope, "ece", factor)
            if all(gain.values()) and rival:
                told = ", ".join(_moved(NAMES[metric], row) for metric, row in gain.items())
                lines.append(
                    f"  - smoothing {factor:g} against none: {told}; against temperature scaling fitted on "
                    f"high-resource languages: {_moved('ECE', rival)}."
                )
    return lines


def effect(change: Mapping[str, Row | None]) -> str:
    """Whether the papers' effect is there: confidence up, accuracy less so, calibration worse."""
    up, gain, worse = (change[metric] for metric in ("confidence", "acc", "ece"))
    assert up is not None
    assert gain is not None
    assert worse is not None
    if up["low"] <= 0 or worse["low"] <= 0:
        what = "confidence did not rise" if up["low"] <= 0 else "calibration did not get worse"
        return f"The papers' effect is not seen: {what} beyond doubt."
    if gain["value"] >= up["value"]:
        return "Not the papers' effect: accuracy rose as much as confidence."
    return "The papers' effect: confidence rose more than accuracy, and calibration got worse."


def _settings(table: Sequence[Row], *comparisons: str) -> list[tuple[Any, Any, Any, Any, Any]]:
    """What tells the lines of a table apart, once each, in the rows' order."""
    keys = (
        (row["model"], row["instruction_set"], row["learning_rate"], row["label_smoothing"], row["comparison"])
        for row in table
        if row["comparison"] in comparisons
    )
    return list(dict.fromkeys(keys))


def levels(table: Sequence[Row]) -> list[str]:
    """A table of levels by tier."""
    scopes = list(dict.fromkeys(row["scope"] for row in table))
    metrics = ("acc", "confidence", "ece", "rms_ce", "brier")
    lines = ["| run | tier | " + " | ".join(NAMES[metric] for metric in metrics) + " |"]
    lines.append("| --- | --- |" + " ---: |" * len(metrics))
    for key in _settings(table, "level", "level scaled"):
        model, data, rate, factor, what = key
        if what == "level scaled" and factor:
            continue
        name = model if data is None else f"{data}, {rate:g}, smoothing {factor:g}"
        name += ", temperature-scaled" if what == "level scaled" else ""
        for scope in scopes:
            cells = [
                f"{row['value']:.3f}" if row else "" for metric in metrics for row in [_row(table, *key, scope, metric)]
            ]
            lines.append(f"| {name} | {scope} | " + " | ".join(cells) + " |")
    return lines


def differences(table: Sequence[Row]) -> list[str]:
    """A table of differences with intervals."""
    metrics = ("acc", "confidence", "ece", "rms_ce_debiased", "brier")
    lines = ["| setting | difference | tier | " + " | ".join(NAMES[metric] for metric in metrics) + " |"]
    lines.append("| --- | --- | --- |" + " ---: |" * len(metrics))
    for key in _settings(table, "tuned - base", "smoothed - unsmoothed", "smoothed - scaled"):
        for scope in dict.fromkeys(row["scope"] for row in table):
            cells = [_signed(row) if row else "" for metric in metrics for row in [_row(table, *key, scope, metric)]]
            smoothing = f", smoothing {key[3]:g}" if key[3] else ""
            lines.append(f"| {key[1]}, {key[2]:g}{smoothing} | {key[4]} | {scope} | " + " | ".join(cells) + " |")
    return lines


def find(table: Sequence[Row], comparison: str, scope: str, metric: str, factor: float | None = None) -> Row | None:
    """The row of one number, if there is one."""
    for row in table:
        same = (row["comparison"], row["scope"], row["metric"]) == (comparison, scope, metric)
        if same and factor in (None, row["label_smoothing"]):
            return row
    return None


def _row(
    table: Sequence[Row],
    model: str,
    data: str,
    rate: float,
    factor: float,
    comparison: str,
    scope: str,
    metric: str,
) -> Row | None:
    wanted = (model, data, rate, factor, comparison, scope, metric)
    keys = ("model", "instruction_set", "learning_rate", "label_smoothing", "comparison", "scope", "metric")
    return next((row for row in table if tuple(row[key] for key in keys) == wanted), None)


def _moved(name: str, row: Row | None) -> str:
    assert row is not None
    if row["low"] > 0 or row["high"] < 0:
        verb = "rose" if row["value"] > 0 else "fell"
        return f"{name} {verb} ({_signed(row)})"
    return f"{name} did not clearly change ({_signed(row)})"


def _signed(row: Row) -> str:
    value, low, high = (f"{row[key]:+.3f}".replace("-0.000", "+0.000") for key in ("value", "low", "high"))
    return f"{value} [{low}, {high}]"


def _languages(row: Row | None) -> str:
    count = row["languages"] if row else 0
    return f"{count} language{'s' * (count != 1)}"
