"""CalibratedTask on tasks of a user's own: what the definitions say, for every kind of question the harness knows."""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import write_dataset
from lm_eval.api.model import LM
from lm_eval.evaluator import simple_evaluate
from lm_eval.tasks import TaskManager

from lm_eval_calib.errors import CalibrationValueError
from lm_eval_calib.harness import _say_rounded, load_stock_task
from lm_eval_calib.metrics import METRICS

CLASS = "!function lm_eval_calib.harness.CalibratedTask"


class ScoredLM(LM):
    """Answers every request by a rule on (context, continuation): a real model of lm-eval without weights."""

    tokenizer_name = "rule"

    def __init__(self, rule: Callable[[str, str], float]) -> None:
        super().__init__()
        self.rule = rule

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:  # type: ignore[override]
        return [(self.rule(*request.args), False) for request in requests]

    def loglikelihood_rolling(self, requests: Any) -> Any:
        raise NotImplementedError

    def generate_until(self, requests: Any) -> Any:
        raise NotImplementedError

    def apply_chat_template(self, chat_history: Any, add_generation_prompt: bool = True) -> str:
        return "".join(f"<{m['role']}>{m['content']}" for m in chat_history) + "<assistant>"


def by_hash(context: str, continuation: str) -> float:
    """A log-likelihood that depends on nothing but the texts."""
    digest = hashlib.sha256(f"{context}\x00{continuation}".encode()).digest()
    return -0.05 - int.from_bytes(digest[:6], "big") / 2**48 * 6


def make_task(folder: Path, rows: Sequence[Mapping[str, Any]], *, train: Sequence[Any] = (), **keys: Any) -> None:
    data = folder / "data" / f"of_{folder.name}"  # datasets takes two folders of one name for the same data
    splits = {"test": rows, **({"train": train} if train else {})}
    write_dataset(data, {"default": splits})
    config = {
        "task": "mine",
        "dataset_path": str(data),
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_choice": "choices",
        "doc_to_target": "gold",
        **keys,
    }
    body = yaml.safe_dump(config, allow_unicode=True, sort_keys=False)
    (folder / "mine.yaml").write_text(f"class: {CLASS}\n{body}", encoding="utf-8")


def evaluate(folder: Path, rule: Callable[[str, str], float] = by_hash, **options: Any) -> Any:
    metadata = options.pop("metadata", None)
    manager = TaskManager(include_path=str(folder), include_defaults=False, metadata=metadata)
    return simple_evaluate(
        ScoredLM(rule), tasks=["mine"], task_manager=manager, bootstrap_iters=100, log_samples=True, **options
    )


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


def questions(count: int, choices: Callable[[int], list[str]], gold: Callable[[int], Any]) -> list[dict[str, Any]]:
    return [{"question": f"Question {i}?", "choices": choices(i), "gold": gold(i)} for i in range(count)]


def test_different_numbers_of_choices(tmp_path: Path) -> None:
    rows = questions(12, lambda i: [f"answer {j}" for j in range(2 + i % 4)], lambda i: i % 2)
    make_task(tmp_path, rows)
    found = evaluate(tmp_path)["results"]["mine"]
    briers, nlls, rights, tops = [], [], [], []
    for row in rows:
        exps = [math.exp(by_hash(row["question"], f" {choice}")) for choice in row["choices"]]
        p = [e / sum(exps) for e in exps]
        briers.append(sum((q - (j == row["gold"])) ** 2 for j, q in enumerate(p)))
        nlls.append(-math.log(p[row["gold"]]))
        rights.append(p.index(max(p)) == row["gold"])
        tops.append(max(p))
    assert found["brier,none"] == pytest.approx(sum(briers) / 12, rel=1e-12)
    assert found["nll,none"] == pytest.approx(sum(nlls) / 12, rel=1e-12)
    assert found["acc,none"] == sum(rights) / 12
    assert found["overconfidence,none"] == pytest.approx((sum(tops) - sum(rights)) / 12, rel=1e-12)
    assert {f"{name},none" for name, metric in METRICS.items() if metric.live} <= set(found)


