"""The stock `lm_eval` command line on our tasks, a small model and a local copy of XNLI's layout."""

from __future__ import annotations

import json
import math
import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import lm_eval, read_run, write_dataset
from sklearn.metrics import log_loss

pytestmark = pytest.mark.xdist_group("command_line")
LANGUAGES = ("en", "sw")
WORDS = ("the", "child", "river", "market", "slowly", "walks", "reads", "long", "green", "letter", "near", "old")


@pytest.fixture(scope="module")
def xnli(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory where `facebook/xnli` is a local folder; two of its 15 languages are enough."""
    cwd = tmp_path_factory.mktemp("xnli")
    draw = random.Random(7)

    def rows(count: int) -> list[dict[str, object]]:
        return [
            {
                "premise": " ".join(draw.sample(WORDS, 6)),
                "hypothesis": " ".join(draw.sample(WORDS, 4)),
                "label": draw.randrange(3),
            }
            for _ in range(count)
        ]

    write_dataset(
        cwd / "facebook" / "xnli",
        {code: {"train": rows(8), "validation": rows(40), "test": rows(8)} for code in LANGUAGES},
    )
    return cwd


@pytest.fixture(scope="module")
def run(xnli: Path, tiny_model: Path) -> tuple[dict, dict]:
    tasks = [f"{prefix}xnli_{code}" for prefix in ("", "calib_") for code in LANGUAGES]
    done = lm_eval(
        *("run", "--model", "hf", "--model_args", f"pretrained={tiny_model},softmax_dtype=float32"),
        *("--tasks", ",".join(tasks), "--device", "cpu", "--batch_size", "8"),
        *("--output_path", "out", "--log_samples", "--metadata", '{"num_bins": 10}'),
        cwd=xnli,
    )
    # lm-eval's table: direction, value, standard error.
    assert any("|ece" in line.replace(" ", "") and "↓" in line for line in done.stdout.splitlines())
    return read_run(xnli / "out")


@pytest.mark.parametrize("code", LANGUAGES)
def test_accuracy_is_the_stock_tasks(run: tuple[dict, dict], code: str) -> None:
    results, samples = run
    ours, stock = results["results"][f"calib_xnli_{code}"], results["results"][f"xnli_{code}"]
    assert ours["acc,none"] == stock["acc,none"]
    assert ours["acc_stderr,none"] == stock["acc_stderr,none"]
    assert ours["sample_len"] == stock["sample_len"] == 40
    for mine, theirs in zip(samples[f"calib_xnli_{code}"], samples[f"xnli_{code}"], strict=True):
        assert mine["arguments"] == theirs["arguments"]
        assert mine["doc_hash"] == theirs["doc_hash"]


@pytest.mark.parametrize("code", LANGUAGES)
def test_every_metric_recomputed_from_the_sample_log(run: tuple[dict, dict], code: str) -> None:
    """By the definitions, in plain loops and scikit-learn, from the logged log-likelihoods alone."""
    results, samples = run
    probabilities, gold = [], []
    for sample in samples[f"calib_xnli_{code}"]:
        exps = [math.exp(float(response[0][0])) for response in sample["resps"]]
        probabilities.append([value / sum(exps) for value in exps])
        gold.append(int(sample["target"]))
    confidence = [max(row) for row in probabilities]
    correct = [float(row.index(max(row)) == g) for row, g in zip(probabilities, gold, strict=True)]
    n = len(gold)
    bins: dict[int, list[tuple[float, float]]] = {}
    for c, k in zip(confidence, correct, strict=True):
        bins.setdefault(max(math.ceil(c * 10) - 1, 0), []).append((c, k))  # --metadata: 10 bins, (lo, hi]
    gaps = [(len(b) / n, abs(sum(k for _, k in b) - sum(c for c, _ in b)) / len(b)) for b in bins.values()]
    one_hot = np.eye(3)[gold]
    expected = {
        "acc": np.mean(correct),
        "confidence": np.mean(confidence),
        "overconfidence": np.mean(confidence) - np.mean(correct),
        "ece": sum(weight * gap for weight, gap in gaps),
        "rms_ce": math.sqrt(sum(weight * gap**2 for weight, gap in gaps)),
        "brier": np.mean(np.sum((np.array(probabilities) - one_hot) ** 2, axis=1)),
        "nll": log_loss(gold, probabilities, labels=[0, 1, 2]),
    }
    row = results["results"][f"calib_xnli_{code}"]
    for name, value in expected.items():
        assert row[f"{name},none"] == pytest.approx(value, abs=1e-9), name
    for name in ("acc", "confidence", "overconfidence", "brier", "nll"):
        assert row[f"{name}_stderr,none"] > 0, name
    direction = results["higher_is_better"][f"calib_xnli_{code}"]
    assert direction["acc"] is True
    assert direction["ece"] is False
    assert direction["confidence"] is None
    config = results["configs"][f"calib_xnli_{code}"]
    assert config["metadata"]["num_bins"] == 10
    assert config["metadata"]["base_task"] == f"xnli_{code}"


def test_listing_and_groups_know_our_tasks(tmp_path: Path) -> None:
    listed = lm_eval("ls", "tasks", cwd=tmp_path).stdout
    for name in ("calib_xnli_sw", "calib_xnli", "calib_xnli_low", "calib_cldr_sw"):
        assert f"|{name}" in listed.replace(" ", ""), name
    assert "xnli_sw" in listed


def test_switched_off_the_harness_is_as_it_was(tmp_path: Path) -> None:
    listed = lm_eval("ls", "tasks", cwd=tmp_path, LM_EVAL_CALIB_AUTOLOAD="0").stdout
    assert "calib_" not in listed
    assert "xnli_sw" in listed


def test_two_processes_give_what_one_gives(xnli: Path, tiny_model: Path) -> None:
    arguments = [
        *("--model", "hf", "--model_args", f"pretrained={tiny_model},softmax_dtype=float32"),
        *("--tasks", "calib_xnli_en", "--batch_size", "8", "--limit", "21", "--log_samples"),
    ]
    lm_eval("run", *arguments, "--device", "cpu", "--output_path", "one", cwd=xnli)
    environment = {**os.environ, "HF_DATASETS_CACHE": str(xnli / "hf-cache"), "OMP_NUM_THREADS": "1"}
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2"]
    done = subprocess.run(
        [*launch, "--main_process_port", "0", "-m", "lm_eval", "run", *arguments, "--output_path", "two"],
        cwd=xnli,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    (one, _), (two, samples) = read_run(xnli / "one"), read_run(xnli / "two")
    assert len(samples["calib_xnli_en"]) == 21
    first, second = one["results"]["calib_xnli_en"], two["results"]["calib_xnli_en"]
    for key, value in first.items():
        if isinstance(value, float):
            assert second[key] == pytest.approx(value, abs=1e-5, nan_ok=True), key
    assert json.dumps(second["sample_len"]) == "21"
