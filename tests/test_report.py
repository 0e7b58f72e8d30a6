"""Reports computed: comparisons, findings, warnings, curves, files."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from simulated import LANGUAGES, write_logs

from lm_eval_calib.errors import CalibrationValueError
from lm_eval_calib.logs import load_predictions
from lm_eval_calib.metrics import ece
from lm_eval_calib.recalibration import temperature_scaling
from lm_eval_calib.report import Report
from lm_eval_calib.report.analysis import COVERAGES, selective_accuracy
from lm_eval_calib.report.checks import rounded_to
from lm_eval_calib.report.figures import prepare_reliability_diagram, wilson_interval
from lm_eval_calib.report.scores import BIASED_UP
from lm_eval_calib.significance import benjamini_hochberg, mcnemar


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write_logs(tmp_path_factory.mktemp("logs"))


@pytest.fixture(scope="module")
def report(logs: dict[str, Path]) -> Report:
    return Report.from_logs(logs, resamples=100)


def edit(source: Path, target: Path, change: Callable[[dict[str, Any]], dict[str, Any] | None]) -> Path:
    """A copy of a run's folder with every row passed through `change`; None drops the row."""
    for file in source.rglob("*"):
        if file.is_file():
            copy = target / file.relative_to(source)
            copy.parent.mkdir(parents=True, exist_ok=True)
            if file.suffix == ".json":
                copy.write_bytes(file.read_bytes())
                continue
            rows = [change(json.loads(line)) for line in file.read_text(encoding="utf-8").splitlines()]
            lines = [json.dumps(row, ensure_ascii=False) for row in rows if row is not None]
            copy.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return target


def test_comparisons_pair_the_same_questions(report: Report) -> None:
    assert report.runs == ("base", "sft", "sft_ls")
    languages = [c for c in report.comparisons if c.adjusted is not None and c.group.run == "sft"]
    assert [c.group.language for c in languages] == sorted(LANGUAGES)
    predictions, questions = report.predictions, report.answers.questions
    run, task = predictions.column("run"), predictions.column("task")
    for c in languages:
        assert (c.shared, c.only_baseline, c.only_run) == (120, 0, 0)
        rows = {name: np.flatnonzero((run == name) & (task == c.group.task)) for name in ("base", "sft")}
        assert (predictions.column("doc_hash")[rows["base"]] == predictions.column("doc_hash")[rows["sft"]]).all()
        values = {name: ece(questions.confidence[r], questions.correct[r]) for name, r in rows.items()}
        assert c.differences["ece"].value == pytest.approx(values["sft"] - values["base"], abs=1e-15)
        assert c.accuracy_test == mcnemar(questions.correct[rows["base"]], questions.correct[rows["sft"]])
    raw = {c.group.language: c.differences["ece"].p_value for c in languages}
    assert {c.group.language: c.adjusted["ece"] for c in languages if c.adjusted} == benjamini_hochberg(raw)


def test_means_are_over_languages(report: Report) -> None:
    for group, (mean, count) in report.tiers.items():
        members = [part for cell, part in report.cells.items() if (cell.run, cell.tier) == (group.run, group.tier)]
        assert count == len(members) == 2
        assert mean.values["ece"] == pytest.approx(np.mean([part.values["ece"] for part in members]), abs=1e-15)
    low = next(c for c in report.comparisons if c.group.run == "sft" and c.group.tier == "low" and c.adjusted is None)
    parts = {g.run: mean.values["ece"] for g, (mean, _) in report.tiers.items() if g.tier == "low"}
    assert low.differences["ece"].value == pytest.approx(parts["sft"] - parts["base"], abs=1e-15)


def test_every_interval_holds_its_value(report: Report) -> None:
    for score in [*report.scores("language"), *report.scores("tier"), *report.scores("benchmark")]:
        for name, metric in score.metrics.items():
            assert metric.low <= metric.value <= metric.high, name
            assert metric.method == ("basic" if name in BIASED_UP else "percentile")