def test_several_gold_answers_and_ties(tmp_path: Path) -> None:
    # Log-likelihoods -1, -1, -2 (a tie of the first two): p = (e, e, 1) / (2e + 1) = (0.42232, 0.42232, 0.15536).
    rows = [
        {"question": "a", "choices": ["x", "y", "z"], "gold": [1, 2]},
        {"question": "b", "choices": ["x", "y", "z"], "gold": [0, 1]},
    ]
    make_task(tmp_path, rows)
    run = evaluate(tmp_path, lambda _, choice: -2.0 if choice == " z" else -1.0)
    found = run["results"]["mine"]
    assert found["acc,none"] == 0.5  # the tie goes to index 0, which only the second question accepts
    assert found["confidence,none"] == pytest.approx(0.42231, abs=1e-5)
    # Gold sets: 0.42232 + 0.15536 = 0.57768 and 2 x 0.42232 = 0.84464.
    assert found["nll,none"] == pytest.approx((-math.log(0.5776812) - math.log(0.8446376)) / 2, abs=1e-6)


def test_choices_of_equal_text_count_for_the_first(tmp_path: Path) -> None:
    make_task(tmp_path, [{"question": "a", "choices": ["same", "same", "other"], "gold": 1}])
    run = evaluate(tmp_path, lambda _, choice: -3.0 if choice == " other" else -1.0)
    assert run["results"]["mine"]["acc,none"] == 0.0


def test_gold_as_text_and_choices_in_the_context(tmp_path: Path) -> None:
    # Winogrande style: the choices complete the context, one continuation is scored, doc_to_text is the gold index.
    rows = [{"contexts": [f"a{i}", f"b{i}"], "answer": i % 2, "rest": "went home"} for i in range(6)]
    make_task(tmp_path, rows, doc_to_text="answer", doc_to_choice="contexts", doc_to_target="rest")
    found = evaluate(tmp_path)["results"]["mine"]
    pairs = [[by_hash(context, " went home") for context in row["contexts"]] for row in rows]
    assert found["acc,none"] == sum(pair.index(max(pair)) == i % 2 for i, pair in enumerate(pairs)) / 6

    text = [{"question": "q", "choices": ["no", "yes"], "gold": "yes"}]
    other = tmp_path / "other"
    make_task(other, text)
    assert evaluate(other, lambda _, c: -1.0 if c == " yes" else -2.0)["results"]["mine"]["acc,none"] == 1.0


def test_mutual_information_responses(tmp_path: Path) -> None:
    rows = questions(8, lambda i: ["one", "two", "three"], lambda i: i % 3)
    make_task(tmp_path, rows)
    plain = evaluate(tmp_path)["results"]["mine"]
    metrics = [{"metric": "acc_mutual_info", "aggregation": "mean", "higher_is_better": True}]
    other = tmp_path / "other"
    make_task(other, rows, metric_list=metrics)
    both = evaluate(other)["results"]["mine"]
    assert "acc_mutual_info,none" in both
    for name in METRICS:
        if f"{name},none" in plain:
            assert both[f"{name},none"] == pytest.approx(plain[f"{name},none"], nan_ok=True), name


def test_few_shot_chat_template_and_limit(tmp_path: Path) -> None:
    rows = questions(9, lambda i: ["one", "two"], lambda i: i % 2)
    make_task(tmp_path, rows, train=questions(4, lambda i: ["one", "two"], lambda i: 0), training_split="train")
    run = evaluate(tmp_path, num_fewshot=2, apply_chat_template=True, fewshot_as_multiturn=True, limit=5)
    samples = run["samples"]["mine"]
    assert len(samples) == 5
    assert samples[0]["arguments"][0][0].count("<user>") == 3
    expected = []
    for sample in samples:
        scores = [by_hash(*arguments) for arguments in sample["arguments"]]
        expected.append(scores.index(max(scores)) == sample["doc"]["gold"])
    assert run["results"]["mine"]["acc,none"] == sum(expected) / 5


@pytest.mark.parametrize("normalization", ["char", "byte"])
def test_normalisation_by_length(tmp_path: Path, normalization: str) -> None:
    rows = questions(5, lambda i: ["кот", "a dog", "ฉันเห็นแมว"], lambda i: i % 3)
    make_task(tmp_path, rows, metric_list=[{"metric": "acc_norm", "aggregation": "mean", "higher_is_better": True}])
    found = evaluate(tmp_path, metadata={"normalization": normalization})["results"]["mine"]
    tops, rights = [], []
    for row in rows:
        scores = [
            by_hash(row["question"], f" {c}") / len(c if normalization == "char" else c.encode())
            for c in row["choices"]
        ]
        exps = [math.exp(score) for score in scores]
        tops.append(max(exps) / sum(exps))
        rights.append(exps.index(max(exps)) == row["gold"])
    assert found["confidence,none"] == pytest.approx(sum(tops) / 5, rel=1e-12)
    assert found["acc,none"] == sum(rights) / 5
    if normalization == "char":
        assert found["acc,none"] == found["acc_norm,none"]


