"""Scores from logs: the harness's own numbers to the last digit, groupings, formats, and the command."""

from __future__ import annotations

import csv
import io
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lm_eval_calib.errors import CalibrationValueError
from lm_eval_calib.logs import load_predictions
from lm_eval_calib.metrics import METRICS
from lm_eval_calib.predictions import Predictions
from lm_eval_calib.report.scores import Answers, score
from lm_eval_calib.report.tables import FORMATS

LOGS = Path(__file__).parent / "logs"
RNG = np.random.default_rng(5)


def write_tasks(folder: Path) -> None:
    """Two languages of a small benchmark with CalibratedTask: 2 to 10 choices of free text."""
    for language, words in (("sw", "maji moto jua"), ("hi", "पानी आग सूरज")):
        with (folder / f"{language}.jsonl").open("w", encoding="utf-8") as file:
            for number in range(60):
                size = 2 + number % 9
                choices = [f"{words.split()[i % 3]} {i}" * (1 + i % 4) for i in range(size)]
                gold = [int(RNG.integers(size))]
                question = f"{words} {number}?"
                row = {"q": question, "choices": choices, "gold": gold, "subject": "ab"[number % 2]}
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
        (folder / f"calib_tiny_{language}.yaml").write_text(
            f"""
task: calib_tiny_{language}
class: !function lm_eval_calib.harness.CalibratedTask
dataset_path: json
dataset_kwargs: {{data_files: {{test: {folder / f"{language}.jsonl"}}}}}
test_split: test
doc_to_text: "{{{{q}}}}"
doc_to_choice: choices
doc_to_target: "{{{{gold[0]}}}}"
metadata: {{version: 1.0}}
"""
        )