def test_missing_and_reordered_questions(logs: dict[str, Path], tmp_path: Path) -> None:
    """Questions that only one run has are counted and do not enter the comparison."""

    def shift(row: dict[str, Any]) -> dict[str, Any] | None:
        return None if row["doc_id"] < 20 else {**row, "doc_id": 500 - row["doc_id"]}

    other = edit(logs["sft"], tmp_path / "other", shift)
    mixed = Report.from_logs({"base": logs["base"], "sft": other}, resamples=40)
    whole = Report.from_logs({"base": logs["base"], "sft": logs["sft"]}, resamples=40)
    found = [c for c in mixed.comparisons if c.adjusted is not None]
    assert {(c.shared, c.only_baseline, c.only_run) for c in found} == {(100, 20, 0)}
    same = Report.from_predictions(whole.predictions.select(whole.predictions.column("doc_id") >= 20), resamples=40)
    for mine, theirs in zip(found, same.comparisons, strict=False):
        assert mine.differences["ece"].value == pytest.approx(theirs.differences["ece"].value, abs=1e-12)
    text = " ".join(mixed.warnings)
    assert "on the 600 questions that both have; 120 only base has, 0 only sft has" in text
    assert "120 questions that the harness scored are missing" in text


def test_differing_settings_are_flagged(logs: dict[str, Path], tmp_path: Path) -> None:
    other = edit(logs["sft"], tmp_path / "sft", lambda row: {**row, "prompt_hash": "0" * 64})
    results = next(other.rglob("results*.json"))
    told = json.loads(results.read_text())
    told["versions"] = dict.fromkeys(told["versions"], 2.0)
    told["n-shot"] = dict.fromkeys(told["n-shot"], 5)
    told["chat_template"] = "{{ messages }}"
    told["lm_eval_version"] = "0.4.12"
    results.write_text(json.dumps(told))
    report = Report.from_logs({"base": logs["base"], "sft": other}, resamples=5)
    text = "\n".join(report.warnings)
    for words in (
        "task version differs between the runs in 6 tasks (calib_simulated_bn: base: 1.0, sft: 2.0)",
        "number of few-shot examples differs",
        "chat template differs",
        "release of lm-eval differs",
        "100% of the questions that base and sft share were asked with different prompts",
    ):
        assert words in text
    assert not Report.from_logs(logs, resamples=5).warnings


def test_rounded_log_likelihoods_are_noticed(logs: dict[str, Path], tmp_path: Path) -> None:
    def rounded(row: dict[str, Any]) -> dict[str, Any]:
        values = np.array([float(r[0]) for r in row["filtered_resps"]], np.float32)
        coarse = (values.view(np.uint32) & 0xFFFF0000).view(np.float32)
        pairs = [[repr(float(value)), "False"] for value in coarse]
        return {**row, "filtered_resps": pairs, "resps": [[pair] for pair in pairs], "acc": None}

    report = Report.from_logs({"base": edit(logs["base"], tmp_path / "base", rounded)}, resamples=5)
    assert any("rounded to bfloat16" in warning and "softmax_dtype=float32" in warning for warning in report.warnings)
    rng = np.random.default_rng(0)
    assert rounded_to(rng.normal(size=500)) is None
    assert rounded_to(rng.normal(size=500).astype(np.float32).astype(float)) is None
    assert rounded_to(rng.normal(size=500).astype(np.float16).astype(float)) == "float16"
    assert rounded_to(np.arange(500.0)) is None
    assert rounded_to(np.full(10, 0.5)) is None


def test_contradictions_and_few_questions_are_told(logs: dict[str, Path], tmp_path: Path) -> None:
    wrong = edit(
        logs["base"], tmp_path / "base", lambda row: {**row, "acc": 1 - row["acc"]} if row["doc_id"] < 50 else None
    )
    text = "\n".join(Report.from_logs({"base": wrong}, resamples=5).warnings)
    assert "In 300 rows the logged acc is not what" in text
    assert "Fewer than 100 questions in Bangla, Greek, English, Swahili and 2 more" in text