@pytest.mark.parametrize(
    ("gold", "message"),
    [(2, r"mine, document 1.*from 0 to 1.*got 2"), (-1, r"document 1.*got -1"), ("@", r"document 1.*got '@'")],
)
def test_gold_out_of_range_stops_before_the_model(tmp_path: Path, gold: Any, message: str) -> None:
    good = "yes" if isinstance(gold, str) else 0
    rows = [
        {"question": "a", "choices": ["no", "yes"], "gold": good},
        {"question": "b", "choices": ["no", "yes"], "gold": gold},
    ]
    make_task(tmp_path, rows)

    def never(context: str, continuation: str) -> float:
        raise AssertionError("the model was asked")

    with pytest.raises(CalibrationValueError, match=message):
        evaluate(tmp_path, never)


@pytest.mark.parametrize("value", [-math.inf, math.nan])
def test_log_likelihood_not_finite(tmp_path: Path, value: float) -> None:
    make_task(tmp_path, questions(3, lambda i: ["no", "yes"], lambda i: 0))
    with pytest.raises(CalibrationValueError, match=r"task mine, document 1 .*finite.*softmax_dtype"):
        evaluate(tmp_path, lambda context, c: value if context == "Question 1?" and c == " no" else -1.0)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"metadata": {"normalization": "bytes"}}, r"'normalization' must be one of none, char, byte, token.*'bytes'"),
        ({"metadata": {"num_bins": 0}}, r"'num_bins' must be a whole number of at least 1, got 0"),
        ({"metadata": {"normalization": "token"}}, r"hf-calib"),
        ({"output_type": "generate_until"}, r"needs output_type multiple_choice, got 'generate_until'"),
        ({"doc_to_txt": "x"}, r"unknown keys doc_to_txt"),
        ({"base_task": "no_such_task"}, r"base_task 'no_such_task' is not a task"),
        ({"base_task": "gsm8k"}, r"base_task 'gsm8k' must be a task with output_type multiple_choice"),
        ({"base_task": "truthfulqa_mc2"}, r"process_results"),
    ],
)
def test_mistakes_in_a_yaml(tmp_path: Path, keys: dict[str, Any], message: str) -> None:
    make_task(tmp_path, questions(2, lambda i: ["no", "yes"], lambda i: 0), **keys)
    with pytest.raises(CalibrationValueError, match=message):
        evaluate(tmp_path)


def test_empty_choice_cannot_be_normalised(tmp_path: Path) -> None:
    make_task(tmp_path, questions(3, lambda i: ["no", "" if i == 1 else "yes"], lambda i: 0))
    assert "confidence,none" in evaluate(tmp_path)["results"]["mine"]
    with pytest.raises(CalibrationValueError, match=r"document 1 .*'char' cannot divide.*\['no', ''\]"):
        evaluate(tmp_path, metadata={"normalization": "char"})


def test_base_task_takes_prompts_and_data_from_the_harness() -> None:
    stock = load_stock_task("xnli_sw")
    assert stock["dataset_path"] == "facebook/xnli"
    assert stock["dataset_name"] == "sw"
    assert "sahihi?" in stock["doc_to_choice"]
    assert "metric_list" not in stock
    assert "task" not in stock


def test_rounded_log_likelihoods_are_noticed_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    import torch

    rows = questions(40, lambda i: ["one", "two", "three"], lambda i: i % 3)
    make_task(tmp_path, rows)
    _say_rounded.cache_clear()
    with caplog.at_level(logging.WARNING):
        evaluate(tmp_path)
        assert "rounded" not in caplog.text
        for _ in range(2):
            evaluate(tmp_path, lambda *texts: torch.tensor(by_hash(*texts), dtype=torch.bfloat16).item())
    assert caplog.text.count("rounded to bfloat16") == 1
    assert "softmax_dtype=float32" in caplog.text


def test_predict_only_still_works(tmp_path: Path) -> None:
    make_task(tmp_path, questions(3, lambda i: ["no", "yes"], lambda i: 0))
    run = evaluate(tmp_path, predict_only=True)
    assert len(run["samples"]["mine"]) == 3


def test_pooled_values_in_the_log_are_plain_numbers(tmp_path: Path) -> None:
    make_task(tmp_path, questions(3, lambda i: ["no", "yes"], lambda i: 0))
    sample = evaluate(tmp_path)["samples"]["mine"][0]
    confidence, correct = sample["ece"]
    assert isinstance(confidence, float)
    assert correct in (0.0, 1.0)
    json.dumps({name: sample[name] for name in METRICS if name in sample})