SCRIPT = """
import hashlib, sys
from lm_eval.api.model import LM
from lm_eval.api.registry import register_model

@register_model("hashed")
class Hashed(LM):
    def __init__(self, **_): super().__init__()
    def loglikelihood(self, requests, **_):
        return [(-int.from_bytes(hashlib.sha256("|".join(r.args).encode()).digest()[:6], "big") / 2**44, False)
                for r in requests]
    def loglikelihood_rolling(self, requests, **_): raise NotImplementedError
    def generate_until(self, requests, **_): raise NotImplementedError

from lm_eval.__main__ import cli_evaluate
cli_evaluate()
"""


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two runs of the stock command line with our task class, with and without normalisation."""
    folder = tmp_path_factory.mktemp("live")
    write_tasks(folder)
    (folder / "run.py").write_text(SCRIPT)
    runs = {"none": {}, "byte": {"normalization": "byte", "num_bins": 7}}
    for name, metadata in runs.items():
        command = [
            sys.executable,
            "run.py",
            "--model",
            "hashed",
            "--include_path",
            str(folder),
            "--log_samples",
        ]
        command += ["--tasks", "calib_tiny_sw,calib_tiny_hi", "--output_path", name]
        command += ["--metadata", json.dumps(metadata)] if metadata else []
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
    return {name: folder / name for name in runs}


@pytest.mark.parametrize("run", ["none", "byte"])
def test_live_and_offline_agree_to_the_last_digit(live: dict[str, Path], run: str) -> None:
    told = json.loads(next(live[run].rglob("results_*.json")).read_text(encoding="utf-8"))["results"]
    scores = score(load_predictions(live[run]), resamples=10)
    compared = 0
    for entry in scores:
        for name, metric in METRICS.items():
            if metric.live:
                assert entry.metrics[name].value == told[entry.group.task][f"{name},none"], name
                compared += 1
    assert compared >= 28
    assert all(task.disagreements == 0 for task in load_predictions(live[run]).tasks)


def test_options_come_from_the_run_unless_given(live: dict[str, Path]) -> None:
    plain, byte = load_predictions(live["none"]), load_predictions(live["byte"])
    assert score(plain, normalization="byte", num_bins=7, metrics=["ece", "nll"], resamples=2)[0].metrics == (
        score(byte, metrics=["ece", "nll"], resamples=2)[0].metrics
    )
    both = load_predictions({"a": live["none"], "b": live["byte"]})
    with pytest.raises(CalibrationValueError, match=r"7, 15.*--num-bins"):
        score(both)
    with pytest.raises(CalibrationValueError, match="by: expected"):
        score(plain, by="run")


def test_groupings(live: dict[str, Path]) -> None:
    predictions = load_predictions(live["none"])
    values = {
        by: {(s.group.language, s.group.tier, s.group.subject): s for s in score(predictions, by=by, resamples=50)}
        for by in ("language", "tier", "benchmark", "subject")
    }
    languages = values["language"]
    assert {(key[0], key[1]) for key in languages} == {("hi", "high"), ("sw", "low")}
    (benchmark,) = values["benchmark"].values()
    assert benchmark.n == 120
    assert benchmark.languages == 2
    for name in METRICS:
        each = [entry.metrics[name].value for entry in languages.values()]
        assert benchmark.metrics[name].value == pytest.approx(np.mean(each), abs=1e-15)
    assert values["tier"][None, "low", None].metrics["ece"].value == languages["sw", "low", None].metrics["ece"].value
    assert {key[2]: entry.n for key, entry in values["subject"].items()} == {"a": 60, "b": 60}
    low, high = benchmark.metrics["ece"].low, benchmark.metrics["ece"].high
    assert low < high
    # The mean over two languages is known better than either.
    assert high - low < max(m.metrics["ece"].high - m.metrics["ece"].low for m in languages.values())


def test_questions_are_paired_over_runs_and_languages(live: dict[str, Path], tmp_path: Path) -> None:
    predictions = load_predictions({"a": live["none"], "b": live["byte"]})
    answers = Answers(predictions, normalization="none", num_bins=15)
    ids, run = answers.ids, predictions.column("run")
    task, number = predictions.column("task"), predictions.column("doc_id")
    by_place = {}
    for place in zip(ids, run, task, number, strict=True):
        by_place.setdefault(int(place[0]), []).append(place[1:])
    assert all(len(places) == 4 for places in by_place.values())
    assert all(len({place[2] for place in places}) == 1 for places in by_place.values())
    # The second run's document numbers are wrong and a document is missing: hashes still pair.
    log = next(live["none"].rglob("samples_calib_tiny_sw*"))
    rows = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()][1:]
    for row in rows:
        row["doc_id"] = 59 - row["doc_id"]
    other = tmp_path / log.name
    other.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    mixed = load_predictions({"a": log, "b": other})
    pairs: dict[int, set[str]] = {}
    for identity, digest in zip(Answers(mixed).ids, mixed.column("doc_hash"), strict=True):
        pairs.setdefault(int(identity), set()).add(digest)
    assert all(len(digests) == 1 for digests in pairs.values())
    assert len(pairs) == 60


def test_repeated_documents_are_paired_in_order() -> None:
    table = load_predictions(LOGS / "0.4.13").table
    import pyarrow as pa

    twice = table.set_column(table.schema.get_field_index("doc_hash"), "doc_hash", pa.array(["0" * 64] * len(table)))
    ids = Answers(Predictions(twice, load_predictions(LOGS / "0.4.13").tasks)).ids
    for task in np.unique(twice["task"].to_pylist()):
        of_task = ids[np.array(twice["task"].to_pylist()) == task]
        assert len(set(of_task.tolist())) == len(of_task)


@pytest.fixture(scope="module")
def scores() -> list[Any]:
    return score(load_predictions(LOGS / "0.4.13"), resamples=20)


def test_formats(scores: list[Any]) -> None:
    told = json.loads(FORMATS["json"](scores), parse_constant=lambda _: pytest.fail("not strict JSON"))
    assert {"task", "language", "n", "metrics"} <= set(told[0])
    ece = next(s for s in told if s["task"] == "ragged")["metrics"]["ece"]
    assert set(ece) == {"value", "low", "high"}
    rows = list(csv.DictReader(io.StringIO(FORMATS["csv"](scores))))
    assert len(rows) == len(scores) == 6
    assert float(next(row for row in rows if row["task"] == "ragged")["ece"]) == ece["value"]
    assert next(row for row in rows if row["task"] == "ragged")["language"] == ""
    markdown = FORMATS["markdown"](scores).splitlines()
    assert len({line.count("|") for line in markdown}) == 1
    assert "ece ↓" in markdown[0]
    latex = FORMATS["latex"](scores)
    assert "localbelebele\\_swh\\_Latn" in latex
    assert "ece $\\downarrow$" in latex
    assert latex.count("\\\\") == 7
    table = FORMATS["table"](scores).splitlines()
    assert len(table) == 8
    assert table[0].startswith("task")
    # A single group stands on its side, so that every metric is seen.
    assert all(name in FORMATS["table"](scores[:1]) for name in METRICS)


def test_undefined_is_null_and_a_dash() -> None:
    predictions = load_predictions(LOGS / "0.4.13")
    one = predictions.select((predictions.column("task") == "wino") & (predictions.column("doc_id") == 0))
    (only,) = score(one, metrics=["auroc"], resamples=5)
    assert math.isnan(only.metrics["auroc"].value)
    assert only.to_dict()["metrics"]["auroc"] == {"value": None, "low": None, "high": None}
    assert "–" in FORMATS["table"]([only])
    assert next(csv.DictReader(io.StringIO(FORMATS["csv"]([only]))))["auroc"] == ""
    with pytest.raises(CalibrationValueError, match="at least one multiple-choice question"):
        score(predictions.select(predictions.column("task") == "none"))


def command(*words: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "lm_eval_calib", "score", *map(str, words)],
        capture_output=True, text=True, timeout=120, check=False, **options,
    )  # fmt: skip


def test_command(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "scores.json"
    table = tmp_path / "p.parquet"
    done = command(LOGS / "0.4.13", "--output", out, "--resamples", 20, "--save-predictions", table)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    assert "7 rows not used: no log-likelihoods" in done.stderr
    direct = score(load_predictions(LOGS / "0.4.13"), resamples=20)
    assert json.loads(out.read_text()) == [s.to_dict() for s in direct]
    again = command(table, "--format", "json", "--resamples", 20)
    assert json.loads(again.stdout) == json.loads(out.read_text())
    named = command(f"x={LOGS / '0.4.2'}", f"y={LOGS / '0.4.13'}", "--resamples", 5)
    assert [line.split()[0] for line in named.stdout.splitlines()[2:]] == ["x"] * 6 + ["y"] * 6


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere"], "nowhere: no such file"),
        ([LOGS / "0.4.13", "--metrics", "eec"], "got 'eec'"),
        ([LOGS / "0.4.13", "--language", "sw"], "--language: expected TASK=CODE"),
        ([LOGS / "0.4.13", "--normalization", "token"], "--tokenizer NAME"),
        ([LOGS / "0.4.13", "--normalization", "char"], "task wino"),
        ([LOGS / "0.4.13", "--strict"], "samples_gen_free"),
        ([LOGS / "0.4.13", "--resamples", "0"], "--resamples"),
    ],
)
def test_a_users_mistake_is_one_line(words: list[str | Path], message: str) -> None:
    done = command(*words)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
