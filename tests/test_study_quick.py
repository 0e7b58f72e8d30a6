"""The ready-made `quick` study, whole: once without a break, once killed in the middle, with the same report."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("trl", reason="the train extra is not installed")


def start(folder: Path, model: Path) -> subprocess.Popen[str]:
    """The study as its file has it, but for a model that needs seconds, and fewer questions."""
    overrides = [
        f"models={{tiny: {{pretrained: {model}}}}}",
        "evaluations.cldr.tasks=[calib_cldr_en, calib_cldr_sw]",
        "evaluations.cldr.arguments.limit=12",
        "report.resamples=50",
    ]
    command = [sys.executable, "-m", "lm_eval_calib", "study", "quick", "--output-dir", str(folder), "--parallel", "2"]
    for override in overrides:
        command += ["--set", override]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return subprocess.Popen(
        command, env=environment, cwd=folder.parent, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def whole(folder: Path, model: Path) -> str:
    process = start(folder, model)
    said, _ = process.communicate(timeout=500)
    assert process.returncode == 0, said
    return said


def until(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    while not condition():
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.1)


def results(folder: Path) -> dict[str, float]:
    """What is finished, and when it was."""
    files = [*folder.glob("models/*/calibration_training.json"), *folder.glob("evaluations/*/*/results_*.json")]
    return {str(path): path.stat().st_mtime for path in files}


def test_killed_or_not_the_report_is_the_same(tmp_path: Path, tiny_model: Path) -> None:
    whole(tmp_path / "straight", tiny_model)
    broken = tmp_path / "broken"

    process = start(broken, tiny_model)
    until(lambda: any(broken.glob("models/*")), process)  # in the middle of a training
    time.sleep(1.0)
    process.kill()
    process.wait()
    process = start(broken, tiny_model)
    until(lambda: any(broken.glob("logs/evaluate-tiny-english*.log")), process)  # in the middle of an evaluation
    time.sleep(1.5)
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 130, said
    finished = results(broken)
    assert finished
    said = whole(broken, tiny_model)
    assert "are done already" in said
    assert results(broken).items() >= finished.items()  # what was finished was not run again
    assert len(results(broken)) == len(results(tmp_path / "straight")) == 5

    tables = [(folder / "report" / "study.csv").read_text() for folder in (tmp_path / "straight", broken)]
    assert tables[0] == tables[1]
    rows = list(csv.DictReader(tables[0].splitlines()))
    assert {row["comparison"] for row in rows} >= {
        "level",
        "tuned - base",
        "smoothed - unsmoothed",
        "scaled - unscaled",
    }
    (page,) = broken.glob("report/page-*/report.html")
    assert "tiny-english-facts-lr5e-05-ls0.1-seed0" in page.read_text(encoding="utf-8")
    text = (broken / "report" / "study.md").read_text(encoding="utf-8")
    assert "## calib_cldr, normalisation none" in text
    assert "24 questions in 2 languages (1 high, 1 low), 3 runs." in text

    # A third start finds everything; what it says is where the report is.
    again = whole(broken, tiny_model)
    assert "6 of 6 stages are done already" in again
    assert "started" not in again
    (path,) = broken.glob("models/*ls0.1*/calibration_training.json")
    assert json.loads(path.read_text())["arguments"]["label_smoothing_factor"] == 0.1
