"""Real data and a real model through a user's own YAML: XCOPA's rows, Gemma 3 270M, the stock command line."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from conftest import lm_eval, read_run

# As a user writes it; the stock twin differs by the class line alone.
OWN_YAML = """
task: {name}
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{premise[:-1]}}}} {{{{'kwa sababu' if question == 'cause' else 'kwa hiyo'}}}}"
doc_to_choice: "{{{{[choice1, choice2]}}}}"
doc_to_target: label
"""


def test_xcopa_swahili_through_a_users_own_yaml(shared_data: Path, gemma: Path, tmp_path: Path) -> None:
    data = tmp_path / "xcopa-sw.jsonl"
    data.write_bytes(b"".join((shared_data / "xcopa" / "sw" / "val.jsonl").read_bytes().splitlines(True)[:24]))
    tasks = tmp_path / "tasks"
    tasks.mkdir()
    body = OWN_YAML.format(name="copa_sw_stock", data=data)
    (tasks / "stock.yaml").write_text(body, encoding="utf-8")
    body = OWN_YAML.format(name="copa_sw", data=data)
    (tasks / "ours.yaml").write_text("class: !function lm_eval_calib.harness.CalibratedTask\n" + body, encoding="utf-8")
    lm_eval(
        *("run", "--model", "hf", "--model_args", f"pretrained={gemma},dtype=bfloat16,softmax_dtype=float32"),
        *("--tasks", "copa_sw,copa_sw_stock", "--include_path", str(tasks), "--device", "cpu"),
        *("--batch_size", "8", "--output_path", "out", "--log_samples"),
        cwd=tmp_path,
    )
    results, samples = read_run(tmp_path / "out")
    ours, stock = results["results"]["copa_sw"], results["results"]["copa_sw_stock"]
    assert ours["acc,none"] == stock["acc,none"]
    # Two choices: the logistic of the difference, written out.
    confidence, brier, nll = [], [], []
    for row in samples["copa_sw"]:
        first, second = (float(response[0][0]) for response in row["resps"])
        p = [1 / (1 + math.exp(second - first)), 1 / (1 + math.exp(first - second))]
        gold = int(row["target"])
        confidence.append(max(p))
        brier.append(2 * (1 - p[gold]) ** 2)
        nll.append(-math.log(p[gold]))
    n = len(confidence)
    assert n == 24
    assert ours["confidence,none"] == pytest.approx(sum(confidence) / n, rel=1e-12)
    assert ours["brier,none"] == pytest.approx(sum(brier) / n, rel=1e-9)
    assert ours["nll,none"] == pytest.approx(sum(nll) / n, rel=1e-9)
    assert 0.5 <= min(confidence) < max(confidence) <= 1
    assert abs(ours["overconfidence,none"]) <= ours["ece,none"] + 1e-12 <= ours["rms_ce,none"] + 2e-12
    assert json.loads(json.dumps(results["configs"]["copa_sw"]["metadata"]["normalization"])) == "none"
