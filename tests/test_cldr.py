"""The embedded benchmark: pinned questions, what its design promises, a run of the stock harness."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from pathlib import Path

import babel
import pytest
from babel import localedata
from conftest import lm_eval, read_run

from lm_eval_calib import cldr, cldr_instructions
from lm_eval_calib.cldr import KINDS, facts, questions, split_of
from lm_eval_calib.errors import CalibrationValueError
from lm_eval_calib.languages import language
from lm_eval_calib.tasks.generate import ROOT, read_benchmark

SOME = ("en", "sw", "am", "zh", "th", "ar", "agq", "ckb", "yo", "kl")


@pytest.fixture(scope="module")
def languages() -> tuple[str, ...]:
    return cldr.find_languages()


def digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, ensure_ascii=False).encode()).hexdigest()[:16]


@pytest.mark.skipif(not babel.__version__.startswith(cldr.MADE_WITH), reason="pinned for another babel")
def test_the_questions_are_pinned(languages: tuple[str, ...]) -> None:
    """Whoever changes these numbers changes the benchmark: its version in benchmark.yml goes up with them."""
    assert digest([questions(code) for code in languages]) == "0ae46b47cceb3361"
    assert digest(cldr_instructions.english_instructions(forms=cldr_instructions.FORMS)) == "21099e7b53293e27"
    assert questions("sw")[0] == {
        "id": "city:Africa/Ndjamena",
        "kind": "city",
        "territory": "TD",
        "examples": "Malabo: Guinea ya Ikweta\nKigali: Rwanda\nTirane: Albania\n",
        "question": "Ndjamena",
        "choices": ["Aisilandi", "Saudia", "Polynesia ya Ufaransa", "Chad"],
        "choice_codes": ["IS", "SA", "PF", "TD"],
        "answer": 3,
    }


def test_size_and_tiers(languages: tuple[str, ...]) -> None:
    assert len(languages) >= 150
    assert min(len(questions(code)) for code in languages) >= 100
    assert languages == cldr.LANGUAGES == tuple(read_benchmark(ROOT / "cldr").languages)
    tiers = Counter(language(code).tier for code in languages)
    assert min(tiers["high"], tiers["mid"], tiers["low"]) >= 20


def test_every_question_of_every_language_is_sound(languages: tuple[str, ...]) -> None:
    fact_of = {fact.id: fact for fact in facts()}
    for code in languages:
        rows = questions(code)
        assert len({row["id"] for row in rows}) == len(rows)
        for row in rows:
            fact = fact_of[row["id"]]
            assert row["territory"] == fact.territory
            # The right answer is there once, and no other choice is true.
            assert row["choice_codes"][row["answer"]] == fact.answer
            assert not (set(row["choice_codes"]) - {fact.answer}) & fact.also_true
            names = [name.casefold() for name in (*row["choices"], row["question"])]
            assert len(set(names)) == 5, (code, row)
            assert all(name == name.strip() and name for name in names)
            lines = row["examples"].splitlines()
            assert len(lines) == cldr.SOLVED_LINES
            solved = [line.rpartition(": ")[2] for line in lines]
            assert not set(solved) & set(row["choices"]), (code, row)


def test_train_and_test_territories_are_apart() -> None:
    split = {fact.territory: fact.split for fact in facts()}
    assert Counter(split.values())["train"] > 100 < Counter(split.values())["test"]
    assert {split_of(row["territory"]) for row in questions("en")} == {"test"}
    assert {split_of(row["territory"]) for row in questions("en", split="train")} == {"train"}
    english = cldr.names("en")["territory"]
    hidden = {name for code, name in english.items() if split.get(code) == "test"}
    for row in questions("en"):
        # Subjects of the solved lines are train territories; of cities the answers are.
        for line in row["examples"].splitlines():
            assert line.split(": ")[row["kind"] == "city"] not in hidden, row
    for row in cldr_instructions.english_instructions(forms=("question", "sentence", "choice")):
        if row["input"] in english.values():
            assert row["input"] not in hidden


def test_questions_are_parallel_over_languages() -> None:
    english = {row["id"]: row["choice_codes"] for row in questions("en")}
    for code in ("sw", "th", "ru", "zh", "bn"):
        rows = {row["id"]: row["choice_codes"] for row in questions(code)}
        shared = english.keys() & rows.keys()
        assert len(shared) > 0.85 * len(english)
        same = sum(english[key] == rows[key] for key in shared)
        assert same > 0.8 * len(shared), (code, same, len(shared))
        order = [key for key in rows if key in shared]
        assert order == [key for key in english if key in shared]


def test_a_choice_written_like_another_is_replaced() -> None:
    fact = next(fact for fact in facts() if fact.kind == "language" and fact.split == "test")
    table = {kind: dict(names) for kind, names in cldr.names("en").items()}
    before = cldr.ask(fact, table)
    assert before is not None
    wrong = next(code for code in before["choice_codes"] if code != fact.answer)
    table["language"][wrong] = table["language"][fact.answer].upper()
    after = cldr.ask(fact, table)
    assert after is not None
    assert wrong not in after["choice_codes"]
    kept = [code for code in before["choice_codes"] if code != wrong]
    assert [code for code in after["choice_codes"] if code in kept] == kept
    del table["territory"][fact.subject]
    assert cldr.ask(fact, table) is None


def test_frequent_answers_do_not_give_the_right_one_away() -> None:
    often = Counter(fact.answer for fact in facts() if fact.kind == "language" and fact.split == "test")
    rows = [row for row in questions("en") if row["kind"] == "language"]
    guessed = sum(
        max(row["choice_codes"], key=lambda code: often[code]) == row["choice_codes"][row["answer"]] for row in rows
    )
    assert guessed / len(rows) < 0.45
    places = Counter(row["answer"] for row in questions("en"))
    assert all(40 < places[place] < 110 for place in range(4))


def test_locales_filled_from_another_language_are_left_out(languages: tuple[str, ...]) -> None:
    assert "fr" in languages
    assert "ht" not in languages  # CLDR's Haitian Creole inherits French names
    assert localedata.exists("no")
    assert not {"no", "nb"} <= set(languages)


def test_dataset_selects_kinds_and_refuses_others() -> None:
    parts = cldr.dataset(language="sw", kinds=["city"], num_bins=15, version=1)
    assert set(parts["test"]["kind"]) == {"city"}
    with pytest.raises(CalibrationValueError, match=r"kinds: .*got rivers"):
        cldr.dataset(language="sw", kinds=["rivers"])
    with pytest.raises(CalibrationValueError, match=r"language: .*got 'klingon'"):
        cldr.dataset(language="klingon")
    with pytest.raises(CalibrationValueError, match="no names for currency in language 'kl'"):
        cldr.dataset(language="kl", kinds=["currency"])


def test_instruction_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "made" / "english.jsonl"
    assert cldr_instructions.main([str(path), "--forms", "choice", "line", "--limit", "50"]) == 0
    assert "50 English instructions" in capsys.readouterr().out
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert len(rows) == 50
    for row in rows:
        assert set(row) == {"instruction", "input", "output"}
        lettered = "A. " in row["instruction"] + row["input"]
        assert (row["output"] in "ABCD") == lettered
    with pytest.raises(CalibrationValueError, match="forms"):
        cldr_instructions.english_instructions(forms=["poem"])


def test_every_kind_is_asked_in_the_large_languages() -> None:
    for code in ("en", "sw", "zh", "yo"):
        assert set(Counter(row["kind"] for row in questions(code))) == set(KINDS)


def test_the_stock_harness_runs_it(tmp_path: Path, tiny_model: Path) -> None:
    command = f"run --model hf --model_args pretrained={tiny_model} --tasks calib_cldr_sw,calib_cldr_am"
    options = f"--limit 8 --num_fewshot 1 --batch_size 16 --output_path {tmp_path} --log_samples"
    lm_eval(*command.split(), *options.split(), cwd=tmp_path)
    results, samples = read_run(tmp_path)
    assert set(results["results"]) == {"calib_cldr_sw", "calib_cldr_am"}
    rows = samples["calib_cldr_sw"]
    expected = questions("sw")[:8]
    for row, question in zip(rows, expected, strict=True):
        context = row["arguments"]["gen_args_0"]["arg_0"]
        assert context.endswith(question["examples"] + question["question"] + ":")
        assert context.count("\n") == 4  # one more solved line above the three
        given = [row["arguments"][f"gen_args_{place}"]["arg_1"] for place in range(4)]
        assert given == [f" {choice}" for choice in question["choices"]]
        assert row["target"] == str(question["answer"])