def flat(run: str, rows: list[tuple[float, bool]], folder: Path) -> Path:
    """A log of two-choice questions with the given confidences and correctness."""
    folder = folder / run
    folder.mkdir(parents=True)
    lines = []
    for number, (confidence, right) in enumerate(rows):
        pairs = [[repr(float(np.log(p))), "False"] for p in (confidence, 1 - confidence)]
        arguments = {f"gen_args_{k}": {"arg_0": "q", "arg_1": f" {c}"} for k, c in enumerate("AB")}
        row = {"doc_id": number, "doc": {"q": number}, "target": "0" if right else "1", "arguments": arguments}
        lines.append(json.dumps({**row, "filtered_resps": pairs, "filter": "none"}))
    (folder / "samples_flat_2026-01-01T00-00-00.jsonl").write_text("\n".join(lines))
    return folder


def test_findings_say_what_the_numbers_say(report: Report, tmp_path: Path) -> None:
    first, second = report.findings
    mean = next(c for c in report.comparisons if c.group.run == "sft" and not c.group.tier and c.adjusted is None)
    assert f"more confident (+{mean.differences['confidence'].value:.2f} [" in first
    assert "calibration error (ECE) is higher" in first
    assert "sft_ls is better calibrated than sft" in second
    # By hand: 100 answers at 0.9, 60 right; then the same at 0.6.
    sure = flat("sure", [(0.9, i < 60) for i in range(100)], tmp_path)
    honest = flat("honest", [(0.6, i < 60) for i in range(100)], tmp_path)
    (alone,) = Report.from_logs({"sure": sure}).findings
    assert "On flat, sure is overconfident: its mean confidence is 0.90 and its accuracy 0.60" in alone
    assert "difference +0.30 [" in alone
    (alone,) = Report.from_logs({"honest": honest}).findings
    assert "is not detectably over- or underconfident" in alone
    (change,) = Report.from_logs({"sure": sure, "honest": honest}).findings
    assert (
        "honest is less confident (−0.30 [−0.30, −0.30]) than sure and not detectably more or less accurate" in change
    )
    assert "is lower (" in change
    assert "0.30 before and 0.00 after" in change


def test_selective_accuracy_by_hand() -> None:
    confidence, correct = np.array([0.9, 0.8, 0.7, 0.6]), np.array([True, True, False, False])
    at = np.array([0.25, 0.5, 0.75, 1])
    np.testing.assert_allclose(selective_accuracy(confidence, correct, at), [1, 1, 2 / 3, 0.5])
    # Ties count with their mean, whatever their order.
    tied = np.array([0.9, 0.9, 0.9, 0.1])
    np.testing.assert_allclose(selective_accuracy(tied, correct, at), [2 / 3, 2 / 3, 2 / 3, 0.5])
    np.testing.assert_allclose(selective_accuracy(tied, correct[[1, 2, 0, 3]], at), [2 / 3, 2 / 3, 2 / 3, 0.5])
    assert np.isnan(selective_accuracy(np.empty(0), np.empty(0, bool))).all()
    assert len(COVERAGES) == 50


def test_reliability_diagram_by_hand() -> None:
    diagram = prepare_reliability_diagram([0.15, 0.15, 0.95, 1.0], [0, 1, 1, 1], num_bins=10)
    np.testing.assert_array_equal(diagram.counts, [2, 2])
    np.testing.assert_allclose(diagram.confidence, [0.15, 0.975])
    np.testing.assert_allclose(diagram.accuracy, [0.5, 1])
    np.testing.assert_allclose(diagram.ece, 0.5 * 0.35 + 0.5 * 0.025)
    low, high = wilson_interval([2, 0], [2, 0])
    # Wilson 1927 for 2 of 2: (1 + z²/4) / (1 + z²/2) ± ..., which is 1 / (1 + z²/2) = 0.3424 to 1.
    np.testing.assert_allclose([low[0], high[0]], [0.34238, 1], atol=1e-5)
    assert np.isnan(low[1])
    empty = prepare_reliability_diagram([], [])
    assert empty.n == 0
    assert np.isnan(empty.ece)


