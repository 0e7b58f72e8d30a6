"""`lm-eval-calib demo` end to end on a small model, and the sentences it writes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import ROOT, read_run

from lm_eval_calib.demo import LANGUAGES, meaning, table


def row(acc: float, confidence: float, ece: float) -> dict[str, Any]:
    names = {"acc": acc, "confidence": confidence, "overconfidence": confidence - acc, "ece": ece}
    return {f"{name},none": names.get(name, 0.5) for name in (*names, "rms_ce", "brier", "nll")} | {"sample_len": 100}


def test_demo_on_a_model_of_ones_own(tiny_model: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [
            *(sys.executable, "-m", "lm_eval_calib", "demo", "--model", str(tiny_model)),
            *("--languages", "en,sw", "--limit", "6", "--device", "cpu", "--out", "out"),
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    results, samples = read_run(tmp_path / "out")
    assert set(samples) == {"calib_cldr_en", "calib_cldr_sw"}
    shown = next(line for line in done.stdout.splitlines() if line.startswith("Swahili (sw)")).split()
    expected = results["results"]["calib_cldr_sw"]
    assert shown[2:5] == ["low", "6", f"{expected['acc,none']:.3f}"]
    assert f"{expected['ece,none']:.3f}" in shown
    assert (tmp_path / "out" / "reliability.png").read_bytes().startswith(b"\x89PNG")
    assert "lm_eval run --model hf-calib" in done.stdout


def test_table_has_unweighted_means_by_tier() -> None:
    lines = table({"en": row(0.9, 0.9, 0.1), "de": row(0.5, 0.7, 0.3), "sw": row(0.4, 0.9, 0.5)}).splitlines()
    means = {line.split()[3]: line.split()[4:] for line in lines if line.startswith("mean over languages")}
    assert means["high"][:5] == ["200", "0.700", "0.800", "0.100", "0.200"]
    assert means["low"][:5] == ["100", "0.400", "0.900", "0.500", "0.500"]


def test_two_sentences_from_the_numbers() -> None:
    text = meaning({"en": row(0.8, 0.9, 0.1), "sw": row(0.4, 0.9, 0.5)})
    # Means: confidence 0.9, accuracy 0.6.
    assert "probability of 90% and is right in 60%" in text
    assert "overconfidence 0.30" in text
    assert "accuracy goes from 0.80 to 0.40" in text
    assert "goes from 0.10 to 0.50" in text
    assert "underconfidence 0.20" in meaning({"en": row(0.9, 0.7, 0.2)})


def test_the_demo_languages_are_the_demo_group() -> None:
    text = (ROOT / "tasks" / "cldr" / "_calib_cldr_demo.yaml").read_text(encoding="utf-8")
    group = yaml.safe_load(text.replace("!function", ""))
    assert [f"calib_cldr_{code}" for code in LANGUAGES] == group["task"]


@pytest.mark.parametrize("languages", ["", "en,xx"])
def test_unknown_languages_are_one_line(languages: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "lm_eval_calib", "demo", "--languages", languages]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2
    assert "--languages: expected codes" in done.stderr
    assert not list(tmp_path.iterdir())
