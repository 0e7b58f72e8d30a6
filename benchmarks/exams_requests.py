"""Multiple-choice requests from EXAMS, for benchmarks/scoring.py: letters after solved questions, or whole choices."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lm_eval.api.instance import Instance

Row = dict[str, Any]
LETTERS = "ABCDE"


def questions(path: Path, choices: int) -> dict[str, list[Row]]:
    """EXAMS questions with so many choices and a valid key, by language."""
    rows: dict[str, list[Row]] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        found = row["question"]["choices"]
        if len(found) >= choices and row["answerKey"] in [choice["label"] for choice in found[:choices]]:
            rows.setdefault(row["info"]["language"], []).append(row)
    return rows


def spread(rows: dict[str, list[Row]], count: int, skip: int) -> list[tuple[str, Row]]:
    """`count` questions, at least 32 of a language where there are as many; each language's first `skip` left out."""
    languages = sorted(rows, key=lambda language: -len(rows[language]))[: max(1, count // 32)]
    each = -(-count // len(languages))
    return [(language, row) for language in languages for row in rows[language][skip : skip + each]][:count]


def prompt(row: Row, choices: int, *, solved: bool) -> str:
    lines = [f"{LETTERS[i]}. {choice['text']}" for i, choice in enumerate(row["question"]["choices"][:choices])]
    key = [choice["label"] for choice in row["question"]["choices"]].index(row["answerKey"])
    return "\n".join([row["question"]["stem"], *lines, "Answer:" + (f" {LETTERS[key]}\n\n" if solved else "")])


def letter_requests(path: Path, count: int, *, shots: int, choices: int = 4) -> list[Instance]:
    """MMLU's form: solved questions of the language, the question with its choices, one letter each."""
    rows = questions(path, choices)
    requests = []
    for number, (language, row) in enumerate(spread(rows, count, skip=shots)):
        few_shot = "".join(prompt(example, choices, solved=True) for example in rows[language][:shots])
        context = few_shot + prompt(row, choices, solved=False)
        requests += [instance(number, i, context, f" {LETTERS[i]}") for i in range(choices)]
    return requests


def text_requests(path: Path, count: int, *, characters: int = 40) -> list[Instance]:
    """The question alone, each choice a text of at least so many characters."""
    rows = {
        language: [row for row in found if min(len(c["text"]) for c in row["question"]["choices"]) >= characters]
        for language, found in questions(path, 4).items()
    }
    requests = []
    for number, (_, row) in enumerate(spread({k: v for k, v in rows.items() if v}, count, skip=0)):
        texts = [f" {choice['text']}" for choice in row["question"]["choices"]]
        requests += [instance(number, i, row["question"]["stem"], text) for i, text in enumerate(texts)]
    return requests


def instance(number: int, index: int, context: str, continuation: str) -> Instance:
    return Instance("loglikelihood", {}, (context, continuation), index, ("exams", number, 1))