def test_temperatures_are_cross_fitted(report: Report) -> None:
    group, rows = next(iter(report.rows.items()))
    told = report.temperatures[group]
    scores, gold = report.predictions.log_likelihoods()[rows], report.predictions.gold()[rows]
    direct = temperature_scaling(scores, gold, folds=5)
    assert told["temperature"] == direct.temperatures[None]
    assert told["ece_before"] == report.cells[group].values["ece"]
    assert told["ece_after"] == ece(direct.after.confidence, direct.after.correct)
    tuned = [values["temperature"] for g, values in report.temperatures.items() if g.run == "sft"]
    assert min(tuned) > 1


def test_summary_is_strict_json_with_every_number(report: Report) -> None:
    text = json.dumps(report.summary, allow_nan=False)
    told = json.loads(text)
    assert told["findings"] == list(report.findings)
    assert len(told["scores"]["language"]) == 18
    assert told["scores"]["language"][0]["metrics"]["ece"]["value"] == next(iter(report.cells.values())).values["ece"]
    assert len(told["temperature"]) == 18


def test_write(report: Report, tmp_path: Path) -> None:
    written = report.write(tmp_path / "out")
    names = {str(path.relative_to(tmp_path / "out")) for path in written}
    assert written[0].name == "report.html"
    for name in (
        "reliability",
        "reliability_by_language",
        "confidence_accuracy",
        "selective_prediction",
        "ece_differences",
    ):
        assert (tmp_path / f"out/figures/{name}.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
        assert (tmp_path / f"out/figures/{name}.pdf").read_bytes()[:5] == b"%PDF-"
    assert {
        f"tables/by_{by}.{end}" for by in ("language", "tier", "benchmark") for end in ("csv", "md", "tex")
    } <= names
    rows = list(csv.DictReader((tmp_path / "out/tables/differences.csv").open(encoding="utf-8")))
    assert len({(row["run"], row["language"], row["tier"], row["mean_over_languages"]) for row in rows}) == 2 * (
        6 + 3 + 1
    )
    assert not list((tmp_path / "out").rglob("*.part"))
    assert report._repr_html_().startswith("<iframe srcdoc=")
    assert '"' not in report._repr_html_()[16:-200].split('" style=')[0]


def test_bad_arguments(logs: dict[str, Path], report: Report) -> None:
    with pytest.raises(CalibrationValueError, match="baseline: expected one of the runs base"):
        Report.from_logs({"base": logs["base"]}, baseline="bse")
    with pytest.raises(CalibrationValueError, match="by: expected"):
        report.scores("subject")
    empty = load_predictions(logs["base"])
    with pytest.raises(CalibrationValueError, match="at least one"):
        Report.from_predictions(empty.select(np.zeros(len(empty), bool)))
    other = Report.from_logs(logs, baseline="sft_ls", resamples=5)
    assert other.runs == ("sft_ls", "base", "sft")


def command(*words: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "lm_eval_calib", "report", *map(str, words)],
        capture_output=True, text=True, timeout=180, check=False,
    )  # fmt: skip


def test_command(logs: dict[str, Path], tmp_path: Path) -> None:
    runs = [f"{name}={path}" for name, path in logs.items()]
    out = tmp_path / "report"
    done = command("--run", runs[0], "--run", runs[1], "--out", out, "--resamples", "20")
    assert done.returncode == 0, done.stderr
    assert done.stdout.rstrip().endswith(str(out / "report.html"))
    assert done.stdout.startswith("On calib_simulated, sft is more confident")
    assert len(json.loads((out / "summary.json").read_text())["runs"]) == 2
    for words, message in (
        ([], "--out"),
        (["--out", out], "expected at least one sample log"),
        ([runs[0], logs["sft"], "--out", out], "either all or none have a name"),
        ([runs[0], "--out", out / "report.html"], "expected a folder, got the file"),
        ([runs[0], "--out", out, "--show-questions", "-1"], "--show-questions"),
    ):
        bad = command(*words)
        assert bad.returncode == 2
        assert message in bad.stderr
        assert "Traceback" not in bad.stderr
