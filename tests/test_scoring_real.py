"""`hf-calib` against `hf` on a real model: Gemma 3 270M, with sliding layers and a quarter of a million words."""

from __future__ import annotations

import gc
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from lm_eval_calib.autoload import task_folder
from lm_eval_calib.scoring import SharedPrefixLM


def cldr_requests(*languages: str, questions: int) -> list[Instance]:
    """The embedded benchmark's own requests."""
    manager = TaskManager(include_path=str(task_folder()), include_defaults=False)
    tasks = manager.load([f"calib_cldr_{language}" for language in languages])["tasks"]
    requests = []
    for task in tasks.values():
        task.build_all_requests(limit=questions, rank=0, world_size=1)
        requests += task.instances
    return requests


def exams_requests(path: Path, language: str, *, questions: int, shots: int) -> list[Instance]:
    """Letters after solved questions of the language."""

    def prompt(row: Any, answer: str) -> str:
        lines = [f"{choice['label']}. {choice['text']}" for choice in row["question"]["choices"]]
        return "\n".join([row["question"]["stem"], *lines, f"Answer:{answer}"])

    rows = [json.loads(line) for line in (path / "exams" / "dev.jsonl").read_text(encoding="utf-8").splitlines()]
    rows = [row for row in rows if row["info"]["language"] == language and row["answerKey"] != "@"][: shots + questions]
    before = "".join(prompt(row, f" {row['answerKey']}\n\n") for row in rows[:shots])
    return [
        Instance("loglikelihood", {}, (before + prompt(row, ""), f" {choice['label']}"), i, ("exams", i, 1))
        for row in rows[shots:]
        for i, choice in enumerate(row["question"]["choices"])
    ]


def xcopa_requests(path: Path, language: str, *, questions: int) -> list[Instance]:
    rows = [json.loads(line) for line in (path / "xcopa" / language / "val.jsonl").read_text("utf-8").splitlines()]
    return [
        Instance("loglikelihood", {}, (row["premise"], f" {row[f'choice{i + 1}']}"), i, ("xcopa", number, 1))
        for number, row in enumerate(rows[:questions])
        for i in range(2)
    ]


@pytest.fixture(scope="module")
def requests(shared_data: Path) -> list[Instance]:
    return [
        *cldr_requests("sw", "de", questions=4),
        *exams_requests(shared_data, "Turkish", questions=6, shots=0),
        *exams_requests(shared_data, "Vietnamese", questions=3, shots=5),
        *xcopa_requests(shared_data, "ta", questions=6),
    ]


def score(cls: type[HFLM], gemma: Path, requests: list[Instance], **options: Any) -> list[tuple[float, bool]]:
    model = cls(pretrained=str(gemma), device="cpu", batch_size=1, **options)
    answers: list[tuple[float, bool]] = model.loglikelihood(requests, disable_tqdm=True)
    if isinstance(model, SharedPrefixLM):
        assert model._engine.plan is not None
        assert model._engine.work.run < 0.4 * model._engine.work.asked
    del model
    gc.collect()
    return answers


def test_equal_in_float32_and_as_close_in_bfloat16(gemma: Path, requests: list[Instance]) -> None:
    # float64 softmax for hf alone: torch's float32 log-softmax on CPUs errs by up to 5e-4 over so many words and
    # tokens, ten times what is compared here.
    expected = score(HFLM, gemma, requests, dtype="float32", softmax_dtype="float64")
    ours = score(SharedPrefixLM, gemma, requests, dtype="float32")
    exact = np.array([likelihood for likelihood, _ in expected])
    np.testing.assert_allclose([likelihood for likelihood, _ in ours], exact, atol=1e-4, rtol=0)
    assert [greedy for _, greedy in ours] == [greedy for _, greedy in expected]
    assert 0 < sum(greedy for _, greedy in ours) < len(ours)

    stock = score(HFLM, gemma, requests, dtype="bfloat16", softmax_dtype="float32")
    ours = score(SharedPrefixLM, gemma, requests, dtype="bfloat16")
    error, stock_error = (
        np.sqrt(np.mean([(found[0] - likelihood) ** 2 for found, likelihood in zip(answers, exact, strict=True)]))
        for answers in (ours, stock)
    )
    assert 0.01 < stock_error < 0.5
    assert error < 1.3 * stock_error  # Both are bf16's rounding, drawn twice.
